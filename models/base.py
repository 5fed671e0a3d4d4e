"""The base of stage 1: the best convex mixture of simple forecasters, without a network and without gradients."""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from data.constants import QUANTILE_LEVELS
from data.context import Context
from data.scaling import add_at
from data.windows import Batch, WindowBatches, evenly

from .layers import Task, pooled_mean
from .quantiles import project_on_simplex

CANDIDATES = ("last value", "drift", "level", "damped anomaly", "ridge", "ridge by node")
OF_LAGS = ("lag", "lag with drift", "lag with level")  # one each for every lag
RECENT = 24  # steps of the history that ridge regression sees, at most
SMOOTHING = 0.2  # weight of the latest step in the level
DAMPING = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # in variances of each feature; cross-validation chooses
FOLDS = 6  # stretches of training time in cross-validation
VALUES = 10_000_000  # of all windows that a mixture is estimated from, at most
PRIOR = 8.0  # independent windows of evidence at which a node weighs as much as the field
TRAINING = 4.0  # independent windows that training errors count as, at most: validation is nearer to later windows
BINS = 24  # of the calendar's first cycle, at most
FLOOR = 0.1  # smallest unit of the errors of training or validation, as a share of the mean unit of both
LEAST_DEVIATION = 1e-2  # of training targets, standardized, by which a shift is divided
CYCLES = 3.0  # of evidence at which a bin has the shrinkage weight 1/2
STEPS = 100  # of the search for weights
SHARES = 11  # shares of the network that are tried, from 0 to 1
FEW_WINDOWS = 10  # independent ones of validation, below which the network must be clearly better
BLOCKS = 8  # stretches of validation time from which a sampling error is estimated, at most
OPTIMISM = 0.7  # share by which the loss is too low, for a model recalibrated on one independent window
DOUBT = 2.0  # squared standard errors, over the square of an estimate, by which its share is reduced


def independent(starts: Tensor, predict_len: int) -> int:
    """The number of windows that begin at `starts` and have futures without a common step."""
    return len(torch.unique(starts.div(predict_len, rounding_mode="floor")))


def inflation(number: float, estimated: int = 1) -> float:
    """Error of a new value over those of n values that `estimated` numbers were fitted to, one of them their mean.

        sqrt((n + 1) / (n - estimated))
    """
    return ((number + 1) / max(number - estimated, 0.5)) ** 0.5


