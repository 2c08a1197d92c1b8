#!/usr/bin/env bash
# Table 5: the data sets in numbers.
source "$(dirname "$0")/scale.sh"
for task in citation movie_tagging news_categorize product_rating news_headline scholarly_title tweet_paraphrase; do
  "$OPPU" data check "$DATA/$task" --task "$task"
done
