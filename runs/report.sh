#!/usr/bin/env bash
# Everything under OUT on one page, with Table 1 as CSV and LaTeX.
source "$(dirname "$0")/scale.sh"
folders=()
for file in "$OUT"/table1/*/results.json "$OUT"/table1/*/seed-*/results.json "$OUT"/*/study.json; do
  [ -f "$file" ] && folders+=("$(dirname "$file")")
done
[ ${#folders[@]} -gt 0 ] || { echo "nothing is finished under $OUT" >&2; exit 2; }
"$OPPU" report "${folders[@]}" --out "$OUT/report"
