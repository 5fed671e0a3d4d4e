"""Stage 1: the contract of a network, and the mean model that corrects the average of several."""

from collections import Counter
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

    def uncalibrated(self, context: Context) -> Tensor:
        """All outputs without a recalibration: (batch, output, F, node)."""
        return self.predict(context)


class CorrectedMean(MeanModel):
    """The average of networks that differ by their initial weights, quantiles sorted first, with corrections in turn.

    modes          all outputs are shifted along so many leading modes, see `ModeForecast`
    recalibration  where validation shows a bias or too small a width: quantiles are remapped to other levels, see
                   `Recalibration`; a mean is shifted, by the shift there times the `spread` of the node's residuals
    base           outputs = share * networks + (1 - share) * base,    share in [0, 1] per step of the horizon and node,
                   see `Base` and `share_of`

    Each may be left out, and changes nothing before `calibrate`.
    Source: Lakshminarayanan et al. 2017 (arXiv:1612.01474); sorted quantiles: Chernozhukov et al. 2010.
    """

    def __init__(self, task: Task, networks: list[MeanModel], modes: int = 0, recalibrate: bool = False,
                 base: bool = False):
        super().__init__(networks[0].objective)
        self.networks = nn.ModuleList(networks)
        self.modes = ModeForecast(task, modes) if modes else None
        self.recalibration = None
        if recalibrate:
            self.recalibration = Recalibration(task.num_nodes, task.predict_len, task.calendar_sizes[0])
            if self.outputs == 1:
                self.register_buffer("spread", torch.zeros(task.num_nodes))
        self.base = None
        if base:
            self.base = Base(task, self.outputs)
            self.register_buffer("share", torch.ones(task.predict_len, task.num_nodes))

    def predict(self, context: Context, recalibrated: bool = True) -> Tensor:
        predicted = self.of_networks(context, recalibrated)
        return predicted if self.base is None else torch.lerp(self.base(context), predicted.float(), self.share)

    def uncalibrated(self, context: Context) -> Tensor:
        return self.predict(context, recalibrated=False)

    def of_networks(self, context: Context, recalibrated: bool = True) -> Tensor:
        """The outputs without the base."""
        predicted = self.along_modes(context)
        if self.recalibration is None or not recalibrated:
            return predicted
        if self.outputs > 1:
            return self.recalibration(predicted, context.calendar)
        shift = self.spread * self.recalibration.shift[self.recalibration.bins(context.calendar)]
        return predicted + shift.unsqueeze(1)

    def along_modes(self, context: Context) -> Tensor:
        """The outputs without recalibration and base."""
        predicted = self.average(context)
        if self.modes is None:
            return predicted
        forecast = predicted.mean(1) - context.future_climatology
        return predicted + self.modes(forecast, context).unsqueeze(1)

    def average(self, context: Context) -> Tensor:
        """The outputs without corrections."""
        return sum(network.predict(context).float().sort(1).values for network in self.networks) / len(self.networks)

    def loss(self, future: Tensor, context: Context) -> Tensor:
        """In training the mean of the networks' losses, in evaluation the loss of their average."""
        if self.training:
            return sum(network.loss(future, context) for network in self.networks) / len(self.networks)
        return mean_over(self._error(self.average(context), future), context.target_mask)

    @torch.no_grad()
    def calibrate(self, training: Iterable, validation, support: tuple) -> None:
        """Estimate the corrections, after training and in eval mode.

        training, validation: batches in the order of time; support: see `data.windows.WindowedField.support`.
        """
        if self.modes is not None:
            self.modes.fit(Batch.join(replace(batch, context=replace(batch.context, lags=None)) for batch in training))
            self.modes.weigh((self.average(batch.context).mean(1) - batch.context.future_climatology, batch)
                             for batch in validation)
        if self.recalibration is not None:
            self._recalibrate(validation, support)
        if self.base is not None:
            self._mix(training, validation, support[0])

    def _recalibrate(self, validation, support: tuple) -> None:
        """Quantiles that differ by at most a step of the `support`, as those of rare counts, determine no width."""
        def part(batch):
            predicted = self.along_modes(batch.context)
            if self.outputs == 1:
                z = (batch.future - predicted.squeeze(1)) / self.spread
                return z, batch.context.calendar, batch.counts, torch.zeros_like(z)
            z = z_from_pit(pit_bounds(predicted, batch.future, *support), torch.rand_like(batch.future))
            return z, batch.context.calendar, batch.counts, predicted[:, -1] - predicted[:, 0] > support[1]

        if self.outputs == 1:
            squares, counts = torch.zeros_like(self.spread), torch.zeros_like(self.spread)
            for batch in validation:
                error = batch.future - self.along_modes(batch.context).squeeze(1)
                squares += (error.square() * batch.counts).sum((0, 1))
                counts += batch.counts.sum((0, 1))
            self.spread.copy_((squares / counts.clamp_min(1)).sqrt().clamp_min(1e-6))
        self.recalibration.fit(map(part, validation), len(validation.starts))

    def _mix(self, training: Iterable, validation, minimum: float | Tensor) -> None:
        """Fit the base, and find its share from validation losses."""
        shift = self.base.fit(training, validation, minimum)
        evidence, windows = independent(validation.starts, len(self.share)), len(validation.starts)
        blocks = min(BLOCKS, evidence)
        block_of = torch.arange(windows, device=self.share.device) * blocks // windows
        losses = self.share.new_zeros(SHARES, blocks, *self.share.shape)
        for batch, block in zip(validation, block_of.split(validation.batch_size), strict=True):
            base, network = self.base(batch.context), self.of_networks(batch.context).float()
            for share, total in zip(torch.linspace(0, 1, SHARES).tolist(), losses, strict=True):
                add_at(total, block, self._error(torch.lerp(base, network, share), batch.future).mean(1) * batch.counts)
        self.share.copy_(share_of(losses, evidence, shift))

    @property
    def summary(self) -> str:
        """The share and the weights of the base in words, those of all lags together, or ""."""
        if self.base is None:
            return ""
        weights = Counter()
        for name, weight in zip(self.base.simple.names, self.base.weights.mean((1, 2)).tolist(), strict=True):
            weights[name] += weight
        parts = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        return f"share of the network {self.share.mean():.2f}, the remainder is a mixture of {parts}"

    def compile_networks(self) -> None:
        """Compile the submodules named in `compiled`, for --compile."""
        for network in self.networks:
            for name in network.compiled:
                getattr(network, name).compile()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *others) -> None:
        """Also from earlier versions, where each correction was a module around an `inner` one."""
        for name in [name for name in state_dict if name.startswith(f"{prefix}inner.")]:
            state_dict[prefix + name.removeprefix(prefix).replace("inner.", "")] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *others)
