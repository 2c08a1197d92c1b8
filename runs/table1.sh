#!/usr/bin/env bash
# Table 1: thirteen columns, seven tasks. `runs/table1.sh [TASK...]`, of which two may be our own ways to ask citations and
# tweets; small runs take few users, and the bases of table1_users.sh where it has run. Settings: see runs/README.md.
source "$(dirname "$0")/scale.sh"
tasks=("$@")
[ ${#tasks[@]} -gt 0 ] || tasks=(citation news_categorize movie_tagging product_rating news_headline scholarly_title tweet_paraphrase)

# full: an experiment in full, on the tasks of `named`; EXTRA: more options, such as --profiles FILE
full() {
  "$OPPU" experiment "${named[@]}" --base "$BASE" --methods all --users 100 --seeds 0,1,2 --out "$OUT/table1" \
    $(adapting "${tasks[0]}") ${EXTRA:-}
}

if [ "$SCALE" = full ]; then
  papers=()
  for task in "${tasks[@]}"; do # our own ways of asking by themselves, as they have data under another name
    if [ -f "$RUNS/$task.toml" ]; then naming "$task"; full; else papers+=("$task"); fi
  done
  case ${#papers[@]} in # the paper's tasks last and at once, so that the joint page in the folder is theirs
    0) exit ;;
    1) naming "${papers[0]}" ;;
    *) named=(--task "$(IFS=,; echo "${papers[*]}")" --data "$DATA") ;;
  esac
  full
  exit
fi
fast=(--learning-rate 0.01 --epochs 1)
for task in "${tasks[@]}"; do # users and items by the length of its prompts
  size=()
  case $task in
    citation) size=(--users 16 --newest 30) ;;
    citation_by_text) size=(--users 16 --newest 30 "${fast[@]}") ;;
    news_categorize) size=(--users 8 --newest 40 "${fast[@]}") ;;
    product_rating | scholarly_title) size=(--users 8 --newest 12 "${fast[@]}") ;;
    movie_tagging) size=("${fast[@]}") ;;
    news_headline) size=(--users 8 --newest 30 "${fast[@]}") ;;
    tweet_paraphrase) size=(--users 8 --newest 60) ;;
    tweets_reworded) size=(--users 8 --newest 60 "${fast[@]}") ;;
  esac
  written=() # profiles that are no counts are written by the base, in bounds
  case $task in
    news_categorize | movie_tagging | product_rating) ;;
    *) written=(--profile-steps 2 --profile-newest 5 --profile-tokens 48) ;;
  esac
  adapted=()
  [ ! -d "$OUT/table1/$task/store" ] || adapted=(--bases "$OUT/table1/$task")
  # three bases, as in section 2.2, instead of six
  pairs=$(adapting "$task")
  naming "$task"
  "$OPPU" experiment "${named[@]}" --base "$BASE" --methods all --adapt-k 1 --out "$OUT/columns/$task" \
    $pairs "${adapted[@]}" "${size[@]}" "${written[@]}"
done
