"""Scores of ensemble forecasts: pure functions, and one accumulator that streams windows through them.

Axes: members (batch, member, horizon, node), truth (batch, horizon, node). Units: physical.
`ordered` are members sorted along the member axis: sort once, share among the scores. A new score is one entry of
SCORES.
"""

import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.constants import QUANTILE_LEVELS
from data.scaling import add_at

MEDIAN, DECILES = 9, slice(1, None, 2)  # where they stand in QUANTILE_LEVELS, whose ends bound the 90 % interval
COVERAGE = 0.9
MAX_VARIOGRAM_PAIRS = 2000
PIT_BINS = 20
EVENT_BINS = 10
_CHUNK_ELEMENTS = 2**22  # largest temporary of the cross-check, and of the variogram score on a GPU
_CACHE_ELEMENTS = 2**18  # that of the variogram score on a CPU: it then stays in cache


# --- one value per target -----------------------------------------------------------------------------------

def sort_members(members):
    """Members in ascending order. Shapes: (batch, M, ...) alike."""
    if members.device.type != "cpu":
        return members.sort(dim=1).values
    return torch.from_numpy(np.sort(members.detach().numpy(), axis=1))  # 14 times faster than torch: no indices


def member_quantiles(ordered, levels=QUANTILE_LEVELS):
    """Quantiles of an ensemble by linear interpolation between sorted members (numpy's default).

        position = level * (M - 1),    quantile = lerp(ordered[floor(position)], ordered[floor(position) + 1])

    torch.quantile stops at 16 million elements.
    Shapes: ordered (batch, M, ...) -> (batch, level, ...). Source: Hyndman and Fan 1996, definition 7.
    """
    last = ordered.shape[1] - 1
    positions = [round(level * last, 9) for level in levels]  # 0.55 * 100 is 55, not 55.00000000000001
    lower = [math.floor(position) for position in positions]
    below = ordered[:, lower]
    above = ordered[:, [min(k + 1, last) for k in lower]]
    weight = ordered.new_tensor([position - k for position, k in zip(positions, lower, strict=True)])
    return torch.lerp(below, above, weight.view(-1, *[1] * (ordered.dim() - 2)))


def crps_quantile(quantiles, truth):
    """CRPS approximated by quantiles: twice the pinball loss, averaged over the levels.

        mean over q of 2 * |(quantile_q - truth) * (1[truth <= quantile_q] - q)|

    Summed over all targets and divided by the sum of |truth| this is the `CRPS` of the papers' tables.
    Shapes: quantiles (batch, level, ...), truth (batch, ...) -> (batch, ...).
    Source: Laio and Tamea 2007 (CRPS by pinball losses); levels and norm: CSDI (arXiv:2107.03502).
    """
    from models.quantiles import pinball  # only here: importing models imports this module
    return pinball(quantiles, truth).mean(1)


def crps_fair(ordered, truth):
    """Fair CRPS of an ensemble of M >= 2, from sorted members in O(M) after the sort: not biased by the finite M.

        mean_m |x_m - truth| - sum_{m,k} |x_m - x_k| / (2 M (M - 1))
        sum_{m,k} |x_m - x_k| / 2 = sum_i (2 i - M - 1) x_(i)

    Shapes: ordered (batch, M, ...), truth (batch, ...) -> (batch, ...).
    Source: Gneiting and Raftery 2007, Eq. 20-21; fair: Ferro 2014.
    """
    count = ordered.shape[1]
    deviation = ordered - truth.unsqueeze(1)  # the spread term does not see the shift, and rounds less
    rank_weight = torch.arange(1 - count, count, 2, device=ordered.device, dtype=ordered.dtype)
    spread = torch.tensordot(rank_weight, deviation, dims=([0], [1]))
    return deviation.abs().mean(1) - spread / (count * (count - 1))


def interval_score(lower, upper, truth):
    """Interval score of a central interval: its width, and a penalty for each miss.

        (upper - lower) + 2 / (1 - COVERAGE) * (max(lower - truth, 0) + max(truth - upper, 0))

    Shapes: all alike. Source: Gneiting and Raftery 2007, Eq. 43.
    """
    miss = (lower - truth).clamp_min(0) + (truth - upper).clamp_min(0)
    return upper - lower + 2 / (1 - COVERAGE) * miss


