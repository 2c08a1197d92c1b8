# What the scripts of this folder share; read by them, not run.
set -euo pipefail
SCALE=${SCALE:-small}        # small: two cores; full: a GPU
DATA=${DATA:-data}           # a folder with one folder for each task, of its name
BASE=${BASE:-smollm2-135m}  # any base by name or folder; full runs want a larger one
OUT=${OUT:-runs/out/$SCALE}
OPPU=${OPPU:-.venv/bin/oppu}
RUNS=$(dirname "${BASH_SOURCE[0]}")
case $SCALE in small | full) ;; *) echo "SCALE is '$SCALE'; use small or full" >&2; exit 2 ;; esac
[ -d "$DATA" ] || { echo "there is no folder $DATA; set DATA to the folder with one folder for each task" >&2; exit 2; }

# adapting TASK: the pairs of held-out users that adapt its base, the same for all scripts; full runs take all questions, as
# the paper does. Histories of citation and tweets ask nothing like their questions, so small runs take questions alone there.
adapting() {
  [ "$SCALE" = small ] || { echo --no-adapt-histories; return 0; }
  case $1 in
    citation) echo --adapt-pairs 300 --no-adapt-histories ;;
    citation_by_text | news_headline) echo --adapt-pairs 300 ;;
    movie_tagging) echo --adapt-pairs 120 ;;
    news_categorize) echo --adapt-pairs 400 ;;
    product_rating | scholarly_title) echo --adapt-pairs 100 ;;
    tweet_paraphrase) echo --adapt-pairs 600 --no-adapt-histories ;;
    tweets_reworded) echo --adapt-pairs 600 ;;
    *) echo "unknown task $1" >&2; return 2 ;;
  esac
}

# naming TASK: sets `named` to the options for a task and its data; two ways of asking of our own have a file here
naming() {
  case $1 in
    citation_by_text) named=(--task "$RUNS/$1.toml" --data "$DATA/citation") ;;
    tweets_reworded) named=(--task "$RUNS/$1.toml" --data "$DATA/tweet_paraphrase") ;;
    *) named=(--task "$1" --data "$DATA/$1") ;;
  esac
}

# study NAME TASK OPTIONS...: a study on one task, into a folder of its own
study() {
  local name=$1 task=$2; shift 2
  naming "$task"
  "$OPPU" study "$name" "${named[@]}" --base "$BASE" --out "$OUT/$name-$task" "$@"
}

# trained NAME TASK OPTIONS...: a study that trains, on the bases of Table 1 where it has run
trained() {
  local name=$1 task=$2 pairs folder bases=(); shift 2
  pairs=$(adapting "$task")
  for folder in "$OUT/table1/$task" "$OUT/table1/$task/seed-0"; do
    [ ! -d "$folder/store" ] || bases=(--bases "$folder")
  done
  study "$name" "$task" --users "$users" $pairs "${bases[@]}" "$@"
}

# Users and items of a study that trains
case $SCALE in
  small) users=8 items=30 ;;
  full) users=100 items=100000 ;;
esac
