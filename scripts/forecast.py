"""Forecast with a trained pair of stages, and write members and quantiles to a file.

    python -m scripts.forecast save/diffusion/NYCFlights_12_12 --output next.csv
    python -m scripts.forecast save/diffusion/NYCFlights_12_12 --data_path newer.npz --output next.nc
    python -m scripts.forecast save/diffusion/NYCFlights_12_12 --rolling 100 --output backtest.parquet
    python -m scripts.forecast save/diffusion/NYCFlights_12_12 --rolling 100 --online --output corrected.parquet

The history is the end of the run's data, or of a newer file of the same field. docs/forecasting.md says more.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data.covariates import read_covariates
from data.lags import as_text
from data.scaling import as_real
from data.table import listed
from models import SAMPLING_FLAGS, TrainedForecaster, load_forecaster
from utils.config import FlagParser, TrainConfig, output_path
from utils.output.forecasts import VALUES, WRITERS, Forecast, check_output, write_forecasts
from utils.pipeline import CHOICES, located, open_run_field, refuse_input
from utils.program import run_main
from utils.scores.evaluation import progress, rows_at_once
from utils.training.distributed import SINGLE_PROCESS, Processes, choose_device, join


@dataclass(frozen=True)
class Series:
    """What a forecast starts from: values (time, node), the position of their first step in the series of the run, the
    longest lag, and covariates (time, node or 1, covariate), which may reach further, or None."""

    values: torch.Tensor
    first: int
    max_lag: int
    covariates: torch.Tensor | None

    def window(self, begin: int, history_len: int, predict_len: int) -> tuple[np.ndarray, np.ndarray | None]:
        """History and covariates of the window that begins at a step, NaN for steps before the series."""
        given = as_real(self.values[max(begin - self.max_lag, 0):begin + history_len]).numpy()
        history = np.pad(given, ((self.max_lag + history_len - len(given), 0), (0, 0)), constant_values=np.nan)
        if self.covariates is None:
            return history, None
        covariates = self.covariates[begin:begin + history_len + predict_len].numpy()
        if missing := history_len + predict_len - len(covariates):
            raise ValueError(f"--covariates: they end {missing} steps before the horizon does; give a longer file")
        return history, covariates


def open_series(run: TrainedForecaster, data_path: str, data_dir: str, covariates: str, variable: str = "",
                start: str = "") -> Series:
    """The field to forecast, of the run's own file or of another one of the same field, and its covariates."""
    config, field = run.checkpoint["config"], run.field
    if covariates and not field.covariates:
        raise ValueError(f"--covariates {covariates}: the run was trained without any")
    for flag, value in (("--variable", variable), ("--start", start)):
        if value and not data_path:
            raise ValueError(f"{flag} {value}: describes a newer file; give it by --data_path FILE")
    found, position = open_run_field(run.checkpoint, data_dir, data_path, variable, start)
    first, last = found.segments[-1]
    values = found.values[first:last]
    if not field.covariates:
        return Series(values, position, field.max_lag, None)
    path = covariates or located({**config, "data_path": "", "node_table": "", "graph": ""})["covariates"]
    beside = read_covariates(path, found.calendar, tuple(field.node_names), 0 if covariates else position - first)
    for note in beside.notes:
        print(f"note: --covariates {beside.source}: {note}", file=sys.stderr)
    if {*beside.names} != {*field.covariates}:
        raise ValueError(f"--covariates {beside.source}: {listed(beside.names)}; the run was trained with "
                         f"{listed(list(field.covariates))}")
    places = [beside.names.index(name) for name in field.covariates]
    return Series(values, position, field.max_lag, beside.values[first:][..., places])


def choose_windows(run: TrainedForecaster, steps: int, first: int, at: str = "", rolling: int = 0,
                   split: str = "") -> Sequence[int]:
    """Where the histories begin in a series whose first step has the position `first`; without a choice, at its end."""
    history_len, predict_len = (run.checkpoint["config"][name] for name in ("history_len", "predict_len"))

    def time(step: int) -> str:
        return run.field.as_text(run.field.times(first + step, 1))[0]

    whole = steps - history_len - predict_len + 1  # windows whose future has been observed
    if steps < history_len:
        raise ValueError(f"the data hold {steps} steps; a forecast sees {history_len}")
    if at:
        begin = run.field.step_at(at, "--at") - first - history_len
        if not 0 <= begin <= steps - history_len:
            raise ValueError(f"--at {at}: the data allow {time(history_len)} to {time(steps)}, the first step that is "
                             f"forecast after {history_len} observed ones")
        return [begin]
    if rolling:
        if rolling > whole:
            raise ValueError(f"--rolling {rolling}: the data hold {max(whole, 0)} windows of {history_len} + "
                             f"{predict_len} observed steps")
        return range(whole - rolling, whole)
    if split:
        begin = max(run.field.test_step - first, 0)
        if begin >= whole:
            raise ValueError(f"--split {split}: the data hold no whole window from {time(begin)} on, where it begins")
        return range(begin, whole)
    return [steps - history_len]


