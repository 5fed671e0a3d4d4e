"""Check a data file of your own before training: is it valid, what does it hold, which flags suit it.

    python -m scripts.check_data rain.csv --picture rain.png
    python -m scripts.check_data speed.npy --freq 5min --start 2012-03-01 --graph edges.csv

It reads the file as both stages do, with the same flags, and describes it. A few training steps of both stages are
run to estimate time and memory. No file is written but the picture.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.calendar import Interval, cycles, in_words
from data.covariates import read_covariates
from data.fields import Field, load_field
from data.scaling import BLOCK, as_real
from data.stamps import local_times
from data.table import check_memory, listed
from data.windows import SPLITS, WindowedField, smallest, supported
from models import build_forecaster, build_mean_model
from utils.config import (
    DATA_FLAGS,
    OF_OWN_FILE,
    FlagParser,
    PretrainConfig,
    TrainConfig,
    as_flags,
    check_config,
    picture_path,
    with_own_data,
)
from utils.output.plots import draw_field
from utils.pipeline import (
    CHOICES,
    mean_loss,
    neighbours_of,
    own_file,
    prepare_windows,
    training_loss,
    window_settings,
)
from utils.program import run_main
from utils.training import checkpoint
from utils.training.device import choose_device

FLAGS = (*OF_OWN_FILE, "data_name", "missing", "null_value", "covariates", "lags", "split", "support", "scaling",
         "history_len", "predict_len", "batch_size", "device")
PEAK = 0.02  # smallest share of the variance of a period that is reported
ROUNDING = 1e-9  # share of the largest value below which a series is taken as straight
FEW_WINDOWS = 100
SUITABLE = range(6, 49)  # periods, in steps, that are suitable lengths of history and forecast
MEASURED = 8  # training steps of a stage for the estimate of time


def periodogram(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Periods, in steps, and their shares of the variance of a series (time,) without its trend.

    Only periods of at most half the series.
    """
    steps = np.arange(len(series))
    straight = series - np.polyval(np.polyfit(steps, series, 1), steps) if len(series) > 2 else 0 * series
    straight *= straight.std() > ROUNDING * np.abs(series).max()
    power = np.abs(np.fft.rfft(straight * np.hanning(len(series)))) ** 2
    lines = np.arange(2, len(power))
    return len(series) / lines, power[2:] / max(power.sum(), 1e-300)


def strongest_periods(series: np.ndarray, interval: Interval, most: int = 3) -> list[tuple[int, float]]:
    """The highest peaks of the periodogram as (period in steps, share of the variance), the strongest first.

    A period within the resolution of the series of a day, a week or a year is taken as that.
    """
    periods, shares = periodogram(series)
    around = np.pad(shares, 1)
    peaks = np.flatnonzero((shares >= around[:-2]) & (shares > around[2:]) & (shares >= PEAK))
    found = {}
    for peak in peaks[np.argsort(-shares[peaks], kind="stable")]:
        resolution = periods[peak] ** 2 / len(series)  # distance of two neighbouring lines
        period = next((cycle for cycle in whole_cycles(interval).values() if abs(cycle - periods[peak]) <= resolution),
                      round(periods[peak]))
        found.setdefault(period, float(around[peak:peak + 3].sum()))  # the window spreads a line over three
    return list(found.items())[:most]


def whole_cycles(interval: Interval) -> dict[str, int]:
    """Steps of a day, a week and a year, where that is a whole number above one; a year of other steps is rounded."""
    return {name: round(steps) for name, steps in cycles(interval).items()
            if steps > 1 and (steps % 1 == 0 or name == "year" and interval[1] != "month")}


