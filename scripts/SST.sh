#!/usr/bin/env bash
# Both stages on SST by the default recipe, with its presets; extra flags go to both.
# stage 1: --recipe cost --history_len 12 --predict_len 12 --batch_size 32 --mean_epochs 16 --mean_lr 0.001 --networks 3 --lags none --scaling field
# stage 2: --recipe cost --history_len 12 --predict_len 12 --batch_size 32 --diffusion_epochs 20 --diffusion_lr 0.003 --nsample 50 --sampler adams --sample_steps 10 --lags none --scaling field
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_dataset.sh" SST "$@"
