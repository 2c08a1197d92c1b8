#!/usr/bin/env bash
# What is finished under OUT on one page, with its tables as CSV and LaTeX.
source "$(dirname "$0")/scale.sh"
folders=()
for file in "$OUT"/table1/*/results.json "$OUT"/table1/*/seed-*/results.json; do
  [ ! -f "$file" ] || folders+=("$(dirname "$file")")
done
for file in "$OUT"/*/study.json; do # of a finished study there is NAME.json, too
  [ -f "$file" ] || continue
  folder=$(dirname "$file")
  name=$(sed -n 's/.*"study": "\(.*\)".*/\1/p' "$file")
  [ ! -f "$folder/$name.json" ] || folders+=("$folder")
done
[ ${#folders[@]} -gt 0 ] || { echo "nothing is finished under $OUT" >&2; exit 2; }
"$OPPU" report "${folders[@]}" --out "$OUT/report"
