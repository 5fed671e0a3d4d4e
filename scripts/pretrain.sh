#!/usr/bin/env bash
# Stage 1, the mean model, on every dataset that is there; extra flags go to each run.
exec bash "$(dirname "${BASH_SOURCE[0]}")/all_datasets.sh" main_pretrain.py "$@"
