#!/usr/bin/env bash
# Stage 1 (the mean model) on every dataset whose files are present; extra flags go to each run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for name in $(python -m scripts.get_data --available); do
    python main_pretrain.py --data_name "$name" "$@"
done
