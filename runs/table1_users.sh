#!/usr/bin/env bash
# Table 1 with few columns and as many users as there are, or as two cores can take: `runs/table1_users.sh [TASK...]`.
source "$(dirname "$0")/scale.sh"
[ "$SCALE" = small ] || { echo "a full run has all columns and many users: runs/table1.sh" >&2; exit 2; }
tasks=("$@")
[ ${#tasks[@]} -gt 0 ] || tasks=(news_categorize news_headline citation citation_by_text movie_tagging product_rating
  scholarly_title tweet_paraphrase tweets_reworded)
fast=(--learning-rate 0.01 --epochs 1)
for task in "${tasks[@]}"; do
  methods=base,rag,oppu size=()
  case $task in
    citation | news_categorize) size=(--newest 100 "${fast[@]}") ;;
    citation_by_text) methods=base,rag,oppu,oppu+rag size=(--newest 100 "${fast[@]}") ;;
    movie_tagging) methods=base,random,rag,oppu,oppu+rag ;;
    product_rating) size=(--newest 12 "${fast[@]}") ;;
    news_headline) size=(--users 40 --newest 50 "${fast[@]}") ;;
    scholarly_title) methods=base,rag,oppu,oppu+rag size=(--users 16 --newest 24 "${fast[@]}") ;;
    tweet_paraphrase) size=(--newest 200 --learning-rate 0.0003 --epochs 1) ;;
    tweets_reworded) size=(--newest 200 "${fast[@]}") ;;
  esac
  pairs=$(adapting "$task")
  naming "$task"
  "$OPPU" experiment "${named[@]}" --base "$BASE" --methods "$methods" --k 1 --out "$OUT/table1/$task" $pairs "${size[@]}"
done
