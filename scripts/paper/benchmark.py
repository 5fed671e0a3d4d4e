"""Run methods x datasets x seeds of the benchmark one after another, and skip what is done.

    python -m scripts.paper.benchmark --data_names MobileNJ,Los_Speed,BikeDC,SST --seeds 0,1,2
    python -m scripts.paper.benchmark --data_names SST --methods gaussian,cost --split validation --save_dir /tmp/try
    python -m scripts.paper.benchmark --data_path FILE --seeds 0

Each method leaves save/benchmark/<split>/<data>_<H>_<F>/<method>_<seed>.json and .csv (scores of every window);
scripts.paper.collect_results makes tables of them. Choices are made on `--split validation`; methods that estimate
something there (spreads, residuals, recalibration) look better on it than they would elsewhere.
"""

import argparse
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import main_pretrain
import main_train
from data.registry import DATASETS, sha256_of
from data.windows import SPLITS
from models import load_forecaster
from models.baselines import SIMPLE
from utils.config import OF_OWN_FILE, PATHS, FlagParser, PretrainConfig, TrainConfig, parse_config, with_own_data
from utils.pipeline import CHOICES, baseline_sampler, load_mean_model, open_windows, score_baseline, score_ensemble
from utils.program import run_main
from utils.training import checkpoint
from utils.training.distributed import choose_device
from utils.training.runs import code_version

OWN_FILE = ("data_path", *OF_OWN_FILE, "missing", "null_value", "covariates", "support")
OWN_ROWS = (*SIMPLE, "copula", "cost")  # rows of a file of one's own, where none is named
SHOWN = ("CRPS", "CRPS_sum", "QICE", "IS", "MAE_median", "energy_score", "variogram_score")

PUBLISHED = "--recipe", "published"
STAGE_1_OFF = {
    "without_climatology": ("--no-climatology",),
    "without_tokens": ("--tokens", "0"),
    "without_networks": ("--networks", "1"),
    "without_modes": ("--linear_modes", "0"),
    "without_recalibration": ("--no-recalibrate",),
    "itransformer": ("--mean_model", "itransformer"),
    "dlinear": ("--mean_model", "dlinear"),
}
STAGE_2_OFF = {
    "without_shape": ("--margin", "scaled"),
    "without_state": ("--scale", "cycle"),
    "without_covariance": ("--noise", "independent"),
    "without_v": ("--prediction", "noise"),
    "without_mean": ("--no-condition_mean",),
    "without_scale": ("--no-condition_scale",),
    "without_center": ("--no-center",),
}
"""Rows of the ablation that differ from cost in these flags of one stage."""
STAGE_1 = {
    "published": PUBLISHED,
    "quantile_stid": ("--no-climatology", "--tokens", "0", "--networks", "1", "--linear_modes", "0", "--no-recalibrate",
                      "--mean_epochs", "30", "--mean_lr", "0.001", "--lags", "none"),
    "ours": (),
    **STAGE_1_OFF,
}
"""Stage-1 models that rows build on, by the flags that make them: as published, its quantile network, the default."""


@dataclass(frozen=True)
class Method:
    """How a row of the tables is made: its stage-1 model, and a baseline on it, or a stage 2 and how it is sampled."""

    stage_1: str = ""
    baseline: str = ""
    stage_2: tuple[str, ...] | None = None  # flags; None: no stage 2
    trained_as: str = ""  # the row whose stage 2 it samples; itself where empty
    sampling: dict = field(default_factory=dict)  # settings in place of those that stage 2 was trained with
    members: str = "random"  # kind of the ensemble; "quantiles": at equidistant levels
    untrained: bool = False  # whether the trained network is replaced by the Gaussian that it starts from
    only: tuple[str, ...] = ()  # datasets of the tables that have this row; none: all
    change: str = ""  # of a row of the ablation: what differs from the step before, or from cost


FAST = {"sampler": "dpm2m", "sample_steps": 10}
ABLATED = "MobileNJ", "Los_Speed", "BikeDC", "SST"
PUBLISHED_ON_OURS = *PUBLISHED, "--training_span", "targets", "--support", "auto"
SMALL = *("--denoiser mlp --diffusion_channels 32 --diffusion_layers 2 --diffusion_epochs 20 --diffusion_lr 0.003 "
          "--diffusion_ema 0.99 --prediction v").split(),