def covered(lower, upper, truth):
    """Whether the closed interval holds the truth. Shapes: all alike."""
    return (lower <= truth) & (truth <= upper)


# --- calibration --------------------------------------------------------------------------------------------

def decile_counts(deciles, truth, observed):
    """Observations of each horizon, counted by how many of the members' nine deciles are < truth, and <= truth.

    Shapes: deciles (batch, 9, horizon, node), truth and observed (batch, horizon, node)
    -> (horizon, below, upto) of 10 each, float64.
    """
    horizon, truth = truth.shape[1], truth.unsqueeze(1)
    below, upto = (x.sum(1, dtype=torch.int32) for x in (deciles < truth, deciles <= truth))
    step = torch.arange(horizon, device=truth.device).view(-1, 1)
    pairs = (100 * step + 10 * below + upto)[observed]
    return torch.bincount(pairs, minlength=100 * horizon).view(horizon, 10, 10).double()


def shared_bins(pairs):
    """Observations in each of the ten bins between deciles; one that equals deciles is spread over those it touches.

    Shapes: pairs (..., 10, 10) of `decile_counts` -> (..., 10). Source: Dunn and Smyth 1996, Czado et al. 2009.
    """
    each = torch.arange(10, device=pairs.device)
    low, high = each.view(10, 1, 1), each.view(10, 1)
    share = ((low <= each) & (each <= high)).double() / (high - low + 1).clamp_min(1)
    return pairs.flatten(-2) @ share.view(100, 10)


def bin_error(counts):
    """Mean over bins of |share - 1 / bins|: 0 for a flat histogram; QICE for the ten bins between the deciles.

    Shapes: (..., bins) -> (...).
    """
    return (counts / counts.sum(-1, keepdim=True) - 1 / counts.shape[-1]).abs().mean(-1)


