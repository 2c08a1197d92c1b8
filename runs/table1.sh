#!/usr/bin/env bash
# Table 1: thirteen columns, seven tasks. `runs/table1.sh [TASK...]`, of which two may be our own ways to ask citations and
# tweets; settings: see runs/README.md.
source "$(dirname "$0")/scale.sh"
tasks=("$@")
[ ${#tasks[@]} -gt 0 ] || tasks=(citation news_categorize movie_tagging product_rating news_headline scholarly_title tweet_paraphrase)

# full: an experiment in full, on the tasks of `named`
full() {
  "$OPPU" experiment "${named[@]}" --base "$BASE" --methods all --users 100 --seeds 0,1,2 --out "$OUT/table1"
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
for task in "${tasks[@]}"; do # each within two hours, as reckoned: users and items by the length of its prompts
  size=()
  case $task in
    citation) size=(--users 40 --newest 30) ;;
    citation_by_text) size=(--users 40 --newest 30 "${fast[@]}") ;;
    news_categorize) size=(--users 25 --newest 40 "${fast[@]}") ;;
    product_rating) size=(--users 24 --newest 12 "${fast[@]}") ;;
    news_headline) size=(--users 25 --newest 40 "${fast[@]}") ;;
    scholarly_title) size=(--users 16 --newest 24 "${fast[@]}") ;;
    tweet_paraphrase) size=(--newest 100) ;;
    tweets_reworded) size=(--newest 100 "${fast[@]}") ;;
  esac
  # three bases, as in section 2.2, instead of six
  pairs=$(adapting "$task")
  naming "$task"
  "$OPPU" experiment "${named[@]}" --base "$BASE" --methods all --adapt-k 1 --out "$OUT/table1/$task" \
    $pairs "${size[@]}"
done
