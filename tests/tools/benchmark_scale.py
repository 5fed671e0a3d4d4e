"""Measure how cost and memory of both stages grow with the number of nodes, up to a field that stays on disk.

    python -m tests.tools.benchmark_scale --json docs/results/scale.json --table docs/results/scale.md

A field of `--steps` time steps is generated for every number of nodes, in a file that is removed afterwards, and read
as a user's own file: above 1 GiB it stays a memory map. Each number of nodes has a process of its own, with one thread.
The peak resident set includes pages of the file, which the system takes back whenever it needs them.
"""

import math
import multiprocessing
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models import ensemble_sampler
from scripts.check_data import forecaster_of, seconds_per_step
from tests.tools.benchmark_speed import mean_model_of, seconds_of
from utils.config import FlagParser, PretrainConfig, TrainConfig, output_path
from utils.output.tables import markdown
from utils.pipeline import mean_loss, open_windows, training_loss
from utils.program import run_main
from utils.training import checkpoint

NODES = (100, 300, 1000, 3000, 10000)
COSTS = {"train_1": "stage 1, training, s a window", "train_2": "stage 2, training, s a window",
         "forecast": "forecast, s a window", "peak_resident_set_mb": "peak resident set, MB"}
BLOCK = 1 << 24  # values written at once


def write_field(path: Path, steps: int, nodes: int) -> None:
    """A field (time, row, column) in float32 on disk, block by block: a daily cycle of its own for each node, noise.

    The grid of the nodes is as near to a square as their number allows.
    """
    random = np.random.default_rng(nodes)
    phase = random.uniform(0, 2 * np.pi, nodes).astype(np.float32)
    rows = next(rows for rows in range(math.isqrt(nodes), 0, -1) if nodes % rows == 0)
    values = np.lib.format.open_memmap(path, "w+", np.float32, (steps, rows, nodes // rows)).reshape(steps, nodes)
    for first in range(0, steps, max(1, BLOCK // nodes)):
        hours = np.arange(first, min(first + max(1, BLOCK // nodes), steps), dtype=np.float32)[:, None]
        noise = random.standard_normal((len(hours), nodes), dtype=np.float32)
        values[first:first + len(hours)] = 20 + 5 * np.sin(hours * np.float32(np.pi / 12) + phase) + noise
    values.flush()


def measure(nodes: int, steps: int, batch_size: int, members: int) -> dict:
    """Seconds and memory of both stages on a generated field."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scale.npy")
        write_field(path, steps, nodes)
        config = replace(TrainConfig(), data_name="scale", data_path=str(path), freq="1h", start="2000-01-01",
                         batch_size=batch_size, nsample=members)
        settings = checkpoint.settings(config)
        data = open_windows(settings, "", device)
        mean_model = mean_model_of(config, data, device)
        first = seconds_per_step(mean_model, mean_loss(mean_model, PretrainConfig(), device), data, batch_size)
        model = forecaster_of(config, data, mean_model, device)
        second = seconds_per_step(model, training_loss(model, lambda batch: None, config, device), data, batch_size)
        window, sample = next(iter(data.batches("test", 1))), ensemble_sampler(model.eval(), settings, device)
        seconds = seconds_of(lambda: sample(window))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"nodes": nodes, "time_steps": steps, "train_1": first / batch_size, "train_2": second / batch_size,
            "forecast": seconds, "peak_resident_set_mb": memory}


def exponents(rows: list[dict]) -> dict[str, float]:
    """Growth of each cost with the nodes over the last two rows: cost ~ nodes ** exponent."""
    one, two = rows[-2:]
    return {name: math.log(two[name] / one[name]) / math.log(two["nodes"] / one["nodes"]) for name in COSTS}


def table(rows: list[dict], batch_size: int, members: int) -> str:
    """The rows as a Markdown table, and the growth from the last one but one to the last."""
    text = markdown(["nodes", "field", *COSTS.values()], [
        [str(row["nodes"]), f"{row['time_steps']} steps, {4e-6 * row['nodes'] * row['time_steps']:.0f} MB",
         *(f"{row[name]:.3g}" for name in COSTS)] for row in rows])
    growth = ", ".join(f"{name} {value:.2f}" for name, value in exponents(rows).items()) if len(rows) > 1 else "none"
    return (f"{text}\n{members} members a forecast, batches of {batch_size} windows, one thread. Growth from the last "
            f"row but one to the last, as a power of the nodes: {growth}.")


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES, help="numbers of nodes, ascending")
    parser.add_argument("--steps", type=int, default=50000, help="time steps of the field (default: 50000)")
    parser.add_argument("--batch_size", type=int, default=8, help="windows per training step (default: 8)")
    parser.add_argument("--nsample", type=int, default=50, help="members of a forecast (default: 50)")
    parser.add_argument("--json", type=output_path, default=None, help="write the numbers there")
    parser.add_argument("--table", type=output_path, default=None, help="write the table there as Markdown")
    given = parser.parse_args(arguments)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        tasks = [(nodes, given.steps, given.batch_size, given.nsample) for nodes in given.nodes]
        rows = pool.starmap(measure, tasks, chunksize=1)
    text = table(rows, given.batch_size, given.nsample)
    print(text)
    if given.json:
        checkpoint.write_json(given.json, {"batch_size": given.batch_size, "members": given.nsample,
                                           "torch": torch.__version__, "rows": rows})
    if given.table:
        checkpoint.write_text(given.table, f"{text}\n")
    return 0


if __name__ == "__main__":
    run_main(main)
