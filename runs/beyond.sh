#!/usr/bin/env bash
# What the paper leaves open: eight studies, and the power of Table 1.
source "$(dirname "$0")/scale.sh"
for name in staleness items conflicts cohorts users bias; do
  trained "$name" news_categorize
done
"$OPPU" study tasks --task news_categorize,news_headline --data "$DATA/news_categorize,$DATA/news_headline" --base "$BASE" \
  --users "$users" --newest "$items" $(adapting news_categorize) --out "$OUT/tasks"
for file in "$OUT"/table1/*/results.json "$OUT"/table1/*/seed-*/results.json; do
  [ -f "$file" ] || continue
  run=$(dirname "$file")
  name=${run#"$OUT/table1/"}
  "$OPPU" study power --run "$run" --out "$OUT/power-${name/\//-}"
done
# last, for it takes 16 bytes of memory for each parameter of the base: 108 GB for one of 6.7 billion
trained finetuning news_categorize
