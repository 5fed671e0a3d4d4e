"""Divide the scores of a run on the synthetic field by those of the exact forecaster.

    python -m scripts.score_oracle save/diffusion/Oracle_12_12 [--json FILE]

The field's predictive law given the history is known exactly; as many members as the run has are drawn from it and
pass through the same scores on the same test windows. No forecast can be better on average: a ratio of 1 is perfect.
"""

from pathlib import Path

import torch

from data.synthetic import make_oracle
from data.windows import WindowedField
from main_pretrain import open_windows
from utils.checkpoint import CONFIG, METRICS, read_json, write_json
from utils.config import FlagParser, output_path, run_main
from utils.evaluation import evaluate_ensemble

SHOWN = ("CRPS", "CRPS_fair", "CRPS_sum", "QICE", "IS", "coverage90", "MAE", "RMSE", "energy_score", "variogram_score",
         "spread_skill")


def score_exact(data: WindowedField, members: int, seed: int = 0, limit: int = 0) -> dict:
    """Scores of an ensemble drawn from the exact predictive law on test windows of the synthetic field."""
    steps, nodes = data.field.values.shape
    oracle = make_oracle(nodes, steps)
    generator = torch.Generator().manual_seed(seed)

    def draw(batch):
        history = data.scaler.physical(batch.history)
        law = oracle.predictive(history, batch.start, data.predict_len)
        return data.scaler.standardize(law.sample(members, generator))

    scores, _ = evaluate_ensemble(draw, data.batches("test", 8, limit=limit), data.scaler.physical,
                                  (members, data.predict_len, nodes))
    return scores


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, help="folder of a finished stage-2 run on Oracle")
    parser.add_argument("--json", type=output_path, default=None, help="write the scores and ratios there")
    given = parser.parse_args(arguments)
    config = read_json(given.run_folder / CONFIG)["config"]
    if config["data_name"] != "Oracle":
        raise ValueError(f"{given.run_folder}: a run on {config['data_name']}; only Oracle has an exact forecaster")
    ours = read_json(given.run_folder / METRICS)
    if "members" not in ours:
        raise ValueError(f"{given.run_folder}: not a stage-2 run; main_train.py makes one")
    data = open_windows(config, "", "cpu")
    exact = score_exact(data, ours["members"], limit=config["test_windows"])
    ratio = {name: ours[name] / exact[name] for name in SHOWN}
    print(f"{ours['windows']} test windows, {ours['members']} members\n{'':16}{'ours':>10}{'exact':>10}{'ratio':>8}")
    for name in SHOWN:
        print(f"{name:16}{ours[name]:10.4f}{exact[name]:10.4f}{ratio[name]:8.3f}")
    if given.json:
        run = {name: ours[name] for name in ("data_name", "history_len", "predict_len", "windows", "members", "seed",
                                             "sampler", "steps", "best_epoch", "epochs")}
        write_json(given.json, {**run, "ours": {name: ours[name] for name in SHOWN},
                                "exact": {name: exact[name] for name in SHOWN}, "ratio": ratio})
    return 0


if __name__ == "__main__":
    run_main(main)
