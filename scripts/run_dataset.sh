#!/usr/bin/env bash
# Both stages on one dataset with its settings (PRESETS in utils/config.py); extra flags go to both stages:
# bash scripts/run_dataset.sh SST --seed 1
needs_data=("$@")
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-lock.txt

name="$1"
shift
python main_pretrain.py --data_name "$name" "$@"
python main_train.py --data_name "$name" "$@"
