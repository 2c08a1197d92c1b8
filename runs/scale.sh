# What the scripts of this folder share; read by them, not run.
set -euo pipefail
SCALE=${SCALE:-small}        # small: two cores; full: a GPU
DATA=${DATA:-data}           # a folder with one folder for each task, of its name
BASE=${BASE:-smollm2-135m}  # any base by name or folder; full runs want a larger one
OUT=${OUT:-runs/out/$SCALE}
OPPU=${OPPU:-.venv/bin/oppu}
case $SCALE in small | full) ;; *) echo "SCALE is '$SCALE'; use small or full" >&2; exit 2 ;; esac
[ -d "$DATA" ] || { echo "there is no folder $DATA; set DATA to the folder with one folder for each task" >&2; exit 2; }

# study NAME TASK OPTIONS...: a study on one task, into a folder of its own
study() {
  local name=$1 task=$2; shift 2
  "$OPPU" study "$name" --task "$task" --data "$DATA/$task" --base "$BASE" --out "$OUT/$name-$task" "$@"
}

# Users, items and pairs of a study that trains: $users, $items, $pairs
case $SCALE in
  small) users=8 items=30 pairs=300 ;;
  full) users=100 items=100000 pairs=100000 ;;
esac
sizes=(--users "$users" --newest "$items" --adapt-pairs "$pairs")