def suggested_lengths(periods: list[tuple[int, float]], steps: int) -> int:
    """Length of history and forecast: a period where that is suitable, else 12; less for a short series."""
    length = next((period for period, _ in periods if period in SUITABLE), 12)
    return max(1, min(length, steps // 12))


def suggested_batch(windows: int) -> int:
    """About a hundred training steps an epoch."""
    return int(2 ** np.clip(np.round(np.log2(max(windows, 1) / 100)), 3, 6))


def description(field: Field, periods: list[tuple[int, float]]) -> dict[str, str]:
    """Description of a field in words, by subject."""
    values, spec = field.values, field.spec
    missing = torch.stack([block.isnan().sum(0) for block in values.split(BLOCK)]).sum(0)
    present = as_real(values[~values.isnan()])
    count, nodes = int(missing.sum()), [field.node_names[node] for node in missing.nonzero().flatten().tolist()]
    whole = "whole numbers, " if bool((present == present.round()).all()) else ""
    zeros = float((present == 0).double().mean())
    named = {steps: name for name, steps in whole_cycles(spec.interval).items()}
    first, last = field.calendar.ends
    grid = f", grid of {field.grid[0]} x {field.grid[1]}" if field.grid else ""
    return {
        "shape": f"{len(values)} time steps x {len(values.T)} nodes{grid}; unit: {spec.unit}",
        "time": f"every {in_words(spec.interval)} from {first} to {last}; cycles: {', '.join(field.calendar.names)}",
        "values": f"{float(present.min()):.6g} to {float(present.max()):.6g}, mean "
                  f"{float(present.double().mean()):.6g}; {whole}{zeros:.1%} zeros",
        "missing": f"{count} values ({count / values.numel():.2%}) of {len(nodes)} nodes: {listed(nodes)}" if count
                   else "none",
        "periods": ", ".join(f"{steps} steps{f' (1 {named[steps]})' if steps in named else ''} {share:.0%}"
                             for steps, share in periods) or "none of note",
        "nodes": f"{listed(list(field.node_names))}; {'with' if field.coordinates is not None else 'no'} coordinates, "
                 f"{'with a' if field.graph is not None else 'no'} graph",
    }


def seconds_per_step(model, loss, batches) -> float:
    """Median seconds of some training steps; the first one warms up."""
    optimizer, times = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad]), []
    for batch in batches:
        start = time.perf_counter()
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
        value.item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:] or times)


def forecaster_of(config: TrainConfig, data: WindowedField, mean_model, device: torch.device):
    """An untrained forecaster on a stage-1 model, its statistics fitted."""
    model = build_forecaster(checkpoint.settings(config), mean_model, data.metadata(), neighbours_of(data, config))
    model.to(device).fit_statistics(
        data.batches("train", config.val_batch_size, limit=100), data.calibration(config.val_batch_size, 100),
        lambda: data.fluctuation_scale(config.scale_threshold, config.scale_statistic))
    return model


