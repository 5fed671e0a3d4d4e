"""How sensitive the published design is: one factor at a time is moved away from a base configuration.

    python -m scripts.sensitivity --data_name MobileNJ --seeds 0,1,2 --out docs/results

Process cost on the published stage 1, scored on validation windows. Factors of training are trained anew; those of
sampling score the base run again. What is done is skipped: each variant leaves save/sensitivity/<data>/
<factor>_<value>_<seed>.json. With `--out`, sensitivity_<data>.csv and .md are written there.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import main_pretrain
import main_train
from data.fluctuation import STATISTICS
from data.registry import DATASETS
from models import load_forecaster
from models.diffusion import NOISE_SCHEDULES, SAMPLERS
from scripts.benchmark import NO_LAGS, STAGE_1, Task, chosen
from scripts.collect_results import markdown, mean_and_spread, write_text
from scripts.evaluate import CHANGEABLE
from utils import checkpoint
from utils.checkpoint import csv_text
from utils.config import FlagParser, TrainConfig, parse_config, run_main
from utils.device import choose_device
from utils.evaluation import evaluate_mean

SPLIT = "validation"
MEAN_MODEL = "stid"
BASE = "--channels 32 --layers 2 --epochs 20 --lr 1e-3"
SAMPLER_STEPS = (5, 10, 20, 50)
FACTORS = {
    "scale_threshold": (0.02, 0.05, 0.1, 0.2, 0.5),
    "scale_statistic": STATISTICS,
    "endpoint_signs": (True, False),
    "noise_schedule": tuple(NOISE_SCHEDULES),
    "sampler": tuple(f"{sampler}-{steps}" for sampler in SAMPLERS for steps in SAMPLER_STEPS),
    "nsample": (10, 20, 50, 100, 200),
}
"""Flags of stage 2 and the values that each takes while the others keep the base's; a sampler comes with its steps."""
SCORES = ("CRPS", "CRPS_sum", "QICE", "IS", "MAE", "spread_skill")
COLUMNS = ("factor", "value", "seeds", *SCORES, "best_epoch", "minutes")


@dataclass(frozen=True)
class Variant:
    """A row of the table: which factor has which value, and the settings that this changes in the base."""

    factor: str
    value: str = ""
    settings: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.factor}_{self.value}" if self.value else self.factor


BASE_RUN, MEAN_ALONE = Variant("base"), Variant("mean_model", MEAN_MODEL)


def variants_of(factors: list[str], base: TrainConfig) -> list[Variant]:
    """The base, the mean model alone, and every value of the factors that the base allows."""
    found = [BASE_RUN, MEAN_ALONE]
    for factor in factors:
        for value in FACTORS[factor]:
            settings = {factor: value}
            if factor == "sampler":
                sampler, steps = value.split("-")
                settings = {"sampler": sampler, "sample_steps": int(steps)}
            if settings.get("sample_steps", 0) <= base.diffusion_steps:
                found.append(Variant(factor, str(value), settings))
    return found


def flag_text(name: str, value) -> tuple[str, ...]:
    return ((f"--{name}" if value else f"--no-{name}"),) if isinstance(value, bool) else (f"--{name}", str(value))


def score(variant: Variant, task: Task, flags: list[str], base: TrainConfig) -> dict:
    """Train what a variant needs and score it. `flags` of stage 2 make the base, which `base` is as a configuration.

    Minutes are those of training and of forecasting, also where several variants share one training.
    """
    device = choose_device("auto")
    mean_run = task.stage(MEAN_MODEL, main_pretrain, STAGE_1[MEAN_MODEL])
    flags = [*flags, "--mean_run", str(mean_run)]
    if variant == MEAN_ALONE:
        config = parse(task, flags)
        data = main_pretrain.open_windows(checkpoint.settings(config), "", device)
        model = main_train.load_mean_model(config, data)[0].to(device).eval()
        trained = checkpoint.read_json(mean_run / checkpoint.METRICS)
        scores = evaluate_mean(lambda batch: model(*batch.known),
                               data.batches(SPLIT, base.val_batch_size, limit=task.test_windows), data.scaler.physical)
        seconds = trained["seconds_train"]
    else:
        trained_anew = [name for name in variant.settings if name not in CHANGEABLE]
        kind = f"sensitivity_{variant.name}" if trained_anew else "sensitivity"
        extra = [text for name in trained_anew for text in flag_text(name, variant.settings[name])]
        folder = task.stage(kind, main_train, [*flags, *extra])
        run = load_forecaster(folder, device)
        trained = checkpoint.read_json(folder / checkpoint.METRICS)
        settings = {**run.checkpoint["config"], **variant.settings, "test_windows": task.test_windows}
        data = main_pretrain.open_windows(settings, "", device)
        scores, _ = main_train.score_ensemble(run.model, settings, data, SPLIT, device)
        seconds = trained["seconds_train"] + scores["seconds_sample"]
    return {"factor": variant.factor, "value": variant.value, "seed": task.seed, "split": SPLIT,
            **{name: scores.get(name) for name in ("windows", "members", *SCORES)},
            "best_epoch": trained["best_epoch"], "minutes": seconds / 60}


