"""Score a trained run again: another split, sampler, number of steps or members, without training.

    python -m scripts.evaluate save/diffusion/NYCFlights_12_12 --split validation --sampler ddim --sample_steps 20

Choices belong on `--split validation` (the default); the run folder is not changed.
"""

import argparse
from pathlib import Path

import torch

from data.registry import data_dir_from
from data.windows import SPLITS, WindowedField, open_data
from main_train import load_forecaster, score_ensemble
from models.diffusion import SAMPLERS
from utils.checkpoint import write_json
from utils.config import run_main
from utils.device import choose_device
from utils.runlog import print_scores


def open_run_data(content: dict, data_dir: str, device: torch.device) -> WindowedField:
    """The data that a checkpoint was trained on."""
    config = content["config"]
    return open_data(config["data_name"], data_dir_from(data_dir), config["history_len"], config["predict_len"], device,
                     config["oracle_nodes"], config["oracle_steps"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("run_folder", type=Path, help="folder of a stage-2 run")
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--windows", type=int, default=0, help="so many windows, evenly spread; 0: all")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: as trained")
    parser.add_argument("--sample_steps", type=int)
    parser.add_argument("--sample_precision", choices=("float32", "bfloat16"))
    parser.add_argument("--nsample", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the scores there")
    given = parser.parse_args(arguments)
    device = choose_device(given.device)
    model, content = load_forecaster(given.run_folder)
    changed = {name: value for name, value in vars(given).items()
               if name in ("sampler", "sample_steps", "sample_precision", "nsample", "seed") and value is not None}
    data = open_run_data(content, given.data_dir, device)
    settings = {**content["config"], **changed, "test_windows": given.windows}
    scores = score_ensemble(model.to(device), settings, data, given.split, device)
    print_scores(scores, data.field.spec.unit)
    if given.json:
        write_json(given.json, scores)
    return 0


if __name__ == "__main__":
    run_main(main)
