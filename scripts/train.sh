#!/usr/bin/env bash
# Stage 2, the diffusion model and its scores, on every dataset that is there; extra flags go to each run.
exec bash "$(dirname "${BASH_SOURCE[0]}")/all_datasets.sh" main_train.py "$@"