def parse(task: Task, flags: list[str]) -> TrainConfig:
    return parse_config(TrainConfig, main_train.CHOICES, ["--data_name", task.data_name, *task.flags, *flags])


def scored(variant: Variant, task: Task, flags: list[str], base: TrainConfig) -> dict:
    """The scores of a variant: those of the base where it is the base, those that lie there, else new ones.

    Raises: ValueError when those that lie there stand on another base.
    """
    if variant.settings and all(getattr(base, name) == value for name, value in variant.settings.items()):
        return {**scored(BASE_RUN, task, flags, base), "factor": variant.factor, "value": variant.value}
    folder = task.save_dir / "sensitivity" / task.data_name
    path = folder / f"{variant.name}_{task.seed}.json"
    built_on = {"base": flags, "test_windows": task.test_windows}
    if path.exists():
        found = checkpoint.read_json(path)
        differing = checkpoint.differences(found, built_on)
        if differing:
            raise ValueError(f"{path} was scored with {', '.join(differing)}; choose another --save_dir, or remove it")
        return found
    print(f"--- {task.data_name}, {variant.name}, seed {task.seed}", flush=True)
    found = {**score(variant, task, flags, base), **built_on}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(path, found)
    return found


def tables(runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """One row per variant, in the order of the runs: means over the seeds, and as text with their spread."""
    means, rows = [], []
    for (factor, value), group in runs.groupby(["factor", "value"], sort=False):
        numbers = group[[*SCORES, "best_epoch", "minutes"]].astype(float)
        means.append({"factor": factor, "value": value, "seeds": len(group), **numbers.mean()})
        rows.append([factor, value, str(len(group)), *(mean_and_spread(numbers[name]) for name in SCORES),
                     f"{numbers.best_epoch.mean():.1f}", f"{numbers.minutes.mean():.1f}"])
    return pd.DataFrame(means, columns=list(COLUMNS)), markdown(list(COLUMNS), rows)


def write_tables(runs: pd.DataFrame, data_name: str, base: str, out: Path) -> None:
    frame, table = tables(runs)
    text = (f"# {data_name}: sensitivity of the published design\n\nWritten by `python -m scripts.sensitivity "
            f"--data_name {data_name}`. Process cost on the mean model {MEAN_MODEL}; base: `{base}`. One factor at a "
            f"time differs from the base. Scores on {runs.windows.iloc[0]} windows of the validation split, mean ± "
            "standard deviation over seeds; minutes: training of stage 2 and forecasting (the mean model: its own "
            f"training).\n\n{table}")
    for path, content in zip(table_paths(out, data_name), (csv_text(frame, float_format="%.6g"), text), strict=True):
        write_text(path, content)


def table_paths(out: Path, data_name: str) -> list[Path]:
    return [out / f"sensitivity_{data_name}.{ending}" for ending in ("csv", "md")]


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--data_name", default="MobileNJ", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--base", default=BASE, help=f"flags of stage 2, in quotes, that make the base ({BASE})")
    parser.add_argument("--factors", default=",".join(FACTORS), help="factors to move, comma-separated")
    parser.add_argument("--seeds", default="0", help="seeds of what is trained and drawn, comma-separated")
    parser.add_argument("--save_dir", type=Path, default=Path("save"))
    parser.add_argument("--test_windows", type=int, default=0, help="windows to score, evenly spread; 0: all")
    parser.add_argument("--out", type=Path, default=None, help="folder to write the tables into")
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace the tables where they exist")
    given = parser.parse_args(arguments)
    if given.out and not given.out.is_dir():
        raise ValueError(f"--out {given.out}: there is no such folder")
    parser.refuse_existing("--out", table_paths(given.out, given.data_name) if given.out else (), given)
    factors = chosen(given.factors, FACTORS, "factors")
    chosen(given.data_name, DATASETS, "data_name")
    flags, runs = ["--process", "cost", *shlex.split(given.base)], []
    for seed in map(int, given.seeds.split(",")):
        task = Task(given.data_name, seed, SPLIT, list(NO_LAGS), given.save_dir, given.test_windows)
        base = parse(task, flags)
        runs += [scored(variant, task, flags, base) for variant in variants_of(factors, base)]
    runs = pd.DataFrame(runs)
    print(tables(runs)[1])
    if given.out:
        write_tables(runs, given.data_name, given.base, given.out)
    return 0


if __name__ == "__main__":
    run_main(main)
