#!/usr/bin/env bash
# Both stages on one dataset with its published settings: `bash scripts/run_dataset.sh SST [flags for both stages]`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
name="$1"
shift
python main_pretrain.py --data_name "$name" "$@"
python main_train.py --data_name "$name" "$@"
