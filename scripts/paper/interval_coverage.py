"""How often 95 % intervals of the difference of two forecasts hold a true difference of 0, by simulation.

    python -m scripts.paper.interval_coverage --table docs/results/intervals.md

A window's difference is simulated as a mean over the steps that it shares with its neighbours (`overlap`) of an
autoregressive process (`phi`): windows one step apart, as in a test split. Compared are the interval of
`utils.scores.comparison`, a bootstrap of blocks of windows, and two others from econometrics.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.signal import lfilter
from scipy.stats import t as student

from utils.config import FlagParser, output_path
from utils.output.tables import markdown
from utils.program import run_main
from utils.scores.comparison import COVERAGE, FEWEST_BLOCKS, half_width
from utils.training.checkpoint import write_text

BLOCK = 24  # windows that share steps, 12 of history and 12 of forecast
OVERLAPS, PHIS, COUNTS = (12, 24), (0.0, 0.5, 0.8, 0.9), (96, 192, 284, 398, 639, 1748)
PAGE = """# Intervals that hold what they claim

Written by `python -m scripts.paper.interval_coverage`. The share of {repeats} simulated tests in which the 95 %
interval of the mean difference of two forecasts holds its true value, 0, and in brackets the median width of the
interval over that of one from the true standard error. A window's difference is the mean over `overlap` steps of an
autoregressive process with coefficient `phi`; `windows` as MobileNJ, BikeDC, Los_Speed, SST and NYCFlights have them,
and 192. Blocks have {block} windows.

- bootstrap: circular blocks, 2.5 % and 97.5 % quantiles, as in earlier versions of these tables
- block means: Student's t of the means of blocks that do not overlap
- Bartlett: a HAC variance with a bandwidth of 2 blocks, critical values from white noise of the same length (fixed-b)
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
    return tuple(np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=1))


def block_means(values: np.ndarray) -> np.ndarray:
    """Half the width by the means of blocks that do not overlap."""
    count = values.shape[1] // BLOCK
    means = values[:, :count * BLOCK].reshape(len(values), count, BLOCK).mean(axis=2)
    return means.std(axis=1, ddof=1) / count**0.5 * student.ppf((1 + COVERAGE) / 2, count - 1)


def bartlett_error(values: np.ndarray) -> np.ndarray:
    """The standard error of the mean with triangular weights of the autocovariances."""
    windows, band = values.shape[1], 2 * BLOCK
    centred = values - values.mean(axis=1, keepdims=True)
    variance = (centred**2).sum(axis=1)
    for lag in range(1, band):
        variance += 2 * (1 - lag / band) * (centred[:, lag:] * centred[:, :-lag]).sum(axis=1)
    return np.sqrt(variance.clip(0)) / windows


def simulate(windows: int, overlap: int, phi: float, repeats: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Coverage and relative width of each kind of interval; NaN where none is given."""
    generator = np.random.default_rng(seed)
    values = differences(repeats, windows, overlap, phi, generator)
    means = values.mean(axis=1)
    true = differences(4 * repeats, windows, overlap, phi, generator).mean(axis=1).std() * student.ppf(0.975, np.inf)
    white = differences(4 * repeats, windows, 1, 0.0, generator)
    critical = np.quantile(np.abs(white.mean(axis=1)) / bartlett_error(white), COVERAGE)
    lower, upper = bootstrap(values, generator)
    halves = {"block means": block_means(values), "Bartlett": critical * bartlett_error(values),
              "cosines": half_width(torch.from_numpy(values), BLOCK)}
    found = {"bootstrap": (np.mean((lower <= 0) & (0 <= upper)), np.median(upper - lower) / 2 / true)}
    for name, half in halves.items():
        half = np.full_like(means, np.nan) if half is None else np.asarray(half)
        found[name] = (np.mean(np.abs(means) <= half) if np.isfinite(half).all() else np.nan, np.median(half) / true)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = FlagParser(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000, help="simulated test splits of each kind")
    parser.add_argument("--table", type=output_path, default=Path("docs/results/intervals.md"), help="write it there")
    given = parser.parse_args(arguments)
    rows = []
    for overlap in OVERLAPS:
        for phi in PHIS:
            for windows in COUNTS:
                found = simulate(windows, overlap, phi, given.repeats)
                cells = ["none" if np.isnan(share) else f"{share:.3f} ({width:.2f})" for share, width in found.values()]
                rows.append([str(overlap), f"{phi:g}", str(windows), *cells])
                print(*rows[-1], sep="\t", flush=True)
    table = markdown(["overlap", "phi", "windows", *found], rows)
    write_text(given.table, PAGE.format(repeats=given.repeats, block=BLOCK, fewest=FEWEST_BLOCKS, table=table))
    return 0


if __name__ == "__main__":
    run_main(main)
