"""Scores of sums, maxima, increments and correlations, each beside that of the same members without dependence.

The control is the ensemble with its members in another order at every node (for scores in space) or at every step (for
scores in time): margins stay, dependence goes. The difference to the control is what the dependence is worth.
"""

import random

import numpy as np
import torch

from utils.scores import metrics
from utils.scores.diagnostics import binned_means
from utils.training.reproducibility import key, keyed_normal

REGIONS, CENTRES, NEIGHBOURS = 32, 64, 9  # random regions; at most so many neighbourhoods, of so many nodes each
MAX_CORRELATED_NODES, CORRELATION_BINS = 128, 20
CONTROL = "control "  # what names of the control's sums begin with
AGGREGATES = "regions", "neighbourhoods", "max", "increments"
BY_WINDOW = tuple(f"{what}_{name}" for what in ("crps", "abs_truth") for name in AGGREGATES)
SCORES = ("CRPS_sum", *(f"CRPS_{name}" for name in AGGREGATES), "energy_score", "variogram_score")
"""Those whose values a table compares; by distance, lag and rank there are others."""


# --- sets of nodes, and the control -------------------------------------------------------------------------

def random_nodes(num_nodes, size, generator=None):
    """Some nodes in ascending order, which follow from the numbers alone. Shapes: -> (size,)."""
    return torch.tensor(sorted((generator or random.Random(num_nodes)).sample(range(num_nodes), size)))


def random_regions(num_nodes):
    """Sets of nodes, from two of them to all, sizes evenly spread in logarithm. Shapes: -> a list of (size,)."""
    generator = random.Random(num_nodes)
    sizes = np.geomspace(min(2, num_nodes), num_nodes, REGIONS).round().astype(int).tolist()
    return [random_nodes(num_nodes, size, generator) for size in sizes]


def shuffled(members, start, axis):
    """The members in an order of its own at every step (axis 2) or every node (axis 3), whole along the other axis.

    An order follows from the window's `start` and the step or node. Shapes: members (batch, member, horizon, node).
    """
    place = torch.arange(members.shape[axis], device=members.device)
    noise = keyed_normal(key(axis, start.to(members.device).unsqueeze(1), place), members.shape[1:2])
    order = torch.from_numpy(noise.numpy().argsort(-1)) if noise.device.type == "cpu" else noise.argsort(-1)
    order = order.transpose(1, 2).unsqueeze(5 - axis)
    return members.gather(1, order.expand_as(members))


# --- correlations -------------------------------------------------------------------------------------------

def correlation(covariance):
    """Correlations of a covariance matrix; NaN where a variance is zero up to rounding."""
    variance = covariance.diagonal()
    deviation = variance.where(variance > 1e-12 * variance.nan_to_num().max(), torch.nan).sqrt()
    return covariance / torch.outer(deviation, deviation)


def autocorrelation(covariance):
    """Correlation at every lag from 1 on, pooled over the steps that are so far apart: (step, step) -> (step - 1,).

        sum of covariance[f, f + lag] / sum of deviation[f] * deviation[f + lag]
    """
    deviation = covariance.diagonal().sqrt()
    norm = torch.outer(deviation, deviation)
    return torch.tensor([covariance.diagonal(lag).sum() / norm.diagonal(lag).sum() for lag in range(1, len(norm))])


def correlation_curve(pairs, distances):
    """Mean correlation of pairs of nodes in bins of their distance, weighted by the variation of their nodes.

    pairs: see `JointScores.correlations`; distances: those of its pairs, and their unit, or None: then the bins are of
    the forecast correlation. -> distance and unit (both None without), observed, forecast, control.
    """
    (by, unit), lines = distances or (pairs["forecast"], None), ("observed", "forecast", "control")
    finite = np.isfinite(by)
    if not finite.any():
        return {"distance": None, "unit": None, **{name: [] for name in lines}}
    by, weight, *values = (each[finite] for each in (by, pairs["weight"], *(pairs[name] for name in lines)))
    edges = np.linspace(0, by.max(), CORRELATION_BINS + 1) if unit else np.quantile(
        by, np.linspace(0, 1, CORRELATION_BINS + 1))
    distance, *means = (each.tolist() for each in binned_means(edges, weight, by, *values))
    return {"distance": distance if unit else None, "unit": unit, **dict(zip(lines, means, strict=True))}


# --- all of them, streamed ----------------------------------------------------------------------------------

