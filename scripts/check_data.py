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
from data.fields import Field
from data.lags import as_text, repeated_periods
from data.scaling import as_real, by_node
from data.stamps import local_times
from data.table import check_memory, listed
from data.windows import SPLITS, WindowedField, WindowSettings
from utils import config
from utils.output.plots import draw_field
from utils.pipeline import CHOICES, from_flags, read_field
from utils.program import run_main
from utils.training.checkpoint import settings
from utils.training.distributed import choose_device

FLAGS = *config.OF_OWN_FILE, "null_value", "covariates", "lags", "split", "support", "highest", "scaling", "device"
SUGGESTED = "data_name", "missing", "history_len", "predict_len", "batch_size"
FEW_WINDOWS = 100
SUITABLE = range(6, 49)  # periods, in steps, that are suitable lengths of history and forecast


def suggested_length(periods: tuple[int, ...], steps: int) -> int:
    """Length of history and forecast: a period where that is suitable, else 12; less for a short series."""
    length = next((period for period in periods if period in SUITABLE), 12)
    return max(1, min(length, steps // 12))


def description(field: Field, periods: tuple[int, ...]) -> dict[str, str]:
    """Description of a field in words, by subject."""
    values, spec = field.values, field.spec
    missing = values.isnan().sum(0)
    present = as_real(values[~values.isnan()])
    count, nodes = int(missing.sum()), [field.node_names[node] for node in missing.nonzero().flatten()]
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
    parser = config.FlagParser(__doc__.splitlines()[0])
    parser.add_argument("data_path", metavar="file",
                        help="the data file; its flags are those of main_pretrain.py for --data_path")
    parser.add_argument("--picture", type=config.output_path, default=None, help="draw the field there (.png or .pdf)")
    parser.add_flags(config.PretrainConfig, CHOICES, FLAGS)
    parser.add_flags(config.PretrainConfig, CHOICES, SUGGESTED, "suggested from the file")
    typed = vars(parser.parse_args(arguments))
    picture = typed.pop("picture")
    if picture and picture.suffix.lower() not in (".png", ".pdf"):
        parser.error(f"--picture {picture}: the ending says the format; choose .png or .pdf")
    given = config.with_own_data(typed)
    chosen = config.PretrainConfig(**given)
    config.check_config(chosen, parser)
    field = read_field(settings(chosen), "", given.get("missing", "keep"))
    if field.missing_share == 1:
        raise ValueError(f"{typed['data_path']}: every value is missing")
    for note in field.notes:
        print(f"note: {note}")
    if field.masked and "missing" not in given:
        print("note: values are missing: training refuses them without --missing mask")
    check_memory(Path(chosen.data_path), 8 * field.values.numel())  # with a copy in float32 without gaps
    periods = repeated_periods(field.spec.interval, 1, as_real(field.values))
    print(f"{typed['data_path']} can be read")
    for subject, words in description(field, periods).items():
        print(f"{subject:9} {words}", flush=True)
    if picture:
        times = local_times(field.calendar.times, field.calendar.zone)
        draw_field(field.values.numpy(), times, field.spec.unit, picture)
        print(f"picture   {picture}")
    length = suggested_length(periods, len(field.values))
    chosen = replace(chosen, **{"history_len": length, "predict_len": length, **given})
    covariates = None
    if chosen.covariates:
        covariates = read_covariates(chosen.covariates, field.calendar, field.node_names)
        for note in covariates.notes:
            print(f"note: --covariates {covariates.source}: {note}")
        print(f"covariates {listed(list(covariates.names))}; they reach {len(covariates.values) - len(field.values)} "
              f"steps beyond the data, a forecast of the unseen future needs {chosen.predict_len}")
    data = WindowedField(field, chosen.history_len, chosen.predict_len, from_flags(WindowSettings, settings(chosen)),
                         covariates, choose_device(chosen.device))
    for note in data.field.notes[len(field.notes):]:
        print(f"note: {note}")
    windows = len(data.starts["train"])
    batch_size = int(2 ** np.clip(np.round(np.log2(windows / 100)), 3, 6))  # about a hundred training steps an epoch
    chosen = replace(chosen, **{"batch_size": batch_size, **given})
    print(f"scaling   by mean and spread of {data.scaler.basis}")
    print(f"windows   {', '.join(f'{len(data.starts[split])} {split}' for split in SPLITS)} of {chosen.history_len} + "
          f"{chosen.predict_len} steps")
    lowest, highest = float(by_node(field.values, torch.amin).min()), float(by_node(field.values, torch.amax).max())
    if chosen.support == "auto" and lowest > 0 and not data.scaler.least:
        whole = " and whole" * data.scaler.any_whole
        print(f"note: no value is negative: --support nonnegative keeps forecasts so{whole}, if negative values cannot "
              "occur")
    if chosen.highest is None and lowest >= 0 and highest in (1, 100):
        print(f"note: no value is above {highest:g}: --highest {highest:g} keeps forecasts so, if larger ones cannot "
              "occur")
    if windows < FEW_WINDOWS:
        print(f"note: {windows} training windows are few: the forecast may be no better than climatology")
    if data.lags and "lags" not in typed:
        print(f"note: the forecast sees earlier values too: lags of {', '.join(as_text(data.lags))} steps "
              "(--lags auto); --lags none leaves them out")
    flags = {name: typed[name] for name in config.DATA_FLAGS if name in typed}
    flags |= {name: getattr(chosen, name) for name in ("history_len", "predict_len", "batch_size")}
    line = config.as_flags(flags | ({"missing": "mask"} if field.masked else {}))
    print(f"train it with\n  python main_pretrain.py {line}\n  python main_train.py {line}")
    return 0


if __name__ == "__main__":
    run_main(main)
