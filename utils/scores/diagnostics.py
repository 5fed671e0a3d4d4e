"""Sums over windows for the pictures of a report; memory does not grow with the number of windows."""

import numpy as np
import torch

from data.scaling import add_at
from utils.scores.metrics import COVERAGE, Chunk, covered, crps_quantile, in_float64

BINS_PER_OCTAVE, OCTAVES = 4, 256  # of the spread, from 2**-128 to 2**128 of the unit: those of float32
EARTH_RADIUS_KM = 6371.0
COVERED = f"coverage{COVERAGE * 100:.0f}"


class Diagnostics:
    """Sums over chunks of windows, in float64, from which every picture of a report is drawn."""

    def __init__(self):
        self.sums = {}

    @torch.no_grad()
    def update(self, members, truth, observed=None):
        """Add a chunk of windows, see `metrics.EnsembleScores.update`."""
        part = Chunk(*in_float64(members, truth, observed))
        truth, mean, observed = part.truth, part.mean, part.observed
        error, variance = truth - mean, part.variance()
        variance = variance.where(variance > 1e-24 * mean.square(), 0.0)  # of equal members: the rounding of their mean
        by_target = {
            "targets": observed, "mean": mean, "truth": truth, "size": truth.abs(), "variance": variance,
            "squared_error": error.square(), "MAE": error.abs(), "CRPS": crps_quantile(part.quantiles, truth),
            COVERED: covered(*part.interval, truth),
        }
        chunk = {name: (value * observed).sum((0, 1), dtype=torch.float64) for name, value in by_target.items()}

        size = BINS_PER_OCTAVE * OCTAVES
        spread = variance[observed]
        place = spread.clamp_min(torch.finfo(spread.dtype).tiny).log2() / 2 * BINS_PER_OCTAVE
        place = (place.floor().long() + size // 2).clamp(0, size - 1)
        chunk["spread_targets"] = torch.bincount(place, minlength=size).double()
        chunk["spread_variance"] = add_at(spread.new_zeros(size), place, spread * (1 + 1 / members.shape[1]))
        chunk["spread_squared_error"] = add_at(spread.new_zeros(size), place, error[observed].square())
        self.sums = {name: self.sums.get(name, 0) + value for name, value in chunk.items()}

    def by_node(self) -> dict[str, np.ndarray]:
        """Means over windows and horizon, (node,) each, in physical units; NaN for a node that was never observed."""
        sums = self._numpy("targets", "mean", "truth", "size", "variance", "squared_error", "MAE", "CRPS", COVERED)
        targets = sums.pop("targets")
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {name: value / targets for name, value in sums.items()}
            found["CRPS_normalized"] = found["CRPS"] / found.pop("size")
        found |= {"spread": np.sqrt(found.pop("variance")), "RMSE": np.sqrt(found.pop("squared_error"))}
        return found

    def spread_skill(self, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Spread and RMSE of targets with about the same spread, in at most `groups` groups of about equal size.

            spread = sqrt((M + 1) / M * mean unbiased member variance),    as in `metrics.spread_skill`

        The groups are runs of narrow bins of the spread (BINS_PER_OCTAVE), so the whole forecast need not be kept.
        """
        sums = self._numpy("spread_targets", "spread_variance", "spread_squared_error")
        targets, variance, squared_error = sums.values()
        middle = targets.cumsum() - targets / 2
        group = np.minimum(middle / targets.sum() * groups, groups - 1).astype(int)
        targets, variance, squared_error = (np.bincount(group, value) for value in (targets, variance, squared_error))
        some = targets > 0
        return np.sqrt(variance[some] / targets[some]), np.sqrt(squared_error[some] / targets[some])

    def _numpy(self, *names) -> dict[str, np.ndarray]:
        if not self.sums:
            raise ValueError("nothing to draw: not one window was forecast")
        return {name: self.sums[name].cpu().numpy() for name in names}


def pair_distances(first: np.ndarray, second: np.ndarray, grid: tuple[int, int] | None = None,
                   kept: np.ndarray | None = None, coordinates: np.ndarray | None = None,
                   graph: torch.Tensor | None = None) -> tuple[np.ndarray, str] | None:
    """Distances between nodes and their unit: great circles in km where coordinates are known, else grid steps, else
    edges of a graph, in either direction (infinite without a path).

        haversine = sin^2(dlat / 2) + cos(lat_1) cos(lat_2) sin^2(dlon / 2),    distance = 2 R asin(sqrt(haversine))

    Shapes: first, second (pair,) of nodes; coordinates (node, 2), latitude and longitude in degrees; grid (rows,
    columns), of which the nodes are all places or those `kept` (node,); graph (node, node), its weights.
    None where none of them is known.
    """
    if coordinates is not None:
        (lat_1, lon_1), (lat_2, lon_2) = (np.radians(np.asarray(coordinates, float)[each]).T
                                          for each in (first, second))
        haversine = (np.sin((lat_2 - lat_1) / 2)**2
                     + np.cos(lat_1) * np.cos(lat_2) * np.sin((lon_2 - lon_1) / 2)**2)
        return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(haversine.clip(0, 1))), "km"
    if grid is not None:
        first, second = (each if kept is None else kept[each] for each in (first, second))
        (row_1, column_1), (row_2, column_2) = (np.divmod(each, grid[1]) for each in (first, second))
        return np.hypot(row_2 - row_1, column_2 - column_1), "grid steps"
    if graph is not None:
        from scipy.sparse import csr_array  # only here: slow to import
        from scipy.sparse.csgraph import dijkstra
        nodes, place = np.unique(first, return_inverse=True)
        return dijkstra(csr_array(graph.numpy() > 0), directed=False, indices=nodes, unweighted=True)[place, second], \
            "edges"
    return None


def binned_means(edges: np.ndarray, weight: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """Weighted means of each of the values in the bins between ascending edges of the first, without empty bins.

    What lies beyond the outer edges counts in the bins at the ends. Shapes: weight and values (n,) each.
    """
    place = np.digitize(values[0], edges[1:-1])
    total = np.bincount(place, weight, len(edges) - 1)
    return [np.bincount(place, weight * each, len(total))[total > 0] / total[total > 0] for each in values]