def forecasts(run: TrainedForecaster, series: Series, windows: Sequence[int], flags: dict,
              processes: Processes = SINGLE_PROCESS, online: bool = False) -> Iterator[Forecast]:
    """Forecasts of windows, as many at a time as are sampled together; several processes share them, and get all.

    online: each window is corrected by what has been observed of those before, see `models.online`, in one process.
    """
    correction = run.online() if online else None
    settings = {**run.checkpoint["config"], **flags}
    rows = rows_at_once(run.field.num_nodes, run.device, settings["sample_batch"])
    at_once = processes.count * max(1, rows // settings["nsample"])
    for chosen in progress([windows[k:k + at_once] for k in range(0, len(windows), at_once)], "forecasting"):
        own = chosen if len(chosen) < processes.count else np.array_split(chosen, processes.count)[processes.rank]
        parts = [series.window(begin, settings["history_len"], settings["predict_len"]) for begin in own]
        history, covariates = zip(*parts, strict=True)
        start = np.concatenate([run.field.times(series.first + begin - series.max_lag, 1) for begin in own])
        part = run.forecast(np.stack(history), start, covariates=np.stack(covariates) if run.field.covariates else None,
                            online=correction, **flags)
        yield part if len(own) == len(chosen) else joined(part, processes)


def joined(part: Forecast, processes: Processes) -> Forecast:
    """The forecasts of all processes, those of the first one first."""
    def rows(array: np.ndarray) -> np.ndarray:
        numbers = torch.from_numpy(array.view("int64") if array.dtype.kind == "M" else array)
        return processes.join_rows(numbers).numpy().view(array.dtype)

    return replace(part, **{name: rows(getattr(part, name)) for name in ("members", "times", "issued")})


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path, help="folder of a stage-2 run")
    parser.add_argument("--output", type=output_path, required=True,
                        help=f"file to write; its ending is the format: {', '.join(WRITERS)}")
    parser.add_argument("--data_path", default="", help="a newer file of the field, or the run's own where it lies "
                        "elsewhere now (else the data of the run)")
    parser.add_argument("--covariates", default="", help="covariates of that file, over the horizon too (else the file "
                        "that the run was trained with)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--at", default="", help="first time to forecast; the history ends just before "
                       "(else the first time after the data)")
    which.add_argument("--rolling", type=int, default=0, help="forecast the last so many windows that were observed")
    parser.add_argument("--online", action="store_true", default=False, help="correct the quantile levels of each "
                        "window of --rolling or --split by what has been observed of the windows before it")
    which.add_argument("--split", choices=("test",), default="", help="forecast every window from the first of the "
                       "test on")
    parser.add_argument("--values", choices=VALUES, default=VALUES[0], help="what to write (default: both)")
    parser.add_flags(TrainConfig, CHOICES, ("variable", "start", "data_dir", "device"))
    parser.add_flags(TrainConfig, CHOICES, SAMPLING_FLAGS, "that of the run")
    given = vars(parser.parse_args(arguments))
    if given["rolling"] < 0:
        parser.error(f"--rolling {given['rolling']}: choose a number of windows")
    if given["online"] and not (given["rolling"] or given["split"]):
        parser.error("--online corrects a window by those before it: add --rolling N or --split test")
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    device = choose_device(given.get("device", TrainConfig.device))
    processes = join(device)
    if given["online"] and processes.count > 1:
        raise ValueError("--online corrects one window after the other: start it in one process, without torchrun")
    run = load_forecaster(given["run_folder"], device)
    data_dir = given.get("data_dir", "")
    refuse_input("--output", given["output"], run.checkpoint["config"], data_dir, given["data_path"],
                 given["covariates"])
    check_output(given["output"])
    series = open_series(run, given["data_path"], data_dir, given["covariates"],
                         given.get("variable", ""), given.get("start", ""))
    windows = choose_windows(run, len(series.values), series.first, given["at"], given["rolling"], given["split"])
    horizon, length = (run.checkpoint["config"][name] for name in ("history_len", "predict_len"))
    horizon += series.first
    if seen := sum(-length < begin + horizon < run.field.trained_steps for begin in windows):
        print(f"note: {seen} of {len(windows)} windows have futures that the model was trained on: no test of it",
              file=sys.stderr)
    if (short := run.field.max_lag - min(windows)) > 0:
        lags = listed(as_text(run.field.lags))
        print(f"note: the data begin {short} steps too late for all lags ({lags}) of the first window: the climatology "
              "replaces the missing steps", file=sys.stderr)
    flags = {name: given[name] for name in SAMPLING_FLAGS if name in given}
    drawn = forecasts(run, series, windows, flags, processes, given["online"])
    if not processes.first:
        return sum(0 for _ in drawn)  # it draws its windows; the first one writes
    write_forecasts(given["output"], drawn, given["values"])
    times = [run.field.as_text(run.field.times(horizon + begin, 1))[0] for begin in (windows[0], windows[-1])]
    print(f"{given['output']}: {len(windows)} window{'s' * (len(windows) > 1)}, the first forecast from {times[0]}"
          + f", the last from {times[1]}" * (len(windows) > 1))
    return 0


if __name__ == "__main__":
    run_main(main)
