#!/usr/bin/env bash
# Table 2: users whose behaviour shifts; citation, rating, titles, tweets.
source "$(dirname "$0")/scale.sh"
for task in citation product_rating scholarly_title tweet_paraphrase; do
  case $SCALE in small) keep=() ;; full) keep=(--keep 100) ;; esac
  trained shift "$task" --newest "$items" "${keep[@]}"
done
