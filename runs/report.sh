#!/usr/bin/env bash
# What is finished under OUT on one page, with its tables as CSV and LaTeX.
source "$(dirname "$0")/scale.sh"
folders=()
gathered=" " # task and seed of each run: of two the first is shown, for the report refuses both
for file in "$OUT"/columns/*/results.json "$OUT"/table1/*/results.json "$OUT"/{table1,seeds}/*/seed-*/results.json; do
  [ -f "$file" ] || continue
  folder=$(dirname "$file")
  run=${folder#"$OUT"/*/}
  case $run in */seed-*) ;; *) run=$run/seed-0 ;; esac # as the scripts of Table 1 run them
  case $folder in # a task with all columns is not shown with some of them as well, but with other seeds
    "$OUT"/table1/*) [ ! -f "$OUT/columns/${run%%/*}/results.json" ] || continue ;;
  esac
  case $gathered in *" $run "*) continue ;; esac
  gathered+="$run "
  folders+=("$folder")
done
for file in "$OUT"/*/study.json; do # of a finished study there is NAME.json, too
  [ -f "$file" ] || continue
  folder=$(dirname "$file")
  name=$(sed -n 's/.*"study": "\(.*\)".*/\1/p' "$file")
  [ ! -f "$folder/$name.json" ] || folders+=("$folder")
done
[ ${#folders[@]} -gt 0 ] || { echo "nothing is finished under $OUT" >&2; exit 2; }
"$OPPU" report "${folders[@]}" --out "$OUT/report"
