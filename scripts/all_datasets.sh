#!/usr/bin/env bash
# One of the two programs on every dataset whose files are there: `bash scripts/all_datasets.sh main_train.py [flags]`.
# Another data folder: COST_DATA_DIR=DIR. A run that fails does not stop the others.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-lock.txt

program="$1"
shift
names="$(python -m scripts.get_data --available)"
failed=""
for name in $names; do
    python "$program" --data_name "$name" "$@" || failed="$failed $name"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
