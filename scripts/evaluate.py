"""Score a trained run again: another split, sampler, number of steps or members, without training.

    python -m scripts.evaluate save/diffusion/NYCFlights_12_12 --split validation --sampler dpm2m --sample_steps 20

Choices belong on `--split validation` (the default); the run folder is not changed.
"""

from pathlib import Path

from data.windows import SPLITS
from models import SAMPLING_FLAGS, load_forecaster
from utils.config import PATHS, FlagParser, TrainConfig, output_path
from utils.pipeline import CHOICES, open_run_data, refuse_input, score_ensemble
from utils.program import run_main
from utils.training.checkpoint import write_json
from utils.training.distributed import choose_device, join
from utils.training.runlog import print_scores

CHANGEABLE = (*SAMPLING_FLAGS, "test_windows", "threshold")


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, help="folder of a stage-2 run")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="windows to score (default: validation)")
    parser.add_argument("--online", action="store_true", default=False, help="correct the quantile levels of each "
                        "window by what has been observed of the windows before it, as scripts.forecast --rolling does")
    parser.add_argument("--json", type=output_path, default=None, help="write the scores there")
    parser.add_paths()
    parser.add_flags(TrainConfig, CHOICES, ("data_dir", "device"))
    parser.add_flags(TrainConfig, CHOICES, CHANGEABLE, "that of the run")
    given = vars(parser.parse_args(arguments))
    device = choose_device(given.get("device", TrainConfig.device))
    processes = join(device)
    if given["online"] and processes.count > 1:
        raise ValueError("--online corrects one window after the other: start it in one process, without torchrun")
    run = load_forecaster(given["run_folder"], device)
    refuse_input("--json", given["json"], run.checkpoint["config"], given.get("data_dir", ""),
                 *(given[name] for name in PATHS))
    data = open_run_data(run.checkpoint, given.get("data_dir", ""), device, **{name: given[name] for name in PATHS})
    settings = {**run.checkpoint["config"], **{name: given[name] for name in CHANGEABLE if name in given}}
    if given["online"] and "test_windows" not in given:
        settings["test_windows"] = 0  # all of them: a correction learns from every window
    scores, _ = score_ensemble(run.model, settings, data, given["split"], device, processes,
                               online=run.online() if given["online"] else None)
    print_scores(scores, data.field.spec.unit)
    if given["json"] and processes.first:
        write_json(given["json"], scores)
    return 0


if __name__ == "__main__":
    run_main(main)
