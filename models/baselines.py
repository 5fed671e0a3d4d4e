"""Baselines: simple forecasters, from the last value to quantiles with dependence.

One calling shape. A baseline is fitted to the data and then samples joint ensembles, window by window:

    sample = BASELINES[name](data, members=members, mean=mean, quantiles=quantiles)
    ensemble = sample(batch, noise)

data       windows of a field as `data.windows.WindowedField` gives them
members    number of members
mean       batch -> conditional mean (batch, F, node)
quantiles  batch -> conditional quantiles (batch, level, F, node) at L equidistant levels l / (L + 1), sorted
noise      noise_index -> standard normal values (batch, member, F, node), keyed by (seed, window, member): the only
           random numbers, so a window does not depend on the others of its batch
ensemble   (batch, member, F, node)

Most members are values of the forecast distribution at the level Phi(noise(VALUES)): `equidistant` noise gives its
quantiles. The others (POOLED) sample whole fields.
A gap in a history or path holds the climatology; a missing target counts in no statistic. Covariates are not used.
Units: standardized. Errors are those of windows that the forecast was not fitted to: training windows for baselines
without a network, validation windows (`data.calibration`) for those that build on `mean` or `quantiles`.
"""

import math
from collections.abc import Callable, Iterable

import pandas as pd
import torch
from torch import Tensor

from data.calendar import season_of

from .base import SimpleForecasters, thinned
from .build import task_of
from .quantiles import quantiles_at_z, reorder, z_of_members

FIT_BATCH = 64
RIDGE_WINDOWS = 1000  # of training, at most, that ridge regression is fitted to
ENOUGH_DAYS = 5  # of the same class, or climatology takes days of any class
SLOTS_PER_WIDTH = 24  # "about the same slot": within slots / 24, an hour of a day, the very month of a year
TIE = 1e-5  # of a node's spread: orders equal residuals, leaves others alone
RANK_TOLERANCE = 1e-3  # ranks are rounded up, but for the rounding of z
VALUES, REPEATS, KEYS = 0, 1, 2  # noise indices; KEYS is the first of as many as a pool needs


# Without a network

def persistence(data, **_) -> Callable:
    """The last value + Gaussian with the root mean square error of training windows per node and horizon."""
    return _gaussian_around(lambda batch: batch.context.history[:, -1:], data.batches("train", FIT_BATCH))


