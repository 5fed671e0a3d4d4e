"""Stage 1: the contract of a mean model, and the wrappers that work on any of them."""

import copy
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from data.constants import QUANTILE_LEVELS
from data.context import Context
from data.scaling import add_at
from data.windows import Batch

from .base import BLOCKS, SHARES, Base, independent, share_of
from .layers import Task, mean_over
from .modes import ModeForecast
from .quantiles import pinball, pit_bounds, z_from_pit
from .recalibration import Recalibration

OBJECTIVES = {
    "mse": (1, lambda predicted, truth: (predicted - truth.unsqueeze(1)).square()),
    "mae": (1, lambda predicted, truth: (predicted - truth.unsqueeze(1)).abs()),
    "quantiles": (len(QUANTILE_LEVELS), pinball),
}
"""Objectives of stage 1: the number of outputs of every node and step, and the error of each output."""


class MeanModel(nn.Module):
    """Base class of stage 1: a forecast of every node and step of the horizon.

    A subclass implements `predict` and calls `super().__init__(objective)`. It is built as `Subclass(task, objective,
    **flags)`: `task` has all sizes, `objective` is a key of `OBJECTIVES`, and the other parameters of its constructor
    have the names of the stage-1 flags that it reads. It is registered by a line in `MEAN_MODELS` (`models/build.py`).

    Of a `Context` it may read history, calendar and climatology; `missing`, where task.masked (gaps of the history hold
    the climatology); and `features` of history and horizon, where the task has covariates or lags. `loss` leaves out
    missing targets.
    Units: standardized.
    """

    compiled: tuple[str, ...] = ()
    """Names of the submodules that --compile compiles."""

    def __init__(self, objective: str):
        super().__init__()
        self.objective = objective
        self.outputs, self._error = OBJECTIVES[objective]

    def predict(self, context: Context) -> Tensor:
        """All outputs: (batch, output, F, node)."""
        raise NotImplementedError

    def by_output(self, values: Tensor) -> Tensor:
        """Values (batch, node, F * output) of a last layer as outputs: (batch, output, F, node)."""
        return values.unflatten(-1, (-1, self.outputs)).permute(0, 3, 2, 1)

    def forward(self, context: Context) -> Tensor:
        """The mean of the outputs: (batch, F, node)."""
        return self.predict(context).mean(1)

    def loss(self, future: Tensor, context: Context) -> Tensor:
        """Mean error of the objective over outputs and observed targets: a scalar."""
        return mean_over(self._error(self.predict(context).float(), future), context.target_mask)

    def calibrate(self, training: Iterable, validation, support: tuple) -> None:
        """Estimate, after training and in eval mode, what has no gradient. Nothing by default.

        training, validation: batches in the order of time; support: see `data.windows.WindowedField.support`.
        """

    @property
    def uncalibrated(self) -> "MeanModel":
        """The model without its recalibration."""
        return self

    @property
    def summary(self) -> str:
        """The result of `calibrate` in words, or ""."""
        return ""

    def compile_networks(self) -> None:
        """Compile the submodules named in `compiled`, for --compile."""
        for module in self.modules():
            for name in getattr(module, "compiled", ()):
                getattr(module, name).compile()


class Ensemble(MeanModel):
    """The average of several networks that differ by their initial weights; quantiles are sorted first.

    In training the loss is the mean of the networks' losses, in evaluation the loss of their average.
    Source: Lakshminarayanan et al. 2017 (arXiv:1612.01474); sorted quantiles: Chernozhukov et al. 2010.
    """

    def __init__(self, networks: list[MeanModel]):
        super().__init__(networks[0].objective)
        self.networks = nn.ModuleList(networks)

    def predict(self, context: Context) -> Tensor:
        return sum(network.predict(context).float().sort(1).values for network in self.networks) / len(self.networks)

    def loss(self, future: Tensor, context: Context) -> Tensor:
        if not self.training:
            return super().loss(future, context)
        return sum(network.loss(future, context) for network in self.networks) / len(self.networks)


class Wrapper(MeanModel):
    """A model around another one; its training loss is that of the inner model. `fit` is its part of `calibrate`."""

    def __init__(self, inner: MeanModel):
        super().__init__(inner.objective)
        self.inner = inner

    def loss(self, future: Tensor, context: Context) -> Tensor:
        return self.inner.loss(future, context)

    @torch.no_grad()
    def calibrate(self, training: Iterable, validation, support: tuple) -> None:
        self.inner.calibrate(training, validation, support)
        self.fit(training, validation, support)


