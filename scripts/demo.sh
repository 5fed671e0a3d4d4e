#!/usr/bin/env bash
# A first probabilistic forecast: both stages on NYCFlights, scores and a picture; the last line names their folder.
# Two to four minutes of computing on 2 CPU cores after installation, with one network in stage 1 instead of three.
# Extra flags go to both stages.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-lock.txt

python main_pretrain.py --data_name NYCFlights --run_name demo --networks 1 --mean_epochs 10 --mean_ema 0.98 "$@"
python main_train.py --data_name NYCFlights --run_name demo --diffusion_epochs 10 --diffusion_ema 0.98 --nsample 50 \
    --sample_steps 10 --test_windows 200 --cross_check 2 "$@"
