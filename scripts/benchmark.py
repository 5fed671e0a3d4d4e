"""Run methods x datasets x seeds of the benchmark one after another, and skip what is done.

    python -m scripts.benchmark --data_names MobileNJ,Los_Speed,BikeDC,SST --seeds 0,1,2
    python -m scripts.benchmark --data_names MobileNJ --methods gaussian,copula --split validation --save_dir /tmp/try

A run that was cut goes on where it stopped: finished stages and scored methods are left alone. Each method leaves
save/benchmark/<split>/<data>_<H>_<F>/<method>_<seed>.json and .csv (scores of every window);
`python -m scripts.collect_results` makes the tables. Choices are made on `--split validation`; methods that measure
something there (spreads, residuals, recalibration) look better on it than they would elsewhere.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import main_pretrain
import main_train
from data.registry import DATASETS
from data.windows import SPLITS
from models import load_forecaster
from models.baselines import BASELINES, EQUIDISTANT
from models.quantiles import to_support
from utils import checkpoint
from utils.config import FlagParser, TrainConfig, parse_config, run_main
from utils.device import choose_device
from utils.evaluation import evaluate_ensemble
from utils.reproducibility import MemberNoise

PUBLISHED_INPUTS = ["--no-climatology", "--tokens", "0"]
STAGE_1 = {
    "stid": [*"--mean_model stid --epochs 50 --patience 15 --lr 0.001 --ema 0".split(), *PUBLISHED_INPUTS],
    "quantile_stid": [*"--epochs 30 --lr 0.001 --networks 1 --linear_modes 0 --no-recalibrate".split(),
                      *PUBLISHED_INPUTS],
}
WINDOWS_AT_ONCE = 8
SHOWN = ("CRPS", "CRPS_sum", "QICE", "IS", "MAE_median", "energy_score", "variogram_score")

NO_LAGS = "--lags", "none"


@dataclass(frozen=True)
class Method:
    """How a row of the table is made: its stage-1 model, and a baseline on it or the flags of a stage 2."""

    stage_1: str | None = None
    baseline: str | None = None
    stage_2: tuple[str, ...] = ()
    untrained_of: str = ""  # the run whose network is taken out
    data: tuple[str, ...] = ()  # flags of both stages and of a baseline
    only: tuple[str, ...] = ()  # datasets of the tables that have this row; none: all


METHODS = {
    **{name: Method(baseline=name) for name in ("persistence", "climatology", "seasonal_naive")},
    **{name: Method("stid", name, data=NO_LAGS)
       for name in ("gaussian", "conformal", "residual_fields", "residual_fields_slot")},
    **{name: Method("quantile_stid", name, data=NO_LAGS) for name in ("quantile", "schaake", "schaake_slot")},
    "cost": Method("stid", stage_2=("--process", "cost"), data=NO_LAGS),
    **{f"our_{name}": Method("ours", name) for name in ("quantile", "schaake", "schaake_slot")},
    "gaussian_copula": Method("ours", stage_2=("--process", "copula"), untrained_of="copula"),
    "one_pass": Method("ours", stage_2=("--process", "one_pass")),
    **{name: Method("ours", stage_2=("--eps_model", name), only=("MobileNJ", "Los_Speed", "BikeDC"))
       for name in ("tokens", "graph")},
    "no_lags": Method("ours_no_lags", stage_2=("--process", "copula"), data=NO_LAGS, only=("NYCFlights",)),
    "lags": Method("ours_lags", stage_2=("--process", "copula"), data=("--lags", "auto"), only=("MobileNJ",)),
    "copula": Method("ours", stage_2=("--process", "copula")),
}
"""The ladder, from the last value to the default; `our_` stands on our stage 1, the rows before on published inputs.
our_quantile is all that a second stage of each node on its own can do. gaussian_copula is copula with the network of
the diffusion taken out: what is between the two, the diffusion earned. tokens and graph are copula with networks that
mix nodes. lags sees also a day and a week (a year) before each step of a window, no_lags nothing but its 12 steps;
copula does as the preset of the dataset says. The protocol of the published rows knows no lags."""


@dataclass(frozen=True)
class Task:
    """What all methods have in common."""

    data_name: str
    seed: int
    split: str
    flags: list[str]  # of both stages
    save_dir: Path
    test_windows: int

    def stage(self, kind: str, program, extra: list[str]) -> Path:
        """Run a stage of the pipeline unless it is done; its folder. `kind` tells runs of a stage apart."""
        run_name = f"{kind}_{self.seed}"
        arguments = ["--data_name", self.data_name, "--seed", str(self.seed), "--save_dir", str(self.save_dir),
                     "--run_name", run_name, "--amp", *self.flags, *extra]
        if program is main_train:
            arguments += ["--test_windows", "2"]  # its own forecast of the test split is not what is reported
        program.main(arguments)
        config_class = main_train.TrainConfig if program is main_train else main_pretrain.PretrainConfig
        config = parse_config(config_class, {**main_train.CHOICES, "mean_model": main_pretrain.MEAN_MODELS}, arguments)
        return checkpoint.run_folder(config.save_dir, "diffusion" if program is main_train else "mean", config)


def baseline_drawer(name: str, data, model, settings: dict):
    """The function batch -> members of a baseline, all of them values that the field can take."""
    members, shape = settings["nsample"], (settings["predict_len"], data.num_nodes)
    mean = quantiles = None
    if model is not None:
        @torch.no_grad()
        def mean(batch):
            return model(*batch.known)

        @torch.no_grad()
        def quantiles(batch):
            return model.quantiles(*batch.known)
    fitted = BASELINES[name](data, members, mean=mean, quantiles=quantiles)

    def draw(batch):
        noise = MemberNoise(settings["seed"], batch.start, members, shape)
        return to_support(fitted(batch, lambda k: noise(k, 0, len(batch.start) * members)), *data.support)

    return draw


def score(name: str, task: Task) -> tuple[dict, dict]:
    """Train what a method needs and score it: what its .json and its .csv hold."""
    method, device = METHODS[name], choose_device("auto")
    task = replace(task, flags=[*task.flags, *method.data])
    mean_run = task.stage(method.stage_1, main_pretrain, STAGE_1.get(method.stage_1, [])) if method.stage_1 else None
    facts = {"method": name}
    if mean_run:
        facts["minutes_stage_1"] = checkpoint.read_json(mean_run / checkpoint.METRICS)["seconds_train"] / 60
    if method.stage_2:
        folder = task.stage(method.untrained_of or name, main_train, [*method.stage_2, "--mean_run", str(mean_run)])
        run = load_forecaster(folder, device)
        trained = checkpoint.read_json(folder / checkpoint.METRICS)
        facts |= {"minutes_stage_2": trained["seconds_train"] / 60, "best_epoch": trained["best_epoch"]}
        settings = {**run.checkpoint["config"], "sample_precision": "bfloat16", "test_windows": task.test_windows}
        if method.untrained_of:
            facts["minutes_stage_2"] = 0.0
            torch.nn.init.zeros_(run.model.denoiser.project.weight)
            torch.nn.init.zeros_(run.model.denoiser.project.bias)
        data = main_pretrain.open_windows(settings, "", device)
        scores, windows = main_train.score_ensemble(run.model, settings, data, task.split, device)
        return {**scores, **facts}, windows
    mean_flags = ["--mean_run", str(mean_run)] if mean_run else []
    config = parse_config(TrainConfig, main_train.CHOICES, ["--data_name", task.data_name, "--seed", str(task.seed),
                                                            *task.flags, *mean_flags])
    settings = checkpoint.settings(config)
    data = main_pretrain.open_windows(settings, "", device)
    model = main_train.load_mean_model(config, data)[0].to(device).eval() if mean_run else None
    start = time.perf_counter()
    scores, windows = evaluate_ensemble(
        baseline_drawer(method.baseline, data, model, settings),
        data.batches(task.split, WINDOWS_AT_ONCE, limit=task.test_windows), data.scaler.physical,
        (config.nsample, config.predict_len, data.num_nodes), method.baseline in EQUIDISTANT,
    )
    common = {key: settings[key] for key in ("data_name", "history_len", "predict_len", "seed")}
    return {**common, "split": task.split, **scores, **facts, "seconds_sample": time.perf_counter() - start}, windows


def chosen(text: str, known, flag: str) -> list[str]:
    """The items of a comma-separated flag. Raises: ValueError naming what is unknown."""
    items = [item for item in text.split(",") if item]
    for item in items:
        if item not in known:
            raise ValueError(f"--{flag} {item}: choose from {', '.join(known)}")
    return items


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--data_names", default="MobileNJ,Los_Speed,BikeDC,SST,NYCFlights",
                        help="datasets, comma-separated")
    parser.add_argument("--methods", default="", help="rows of the ladder, comma-separated; none named: "
                        f"those of the tables ({', '.join(METHODS)})")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of what is trained and drawn")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--save_dir", type=Path, default=Path("save"))
    parser.add_argument("--test_windows", type=int, default=0, help="windows to score, evenly spread; 0: all")
    parser.add_flags(TrainConfig, {}, ("history_len", "predict_len"))
    given = vars(parser.parse_args(arguments))
    named = chosen(given["methods"], METHODS, "methods")
    lengths = {name: given.get(name, getattr(TrainConfig, name)) for name in ("history_len", "predict_len")}
    flags = [text for name, length in lengths.items() for text in (f"--{name}", str(length))]
    for seed in map(int, given["seeds"].split(",")):
        for data_name in chosen(given["data_names"], DATASETS, "data_names"):
            task = Task(data_name, seed, given["split"], flags, given["save_dir"], given["test_windows"])
            folder = given["save_dir"] / "benchmark" / given["split"] / "{}_{}_{}".format(data_name, *lengths.values())
            folder.mkdir(parents=True, exist_ok=True)
            of_tables = [name for name, method in METHODS.items() if data_name in (method.only or [data_name])]
            for name in named or of_tables:
                path = folder / f"{name}_{seed}.json"
                if path.exists():
                    found = checkpoint.read_json(path).get("test_windows", 0)
                    if found != given["test_windows"]:
                        raise ValueError(f"{path} was scored with --test_windows {found}; choose another --save_dir")
                    continue
                print(f"--- {data_name}, {name}, seed {seed}", flush=True)
                scores, windows = score(name, task)
                checkpoint.write_table(path.with_suffix(".csv"), windows)
                checkpoint.write_json(path, {**scores, "test_windows": given["test_windows"]})
                shown = ", ".join(f"{key} {scores[key]:.4g}" for key in SHOWN)
                print(f"{data_name} {name} {seed}: {shown}", flush=True)
    return 0


if __name__ == "__main__":
    run_main(main)
