"""Measure how cost and memory of both stages grow with the number of nodes, up to a field that stays on disk.

    python -m tests.tools.benchmark_scale --json docs/results/scale.json --table docs/results/scale.md

A field of `--steps` time steps is generated for every number of nodes, in a file that is removed afterwards, and read
as a user's own file: above 1 GiB it stays a memory map. Each number of nodes has a process of its own, with one thread:
training steps of both stages as in their programs, validation on one batch, and a forecast. Seconds are those of the
processor, so that other programs do not count. Peak memory is what the process has to itself (RssAnon); the peak
resident set (ru_maxrss) has pages of the file in it too, which the system takes back whenever it needs them.
"""

import contextlib
import io
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models import build_forecaster, build_mean_model, ensemble_sampler
from tests.tools.benchmark_speed import seconds_of
from tests.tools.children import at_least_one
from utils.config import FlagParser, PretrainConfig, TrainConfig, output_path
from utils.output.tables import markdown
from utils.pipeline import CHOICES, mean_loss, neighbours_of, open_windows, statistics_batches, validation_loss
from utils.program import run_main
from utils.scores.evaluation import mean_over_windows
from utils.scores.metrics import EnsembleScores
from utils.training import checkpoint
from utils.training.loop import Goal, Plan, fit
from utils.training.reproducibility import seed_step
from utils.training.runs import Run

NODES = (100, 300, 1000, 3000, 10000)
LINEAR = 1.1  # exponent of the growth with the nodes up to which a cost counts as linear
COSTS = {"train_1": "stage 1, training", "train_2": "stage 2, training", "forecast": "forecast"}
MEMORY = {"peak_mb": "peak memory"}
BLOCK = 1 << 24  # values written at once
STATUS = Path("/proc/self/status")