SCALED = *SMALL, *"--margin scaled --endpoint none --scale quantiles".split()
STEPS = {
    "stage 1 of cost, members of possible values": (),
    "a small denoiser that predicts v, trained as in cost": SMALL,
    "residual divided by the scale of the quantiles, no endpoint": SCALED,
    "covariance of the noise": (*SCALED, "--noise", "covariance"),
    "centred members": (*SCALED, "--noise", "covariance", "--center"),
    "residuals mapped to a normal distribution by the quantiles, but for counts": (
        *SCALED, "--noise", "covariance", "--center", "--margin", "auto"),
}
"""From the published stage 2, on the stage 1 of cost, to cost: what each step changes, and its flags.

On BikeDC the last step also changes the batch size, from that of the published preset to that of cost.
"""
METHODS = {
    **{name: Method(baseline=name) for name in SIMPLE},
    **{name: Method("published", name) for name in ("gaussian", "conformal", "residual_fields")},
    **{name: Method("quantile_stid", name) for name in ("quantile", "schaake")},
    "conformal_smooth": Method("published", "conformal", members="quantiles"),
    **{f"{name}_smooth": Method("quantile_stid", name, members="quantiles") for name in ("quantile", "schaake")},
    "published": Method("published", stage_2=PUBLISHED, change="the published system, 50 ancestral steps"),
    "published_fast": Method("published", stage_2=PUBLISHED, trained_as="published", sampling=FAST,
                             change="DPM-Solver++ in 10 steps"),
    "copula": Method("ours", stage_2=("--recipe", "copula")),
    "copula_smooth": Method("ours", stage_2=("--recipe", "copula"), trained_as="copula", members="quantiles"),
    "cost_untrained": Method("ours", stage_2=(), trained_as="cost", untrained=True, change="untrained denoiser"),
    "cost_global": Method("ours", stage_2=("--scale", "global"), change="`--scale global`"),
    **{name: Method(name, stage_2=(), only=ABLATED, change=f"`{' '.join(flags)}`")
       for name, flags in STAGE_1_OFF.items()},
    **{name: Method("ours", stage_2=flags, only=ABLATED, change=f"`{' '.join(flags)}`")
       for name, flags in STAGE_2_OFF.items()},
    **{f"step_{number}": Method("ours", stage_2=PUBLISHED_ON_OURS + flags, sampling=FAST, only=ABLATED, change=change)
       for number, (change, flags) in enumerate(STEPS.items(), 1)},
    "cost_smooth": Method("ours", stage_2=(), trained_as="cost", members="quantiles"),
    "cost": Method("ours", stage_2=(), change="mean and scale as inputs of the denoiser"),
}
"""The rows of the tables, from the last value to the default recipe; docs/results/README.md says what each is."""


@dataclass(frozen=True)
class Task:
    """What all methods have in common."""

    data_name: str
    seed: int
    split: str
    flags: list[str]  # of both stages
    save_dir: Path
    test_windows: int

    def stage(self, kind: str, program, extra: tuple[str, ...]) -> Path:
        """Run a stage of the pipeline unless it is done; its folder. `kind` distinguishes runs of a stage."""
        arguments = ["--data_name", self.data_name, "--seed", str(self.seed), "--save_dir", str(self.save_dir),
                     "--run_name", f"{kind}_{self.seed}", *self.flags, *extra]
        stage, config_class = ("mean", PretrainConfig) if program is main_pretrain else ("diffusion", TrainConfig)
        program.main(arguments)
        return checkpoint.run_folder(str(self.save_dir), stage, parse_config(config_class, CHOICES, arguments))


def score(name: str, task: Task) -> tuple[dict, dict]:
    """Train what a method needs and score it: what its .json and its .csv hold."""
    method, device = METHODS[name], choose_device("auto")
    facts = {"method": name, "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
             "version": code_version()}
    if method.stage_1:
        flags = STAGE_1[method.stage_1]
        mean_run = task.stage(method.stage_1, main_pretrain, flags)
        facts["minutes_stage_1"] = checkpoint.read_json(mean_run / checkpoint.METRICS)["seconds_train"] / 60
    else:  # without lags, the protocol of the published tables
        flags, mean_run = ("--lags", "none") if task.data_name in DATASETS else (), ""
    if method.stage_2 is not None:
        folder = task.stage(method.trained_as or name, main_train, (
            *method.stage_2, "--mean_run", str(mean_run), "--test_windows", "2"))  # it is not what is reported
        run = load_forecaster(folder, device)
        trained = checkpoint.read_json(folder / checkpoint.METRICS)
        facts |= {"minutes_stage_2": trained["seconds_train"] / 60, "best_epoch": trained["best_epoch"]}
        settings = {**run.checkpoint["config"], **method.sampling, "members": method.members,
                    "test_windows": task.test_windows}
        if method.untrained:
            facts["minutes_stage_2"] = 0.0
            for parameter in run.model.denoiser.project.parameters():
                torch.nn.init.zeros_(parameter)
        scores, windows = score_ensemble(run.model, settings, open_windows(settings, "", device), task.split, device)
        return {**scores, **facts}, windows
    config = parse_config(TrainConfig, CHOICES, ["--data_name", task.data_name, "--seed", str(task.seed), *task.flags,
                                                 *flags, "--mean_run", str(mean_run)])
    settings = {**checkpoint.settings(config), "test_windows": task.test_windows}
    data = open_windows(settings, "", device)
    model = load_mean_model(config, data)[0].to(device).eval() if mean_run else None
    start = time.perf_counter()
    sample = baseline_sampler(method.baseline, data, model, settings, method.members)
    scores, windows = score_baseline(sample, settings, data, task.split, method.members)
    common = {key: settings[key] for key in ("data_name", "history_len", "predict_len", "seed")}
    return {**common, "split": task.split, **scores, **facts, "seconds_sample": time.perf_counter() - start}, windows


