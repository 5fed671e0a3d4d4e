"""Check a data file of your own before training: is it valid, what does it hold, which flags suit it.

    python -m scripts.check_data rain.csv --picture rain.png
    python -m scripts.check_data speed.npy --freq 5min --start 2012-03-01 --graph edges.csv

It reads the file as both stages do, with the same flags, and describes it. No file is written but the picture.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.calendar import cycles, in_words
from data.covariates import read_covariates
from data.fields import Field, load_field
from data.lags import choose_lags
from data.scaling import BLOCK, as_real
from data.stamps import local_times
from data.table import check_memory, listed
from data.windows import SPLITS, WindowedField, smallest, supported
from utils.config import (
    DATA_FLAGS,
    OF_OWN_FILE,
    FlagParser,
    PretrainConfig,
    as_flags,
    check_config,
    picture_path,
    with_own_data,
)
from utils.output.plots import draw_field
from utils.pipeline import CHOICES, own_file, window_settings
from utils.program import run_main
from utils.training import checkpoint
from utils.training.device import choose_device

FLAGS = (*OF_OWN_FILE, "data_name", "missing", "null_value", "covariates", "lags", "split", "support", "scaling",
         "history_len", "predict_len", "batch_size", "device")
ROUNDING = 1e-9  # share of the largest value below which a series is taken as straight
FEW_WINDOWS = 100
SUITABLE = range(6, 49)  # periods, in steps, that are suitable lengths of history and forecast


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


def suggested_length(periods: tuple[int, ...], steps: int) -> int:
    """Length of history and forecast: a period where that is suitable, else 12; less for a short series."""
    length = next((period for period in periods if period in SUITABLE), 12)
    return max(1, min(length, steps // 12))


def suggested_batch(windows: int) -> int:
    """About a hundred training steps an epoch."""
    return int(2 ** np.clip(np.round(np.log2(max(windows, 1) / 100)), 3, 6))


def description(field: Field, periods: tuple[int, ...]) -> dict[str, str]:
    """Description of a field in words, by subject."""
    values, spec = field.values, field.spec
    missing = torch.stack([block.isnan().sum(0) for block in values.split(BLOCK)]).sum(0)
    present = as_real(values[~values.isnan()])
    count, nodes = int(missing.sum()), [field.node_names[node] for node in missing.nonzero().flatten().tolist()]
    whole = "whole numbers, " if bool((present == present.round()).all()) else ""
    zeros = float((present == 0).double().mean())
    named = {round(steps): f" (1 {name})" for name, steps in cycles(spec.interval).items()}
    first, last = field.calendar.ends
    grid = f", grid of {field.grid[0]} x {field.grid[1]}" if field.grid else ""
    return {
        "shape": f"{len(values)} time steps x {len(values.T)} nodes{grid}; unit: {spec.unit}",
        "time": f"every {in_words(spec.interval)} from {first} to {last}; cycles: {', '.join(field.calendar.names)}",
        "values": f"{float(present.min()):.6g} to {float(present.max()):.6g}, mean "
                  f"{float(present.double().mean()):.6g}; {whole}{zeros:.1%} zeros",
        "missing": f"{count} values ({count / values.numel():.2%}) of {len(nodes)} nodes: {listed(nodes)}" if count
                   else "none",
        "periods": ", ".join(f"{steps} steps{named.get(steps, '')}" for steps in periods) or "none found",
        "nodes": f"{listed(list(field.node_names))}; {'with' if field.coordinates is not None else 'no'} coordinates, "
                 f"{'with a' if field.graph is not None else 'no'} graph",
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
    field = load_field(config.data_name, Path(), own_file(checkpoint.settings(config)), given.get("missing", "keep"),
                       config.null_value)
    for note in field.notes:
        print(f"note: {note}")
    field = supported(field, config.support)
    if field.masked and "missing" not in given:
        print("note: values are missing: training refuses them without --missing mask")
    check_memory(Path(config.data_path), 8 * field.values.numel())  # with a copy in float32 without gaps
    periods = choose_lags("auto", field.spec.interval, 1, as_real(field.values))

    def say(lines: dict[str, str]) -> None:
        for subject, words in lines.items():
            print(f"{subject:9} {words}", flush=True)

    print(f"{typed['data_path']} can be read")
    say(description(field, periods))
    if picture:
        values = as_real(field.values)
        values = torch.where(values.isnan(), values.nanmean(0).nan_to_num(), values)
        series = values.double().mean(1).numpy()
        draw_field(field.values.numpy(), local_times(field.calendar.times, field.calendar.zone), *periodogram(series),
                   in_words(field.spec.interval), field.spec.unit, picture)
        print(f"{'picture':9} {picture}")
    length = suggested_length(periods, len(field.values))
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
                         covariates, choose_device(config.device))
    for note in data.field.notes[len(field.notes):]:
        print(f"note: {note}")
    config = replace(config, **{"batch_size": suggested_batch(len(data.starts["train"])), **given})
    say({"scaling": "by mean and spread of each node" if data.scaler.by_node else "by mean and spread of the field"})
    say({"windows": ", ".join(f"{len(data.starts[split])} {split}" for split in SPLITS)
         + f" of {config.history_len} + {config.predict_len} steps"})
    if config.support == "auto" and smallest(field.values) > 0:
        print("note: no value is negative: --support nonnegative keeps forecasts so, if negative values cannot occur")
    if len(data.starts["train"]) < FEW_WINDOWS:
        print(f"note: {len(data.starts['train'])} training windows are few: the forecast may be no better than "
              "climatology")
    if data.lags and "lags" not in typed:
        print(f"note: the networks see the values {' and '.join(map(str, data.lags))} steps earlier too (--lags auto); "
              "--lags none leaves them out")
    flags = {name: typed[name] for name in DATA_FLAGS if name in typed}
    flags |= {name: getattr(config, name) for name in ("history_len", "predict_len", "batch_size")}
    line = as_flags(flags | ({"missing": "mask"} if field.masked else {}))
    print(f"train it with\n  python main_pretrain.py {line}\n  python main_train.py {line}")
    return 0


if __name__ == "__main__":
    run_main(main)
