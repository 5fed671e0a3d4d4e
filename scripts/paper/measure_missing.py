"""What missing values cost: hide some of a dataset's values, train with and without them, score on the same targets.

    python -m scripts.paper.measure_missing --data_name MobileNJ --mean_epochs 10 --diffusion_epochs 10 \
        --report docs/results/missing.md

Two trainings of both stages: on all values, and on what is left, with `--missing mask`. Both forecast the same test
windows, each from its own history, and are scored against the true values: those that were left, and those that were
hidden.
"""

import math
from pathlib import Path

import numpy as np
import torch

import main_pretrain
import main_train
from data.fields import Field, load_field
from data.registry import data_dir_from
from models import ensemble_sampler, load_forecaster
from utils.config import FlagParser, PretrainConfig, TrainConfig, output_path
from utils.output.tables import markdown
from utils.pipeline import CHOICES, WINDOWS_AT_ONCE, open_run_data
from utils.program import run_main
from utils.scores.evaluation import progress
from utils.scores.metrics import EnsembleScores
from utils.training.checkpoint import write_atomically, write_text
from utils.training.device import choose_device

SHOWN = ("CRPS", "CRPS_sum", "QICE", "coverage90", "MAE_median", "energy_score")
PAGE = """# What missing values cost

Written by `python -m scripts.paper.measure_missing {command}`: a share of all values is hidden at random, in histories
and futures, in training and test. Two trainings of both stages, one seed: on all values (complete), and on those that
are left, with `--missing mask` (mask). Both forecast the same test windows, each from its own history, and are scored
against the true values, those left and those hidden.

{table}"""


def train(field: Field, values: np.ndarray, name: str, folder: Path, flags: list[str]) -> Path:
    """Both stages on these values in the place of the field's; the folder of stage 2."""
    path = folder / f"{name}.npz"
    write_atomically(path, lambda file: np.savez(file, values=values, node_names=np.array(field.node_names),
                                                 times=field.calendar.times))
    arguments = ["--data_path", str(path), "--save_dir", str(folder), *flags]
    main_pretrain.main(arguments)
    main_train.main([*arguments, "--test_windows", "2"])  # its own forecast of the test split is not what is reported
    lengths = [flags[flags.index(flag) + 1] for flag in ("--history_len", "--predict_len")]
    return folder / "diffusion" / "_".join([name, *lengths])


def scores_of(run: Path, truth: torch.Tensor, hidden: torch.Tensor, device: torch.device, windows: int) -> dict:
    """Scores of a run on the test windows: on the targets that were left, and on those that were hidden."""
    trained = load_forecaster(run, device)
    data, settings = open_run_data(trained.checkpoint, "", device), trained.checkpoint["config"]
    sample = ensemble_sampler(trained.model, settings, device)
    scores = {part: EnsembleScores(settings["predict_len"], data.num_nodes, settings["nsample"])
              for part in ("left", "hidden")}
    for batch in progress(data.batches("test", WINDOWS_AT_ONCE, limit=windows), "forecasting"):
        targets = batch.start.cpu().unsqueeze(1) + data.history_len + torch.arange(data.predict_len)
        members = data.scaler.physical(sample(batch)).cpu()
        for part, counts in (("left", ~hidden[targets]), ("hidden", hidden[targets])):
            scores[part].update(members, truth[targets], counts)
    found = {part: each.compute(settings["members"]) for part, each in scores.items()}
    return {part: {name: each[name] for name in SHOWN} for part, each in found.items()}


def page(found: dict[str, dict], flags: dict) -> str:
    """What was found, as a page of its own: a row for each training and part of the targets."""
    rows = [[variant, part, *(f"{scores[name]:.4f}" for name in SHOWN)]
            for variant, parts in found.items() for part, scores in parts.items()]
    command = " ".join(f"--{name} {value}" for name, value in flags.items())
    return PAGE.format(command=command, table=markdown(["training", "targets", *SHOWN], rows))


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.1, help="share of the values to hide at random")
    parser.add_argument("--report", type=output_path, default=None, help="write the scores there, as a page")
    parser.add_flags(PretrainConfig, CHOICES, ("mean_epochs",))
    parser.add_flags(TrainConfig, CHOICES, ("data_name", "data_dir", "history_len", "predict_len", "diffusion_epochs",
                                            "batch_size", "nsample", "test_windows", "seed", "save_dir", "device"))
    given = vars(parser.parse_args(arguments))
    share, target, data_dir = (given.pop(name, "") for name in ("share", "report", "data_dir"))
    windows = given.pop("test_windows", TrainConfig.test_windows)
    if not 0 < share < 1:
        raise ValueError(f"--share {share:g}: choose a share between 0 and 1")
    name = given.pop("data_name", TrainConfig.data_name)
    folder = Path(given.pop("save_dir", TrainConfig.save_dir)) / "missing" / name
    folder.mkdir(parents=True, exist_ok=True)
    field = load_field(name, data_dir_from(data_dir))
    truth = field.values.float()
    hidden = torch.from_numpy(np.random.default_rng(given.get("seed", 0)).random(truth.shape) < share)
    gaps = truth.masked_fill(hidden, math.nan).numpy()
    lengths = {length: getattr(TrainConfig, length) for length in ("history_len", "predict_len")}
    support = "nonnegative" if field.spec.nonnegative else "any"
    flags = ["--support", support]
    for flag, value in {**lengths, **given}.items():
        flags += [f"--{flag}", str(value)]
    device = choose_device(given.get("device", TrainConfig.device))
    found = {}
    for variant, values, missing in (("complete", truth.numpy(), "error"), ("mask", gaps, "mask")):
        run = train(field, values, variant, folder, [*flags, "--missing", missing])
        found[variant] = scores_of(run, truth, hidden, device, windows)
        for part, scores in found[variant].items():
            print(f"{variant:9}{part:7}" + "  ".join(f"{key} {scores[key]:.4f}" for key in SHOWN), flush=True)
    if target:
        write_text(target, page(found, {"data_name": name, "share": share, **given}))
    return 0


if __name__ == "__main__":
    run_main(main)