class CommonModes(Wrapper):
    """All outputs shifted along the leading modes, see `ModeForecast`; no shift before `calibrate`."""

    def __init__(self, inner: MeanModel, task: Task, modes: int):
        super().__init__(inner)
        self.modes = ModeForecast(task, modes)

    def predict(self, context: Context) -> Tensor:
        predicted = self.inner.predict(context)
        forecast = predicted.mean(1) - context.future_climatology
        return predicted + self.modes(forecast, context).unsqueeze(1)

    def fit(self, training: Iterable, validation, support: tuple) -> None:
        self.modes.fit(Batch.join(replace(batch, context=replace(batch.context, lags=None)) for batch in training))
        self.modes.weigh((self.inner(batch.context) - batch.context.future_climatology, batch) for batch in validation)


class RecalibratedQuantiles(Wrapper):
    """Quantiles remapped to other levels where validation shows a bias or too small a width."""

    def __init__(self, inner: MeanModel, task: Task):
        super().__init__(inner)
        self.recalibration = Recalibration(task.num_nodes, task.predict_len, task.calendar_sizes[0])

    @property
    def uncalibrated(self) -> MeanModel:
        return self.inner

    def predict(self, context: Context) -> Tensor:
        return self.recalibration(self.inner.predict(context), context.calendar)

    def fit(self, training: Iterable, validation, support: tuple) -> None:
        """Quantiles that differ by at most a step of the `support`, as those of rare counts, determine no width."""
        def part(batch):
            quantiles = self.inner.predict(batch.context)
            bounds = pit_bounds(quantiles, batch.future, *support)
            return (z_from_pit(bounds, torch.rand_like(batch.future)), batch.context.calendar, batch.counts,
                    quantiles[:, -1] - quantiles[:, 0] > support[1])

        self.recalibration.fit(map(part, validation), len(validation.starts))


class RecalibratedMean(Wrapper):
    """A mean shifted where validation shows a bias: the shift of `Recalibration` times the spread of node residuals."""

    def __init__(self, inner: MeanModel, task: Task):
        super().__init__(inner)
        self.recalibration = Recalibration(task.num_nodes, task.predict_len, task.calendar_sizes[0])
        self.register_buffer("spread", torch.zeros(task.num_nodes))

    @property
    def uncalibrated(self) -> MeanModel:
        return self.inner

    def predict(self, context: Context) -> Tensor:
        shift = self.spread * self.recalibration.shift[self.recalibration.bins(context.calendar)]
        return self.inner.predict(context) + shift.unsqueeze(1)

    def fit(self, training: Iterable, validation, support: tuple) -> None:
        squares, counts = torch.zeros_like(self.spread), torch.zeros_like(self.spread)
        for batch in validation:
            squares += ((batch.future - self.inner(batch.context)).square() * batch.counts).sum((0, 1))
            counts += batch.counts.sum((0, 1))
        self.spread.copy_((squares / counts.clamp_min(1)).sqrt().clamp_min(1e-6))
        self.recalibration.fit((((batch.future - self.inner(batch.context)) / self.spread, batch.context.calendar,
                                 batch.counts, torch.zeros_like(batch.future)) for batch in validation),
                               len(validation.starts))


class BesideBase(Wrapper):
    """A mixture of a network and of simple forecasters, see `Base`; before `calibrate` the network alone.

        outputs = share * network + (1 - share) * base,    share in [0, 1] per step of the horizon and node

    The share follows from validation losses, see `share_of`.
    """

    def __init__(self, inner: MeanModel, task: Task):
        super().__init__(inner)
        self.base = Base(task, self.outputs)
        self.register_buffer("share", torch.ones(task.predict_len, task.num_nodes))

    @property
    def uncalibrated(self) -> MeanModel:
        plain = copy.copy(self)
        plain._modules = {**self._modules, "inner": self.inner.uncalibrated}
        return plain

    @property
    def summary(self) -> str:
        weights = self.base.weights.mean((1, 2)).tolist()
        parts = [f"{name} {weight:.2f}" for name, weight in zip(self.base.simple.names, weights, strict=True)]
        return f"share of the network {self.share.mean():.2f}, the remainder is a mixture of {', '.join(parts)}"

    def predict(self, context: Context) -> Tensor:
        return torch.lerp(self.base(context), self.inner.predict(context).float(), self.share)

    def fit(self, training: Iterable, validation, support: tuple) -> None:
        shift = self.base.fit(training, validation, support[0])
        evidence, windows = independent(validation.starts, len(self.share)), len(validation.starts)
        blocks = min(BLOCKS, evidence)
        block_of = torch.arange(windows, device=self.share.device) * blocks // windows
        losses = self.share.new_zeros(SHARES, blocks, *self.share.shape)
        for batch, block in zip(validation, block_of.split(validation.batch_size), strict=True):
            base, network = self.base(batch.context), self.inner.predict(batch.context).float()
            for share, total in zip(torch.linspace(0, 1, SHARES).tolist(), losses, strict=True):
                add_at(total, block, self._error(torch.lerp(base, network, share), batch.future).mean(1) * batch.counts)
        self.share.copy_(share_of(losses, evidence, shift))