def seasonal_naive(data, **_) -> Callable:
    """The values one season earlier + Gaussian with the root mean square error of training windows.

        point[f] = values[step(f) - season],    season = smallest multiple of `season_of` the steps that is >= F

    Raises: ValueError when the first windows of a split have no earlier season in their segment.
    """
    cycle, horizon, history_len = season_of(data.field.spec.interval), torch.arange(data.predict_len), data.history_len
    season = -(-data.predict_len // cycle) * cycle
    for split in ("train", "validation", "test"):
        start = int(data.starts[split][-1 if split == "train" else 0])
        segment = max(first for first, _ in data.field.segments if first <= start)
        if start + history_len - season < segment:
            raise ValueError(f"seasonal_naive: {split} windows have no season of {season} steps before --predict_len "
                             f"{data.predict_len}; choose --history_len >= {season}, or a longer series")

    def point(batch):
        return data.standardized(batch.start.unsqueeze(1) + history_len - season + horizon.to(batch.start.device))

    starts = data.starts["train"]
    starts = starts[starts + history_len >= season]
    return _gaussian_around(point, (data.batch(some) for some in starts.split(FIT_BATCH)))


def climatology(data, members: int, **_) -> Callable:
    """Whole paths of training values that begin at the slot of the first target step: a joint ensemble.

    Paths of days of the same class (workday or weekend at every step; month for daily data), where there are
    ENOUGH_DAYS of them, else of any day. Neighbouring slots join until there are members / 2 paths or slots / 24
    is reached; a slot that training never saw takes the nearest one.
    """
    horizon = torch.arange(data.predict_len, device=data.device)
    slots, size = data.field.calendar.slots[:, 0].to(data.device), data.field.calendar.sizes[0]
    path_class = _day_class(data).unfold(0, data.predict_len, 1).unique(dim=0, return_inverse=True)[1].to(data.device)
    paths = torch.arange(len(data.training) - data.predict_len + 1, device=data.device)  # by their first steps
    half = min(-(-members // 2), len(paths))

    def sample(batch, noise):
        target = batch.start + data.history_len
        gap = (slots[target].unsqueeze(1) - slots[paths]).abs()
        distance = torch.minimum(gap, size - gap)  # the shorter way around the cycle
        alike = path_class[target].unsqueeze(1) == path_class[paths]
        enough = (alike & (distance == 0)).sum(1, keepdim=True) >= ENOUGH_DAYS
        distance = distance.masked_fill(enough & ~alike, size)
        width = distance.kthvalue(half, dim=1, keepdim=True).values.clamp(max=size // SLOTS_PER_WIDTH)
        allowed = distance <= torch.maximum(width, distance.amin(1, keepdim=True))
        return data.standardized(paths[_pick(allowed, noise)].unsqueeze(-1) + horizon)

    return sample


def ridge(data, **_) -> Callable:
    """Ridge regression by node on history, climatology and lags + Gaussian with its cross-validated error.

    See `base.SimpleForecasters`; the root mean square error is that of training windows, per node and horizon.
    """
    lengths = {"history_len": data.history_len, "predict_len": data.predict_len}
    forecasters = SimpleForecasters(task_of(lengths, data.metadata())).to(data.device)
    which = forecasters.names.index("ridge by node")
    windows = thinned(data.batches("train", FIT_BATCH, limit=RIDGE_WINDOWS))
    error = windows.future - forecasters.fit(windows)[:, which]
    std = ((error.square() * windows.counts).sum(0) / windows.counts.sum(0).clamp_min(1)).sqrt()
    return _gaussian(lambda batch: forecasters(batch.context)[:, which], std)


# Around a conditional mean

def gaussian(data, mean: Callable, **_) -> Callable:
    """mean + Gaussian with the root mean square validation residual per node and horizon, all independent."""
    return _gaussian_around(mean, data.calibration(FIT_BATCH))


def conformal(data, mean: Callable, **_) -> Callable:
    """mean + a member of split-conformal intervals per node and horizon, all independent.

        level = Phi(noise),    coverage = |2 level - 1|
        member = mean + sign(level - 0.5) * (the ceil((n + 1) * coverage)-th smallest |residual|)

    n validation residuals; beyond the n-th the largest replaces an infinite one.
    Source: Lei et al. 2018 (arXiv:1604.04173), algorithm 2.
    """
    ordered = _validation_residuals(data, mean).abs().sort(dim=0).values  # missing ones last
    count = (~ordered.isnan()).sum(0)
    ordered = ordered.nan_to_num()

    def sample(batch, noise):
        level = 2 * torch.special.ndtr(noise(VALUES).double()) - 1
        rank = ((count + 1) * level.abs() - RANK_TOLERANCE).ceil().long()
        place = torch.minimum(rank, count).clamp_min(1) - 1
        offset = ordered.gather(0, place.flatten(0, 1)).view_as(place)
        return mean(batch).unsqueeze(1) + level.sign().float() * offset

    return sample


def residual_fields(data, mean: Callable, **_) -> Callable:
    """mean + whole validation residual fields, all nodes and horizon steps together: a joint ensemble."""
    fields = _without_gaps(_validation_residuals(data, mean))
    return lambda batch, noise: mean(batch).unsqueeze(1) + _sample_fields(fields, batch, noise)


# From conditional quantiles

def quantile(data, quantiles: Callable, **_) -> Callable:
    """Conditional quantiles at random levels, independent per node and horizon."""
    return lambda batch, noise: quantiles_at_z(quantiles(batch), noise(VALUES))


def schaake(data, quantiles: Callable, **_) -> Callable:
    """Members of the conditional quantiles in the rank order of whole validation residual fields around the median.

    Source: the Schaake shuffle, Clark et al. 2004 (doi:10.1175/1525-7541(2004)005<0243:TSSAMF>2.0.CO;2); differs
    from the paper: the ranks are those of residuals, not of past observations.
    """

    def median(batch):
        found = quantiles(batch)
        return found[:, found.shape[1] // 2]

    fields = _without_gaps(_validation_residuals(data, median))
    tie = TIE * fields.square().mean(0).sqrt()

    def sample(batch, noise):
        z = noise(VALUES)
        drawn = _sample_fields(fields, batch, noise)
        return reorder(quantiles_at_z(quantiles(batch), z.sort(1).values), drawn + tie * z)

    return sample


BASELINES: dict[str, Callable] = {baseline.__name__: baseline for baseline in (
    persistence, climatology, seasonal_naive, ridge, gaussian, conformal, residual_fields, quantile, schaake)}
SIMPLE = ("persistence", "climatology", "seasonal_naive", "ridge")  # those that need no network
POOLED = ("climatology", "residual_fields")  # those that sample whole fields from a pool


def equidistant(noise: Callable) -> Callable:
    """Noise that has, at the index VALUES, z of the levels (i + 0.5) / M in the rank order of the given noise.

    Members are then quantiles of the forecast distribution, in the rank order of the random members.
    """
    def ordered(noise_index):
        given = noise(noise_index)
        if noise_index != VALUES:
            return given
        z = z_of_members(given.shape[1]).to(given).view(-1, 1, 1)
        return reorder(z.expand_as(given), given)

    return ordered


# What the baselines share

def _gaussian_around(point: Callable, windows: Iterable) -> Callable:
    """point + N(0, std^2), std (F, node) the root mean square error of the point forecast over the windows."""
    squares, count = 0.0, 0
    for batch in windows:
        square = (batch.future - point(batch)).double().square()
        squares, count = squares + (square * batch.counts).sum(0), count + batch.counts.sum(0)
    std = (squares / count).sqrt().float().nan_to_num()  # 0 where no target was observed
    return _gaussian(point, std)


def _gaussian(point: Callable, std: Tensor) -> Callable:
    return lambda batch, noise: point(batch).unsqueeze(1) + std * noise(VALUES)


def _validation_residuals(data, point: Callable) -> Tensor:
    """future - point of every validation window: (window, F, node), NaN where missing."""
    return torch.cat([(batch.future - point(batch)).where(batch.counts.bool(), math.nan)
                      for batch in data.calibration(FIT_BATCH)])


def _without_gaps(fields: Tensor) -> Tensor:
    """Residual fields with each gap (NaN) filled from the nearest earlier window, else the next, else by 0.

    The last windows, without a value at their last step, are left out.
    """
    ended = (~fields[:, -1].isnan()).any(-1).nonzero()
    fields = fields[:int(ended.amax()) + 1] if len(ended) else fields
    filled = pd.DataFrame(fields.flatten(1).cpu().numpy()).ffill().bfill().fillna(0.0).to_numpy(copy=True)
    return torch.from_numpy(filled).view_as(fields).to(fields.device)


def _sample_fields(fields: Tensor, batch, noise: Callable) -> Tensor:
    """Whole fields of the pool (window, F, node) for each window of a batch: (batch, member, F, node)."""
    allowed = torch.ones(len(batch.start), len(fields), dtype=torch.bool, device=fields.device)
    return fields[_pick(allowed, noise)]


def _pick(allowed: Tensor, noise: Callable) -> Tensor:
    """The pool entry of each member: allowed (batch, pool) of bool -> indices (batch, member).

    The allowed entries are shuffled by one normal key each and given to the members in turn, none twice. Where there
    are fewer entries than members, each member gets any of them.
    """
    normal, pool = noise(REPEATS), allowed.shape[1]
    keys = (noise(KEYS + k).flatten(1) for k in range(math.ceil(pool / normal[0].numel())))
    shuffled = torch.cat([*keys], dim=1)[:, :pool].masked_fill(~allowed, math.inf).argsort(dim=1)
    count = allowed.sum(1, keepdim=True)
    uniform = torch.special.ndtr(normal[:, :, 0, 0])
    repeated = torch.minimum((uniform * count).long(), count - 1)
    in_turn = torch.arange(normal.shape[1], device=allowed.device)
    return shuffled.gather(1, torch.where(count >= len(in_turn), in_turn, repeated))


def _day_class(data) -> Tensor:
    """The class of each day: workday or weekend where the second cycle is the week, else its slot, else one class."""
    slots, sizes = data.field.calendar.slots, data.field.calendar.sizes
    if len(sizes) == 1:
        return torch.zeros(len(slots), dtype=torch.long)
    return (slots[:, 1] >= 5).long() if sizes[1] == 7 else slots[:, 1]