def write_field(path: Path, steps: int, nodes: int) -> None:
    """A field (time, row, column) in float32 on disk, block by block: a daily cycle of its own for each node, noise.

    The grid of the nodes is as near to a square as their number allows.
    Raises: ValueError when the disk has not enough space.
    """
    needed, free = 4 * steps * nodes, shutil.disk_usage(path.parent).free
    if free < 1.1 * needed:
        raise ValueError(f"--folder {path.parent}: {free / 1e9:.1f} GB are free, the field takes {needed / 1e9:.1f} GB")
    random = np.random.default_rng(nodes)
    phase = random.uniform(0, 2 * np.pi, nodes).astype(np.float32)
    rows = next(rows for rows in range(math.isqrt(nodes), 0, -1) if nodes % rows == 0)
    values = np.lib.format.open_memmap(path, "w+", np.float32, (steps, rows, nodes // rows)).reshape(steps, nodes)
    for first in range(0, steps, max(1, BLOCK // nodes)):
        hours = np.arange(first, min(first + max(1, BLOCK // nodes), steps), dtype=np.float32)[:, None]
        noise = random.standard_normal((len(hours), nodes), dtype=np.float32)
        values[first:first + len(hours)] = 20 + 5 * np.sin(hours * np.float32(np.pi / 12) + phase) + noise
    values.flush()


class PeakMemory:
    """Watch the memory that this process has to itself; `bytes` is its peak, None where the system does not tell."""

    def __enter__(self):
        self.bytes, self._done = None, threading.Event()
        self._watch = threading.Thread(target=self._look_again, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._watch.join()

    def _look_again(self) -> None:
        while STATUS.exists():
            found = private_bytes()
            self.bytes = max(self.bytes or 0, found)
            if self._done.wait(0.02):
                return


def private_bytes() -> int:
    """Resident memory that is not that of a file."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def train(model, loss, data, config, steps: int) -> float:
    """Processor seconds per window of training steps of `utils.training.loop.fit`, the first one left out."""
    def run(count: int) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            goal = Goal(loss, lambda generator: data.batches("train", config.batch_size, generator,
                                                             limit=count * config.batch_size), lambda _: 0.0)
            return seconds_of(lambda: fit(model, goal, Plan.of(config, epochs=1, lr=3e-3, ema=0.99), Run(Path(), {})))

    run(1)
    return run(steps) / (steps * config.batch_size)


def measure(nodes: int, steps: int, config: TrainConfig, train_steps: int, folder: Path) -> dict:
    """Seconds and memory of both stages on a generated field, as one flat dict."""
    torch.set_num_threads(1)
    path = folder / f"{nodes}_nodes.npy"
    try:
        write_field(path, steps, nodes)
        with PeakMemory() as peak:
            result = run_both(path, config, train_steps)
    finally:
        path.unlink(missing_ok=True)
    return {"nodes": nodes, "time_steps": steps, "denoiser": config.denoiser, **result,
            "peak_mb": peak.bytes and peak.bytes / 1e6,
            "peak_resident_set_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024) / 1e6}


def measure_elsewhere(nodes: int, given: dict, folder: Path) -> dict:
    """What `measure` gives, in a process of its own, whose peak memory is then that of this field alone."""
    answer = folder / f"{nodes}_nodes.json"
    same = [f"--{name}={given[name]}" for name in ("steps", "train_steps", "batch_size", "nsample", "denoiser")
            if name in given]
    subprocess.run([sys.executable, "-m", "tests.tools.benchmark_scale", "--nodes", str(nodes), *same, "--folder",
                    folder, "--json", answer], check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
    return json.loads(answer.read_text())["rows"][0]


def run_both(path: Path, config: TrainConfig, train_steps: int) -> dict:
    """Seconds of both stages on a file, as in the two programs, but for the number of steps."""
    own = {"data_name": "scale", "data_path": str(path), "freq": "1h", "start": "2000-01-01"}
    mean_config, config = (replace(each, **own, batch_size=config.batch_size) for each in (PretrainConfig(), config))
    settings, device, result = checkpoint.settings(config), torch.device("cpu"), {}

    def opened():
        nonlocal data
        data = open_windows(settings, "", device)

    data = None
    result["open_s"] = seconds_of(opened)
    seed_step(config.seed)
    mean_model = build_mean_model(checkpoint.settings(mean_config), data.metadata())

    loss_1 = mean_loss(mean_model, mean_config, device)
    result["train_1"] = train(mean_model, loss_1, data, mean_config, train_steps)
    some = data.batches("validation", config.val_batch_size, limit=config.val_batch_size)
    result["validation_1"] = seconds_of(lambda: mean_over_windows(loss_1, some)) / len(some.starts)
    mean_model.eval()
    result["calibration_s"] = seconds_of(
        lambda: mean_model.calibrate(statistics_batches(data, config), some, data.support))
    model = build_forecaster(settings, mean_model, data.metadata(), neighbours_of(data, config))
    result["statistics_s"] = seconds_of(
        lambda: model.fit_statistics(statistics_batches(data, config), data.calibration(8), data.fluctuation_scale))

    def loss(batch):
        return model.loss(batch.future, batch.context)

    result["train_2"] = train(model, loss, data, config, train_steps)
    model.eval()
    result["validation_2"] = seconds_of(
        lambda: validation_loss(model, data, replace(config, val_windows=len(some.starts)))) / len(some.starts)
    window, sample = next(iter(data.batches("test", 1))), ensemble_sampler(model, settings, device)
    members = sample(window)
    result["forecast"] = seconds_of(lambda: sample(window))
    scores = EnsembleScores(data.predict_len, data.num_nodes, config.nsample)
    physical = data.scaler.physical
    result["scores"] = seconds_of(lambda: scores.update(physical(members), physical(window.future)))
    return result


def exponent(rows: list[dict], name: str) -> float:
    """Growth of a cost with the nodes over the last two rows: cost ~ nodes ** exponent."""
    one, two = rows[-2:]
    return math.log(two[name] / one[name]) / math.log(two["nodes"] / one["nodes"])


def report(rows: list[dict], batch_size: int, members: int) -> dict:
    """The rows, with what follows from them."""
    by_nodes = sorted(rows, key=lambda row: row["nodes"])
    known = [name for name in COSTS | MEMORY if all(row[name] for row in rows)]  # memory: not on every system
    growth = {name: exponent(by_nodes, name) for name in known} if len(rows) > 1 else {}
    return {"batch_size": batch_size, "members": members, "torch": torch.__version__, "rows": by_nodes,
            "exponent_of_the_largest_two": growth, "linear": all(value <= LINEAR for value in growth.values())}


def table(result: dict) -> str:
    """The result as a Markdown table: seconds of one processor core per window, and megabytes."""
    rows = []
    for row in result["rows"]:
        size = 4e-6 * row["nodes"] * row["time_steps"]
        peak = f"{row['peak_mb']:.0f} MB" if row["peak_mb"] else "not known"
        rows.append([str(row["nodes"]), f"{row['time_steps']} steps, {size:.0f} MB",
                     *(f"{row[name]:.3g}" for name in COSTS), peak, f"{row['peak_resident_set_mb']:.0f} MB"])
    names, exponents = COSTS | MEMORY, result["exponent_of_the_largest_two"]
    growth = ", ".join(f"{names[name]} {value:.2f}" for name, value in exponents.items())
    head = ["nodes", "field", *(f"{text}, s a window" for text in COSTS.values()), "peak memory", "peak resident set"]
    return (f"{markdown(head, rows)}\n{result['members']} members a forecast, batches of {result['batch_size']} "
            f"windows, one thread. Growth from the last row but one to the last, as a power of the nodes: {growth}.")


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=at_least_one, nargs="+", default=NODES, help="numbers of nodes (default: "
                        f"{' '.join(map(str, NODES))})")
    parser.add_argument("--steps", type=at_least_one, default=50000, help="time steps of the field (default: 50000)")
    parser.add_argument("--train_steps", type=at_least_one, default=3, help="training steps to measure (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()),
                        help="folder for the generated field (default: that of temporary files)")
    parser.add_argument("--json", type=output_path, default=None, help="write the numbers there")
    parser.add_argument("--table", type=output_path, default=None, help="write the table there as Markdown")
    parser.add_flags(TrainConfig, CHOICES, ("batch_size", "nsample", "denoiser"))
    given = vars(parser.parse_args(arguments))
    if not given["folder"].is_dir():
        raise ValueError(f"--folder {given['folder']}: no such folder")
    config = replace(TrainConfig(), **{name: given[name] for name in ("batch_size", "nsample", "denoiser")
                                       if name in given})
    rows = []
    with tempfile.TemporaryDirectory(dir=given["folder"]) as folder:
        for nodes in given["nodes"]:
            rows.append(measure(nodes, given["steps"], config, given["train_steps"], Path(folder))
                        if len(given["nodes"]) == 1 else measure_elsewhere(nodes, given, Path(folder)))
            result = report(rows, config.batch_size, config.nsample)
            if given["json"]:
                checkpoint.write_json(given["json"], result)
            if given["table"]:
                checkpoint.write_text(given["table"], f"{table(result)}\n")
            print(f"{nodes} nodes: done", flush=True)
    print(table(result))
    return 0


if __name__ == "__main__":
    run_main(main)
