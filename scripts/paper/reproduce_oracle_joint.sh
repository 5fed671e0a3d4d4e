#!/usr/bin/env bash
# Scores against the exact answer, on Oracle with strong correlation between nodes (docs/results/oracle_joint.*): three
# seeds on 4,000 steps, and one on 16,000; and on a skewed Oracle (docs/results/oracle_skew.json),
# the diffusion and its Gaussian start, which a learning rate of almost 0 keeps. Extra flags go to both stages; an
# interrupted run resumes.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh" requirements-lock.txt

save=save/oracle_joint
flags=(--data_name Oracle --oracle_length_scale 1 --save_dir "$save" "$@")
for seed in 0 1 2; do
    python main_pretrain.py "${flags[@]}" --seed "$seed" --run_name "$seed"
    python main_train.py "${flags[@]}" --seed "$seed" --run_name "$seed"
done
long=(--oracle_steps 16000 --run_name long)
python main_pretrain.py "${flags[@]}" "${long[@]}" --networks 1 --mean_epochs 8
python main_train.py "${flags[@]}" "${long[@]}" --diffusion_epochs 6 --test_windows 400
python -m scripts.paper.score_oracle "$save"/diffusion/Oracle_12_12_{0,1,2,long} \
    --overwrite --json docs/results/oracle_joint.json --table docs/results/oracle_joint.md

skewed=(--data_name Oracle --oracle_skew 1 --save_dir save/oracle_skew "$@")
python main_pretrain.py "${skewed[@]}"
mean=(--mean_run save/oracle_skew/mean/Oracle_12_12 --test_windows 400)
python main_train.py "${skewed[@]}" "${mean[@]}" --run_name diffusion
python main_train.py "${skewed[@]}" "${mean[@]}" --run_name gaussian --diffusion_epochs 1 --diffusion_lr 1e-30
python -m scripts.paper.score_oracle save/oracle_skew/diffusion/Oracle_12_12_{diffusion,gaussian} \
    --overwrite --json docs/results/oracle_skew.json