def cost(data: WindowedField, config: PretrainConfig, device: torch.device) -> dict[str, str]:
    """Time and memory for training both stages on this data, measured on a few steps, in words."""
    train = TrainConfig(history_len=config.history_len, predict_len=config.predict_len, batch_size=config.batch_size)
    batches = data.batches("train", config.batch_size, limit=MEASURED * config.batch_size)
    model = build_mean_model(checkpoint.settings(config), data.metadata()).to(device)
    first = seconds_per_step(model, mean_loss(model, config, device), batches)
    forecaster = forecaster_of(train, data, model, device)
    loss = training_loss(forecaster, prepare_windows(forecaster, batches), train, device)
    second = seconds_per_step(forecaster, loss, batches)
    steps = len(data.batches("train", config.batch_size))
    minutes = steps * (first * config.mean_epochs + second * train.diffusion_epochs) / 60
    weights = sum(weight.numel() for weight in model.parameters())
    return {
        "cost": f"{steps} steps an epoch; a step of stage 1 takes {first:.3g} s, of stage 2 {second:.3g} s on {device} "
                f"(threads: {torch.get_num_threads()}): at most {minutes:.2g} minutes for {config.mean_epochs} and "
                f"{train.diffusion_epochs} epochs, without validation and scores",
        "memory": f"field {data.field.values.numel() * 4 / 2**20:.3g} MiB, weights and optimiser of stage 1 "
                  f"{weights * 24 / 2**20:.3g} MiB",
    }


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("file", help="the data file; its flags are those of main_pretrain.py for --data_path")
    parser.add_argument("--picture", type=picture_path, default=None, help="draw the field there (.png or .pdf)")
    parser.add_flags(PretrainConfig, CHOICES, FLAGS)
    typed = vars(parser.parse_args(arguments))
    picture = typed.pop("picture")
    typed = {"data_path": typed.pop("file"), **typed}
    given = with_own_data(typed)
    config = replace(PretrainConfig(), **given)
    check_config(config, parser)
    device = choose_device(config.device)
    field = load_field(config.data_name, Path(), own_file(checkpoint.settings(config)), given.get("missing", "keep"),
                       config.null_value)
    for note in field.notes:
        print(f"note: {note}")
    field = supported(field, config.support)
    if field.masked and "missing" not in given:
        print("note: values are missing: training refuses them without --missing mask")
    check_memory(Path(config.data_path), 8 * field.values.numel())  # with a copy in float32 without gaps
    values = as_real(field.values)
    values = torch.where(values.isnan(), values.nanmean(0).nan_to_num(), values)
    series = values.double().mean(1).numpy()
    periods = strongest_periods(series, field.spec.interval)

    def say(lines: dict[str, str]) -> None:
        for subject, words in lines.items():
            print(f"{subject:9} {words}", flush=True)

    print(f"{typed['data_path']} can be read")
    say(description(field, periods))
    if picture:
        draw_field(field.values.numpy(), local_times(field.calendar.times, field.calendar.zone), *periodogram(series),
                   in_words(field.spec.interval), field.spec.unit, picture)
        print(f"{'picture':9} {picture}")
    length = suggested_lengths(periods, len(series))
    config = replace(config, **{"history_len": length, "predict_len": length, **given})
    covariates = None
    if config.covariates:
        covariates = read_covariates(config.covariates, field.calendar, field.node_names)
        for note in covariates.notes:
            print(f"note: --covariates {covariates.source}: {note}")
        ahead = len(covariates.values) - len(field.values)
        say({"covariates": f"{listed(list(covariates.names))}; they reach {ahead} steps beyond the data, a forecast of "
                           f"the unseen future needs {config.predict_len}"})
    data = WindowedField(field, config.history_len, config.predict_len, window_settings(checkpoint.settings(config)),
                         covariates, device)
    for note in data.field.notes[len(field.notes):]:
        print(f"note: {note}")
    config = replace(config, **{"batch_size": suggested_batch(len(data.starts["train"])), **given})
    support = config.support
    if support == "auto":
        mixed = data.metadata()["support"] is not None  # each node has its own, which training finds again
        support = "nonnegative" if data.field.spec.nonnegative else "auto" if mixed else "any"
    say({"scaling": "by mean and spread of each node" if data.scaler.by_node else "by mean and spread of the field"})
    say({"windows": ", ".join(f"{len(data.starts[split])} {split}" for split in SPLITS)
         + f" of {config.history_len} + {config.predict_len} steps", **cost(data, config, device)})
    if support == "any" and smallest(field.values) > 0:
        print("note: no value is negative: --support nonnegative keeps forecasts so, if negative values cannot occur")
    if len(data.starts["train"]) < FEW_WINDOWS:
        print(f"note: {len(data.starts['train'])} training windows are few: the forecast may be no better than "
              "climatology")
    if data.lags and "lags" not in typed:
        print(f"note: the networks see the values {' and '.join(map(str, data.lags))} steps earlier too (--lags auto); "
              "--lags none leaves them out")
    flags = {name: typed[name] for name in DATA_FLAGS if name in typed}
    flags |= {name: getattr(config, name) for name in ("history_len", "predict_len", "batch_size")}
    flags |= {"support": support} | ({"missing": "mask"} if field.masked else {})
    line = as_flags(flags)
    print(f"train it with\n  python main_pretrain.py {line}\n  python main_train.py {line}")
    return 0


if __name__ == "__main__":
    run_main(main)