def thinned(batches: WindowBatches) -> Batch:
    """Windows of training or validation, evenly thinned out where they hold more than VALUES values."""
    data = batches.data
    limit = max(16, VALUES // ((data.history_len + data.predict_len) * data.num_nodes))
    return Batch.join(replace(batches, starts=evenly(batches.starts, limit)))


Latest = tuple[Tensor, Tensor, Tensor]  # result of `from_latest`


def from_latest(context: Context) -> Latest:
    """Latest value (batch, 1, node); climatology (batch, 1 + F, node) and lags (batch, 1 + F, node, lag) from it on."""
    lags = context.climatology[..., None][..., :0] if context.lags is None else context.lags
    return tuple(map(context.from_latest, (context.history, context.climatology, lags)))


def ridge_features(history: Tensor, latest: Latest, step: int) -> Tensor:
    """Inputs of ridge regression at a step of the horizon, as departures from the last value: (batch, node, P)."""
    last, climatology, lags = latest
    recent = history[:, -RECENT:-1].transpose(1, 2)
    known = climatology[:, [0, 1 + step]].transpose(1, 2)
    return torch.cat([recent, known, lags[:, 0], lags[:, 1 + step]], dim=-1) - last.transpose(1, 2)


def recent_mean(values: Tensor, context: Context) -> Tensor:
    """Exponentially weighted mean of values (batch, H, node) over the observed steps of the history: (batch, node)."""
    age = torch.arange(context.history_len - 1, -1, -1, device=values.device).view(-1, 1)
    seen = torch.ones_like(values) if context.missing is None else 1 - context.missing
    weight = (1 - SMOOTHING) ** age * seen
    return (weight * values).sum(1) / weight.sum(1).clamp_min(torch.finfo(weight.dtype).tiny)


class SimpleForecasters(nn.Module):
    """Point forecasts without a network, fitted on training windows: (batch, candidate, F, node).

        last value       history[-1]
        drift            last value + mean training change per node and step of the horizon, shrunk by `significant`
        level            climatology + exponentially weighted mean of the anomalies of the history
        damped anomaly   climatology + phi^(f + age) * anomaly of the last value,    phi per node; 0: climatology
        ridge            last value + linear in departures from it: history, climatology, lags; the same for all nodes
        ridge by node    the same with weights for each node, shrunk towards those of all
        lag              the value so many steps earlier (seasonal naive), one for each lag
        lag with drift   the same + mean training change
        lag with level   the same + exponentially weighted mean of the change over the lag in the history

    The last value is the latest that was observed, its age the steps since then; climatology and lags beside it are
    those of its step. Ridge regression has no lags that are means, and is translation invariant, so it follows a trend.
    Its penalties are chosen by cross-validation over stretches of training time that share no target.
    Units: standardized. Source: Hyndman and Athanasopoulos 2021 (Forecasting: principles and practice), section 5.2.
    """

    def __init__(self, task: Task):
        super().__init__()
        nodes, steps, lags = task.num_nodes, task.predict_len, task.lags
        self.single_lags = lags - task.averaged_lags
        features = min(RECENT, task.history_len) + 1 + 2 * self.single_lags
        self.names = CANDIDATES + OF_LAGS * lags
        self.register_buffer("scale", torch.ones(nodes))
        self.register_buffer("drift", torch.zeros(1 + lags, steps, nodes))
        self.register_buffer("damping", torch.zeros(nodes))
        self.register_buffer("weights", torch.zeros(2, steps, nodes, features))
        self.register_buffer("intercept", torch.zeros(2, steps, nodes))
        self.register_buffer("ahead", torch.arange(1, steps + 1).view(-1, 1), persistent=False)

    def forward(self, context: Context) -> Tensor:
        last, climatology, lags = from_latest(context)
        latest = last, climatology, lags[..., :self.single_lags]
        now, climatology = climatology[:, :1], climatology[:, 1:]
        damped = climatology + self.damping**self.ages(context) * (last - now)
        level = climatology + recent_mean(context.anomaly, context).unsqueeze(1)
        ridges = torch.stack([
            self.intercept[:, step].unsqueeze(1)
            + torch.einsum("bnp,knp->kbn", ridge_features(context.history, latest, step), self.weights[:, step])
            for step in range(len(self.ahead))], dim=2) + last
        found = [last.expand_as(climatology), last + self.drift[0], level, damped, *ridges]
        for place, (lagged, drift) in enumerate(zip(lags[:, 1:].unbind(-1), self.drift[1:], strict=True)):
            change = recent_mean(context.history - context.lags[:, :context.history_len, :, place], context)
            found += [lagged, lagged + drift, lagged + change.unsqueeze(1)]
        return torch.stack(found, dim=1)

    def ages(self, context: Context) -> Tensor:
        """Steps from the latest value to those of the horizon: (batch, F, node), or (F, 1) of a field without gaps."""
        if context.observed is None:
            return self.ahead
        return self.ahead + context.history_len - 1 - context.latest

    def fit(self, windows: Batch) -> Tensor:
        """Fit all to training windows in the order of time; forecasts of these, of both ridges out of sample."""
        future, target_mask, context = windows.future, windows.counts, windows.context
        last, climatology, lags = from_latest(context)
        latest = last, climatology, lags[..., :self.single_lags]
        anchors = torch.cat([last.expand_as(future).unsqueeze(0), lags[:, 1:].permute(3, 0, 1, 2)])
        change = (future - anchors) * target_mask
        rms = (change[0].square().sum((0, 1)) / target_mask.sum((0, 1)).clamp_min(1)).sqrt()
        self.scale.copy_(rms.clamp_min(1e-4))
        count = target_mask.sum(0).clamp_min(1)
        drift = change.sum(1) / count
        variance = (change.square().sum(1) / count - drift.square()).clamp_min(0)
        self.drift.copy_(significant(drift, variance / independent(windows.start, len(self.ahead))))
        climatology, anomaly, ages = climatology[:, 1:], last - climatology[:, :1], self.ages(context)
        errors = torch.stack([((climatology + phi**ages * anomaly - future).abs() * target_mask).sum((0, 1))
                              for phi in DAMPING])
        self.damping.copy_(torch.tensor(DAMPING, device=future.device)[errors.argmin(0)])
        left_out = torch.stack([self._fit_ridge(windows, latest, step) for step in range(len(self.ahead))], dim=2)
        points = self(context)
        points[:, CANDIDATES.index("ridge"):len(CANDIDATES)] = left_out.transpose(0, 1)
        return points

    def _fit_ridge(self, windows: Batch, latest: Latest, step: int) -> Tensor:
        """Weights of both ridges at a step of the horizon; out-of-sample forecasts (2, batch, node)."""
        features, steps = ridge_features(windows.context.history, latest, step), len(self.ahead)
        last = latest[0].squeeze(1)
        target_mask, target = windows.counts[:, step], windows.future[:, step] - last
        values = torch.cat([features, target.unsqueeze(-1)], dim=-1) / self.scale.unsqueeze(-1)
        left_out, start = [], windows.start
        for fold in torch.arange(len(target), device=target.device).tensor_split(min(FOLDS, len(target))):
            kept = (start <= start[fold[0]] - steps) | (start >= start[fold[-1]] + steps)  # no target in the fold
            if kept.sum() <= len(start) // 4:
                kept = torch.ones_like(kept).index_fill(0, fold, False)
            weights, intercept = self._solve(values[kept], target_mask[kept], independent(start[kept], steps))
            left_out.append(torch.einsum("bnp,knp->kbn", values[fold, :, :-1], weights) + intercept.unsqueeze(1))
        left_out = torch.cat(left_out, dim=1)  # (penalty, batch, node)
        errors = ((left_out - values[..., -1]).abs() * target_mask).sum((1, 2))
        half = len(PENALTIES)
        chosen = [int(errors[:half].argmin()), half + int(errors[half:].argmin())]
        weights, intercept = self._solve(values, target_mask, independent(start, steps))
        self.weights[:, step], self.intercept[:, step] = weights[chosen], intercept[chosen] * self.scale
        return left_out[chosen] * self.scale + last

    @staticmethod
    def _solve(values: Tensor, target_mask: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Weights (2 * penalty, node, P), the first half common to all nodes, and intercepts (2 * penalty, node).

        values (window, node, P + 1): features and target; number: of independent windows.
        """
        number = max(number, 1)
        count = target_mask.sum(0).clamp_min(1).unsqueeze(-1)
        center = (values * target_mask.unsqueeze(-1)).sum(0) / count
        around = (values - center) * target_mask.unsqueeze(-1)
        moments = (around.permute(1, 2, 0) @ around.transpose(0, 1)).double() / count.unsqueeze(-1)
        common = moments.mean(0)
        diagonal = common.diagonal()[:-1].clamp_min(1e-8).diag()
        left, right = moments[:, :-1, :-1], moments[:, :-1, -1]
        pooled = torch.stack([torch.linalg.solve(common[:-1, :-1] + penalty * diagonal, common[:-1, -1])
                              for penalty in PENALTIES])
        start = pooled[1]
        by_node = [start + torch.linalg.solve(left + penalty * diagonal, right - left @ start) for penalty in PENALTIES]
        weights = torch.cat([pooled.unsqueeze(1).expand(-1, len(left), -1), torch.stack(by_node)])
        full = torch.cat([-weights, torch.ones_like(weights[..., :1])], dim=-1)  # of the residual
        variance = torch.einsum("knp,npq,knq->kn", full, moments, full).clamp_min(0)
        intercept = torch.einsum("knp,np->kn", full, center.double())
        return weights.float(), significant(intercept, variance / number).float()


def shift_of(training: Batch, validation: Batch) -> Tensor:
    """Absolute difference of the mean anomalies of the targets of both, in standard deviations of training: (node,).

    0 for a node without validation targets, infinite for one without training targets.
    """
    (count, mean, deviation), (later_count, later, _) = map(_moments_of_targets, (training, validation))
    shift = (later - mean).abs() / deviation.clamp_min(LEAST_DEVIATION)
    return shift.masked_fill(count == 0, math.inf).masked_fill(later_count == 0, 0)


def _moments_of_targets(windows: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and standard deviation of the anomalies of the targets of each node: (node,) each."""
    counts, anomaly = windows.counts, (windows.future - windows.context.future_climatology).double()
    number = counts.sum((0, 1)).double()
    mean = (anomaly * counts).sum((0, 1)) / number.clamp_min(1)
    square = ((anomaly - mean).square() * counts).sum((0, 1)) / number.clamp_min(1)
    return number, mean, square.sqrt()


def significant(value: Tensor, variance: Tensor) -> Tensor:
    """An estimate shrunk by its sampling variance: value * max(0, 1 - DOUBT * variance / value^2).

    Source: the positive part of James and Stein 1961.
    """
    return value * (1 - DOUBT * variance / value.square().clamp_min(1e-12)).clamp_min(0)


def convex_weights(moments: Tensor) -> Tensor:
    """Weights w >= 0 that add up to 1 and minimise w' moments w: (..., K, K) -> (..., K).

    Source: accelerated projected gradient, Beck and Teboulle 2009.
    """
    count = moments.shape[-1]
    step = 1 / moments.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).clamp_min(1e-12)
    weights = moments.new_full(moments.shape[:-1], 1 / count)
    ahead = weights
    for turn in range(STEPS):
        found = project_on_simplex(ahead - step * (moments @ ahead.unsqueeze(-1)).squeeze(-1), 1, -1)
        ahead = found + turn / (turn + 3) * (found - weights)
        weights = found
    return weights


def weighted_quantiles(values: Tensor, weights: Tensor) -> Tensor:
    """Quantiles at QUANTILE_LEVELS over the first axis: values (n, ...), weights alike -> (level, ...)."""
    ordered, order = values.sort(0)
    share = weights.gather(0, order).cumsum(0)
    share = share / share[-1:].clamp_min(1e-12)
    found = [(share < level).sum(0, keepdim=True).clamp_max(len(values) - 1) for level in QUANTILE_LEVELS]
    return ordered.gather(0, torch.cat(found))


class Base(nn.Module):
    """The mixture of `SimpleForecasters` per node and step of the horizon, and its quantiles: context -> outputs.

        point    = sum of weight * candidate,                     weight >= 0, sum of weight = 1
        quantile = point + spread(node, step) * cycle(node, time of the cycle) * shape(level, node)

    Weights minimise the error of cross-validated training windows, which count as TRAINING independent ones at most,
    and of validation windows. Moments are averaged with PRIOR independent windows of those of the field and all steps.
    Spread, cycle and shape are those of the errors of the mixture on the same windows.
    Shapes: (batch, output, F, node). Units: standardized.
    Source: combined forecasts, Bates and Granger 1969.
    """

    def __init__(self, task: Task, outputs: int):
        super().__init__()
        self.outputs, self.size = outputs, task.calendar_sizes[0]
        nodes, steps = task.num_nodes, task.predict_len
        self.simple = SimpleForecasters(task)
        self.register_buffer("weights", torch.zeros(len(self.simple.names), steps, nodes))
        self.register_buffer("spread", torch.zeros(steps, nodes))
        self.register_buffer("cycle", torch.ones(min(self.size, BINS), nodes))
        self.register_buffer("shape", torch.zeros(len(QUANTILE_LEVELS), nodes))
        self.register_buffer("minimum", torch.full((task.num_nodes,), float("-inf")))

    def bins(self, calendar: Tensor) -> Tensor:
        """Time of the cycle of each step of the horizon: (batch, F)."""
        return (calendar[:, :1] + self.simple.ahead.T) % self.size * len(self.cycle) // self.size

    def forward(self, context: Context) -> Tensor:
        point = (self.simple(context) * self.weights).sum(1, keepdim=True)
        if self.outputs == 1:
            return point.clamp_min(self.minimum)
        width = self.spread * self.cycle[self.bins(context.calendar)]
        return (point + width.unsqueeze(1) * self.shape.unsqueeze(1)).clamp_min(self.minimum)

    def fit(self, training, validation, minimum: Tensor | float) -> Tensor:
        """Fit everything to training and validation windows in the order of time; no output is below `minimum`.

        Returns the shift of each node between them, see `shift_of`.
        """
        self.minimum.copy_(torch.as_tensor(minimum))
        training, validation = thinned(training), thinned(validation)
        errors = [self.simple.fit(training) - training.future.unsqueeze(1),
                  self.simple(validation.context) - validation.future.unsqueeze(1)]
        counts = [windows.counts * (min(independent(windows.start, len(self.spread)), most) / len(windows.start))
                  for windows, most in ((training, TRAINING), (validation, math.inf))]
        self._weigh(errors, counts)
        residual = torch.cat([-(error * self.weights).sum(1) for error in errors])
        calendar = torch.cat([training.context.calendar, validation.context.calendar])
        self._measure(residual, torch.cat(counts), self.bins(calendar))
        return shift_of(training, validation)

    def _weigh(self, errors: list[Tensor], counts: list[Tensor]) -> None:
        """Weights from errors (window, candidate, F, node) and their weights `counts` (window, F, node).

        Errors of training and of validation are in units of the lowest mean absolute error of a candidate there, but
        not less than FLOOR times the mean of both units: validation keeps its weight where errors have become small.
        Squares are divided by the mean absolute error of all candidates, so that outliers count as absolute errors.
        """
        totals = torch.stack([each.sum(0) for each in counts])
        sizes = torch.stack([(error.abs() * count.unsqueeze(1)).sum(0).amin(0) / total.clamp_min(1e-6)
                             for error, count, total in zip(errors, counts, totals, strict=True)])
        total = totals.sum(0)
        overall = (sizes * totals).sum(0) / total.clamp_min(1e-6)
        moments = 0
        for error, count, size in zip(errors, counts, torch.maximum(sizes, FLOOR * overall), strict=True):
            error = error / size.clamp_min(1e-6)
            robust = count / error.abs().mean(1).clamp_min(0.1)
            moments = moments + torch.stack([
                each.permute(2, 1, 0) @ (each * weight.unsqueeze(1)).permute(2, 0, 1)
                for each, weight in zip(error.unbind(2), robust.unbind(1), strict=True)])
        moments = moments / total.clamp_min(1e-6)[..., None, None]
        field = moments.mean(1, keepdim=True)
        number = float(total.amax())
        field = (number * field + PRIOR * field.mean(0, keepdim=True)) / (number + PRIOR)
        number = total[..., None, None]
        self.weights.copy_(convex_weights((number * moments + PRIOR * field) / (number + PRIOR)).permute(2, 0, 1))

    def _measure(self, residual: Tensor, counts: Tensor, bins: Tensor) -> None:
        """Spread, cycle and shape from residuals, their weights `counts` and `bins`, (window, F, node or none) each."""
        total = counts.sum(0)
        self.spread.copy_(pooled_mean((residual.square() * counts).sum(0), total).sqrt().clamp_min(1e-6))
        standardized = residual / self.spread
        squares, weight = (add_at(torch.zeros_like(self.cycle), bins.flatten(), part.flatten(0, 1))
                           for part in (standardized.square() * counts, counts))
        cycles = weight / len(self.spread) * len(self.cycle) * min(1, len(self.spread) / self.size)
        self.cycle.copy_(((cycles * squares / weight.clamp_min(1e-6) + CYCLES) / (cycles + CYCLES)).sqrt())
        standardized = (standardized / self.cycle[bins]).flatten(0, 1)
        counts = counts.flatten(0, 1)
        field = weighted_quantiles(standardized.flatten(), counts.flatten())
        field = (field - field.flip(0)) / 2
        own, number = weighted_quantiles(standardized, counts), total.amax(0)
        shape = (number * own + PRIOR * field.unsqueeze(1)) / (number + PRIOR)
        self.shape.copy_(inflation(float(number.amax())) * shape)


def share_of(losses: Tensor, evidence: float, shift: Tensor | float = 0.0) -> Tensor:
    """The share of a network beside the base, by step and node, from validation losses of all shares.

    Losses of a node are averaged with 3 * PRIOR independent windows of the field's, those of a step with PRIOR of all
    steps'. With at least FEW_WINDOWS independent windows (`evidence`) it is the largest share whose loss exceeds the
    lowest by at most max(0, 1 - shift) standard errors of their difference, by the jackknife over blocks. Where a node
    has shifted (see `shift_of`), the network forecasts values unlike those that it was trained on, and a tie is not
    enough. With fewer windows it is the share of the lowest loss, where

        loss = validation loss * (1 + share * OPTIMISM / evidence)

    since the network was stopped and recalibrated on the same windows; but 0 where the loss of the base exceeds the
    lowest by at most inflation(blocks) standard errors. With less than two blocks it is 0.
    Shapes: losses (share, block, F, node), shift (node,) -> (F, node).
    Source: the rule of one standard error, Breiman et al. 1984.
    """
    blocks = losses.shape[1]
    if blocks < 2:
        return torch.zeros_like(losses[0, 0])
    few = evidence < FEW_WINDOWS
    shares = torch.linspace(0, 1, len(losses), device=losses.device).view(-1, 1, 1, 1)
    losses = losses * (1 + few * shares * OPTIMISM / evidence)
    size = losses.mean((0, 1))
    counted = size / (size + size.mean())  # nodes that hardly vary get little weight in the field's loss
    losses = losses / size.clamp_min(1e-12)

    def shrunk(kept: Tensor) -> Tensor:
        field = (kept * counted).sum(2, keepdim=True) / counted.sum(1, keepdim=True).clamp_min(1e-12)
        field = (evidence * field + PRIOR * field.mean(1, keepdim=True)) / (evidence + PRIOR)
        return (evidence * kept + 3 * PRIOR * field) / (evidence + 3 * PRIOR)

    mean = shrunk(losses.mean(1))
    best = mean.argmin(0, keepdim=True)
    parts = losses.sum(1, keepdim=True) - losses
    around = torch.stack([shrunk(part) for part in parts.unbind(1)]) / (blocks - 1)
    above = mean - mean.gather(0, best)
    each = around - around.gather(1, best.expand(blocks, *best.shape))
    error = ((each - each.mean(0)).square().sum(0) * (blocks - 1) / blocks).sqrt()
    if few:
        return best[0].masked_fill(above[0] <= inflation(blocks) * error[0], 0) / (len(losses) - 1)
    error = error * (1 - torch.as_tensor(shift)).clamp_min(0)
    allowed = (above <= error) * torch.arange(len(losses), device=losses.device).view(-1, 1, 1)
    return allowed.amax(0) / (len(losses) - 1)