def pit_counts(ordered, truth, observed):
    """Histogram of the randomised probability integral transform: flat when the forecast is calibrated.

        below, tied = number of members < truth, = truth
        the observation is spread evenly over [below, below + tied + 1] / (M + 1)

    Shapes: ordered (batch, M, ...), truth and observed (batch, ...) -> (PIT_BINS,), float64.
    Source: Czado et al. 2009 (randomised PIT, in expectation); ranks: Hamill 2001.
    """
    ranks, truth = ordered.shape[1] + 1, truth.unsqueeze(1)
    below, upto = (x.sum(1, dtype=torch.int32) for x in (ordered < truth, ordered <= truth))
    pairs = torch.bincount((below.long() * ranks + upto)[observed])
    seen = pairs.nonzero()
    low, high = (seen // ranks).double() / ranks, (seen % ranks + 1).double() / ranks
    edge = torch.arange(PIT_BINS + 1, device=seen.device).double() / PIT_BINS
    beyond = ((edge - low) / (high - low)).clamp(0, 1)  # share of each interval below each edge
    return (pairs[seen[:, 0]].double().unsqueeze(1) * beyond.diff(dim=1)).sum(0)


def event_counts(probability, event, observed):
    """Number of targets, sum of their probabilities and number of events, in EVENT_BINS bins of the probability.

    Shapes: probability, event, observed (batch, ...) -> (3, EVENT_BINS), float64. Source: Murphy and Winkler 1977.
    """
    probability, event = probability[observed].double(), event[observed].double()
    place = (probability * EVENT_BINS).long().clamp_max(EVENT_BINS - 1)
    return torch.stack([add_at(weight.new_zeros(EVENT_BINS), place, weight)
                        for weight in (torch.ones_like(event), probability, event)])


def perfect_qice(members, kind="random"):
    """QICE_ties of a calibrated ensemble of M members and endless observations: 0.0063 for 50 random ones.

        random: 0.32 / (M + 1),    quantiles at the levels (i + 1/2) / M: 0.16 / M

    It follows from P(truth <= quantile_q) = (1 + q (M - 1)) / (M + 1), and (1/2 + q (M - 1)) / M for quantiles. Exact
    for uniform margins, close for others; not a lower bound.
    """
    return 0.32 / (members + 1) if kind == "random" else 0.16 / members


def perfect_coverage(members, kind="random"):
    """Share of truths inside the 90 % interval of a calibrated ensemble: 0.8647 for 50 random members.

        random: 0.9 (M - 1) / (M + 1),    quantiles: 0.9 (M - 1) / M
    """
    return COVERAGE * (members - 1) / (members + (kind == "random"))


# --- joint scores: one value per window and horizon ---------------------------------------------------------

def energy_score(members, truth):
    """Energy score over the nodes: the CRPS with Euclidean distances between fields.

        mean_m ||x_m - truth|| - sum_{m,k} ||x_m - x_k|| / (2 M^2)

    Shapes: members (batch, M, horizon, node), truth (batch, horizon, node) -> (batch, horizon), float64.
    Source: Gneiting and Raftery 2007, Eq. 22.
    """
    if len(truth) > 1:  # one window at a time: the distances between all members are the largest temporary
        return torch.cat([energy_score(*each) for each in zip(members.split(1), truth.split(1), strict=True)])
    deviation = (members - truth.unsqueeze(1)).transpose(1, 2).double()  # float64: the Gram matrix cancels
    gram = deviation @ deviation.mT
    squared_norm = gram.diagonal(dim1=-2, dim2=-1)
    squared_distance = squared_norm.unsqueeze(-1) + squared_norm.unsqueeze(-2) - 2 * gram
    spread = squared_distance.clamp_min(0).sqrt().sum((-2, -1)) / 2
    return squared_norm.sqrt().mean(-1) - spread / members.shape[1]**2


@functools.cache
def variogram_pairs(num_nodes):
    """Node pairs i < j of the variogram score: all, or MAX_VARIOGRAM_PAIRS by the number of nodes alone: (2, pair)."""
    total = num_nodes * (num_nodes - 1) // 2
    chosen = range(total)
    if total > MAX_VARIOGRAM_PAIRS:
        chosen = sorted(random.Random(num_nodes).sample(chosen, MAX_VARIOGRAM_PAIRS))
    second = [(1 + math.isqrt(1 + 8 * k)) // 2 for k in chosen]  # pair k = j (j - 1) / 2 + i
    first = [k - j * (j - 1) // 2 for k, j in zip(chosen, second, strict=True)]
    return torch.tensor([first, second], dtype=torch.long)


def variogram_score(members, truth, observed):
    """Variogram score over node pairs: observed against expected differences between nodes.

        mean over pairs (i, j) of (sqrt(|truth_i - truth_j|) - mean_m sqrt(|x_mi - x_mj|))^2

    Of the pairs those count of which both are observed; without any, as of a single node, it is 0.
    Shapes: members (batch, M, horizon, node), truth and observed (batch, horizon, node) -> (batch, horizon), float64.
    Source: Scheuerer and Hamill 2015, equal weights; a mean where they sum.
    """
    def variogram(by_node, first, second):
        gap = by_node.index_select(0, first).sub_(by_node.index_select(0, second)).abs_()
        return gap.clamp_min_(torch.finfo(gap.dtype).tiny).pow_(0.5)  # the root of exactly 0 is slow

    # nodes first: a node is then one piece of memory, and the mean over members runs along rows
    members_by_node = members.permute(3, 1, 0, 2).contiguous()
    truth_by_node, observed_by_node = (x.permute(2, 0, 1).contiguous() for x in (truth, observed))
    score = truth.new_zeros(truth.shape[:2], dtype=torch.float64)
    elements = _CACHE_ELEMENTS if members.device.type == "cpu" else _CHUNK_ELEMENTS
    pairs = variogram_pairs(truth.shape[-1]).to(members.device)
    for first, second in pairs.split(max(1, elements // max(1, members[..., 0].numel())), dim=1):
        gap = variogram(truth_by_node, first, second) - variogram(members_by_node, first, second).mean(1)
        gap *= observed_by_node[first] & observed_by_node[second]
        score += gap.square_().sum(0, dtype=torch.float64)
    return score / observed_pairs(observed).clamp_min(1)


def observed_pairs(observed):
    """How many of the node pairs are observed both. Shapes: (batch, horizon, node) -> (batch, horizon), float64."""
    first, second = variogram_pairs(observed.shape[-1]).to(observed.device)
    return (observed[..., first] & observed[..., second]).sum(-1, dtype=torch.float64)


def field_counts(observed):
    """What sums over fields are divided by: targets, and fields that have one, or a pair: each (batch, horizon)."""
    targets = observed.sum(2, dtype=torch.float64)
    fields = (targets > 0).double()
    paired = (observed_pairs(observed) > 0).double() if observed.shape[2] > 1 else fields
    return {"targets": targets, "fields": fields, "paired_fields": paired}


# --- all of them, streamed ----------------------------------------------------------------------------------

class Chunk:
    """Some windows as the scores see them, as `in_float64` gives them, and what several scores need of them."""

    def __init__(self, members, truth, observed):
        self.members, self.truth, self.observed = members, truth, observed
        self.ordered, self.mean = sort_members(members), members.mean(1)
        self.quantiles = member_quantiles(self.ordered)
        self.interval = self.quantiles[:, 0], self.quantiles[:, -1]

    def variance(self) -> Tensor:
        return (self.members - self.mean.unsqueeze(1)).square_().sum(1) / (self.members.shape[1] - 1)

    def crps_sum(self) -> Tensor:
        ordered = sort_members(self.members.sum(-1, dtype=torch.float64))
        return crps_quantile(member_quantiles(ordered), self.truth.sum(-1, dtype=torch.float64))


@dataclass(frozen=True)
class Score:
    """A score that is a sum over all windows divided by another sum.

    value(chunk): (batch, horizon, node), of which only observed targets count, or (batch, horizon).
    column: name of the sum, also in `windows.csv`. per: the other sum: targets, fields (steps of windows with a
    target), paired_fields (with a pair of targets), abs_truth or abs_truth_sum.
    by_window: the sum of every window is kept too.
    """

    value: Callable[[Chunk], Tensor]
    column: str
    per: str = "targets"
    by_window: bool = True


SCORES = {
    "CRPS": Score(lambda chunk: crps_quantile(chunk.quantiles, chunk.truth), "crps", "abs_truth"),
    "CRPS_fair": Score(lambda chunk: crps_fair(chunk.ordered, chunk.truth), "crps_fair", "abs_truth"),
    "CRPS_sum": Score(Chunk.crps_sum, "crps_sum", "abs_truth_sum"),
    "IS": Score(lambda chunk: interval_score(*chunk.interval, chunk.truth), "interval_score"),
    "coverage90": Score(lambda chunk: covered(*chunk.interval, chunk.truth), "covered", by_window=False),
    "MAE": Score(lambda chunk: (chunk.mean - chunk.truth).abs(), "error_mean"),
    "MAE_median": Score(lambda chunk: (chunk.quantiles[:, MEDIAN] - chunk.truth).abs(), "error_median"),
    "energy_score": Score(lambda chunk: energy_score(chunk.members, chunk.truth), "energy_score", "fields"),
    "variogram_score": Score(lambda chunk: variogram_score(chunk.members, chunk.truth, chunk.observed),
                             "variogram_score", "paired_fields"),
}
"""Scores by their names in `metrics.json`; docs/scores.md defines them."""

BY_WINDOW = ("targets", "fields", "paired_fields", "abs_truth", "abs_truth_sum",
             *(score.column for score in SCORES.values() if score.by_window))  # columns of windows.csv


def in_float64(members, truth, observed=None):
    """Members and truth in float64, both 0 where not `observed`: a target without error; and `observed`, None: all.

    Shapes: members (batch, M, ...), truth and observed (batch, ...).
    """
    members, truth = members.double(), truth.double()
    if observed is None:
        return members, truth, torch.ones_like(truth, dtype=torch.bool)
    return members.where(observed.unsqueeze(1), 0), truth.where(observed, 0), observed


class EnsembleScores:
    """All scores of an ensemble forecast, accumulated over chunks of windows.

        scores = EnsembleScores(horizon=12, node=560, members=50)
        for members, truth in chunks: scores.update(members, truth)
        report = scores.compute()

    With a mask every score is that of the observed targets alone: CRPS_sum sums observed nodes, of truth and members;
    energy and variogram score are those of a step's observed nodes, and leave out steps that have none.
    `sums` holds all that was seen, in float64; sums of several processes may be added.
    threshold, in physical units: the event that a value lies above it is scored too, by the share of members above it.
    """

    def __init__(self, horizon, node, members, threshold=None):
        if members < 2:
            raise ValueError(f"--nsample {members} is too few: ensemble scores need at least 2 members")
        self.horizon, self.node, self.members, self.threshold = horizon, node, members, threshold
        self.sums, self._windows = {}, []

    @torch.no_grad()
    def update(self, members, truth, observed=None):
        """Add a chunk of windows; `observed`, as truth: which targets count; None: all. Units: physical.

        Raises: ValueError for another shape or number of members, and for values that are not finite.
        """
        self._check_shapes(members, truth)
        chunk = Chunk(*in_float64(members, truth, observed))
        truth, observed = chunk.truth, chunk.observed
        check_finite(chunk.members, truth)

        values = {score.column: score.value(chunk) for score in SCORES.values()}
        values |= {"squared_error": (chunk.mean - truth).square(), "variance": chunk.variance()}
        if self.threshold is not None:
            event = truth > self.threshold
            probability = (chunk.members > self.threshold).mean(1, dtype=torch.float64)
            values |= {"brier": (probability - event.double()).square(), "events": event}
        values = {name: value * observed if value.dim() == 3 else value for name, value in values.items()}
        by_step = {name: value.sum(2, dtype=torch.float64) if value.dim() == 3 else value
                   for name, value in values.items()}
        by_step |= {"abs_truth": truth.abs().sum(2), "abs_truth_sum": truth.sum(2).abs(),
                    "windows": torch.ones_like(truth[..., 0]), **field_counts(observed)}
        sums = {name: value.sum(0) for name, value in by_step.items()}
        sums |= {f"node_{name}": value.sum((0, 1), dtype=torch.float64).unsqueeze(0) for name, value in (
            ("crps", values["crps"]), ("abs_truth", truth.abs()), ("targets", observed))}
        sums["deciles"] = decile_counts(chunk.quantiles[:, DECILES], truth, observed)
        sums["PIT"] = pit_counts(chunk.ordered, truth, observed).unsqueeze(0)  # of all horizon steps together
        if self.threshold is not None:
            sums["reliability"] = event_counts(probability, event, observed).unsqueeze(0)
        self.sums = {name: self.sums.get(name, 0) + value for name, value in sums.items()}
        self._windows.append({name: by_step[name].sum(1) for name in BY_WINDOW})

    def by_window(self):
        """What each window adds to the scores, in the order seen: BY_WINDOW, each (windows,), float64, on the CPU."""
        if not self._windows:
            raise ValueError("no scores: not one window was forecast")
        return {name: torch.cat([each[name] for each in self._windows]).cpu() for name in BY_WINDOW}

    def compute(self, kind="random"):
        """All scores of the windows seen, as plain numbers, defined in docs/scores.md; None for what does not exist.

        kind: "random" members or "quantiles" at equidistant levels, which QICE_floor and coverage90_floor depend on.
        Raises: ValueError when no window was seen.
        """
        if not self.sums:
            raise ValueError("no scores: not one window was forecast")
        per_horizon = {name: value.cpu() for name, value in self.sums.items()}
        total = {name: value.sum(0) for name, value in per_horizon.items()}
        per_node = {"CRPS": torch.where(total["node_abs_truth"] > 0, total["node_crps"] / total["node_abs_truth"],
                                        math.nan), "CRPS_physical": total["node_crps"] / total["node_targets"]}
        missing = 1 - (total["targets"] / (total["windows"] * self.node)).item()
        return {
            **plain({**self._scores(total), "CRPS_nodes": per_node["CRPS"].nanmean(),
                     "PIT": total["PIT"] / total["PIT"].sum(), "PIT_error": bin_error(total["PIT"])}),
            **self._event(total),
            "QICE_floor": perfect_qice(self.members, kind),
            "coverage90_floor": perfect_coverage(self.members, kind),
            "windows": round(per_horizon["windows"][0].item()),
            **({"missing_share": missing} if missing else {}),
            "members": self.members,
            "ensemble": kind,
            "per_horizon": plain(self._scores(per_horizon)),
            "per_node": plain(per_node),
        }

    def _scores(self, sums):
        """The scores of all horizon steps or of each: from sums of either."""
        targets = sums["targets"]
        squared_error, variance = sums["squared_error"] / targets, sums["variance"] / targets
        return {
            **{name: sums[score.column] / sums[score.per] for name, score in SCORES.items()},
            "CRPS_fair_physical": sums["crps_fair"] / targets,
            "QICE": bin_error(sums["deciles"].sum(-1)),  # by number below, as the code of CARD (arXiv:2206.07275)
            "QICE_ties": bin_error(shared_bins(sums["deciles"])),
            "RMSE": squared_error.sqrt(),
            "spread_skill": ((self.members + 1) / self.members * variance / squared_error).sqrt(),  # Fortin et al. 2014
            **({} if self.threshold is None else {"Brier": sums["brier"] / targets}),
        }

    def _event(self, total):
        """What is scored of the event beside `Brier`: of all horizon steps together."""
        if self.threshold is None:
            return {}
        rate, brier = total["events"] / total["targets"], total["brier"] / total["targets"]
        targets, probability, events = total["reliability"][:, total["reliability"][0] > 0]
        return {"threshold": self.threshold,
                **plain({"event_rate": rate, "Brier_skill": 1 - brier / (rate * (1 - rate))}),
                "reliability": plain({"targets": targets, "probability": probability / targets,
                                      "event_rate": events / targets})}

    def _check_shapes(self, members, truth):
        target = (self.horizon, self.node)
        if truth.shape != (len(truth), *target) or members.shape != (len(truth), self.members, *target):
            raise ValueError(f"cannot score members {tuple(members.shape)} against truth {tuple(truth.shape)}: "
                             f"expected (batch, member, horizon, node) of {self.members} members (--nsample), horizon "
                             f"{self.horizon}, {self.node} nodes, and the same without the member axis")


def check_finite(members, truth):
    """Raises: ValueError with their number for values that are not finite."""
    if (members.sum() + truth.sum()).isfinite():  # ten times cheaper than to look at each; waits for the device
        return
    bad_members, bad_truth = ((~x.isfinite()).sum().item() for x in (members, truth))
    if bad_members or bad_truth:  # not where only the sum is too large
        raise ValueError(f"cannot score: {bad_members} of {members.numel()} member values and {bad_truth} of "
                         f"{truth.numel()} true values are NaN or infinite")


def plain(scores):
    """Tensors as Python numbers or lists; None for what is not finite, which JSON cannot hold."""
    def finite(value):
        if isinstance(value, list):
            return [finite(each) for each in value]
        return value if math.isfinite(value) else None

    return {name: finite(value.tolist()) for name, value in scores.items()}


def crps_by_properscoring(ordered, truth):
    """Fair CRPS as `crps_fair`, from the package properscoring.

        fair = absolute_error - (absolute_error - empirical) * M / (M - 1),    empirical: by properscoring

    Shapes: ordered (target, M), truth (target,), on the CPU -> (target,).
    """
    import properscoring  # only this check needs it; without numba it takes memory quadratic in the members

    count = ordered.shape[1]
    size = max(1, _CHUNK_ELEMENTS // count**2)
    empirical = torch.cat([torch.from_numpy(properscoring.crps_ensemble(y.numpy(), x.numpy()))
                           for x, y in zip(ordered.split(size), truth.split(size), strict=True)])
    error = (ordered - truth.unsqueeze(1)).abs().mean(1)
    return error - (error - empirical) * count / (count - 1)
