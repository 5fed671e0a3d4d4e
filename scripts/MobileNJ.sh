#!/usr/bin/env bash
# Both stages on MobileNJ; extra flags go to both, and another --recipe has settings of its own. These are those of the
# default recipe (utils/config.py), with which the tables are made.
# stage 1: --recipe cost --history_len 12 --predict_len 12 --batch_size 8 --mean_epochs 16 --mean_lr 0.003 --networks 3 --lags none --scaling field
# stage 2: --recipe cost --history_len 12 --predict_len 12 --batch_size 8 --diffusion_epochs 20 --diffusion_lr 0.003 --nsample 50 --sampler dpm2m --sample_steps 10 --lags none --scaling field
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_dataset.sh" MobileNJ "$@"
