#!/usr/bin/env bash
# Joint scores against the exact answer, on Oracle with strong correlation between nodes: docs/results/oracle_joint.*,
# for every denoiser and three seeds. Extra flags go to both stages; a run that was cut goes on where it stopped.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-lock.txt

save=save/oracle_joint
for seed in 0 1 2; do
    flags=(--data_name Oracle --oracle_length_scale 1 --seed "$seed" --save_dir "$save" "$@")
    python main_pretrain.py "${flags[@]}" --run_name "$seed"
    for denoiser in mlp tokens graph; do
        python main_train.py "${flags[@]}" --eps_model "$denoiser" --run_name "${denoiser}_$seed" \
            --mean_run "$save/mean/Oracle_12_12_$seed"
    done
done
python -m scripts.score_oracle "$save"/diffusion/Oracle_12_12_{mlp,tokens,graph}_{0,1,2} \
    --json docs/results/oracle_joint.json --table docs/results/oracle_joint.md
