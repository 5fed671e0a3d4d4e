"""Ridge forecast of the leading principal components of the nodes, combined with the forecast of the networks."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from data.context import Context
from data.windows import Batch

from .base import BLOCKS, DOUBT, FOLDS
from .layers import Task

RECENT = 3  # steps of the history whose effect depends on the time of the cycle
HARMONICS = 3  # of the calendar's first cycle, at most
PENALTIES = tuple(10.0 ** (k / 2) for k in range(-6, 3))  # of ridge regression, .001 to 10; cross-validation chooses
SMALLEST_SHARE = 0.1  # the observed share of a mode, by which it is divided at least


def leading_axes(fields: Tensor, count: int) -> Tensor:
    """The principal axes over the nodes: (field, node) -> (node, count), orthonormal.

    Where there are fewer fields than axes, the last axes are arbitrary.
    """
    if len(fields) < fields.shape[1]:
        axes = fields.T @ torch.linalg.eigh(fields @ fields.T).eigenvectors.flip(1)[:, :count]
    else:
        axes = torch.linalg.eigh(fields.T @ fields).eigenvectors.flip(1)[:, :count]
    return torch.linalg.qr(nn.functional.pad(axes, (0, count - axes.shape[1]))).Q


class ModeForecast(nn.Module):
    """The shift of a forecast along the leading modes, towards a linear forecast of these.

        mode  = axes . anomaly / spread,    anomaly = value - climatology
        shift = axes . (spread * weight * (linear mode - mode of the forecast))

    A network overfits common modes, of which training holds few independent windows. The linear forecast is a ridge
    regression on the histories of the mode and of the largest one, and on the time of the cycle. The shrinkage weight,
    0 before `weigh`, is the regression of the forecast's error on the change by the linear forecast, over validation
    windows, between 0 and 1 and reduced by its sampling error.

    Shapes: forecast (batch, F, node), as an anomaly. Units: standardized.
    Source: combined forecasts, Bates and Granger 1969; shrinkage, the positive part of James and Stein 1961.
    """

    def __init__(self, task: Task, modes: int):
        super().__init__()
        self.size, self.modes = task.calendar_sizes[0], min(modes, task.num_nodes)
        self.harmonics = min(HARMONICS, (self.size - 1) // 2)
        recent, cycle = min(RECENT, task.history_len), 2 * self.harmonics
        features = 1 + cycle + 2 * (task.history_len + recent * cycle)
        self.register_buffer("axes", torch.zeros(task.num_nodes, self.modes))
        self.register_buffer("spread", torch.ones(self.modes))
        self.register_buffer("weights", torch.zeros(self.modes, features, task.predict_len))
        self.register_buffer("shrinkage", torch.zeros(self.modes))

    def forward(self, forecast: Tensor, context: Context) -> Tensor:
        """The shift of a forecast: (batch, F, node)."""
        change = self.linear(context) - self._project(forecast)
        return (change * (self.shrinkage * self.spread)) @ self.axes.T

    def fit(self, windows: Batch) -> None:
        """Find the modes and the linear forecast of each, from training windows in the order of time.

        Where nodes are missing, modes are fitted to the observed ones.
        """
        future = windows.future - windows.context.future_climatology
        self.axes.copy_(leading_axes(future.flatten(0, 1), self.modes))
        self.spread.copy_((windows.context.anomaly @ self.axes).square().mean((0, 1)).sqrt().clamp_min(1e-6))
        features, target = self._features(windows.context).double(), self._project(future).double()
        if windows.target_mask is not None:
            target /= self._share(windows.target_mask).clamp_min(SMALLEST_SHARE)
        for mode in range(self.modes):
            self.weights[mode] = ridge(features[mode], target[..., mode])

    def weigh(self, parts: Iterable[tuple[Tensor, Batch]]) -> None:
        """Estimate the shrinkage weights from forecasts of validation windows, and these, in the order of time."""
        gain, size = [], []
        for forecast, windows in parts:
            change = (self.linear(windows.context) - self._project(forecast)).double()
            error, square = windows.future - windows.context.future_climatology - forecast, change.square()
            if windows.target_mask is not None:
                error, square = error * windows.target_mask, square * self._share(windows.target_mask)
            gain.append((change * self._project(error)).sum(1))
            size.append(square.sum(1))
        gain, size = torch.cat(gain), torch.cat(size)
        blocks = min(BLOCKS, len(gain) // self.weights.shape[-1])
        if blocks < 2:  # no sampling error can be estimated
            return
        gain, size = (torch.stack([block.sum(0) for block in each.tensor_split(blocks)]) for each in (gain, size))
        total = size.sum(0).clamp_min(1e-12)
        weight = gain.sum(0) / total
        error = ((gain - weight * size).square().sum(0) * blocks / (blocks - 1)).sqrt() / total
        certain = (1 - DOUBT * (error / weight).square()).nan_to_num(0).clamp_min(0)  # 0 / 0: nothing to gain
        self.shrinkage.copy_(weight.clamp(0, 1) * certain)

    def linear(self, context: Context) -> Tensor:
        """The linear forecast of every mode: (batch, F, mode)."""
        return torch.einsum("mbp,mpf->bfm", self._features(context), self.weights)

    def _project(self, anomaly: Tensor) -> Tensor:
        return anomaly @ self.axes / self.spread

    def _share(self, observed: Tensor) -> Tensor:
        """The observed share of each mode: (batch, F, mode)."""
        return observed.to(self.axes.dtype) @ self.axes.square()

    def _features(self, context: Context) -> Tensor:
        """Features of the regression: (mode, batch, feature); those of the largest mode are there twice."""
        slot = context.calendar[:, :1]
        angle = 2 * math.pi / self.size * slot * torch.arange(1, self.harmonics + 1, device=slot.device)
        cycle = torch.cat([angle.sin(), angle.cos()], dim=1)
        paths = self._project(context.anomaly).permute(2, 0, 1)
        moved = (paths[..., -RECENT:].unsqueeze(-1) * cycle.unsqueeze(1)).flatten(2)
        own = torch.cat([paths, moved], dim=2)
        time = torch.cat([torch.ones_like(angle.sum(1, keepdim=True)), cycle], dim=1).expand(len(own), -1, -1)
        return torch.cat([time, own, own[:1].expand_as(own)], dim=2)


def ridge(features: Tensor, target: Tensor) -> Tensor:
    """Weights of the ridge regression of (row, step) on (row, feature): (feature, step).

    The penalty is chosen by cross-validation over blocks of rows. The first feature is constant and not penalised; the
    others are scaled to a mean square of 1.
    Source: Hoerl and Kennard 1970.
    """
    size = features.square().mean(0).sqrt().clamp_min(1e-9)
    features = features / size
    penalised = torch.ones_like(size).diag()
    penalised[0, 0] = 1e-6

    def solver(rows: Tensor, wanted: Tensor):
        square, product = rows.T @ rows / len(rows), rows.T @ wanted / len(rows)
        return lambda penalty: torch.linalg.solve(square + penalty * penalised, product)

    errors = dict.fromkeys(reversed(PENALTIES), 0.0)  # the largest of equals, also where none is tried
    folds = min(FOLDS, len(features))
    for held in torch.arange(len(features), device=features.device).tensor_split(folds) if folds > 1 else ():
        fitted = torch.ones(len(features), dtype=torch.bool, device=features.device).index_fill(0, held, False)
        solve = solver(features[fitted], target[fitted])
        for penalty in PENALTIES:
            errors[penalty] += float((features[held] @ solve(penalty) - target[held]).square().sum())
    return solver(features, target)(min(errors, key=errors.get)) / size.unsqueeze(1)
