#!/usr/bin/env bash
# Joint scores against the exact answer, on Oracle with strong correlation between nodes: docs/results/oracle_joint.*,
# for every denoiser and three seeds on 4,000 steps, and for the default on 16,000. Extra flags go to both stages; a run
# that was cut goes on where it stopped.
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh" requirements-lock.txt

save=save/oracle_joint
flags=(--data_name Oracle --oracle_length_scale 1 --save_dir "$save" "$@")
for seed in 0 1 2; do
    python main_pretrain.py "${flags[@]}" --seed "$seed" --run_name "$seed"
    for denoiser in mlp tokens graph; do
        python main_train.py "${flags[@]}" --denoiser "$denoiser" --seed "$seed" --run_name "${denoiser}_$seed" \
            --mean_run "$save/mean/Oracle_12_12_$seed"
    done
done
long=(--oracle_steps 16000 --run_name long)
python main_pretrain.py "${flags[@]}" "${long[@]}" --networks 1 --mean_epochs 8
python main_train.py "${flags[@]}" "${long[@]}" --diffusion_epochs 6 --test_windows 400
python -m scripts.paper.score_oracle "$save"/diffusion/Oracle_12_12_{{mlp,tokens,graph}_{0,1,2},long} \
    --overwrite --json docs/results/oracle_joint.json --table docs/results/oracle_joint.md
