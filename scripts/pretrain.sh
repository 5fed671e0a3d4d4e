#!/usr/bin/env bash
# Stage 1 (the mean model) on every dataset whose files are there; extra flags go to each run.
# Another data folder: COST_DATA_DIR=DIR. A run that fails does not stop the others.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-lock.txt

names="$(python -m scripts.get_data --available)"
failed=""
for name in $names; do
    python main_pretrain.py --data_name "$name" "$@" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
