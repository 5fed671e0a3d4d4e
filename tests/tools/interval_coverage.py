"""How often 95 % intervals of the difference of two forecasts hold a true difference of 0, by simulation.

    python -m tests.tools.interval_coverage --table docs/results/intervals.md

PAGE says what is simulated, and which intervals are compared.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.signal import lfilter

from utils.config import FlagParser, output_path
from utils.output.tables import markdown
from utils.program import run_main
from utils.scores.comparison import CONFIDENCE, FEWEST_BLOCKS, half_width
from utils.training.checkpoint import write_text

BLOCK = 24  # windows that share steps, 12 of history and 12 of forecast
OVERLAPS, PHIS, COUNTS = (12, 24), (0.0, 0.5, 0.8, 0.9), (96, 192, 284, 398, 639, 1748)
PAGE = """# Intervals that hold what they claim

Written by `python -m tests.tools.interval_coverage`. The share of {repeats} simulated tests in which the 95 %
interval of the mean difference of two forecasts holds its true value, 0, and in brackets the median width of the
interval over that of one from the true standard error. A window's difference is the mean over `overlap` steps of an
autoregressive process with coefficient `phi`; `windows` as MobileNJ, BikeDC, Los_Speed, SST and NYCFlights have them,
and 192. Blocks have {block} windows.

- bootstrap: circular blocks, 2.5 % and 97.5 % quantiles, as in earlier versions of these tables
- **cosines**: `utils/scores/comparison.py`, used in all tables. Fewer than {fewest} blocks: no interval is given

{table}"""


def differences(rows: int, windows: int, overlap: int, phi: float, generator: np.random.Generator) -> np.ndarray:
    """Simulated differences of windows: (row, window)."""
    noise = generator.standard_normal((rows, windows + overlap + 300))
    process = lfilter([1.0], [1.0, -phi], noise, axis=1)[:, 300:]
    upto = process.cumsum(axis=1)
    return (upto[:, overlap:] - upto[:, :-overlap]) / overlap


def bootstrap(values: np.ndarray, generator: np.random.Generator, resamples: int = 300) -> tuple[np.ndarray, ...]:
    """Lower and upper ends by circular blocks of BLOCK windows."""
    windows = values.shape[1]
    upto = np.concatenate([np.zeros_like(values[:, :1]), values, values[:, :BLOCK]], axis=1).cumsum(axis=1)
    sums = upto[:, BLOCK:BLOCK + windows] - upto[:, :windows]
    count = -(-windows // BLOCK)
    means = [row[generator.integers(windows, size=(resamples, count))].mean(axis=1) / BLOCK for row in sums]
    return tuple(np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1))


def simulate(windows: int, overlap: int, phi: float, repeats: int, seed: int = 0) -> list[str]:
    """Coverage and relative width of the bootstrap and of the interval by cosines, as text."""
    generator = np.random.default_rng(seed)
    values = differences(repeats, windows, overlap, phi, generator)
    true = 1.96 * differences(4 * repeats, windows, overlap, phi, generator).mean(axis=1).std()
    intervals, mean = [bootstrap(values, generator)], values.mean(axis=1)
    if (half := half_width(torch.from_numpy(values), BLOCK)) is not None:
        intervals.append((mean - half.numpy(), mean + half.numpy()))
    cells = [f"{np.mean((lower <= 0) & (0 <= upper)):.3f} ({np.median(upper - lower) / 2 / true:.2f})"
             for lower, upper in intervals]
    return cells if half is not None else [*cells, "none"]


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000, help="simulated test splits of each kind")
    parser.add_argument("--table", type=output_path, default=Path("docs/results/intervals.md"), help="write it there")
    given = parser.parse_args(arguments)
    rows = [[str(overlap), f"{phi:g}", str(windows), *simulate(windows, overlap, phi, given.repeats)]
            for overlap in OVERLAPS for phi in PHIS for windows in COUNTS]
    table = markdown(["overlap", "phi", "windows", "bootstrap", "cosines"], rows)
    write_text(given.table, PAGE.format(repeats=given.repeats, block=BLOCK, fewest=FEWEST_BLOCKS, table=table))
    return 0


if __name__ == "__main__":
    run_main(main)