def chosen(text: str, known, flag: str) -> list[str]:
    """The items of a comma-separated flag. Raises: ValueError naming what is unknown."""
    items = [item for item in text.split(",") if item]
    if unknown := [item for item in items if item not in known]:
        raise ValueError(f"--{flag} {unknown[0]}: choose from {', '.join(known)}")
    return items


def seed_list(text: str) -> list[int]:
    """The seeds of a flag. Raises: argparse.ArgumentTypeError for what is no whole number."""
    try:
        return [*map(int, text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected whole numbers, as 0,1,2") from None


def contents(own: dict) -> dict:
    """The flags of a file of one's own, with the digests of files in place of their paths."""
    return {name: sha256_of(Path(value).expanduser()) if name in PATHS and Path(value).expanduser().is_file() else value
            for name, value in own.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--data_names", default="MobileNJ,Los_Speed,BikeDC,SST,NYCFlights",
                        help="datasets, comma-separated (default: %(default)s)")
    parser.add_argument("--methods", default="", help="rows of the tables, comma-separated; none named: "
                        f"those of the tables ({', '.join(METHODS)})")
    parser.add_argument("--seeds", type=seed_list, default="0,1,2",
                        help="seeds of what is trained and drawn (default: %(default)s)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="windows to score (default: %(default)s)")
    parser.add_argument("--save_dir", type=Path, default=Path("save"), help="(default: %(default)s)")
    parser.add_flags(TrainConfig, {}, ("history_len", "predict_len", "test_windows", *OWN_FILE))
    given = {"test_windows": 0} | with_own_data(vars(parser.parse_args(arguments)))  # all, as the tables need
    named = chosen(given["methods"], METHODS, "methods")
    lengths = {name: given.get(name, getattr(TrainConfig, name)) for name in ("history_len", "predict_len")}
    own = {name: given[name] for name in OWN_FILE if name in given}
    if own and "data_path" not in own:
        parser.error(f"--{next(iter(own))}: describes a file of your own; give it by --data_path FILE")
    data_names = [given["data_name"]] if own else chosen(given["data_names"], DATASETS, "data_names")
    flags = [text for name, value in {**lengths, **own}.items() for text in (f"--{name}", str(value))]
    scored = {"test_windows": given["test_windows"], **({"own_file": contents(own)} if own else {})}
    for seed, data_name in itertools.product(given["seeds"], data_names):
        task = Task(data_name, seed, given["split"], flags, given["save_dir"], given["test_windows"])
        folder = given["save_dir"] / "benchmark" / given["split"] / "{}_{}_{}".format(data_name, *lengths.values())
        folder.mkdir(parents=True, exist_ok=True)
        of_tables = [name for name, method in METHODS.items()
                     if data_name in (method.only or [data_name]) and (name in OWN_ROWS or not own)]
        for name in named or of_tables:
            path = folder / f"{name}_{seed}.json"
            if path.exists():
                found = checkpoint.read_json(path)
                if differing := checkpoint.differences({name: found.get(name) for name in scored}, scored):
                    raise ValueError(f"{path} was scored with {', '.join(differing)}; choose another --save_dir")
                continue
            print(f"--- {data_name}, {name}, seed {seed}", flush=True)
            try:
                scores, windows = score(name, task)
            except ValueError as error:
                if name in named or name not in SIMPLE:
                    raise
                print(f"note: no row {name}: {error}", flush=True)
                continue
            checkpoint.write_table(path.with_suffix(".csv"), windows)
            checkpoint.write_json(path, {**scores, **scored})
            shown = ", ".join(f"{key} {scores[key]:.4g}" for key in SHOWN if scores[key] is not None)
            print(f"{data_name} {name} {seed}: {shown}", flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