class JointScores:
    """Scores of sums, maxima, increments and correlations, of an ensemble and of its control, over chunks of windows.

    neighbours: (node, count), each row a neighbourhood; None: their scores are left out. distances(first, second) ->
    (distances of these pairs of nodes, their unit) or None. With a mask, sums and maxima are those of the observed
    nodes; a set without any does not count. `sums`: see `metrics.EnsembleScores`.
    """

    def __init__(self, node, neighbours=None, distances=lambda first, second: None):
        self.distances, self.regions = distances, random_regions(node)
        self.some = torch.linspace(0, node - 1, min(CENTRES, node)).round().long()  # evenly over their order
        self.correlated = random_nodes(node, min(MAX_CORRELATED_NODES, node))
        averaged = [torch.arange(node), *self.regions, *([] if neighbours is None else neighbours[self.some])]
        self.membership = torch.stack([torch.bincount(nodes, minlength=node).double() for nodes in averaged])
        self.sums, self._windows = {}, []

    @torch.no_grad()
    def update(self, members, truth, observed, start):
        """Add a chunk of windows, which begin at `start` (batch,); the others as in `metrics.EnsembleScores.update`."""
        members, truth, observed = metrics.in_float64(members, truth, observed)
        near, control = members[..., self.some], shuffled(members, start, axis=3)
        shares = self._over_sets(observed.to(truth).unsqueeze(1), observed)
        seen = {name: share[:, 0] > 0 for name, share in shares.items()}  # sets with an observed node
        without = {
            **self._space(control, truth, observed, seen), **self._time(shuffled(near, start, axis=2), truth, observed),
            "energy_score": metrics.energy_score(control, truth),
            "variogram_score": metrics.variogram_score(control, truth, observed),
        }
        chunk = {
            **self._space(members, truth, observed, seen), **self._time(near, truth, observed),
            **{CONTROL + name: value for name, value in without.items()},
            **self._errors(truth - members.mean(1), observed), **metrics.field_counts(observed),
        }
        self.sums = {name: self.sums.get(name, 0) + value.sum(0) for name, value in chunk.items()}
        self._windows.append({name: chunk[name] for name in BY_WINDOW if name in chunk})

    def _space(self, members, truth, observed, seen):
        """What the order of members by node changes: scores of means and maxima over sets, and products of nodes.

        abs_truth: what the CRPS of all windows is divided by.
        """
        found = self._over_sets(torch.cat([truth.unsqueeze(1), members], 1), observed)
        chunk = {"node products": _products(_around_mean(members[..., self.correlated]).flatten(0, 2))}
        for name, values in found.items():
            truth, ordered = values[:, 0], metrics.sort_members(values[:, 1:])
            crps = metrics.crps_quantile(metrics.member_quantiles(ordered), truth)
            chunk[f"crps_{name}"] = crps.sum((1, 2), dtype=torch.float64)
            chunk[f"abs_truth_{name}"] = truth.abs().sum((1, 2))
            chunk[f"PIT_{name}"] = metrics.pit_counts(ordered, truth, seen[name]).unsqueeze(0)
        return chunk

    def _over_sets(self, fields, observed):
        """Mean of the field, of every region and neighbourhood, and maximum of every region; 0 where none is observed.

        With gaps a mean is the sum of the observed nodes over the size of the set.
        Shapes: fields (batch, row, horizon, node), 0 where not observed -> (batch, row, horizon, set) by kind of set.
        """
        membership = self.membership.to(fields)
        means = fields @ membership.T / membership.sum(1)  # sums first: those of counts are exact, and ties remain
        low = fields.permute(3, 0, 1, 2).masked_fill(~observed.permute(2, 0, 1).unsqueeze(2), -torch.inf).contiguous()
        highest = torch.stack([low.index_select(0, nodes.to(low.device)).amax(0) for nodes in self.regions], -1)
        found = {"sum": means[..., :1], "regions": means[..., 1:1 + REGIONS],
                 "max": highest.where(highest.isfinite(), 0), "neighbourhoods": means[..., 1 + REGIONS:]}
        return {name: values for name, values in found.items() if values.shape[-1]}

    def _time(self, members, truth, observed):
        """What the order of members by step changes: scores of increments of some nodes, and products of steps.

        An increment is 0 where one of its two steps is not observed.
        """
        both = observed[:, 1:, self.some] & observed[:, :-1, self.some]
        found = torch.cat([truth[..., self.some].unsqueeze(1), members], 1).diff(dim=2).where(both.unsqueeze(1), 0)
        quantiles = metrics.member_quantiles(metrics.sort_members(found[:, 1:]))
        crps = metrics.crps_quantile(quantiles, found[:, 0])
        return {"crps_increments": crps.sum((1, 2), dtype=torch.float64),
                "abs_truth_increments": found[:, 0].abs().sum((1, 2)),
                "step products": _products(_around_mean(members).transpose(2, 3).flatten(0, 2))}

    def _errors(self, error, observed):
        """Moments of the errors of the mean, between nodes and between steps. Shapes: error (batch, horizon, node)."""
        weight = observed.to(error)
        rows = {"node": [x[..., self.correlated].flatten(0, 1) for x in (error, weight)],
                "step": [x[..., self.some].transpose(1, 2).flatten(0, 1) for x in (error, weight)]}
        return {f"{between} {name}": value for between, (x, w) in rows.items() for name, value in
                {"errors": _products(x), "error sums": _products(x, w), "pairs": _products(w)}.items()}

    def by_window(self):
        """The columns BY_WINDOW (without unknown neighbourhoods), as `metrics.EnsembleScores.by_window`."""
        return {name: torch.cat([each[name] for each in self._windows]).cpu() for name in self._windows[0]}

    def correlations(self):
        """Correlations between nodes of the errors of the mean, and of the members around it, pooled over the horizon.

        `weight` is the product of the errors' standard deviations. Pairs with a node that never varies are left out.
        Shapes: first, second (the nodes), observed, forecast, control, weight, each (pair,), in numpy.
        """
        sums = {name: value.cpu() for name, value in self.sums.items()}
        errors, nodes = _error_covariance(sums, "node"), self.correlated
        first, second = torch.triu_indices(len(nodes), len(nodes), 1)
        deviation = errors.diagonal().sqrt()
        found = {"first": nodes[first], "second": nodes[second], "observed": correlation(errors)[first, second]}
        for line, side in (("forecast", ""), ("control", CONTROL)):
            found[line] = correlation(sums[f"{side}node products"] / sums["node pairs"])[first, second]
        found["weight"] = deviation[first] * deviation[second]
        valid = (found["observed"] + found["forecast"] + found["control"]).isfinite()
        return {name: values[valid].numpy() for name, values in found.items()}

    def compute(self):
        """All scores of the windows seen, and those of the `control`, defined in docs/scores.md; None: does not exist.

        The energy and the variogram score are given for the control alone: `metrics.EnsembleScores` has the others.
        """
        sums = {name: value.cpu() for name, value in self.sums.items()}
        steps = {"observed": autocorrelation(_error_covariance(sums, "step")),
                 "forecast": autocorrelation(sums["step products"] / sums["step pairs"]),
                 "control": autocorrelation(sums[f"{CONTROL}step products"] / sums["step pairs"])}
        families = [name.removeprefix("PIT_") for name in sums if name.startswith("PIT_")]
        pairs = self.correlations()
        curve = correlation_curve(pairs, self.distances(pairs["first"], pairs["second"]))

        def scores(side, line):
            found = {f"CRPS_{name}": sums[f"{side}crps_{name}"] / sums[f"abs_truth_{name}"]
                     for name in (*families, "increments")}
            if side:
                found["energy_score"] = sums[f"{side}energy_score"].sum() / sums["fields"].sum()
                found["variogram_score"] = sums[f"{side}variogram_score"].sum() / sums["paired_fields"].sum()
            pit = {name: sums[f"{side}PIT_{name}"] for name in families}
            return metrics.plain({
                **found,
                "autocorrelation_gap": (steps[line] - steps["observed"]).abs().mean(),
                "correlation_gap": (torch.tensor(curve[line]) - torch.tensor(curve["observed"])).abs().mean(),
                **{f"PIT_error_{name}": metrics.bin_error(counts) for name, counts in pit.items()},
            }) | {"PIT": metrics.plain({name: counts / counts.sum() for name, counts in pit.items()})}

        return {**scores("", "forecast"), "control": scores(CONTROL, "control"),
                "autocorrelation": metrics.plain(steps), "correlation": curve}


def _around_mean(members):
    return members - members.mean(1, keepdim=True)


def _products(rows, others=None):
    """Sums over the rows of the products of two columns, in float64, with an axis to be summed before them."""
    rows = rows.double()
    return (rows.T @ (rows if others is None else others.double())).unsqueeze(0)


def _error_covariance(sums, between):
    """Covariance of the errors around their mean; NaN for a pair that was never observed both."""
    pairs = sums[f"{between} pairs"]
    mean = sums[f"{between} error sums"] / pairs
    return sums[f"{between} errors"] / pairs - mean * mean.T
