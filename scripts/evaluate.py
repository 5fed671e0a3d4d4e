"""Score a trained run again: another split, sampler, number of steps or members, without training.

    python -m scripts.evaluate save/diffusion/NYCFlights_12_12 --split validation --sampler ddim --sample_steps 20

Choices belong on `--split validation` (the default); the run folder is not changed.
"""

from pathlib import Path

import torch

from data.windows import SPLITS, WindowedField
from main_pretrain import open_windows
from main_train import CHOICES, load_forecaster, score_ensemble
from utils.checkpoint import differences, write_json
from utils.config import FlagParser, TrainConfig, output_path, run_main
from utils.device import choose_device
from utils.runlog import print_scores

CHANGEABLE = ("sampler", "sample_steps", "sample_precision", "sample_batch", "nsample", "seed", "test_windows")


def open_run_data(content: dict, data_dir: str, device: torch.device | str) -> WindowedField:
    """The data that a checkpoint was trained on.

    Raises: ValueError when the data folder holds other values than those.
    """
    data = open_windows(content["config"], data_dir, device)
    differing = differences(data.facts(), content["data"])
    if differing:
        raise ValueError(f"{data.field.name}: other data than the run was trained on: {', '.join(differing)}")
    return data


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, help="folder of a stage-2 run")
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--json", type=output_path, default=None, help="write the scores there")
    parser.add_flags(TrainConfig, CHOICES, ("data_dir", "device", *CHANGEABLE))
    given = vars(parser.parse_args(arguments))
    device = choose_device(given.get("device", TrainConfig.device))
    model, content = load_forecaster(given["run_folder"])
    data = open_run_data(content, given.get("data_dir", ""), device)
    settings = {**content["config"], **{name: given[name] for name in CHANGEABLE if name in given}}
    scores = score_ensemble(model.to(device), settings, data, given["split"], device)
    print_scores(scores, data.field.spec.unit)
    if given["json"]:
        write_json(given["json"], scores)
    return 0


if __name__ == "__main__":
    run_main(main)
