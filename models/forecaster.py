"""The method: a frozen mean model, and a diffusion model of what it leaves open."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from data.context import Context

from .diffusion import SAMPLERS, NoiseSchedule, diffuse, draw_endpoint, velocity, velocity_to_noise
from .layers import squared_error
from .mean import MeanModel
from .random_rows import random_rows

FULL_PRECISION = contextlib.nullcontext()
PREDICTIONS = ("v", "noise")
ENDPOINTS = ("none", "signed", "positive")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class Sampling:
    """How an ensemble is drawn: number and kind of members, sampler and its steps, rows that pass at a time."""

    members: int
    kind: str
    sampler: str
    steps: int
    chunk: int


class Forecaster(nn.Module):
    """Joint forecast of the horizon from three exchangeable parts on top of a frozen mean model.

        z = margin.encode(future | mean model, context)        models/margins.py
        white = noise.whiten(z)                                models/noise.py
        white ~ diffusion(white | context, mean, scale)        models/diffusion, models/denoiser.py
                                                               (along the leading modes Gaussian: `noise.learned`)

    The diffusion ends at N(endpoint, I): endpoint 0, or as published the fluctuation scale of each node, its sign
    random ("signed") or not ("positive"). The network predicts the noise or v; for v its last layer starts at zero,
    which is exact for white Gaussian data: an untrained model draws from the Gaussian law that `noise` was fitted to,
    with a loss of 1.
    Shapes: future, z (batch, F, node); white (batch, F, node). Units: standardized.
    Source: CoST (arXiv:2502.11013), section 4; v: Salimans and Ho 2022 (arXiv:2202.00512).
    """

    def __init__(self, mean_model: MeanModel, margin: nn.Module, noise: nn.Module, denoiser: nn.Module, beta: Tensor,
                 prediction: str = "v", endpoint: str = "none"):
        super().__init__()
        self.mean_model = mean_model.requires_grad_(False).eval()
        self.margin, self.noise, self.denoiser = margin, noise, denoiser
        self.prediction, self.endpoint = prediction, endpoint
        self.schedule = NoiseSchedule.from_beta(beta)
        self.register_buffer("alpha_bar", self.schedule.alpha_bar.clone())
        if prediction == "v":
            nn.init.zeros_(denoiser.project.weight)
            nn.init.zeros_(denoiser.project.bias)

    def train(self, mode: bool = True):
        """Switch the denoiser; the mean model stays in eval mode: no dropout, no gradient."""
        super().train(mode)
        self.mean_model.eval()
        return self

    @torch.no_grad()
    def fit_statistics(self, batches, later, spectrum) -> None:
        """Estimate the fluctuation scale and the noise before the first step.

        batches: of training windows; later: of validation windows, which stage 1 has not fitted;
        spectrum(): the published fluctuation scale (node,), see `data.fluctuation`.
        """
        training, calibration = self._gather(batches), self._gather(later)
        self.margin.fit(training, calibration, spectrum)
        z, later_z = (self.margin.encode(futures, prepared, context, torch.rand_like(futures))
                      for futures, prepared, context in (training, calibration))
        self.noise.fit(z, training[2], later_z, calibration[2].target_mask)

    def _gather(self, batches) -> tuple[Tensor, Tensor, Context]:
        """Futures, stage-1 output and contexts of batches, without covariates and lags, which may be large."""
        futures, prepared, contexts = [], [], []
        for batch in batches:
            futures.append(batch.future)
            prepared.append(self.prepare(batch.future, batch.context))
            contexts.append(replace(batch.context, covariates=None, lags=None))
        return torch.cat(futures), torch.cat(prepared), Context.join(contexts)

    def prepare(self, future: Tensor, context: Context) -> Tensor:
        """What `loss` takes from the mean model: the same at every epoch, so that it is computed once."""
        return self.margin.prepare(self.mean_model, future, context)

    def loss(self, future: Tensor, context: Context, prepared: Tensor | None = None, step: Tensor | None = None,
             noise: Tensor | None = None, precision=FULL_PRECISION) -> Tensor:
        """Squared error of the prediction at one noise level of each window, on the horizon only.

        Step (batch,) and noise (3, batch, F, node) are drawn here unless given: validation gives the same ones at
        every epoch, so that two epochs differ by their weights alone. The first draw of the noise is added, the second
        sets the signs of the endpoint, the third places truths that stand for a range of values (`z_from_pit`)
        and imputes missing ones. `precision` is a context for the arithmetic of the denoiser, e.g. autocast.
        Source: Ho et al. 2020, Eq. 14.
        """
        if prepared is None:
            prepared = self.prepare(future, context)
        if step is None:
            step = random_rows(partial(torch.randint, len(self.schedule), device=future.device), future.shape[:1])
        if noise is None:
            shape = 3, *future.shape
            noise = random_rows(partial(torch.randn, device=future.device), shape, axis=1)
        white, mask = self._white(noise[2], prepared, future, context)
        endpoint, level = self._endpoint(lambda: noise[1], context.calendar), self.alpha_bar[step]
        noisy = diffuse(white, endpoint, noise[0], level)
        with precision:
            hidden = self._encode(context, prepared)
            predicted = self.noise.learned(self.denoiser(noisy, step, self._condition(hidden, endpoint)))
        target = noise[0] if self.prediction == "noise" else velocity(white - endpoint, noise[0], level)
        return squared_error(predicted.float(), target, mask)

    @torch.no_grad()
    def sample(self, context: Context, noise, sampling: Sampling) -> Tensor:
        """Draw members of the joint forecast: (batch, member, F, node).

        `noise(k, first, last)` gives standard normal values (last - first, F, node), the k-th draw of the rows
        first..last-1 of the flattened (batch, sample) axis: draw 0 sets the signs of the endpoint, draw 1 is the start
        of the sampler, draws 2, 3, ... are for its steps. At most `sampling.chunk` rows pass through the network at a
        time: memory is bounded by it and the result does not depend on it. Out of memory halves it.
        """
        assert not self.training, "members are drawn in eval mode"
        batch, each = len(context.history), self.num_samples(sampling)
        given = self.margin.given(self.mean_model, context)
        hidden = self._encode(context, given)
        rows, first, chunk, drawn = batch * each, 0, sampling.chunk, []
        while first < rows:
            last = min(first + chunk, rows)
            if first // each == (last - 1) // each:  # one window: its inputs serve all rows
                window = slice(first // each, first // each + 1)
            else:
                window = torch.arange(first, last, device=hidden.device) // each
            try:
                drawn.append(self._sample_rows(hidden[window], context.calendar[window],
                                               partial(_rows, noise, first, last), sampling))
            except RuntimeError as error:
                if not is_out_of_memory(error) or last - first == 1:
                    raise
                chunk = (last - first) // 2
                continue
            first = last
        z = self.noise.unwhiten(torch.cat(drawn)).unflatten(0, (batch, each))
        return self.margin.decode(z, given, context, sampling.members, sampling.kind)

    def num_samples(self, sampling: Sampling) -> int:
        """Samples of each window that an ensemble takes."""
        return self.margin.num_samples(sampling.members, sampling.kind)

    def _white(self, noise: Tensor, prepared: Tensor, future: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """White coordinates of the future, and which targets are observed; None: all."""
        z, observed = self.margin.encode(future, prepared, context, torch.special.ndtr(noise)), context.target_mask
        if observed is not None:
            z = self.noise.impute(z, observed, noise)
        return self.noise.whiten(z), observed

    def _endpoint(self, signs: Callable[[], Tensor], calendar: Tensor) -> Tensor:
        """Where the noising path of each value ends: 0, or +- the fluctuation scale."""
        if self.endpoint == "none":
            return torch.zeros((), device=calendar.device)
        noise = signs() if self.endpoint == "signed" else signs().abs()
        return draw_endpoint(self.margin.scale(calendar), noise)

    def _encode(self, context: Context, given: Tensor) -> Tensor:
        """Hidden values of each window, see `MLPDenoiser.encode`."""
        anomalies, values = self.margin.features(given, context)
        inputs = torch.cat([self.noise.history(context), *map(self.noise.project, anomalies), *values], dim=1)
        return self.denoiser.encode(inputs, context.calendar, context.missing, context.features)

    def _condition(self, hidden: Tensor, endpoint: Tensor) -> Tensor:
        return hidden if self.endpoint == "none" else self.denoiser.condition(hidden, endpoint)

    def _sample_rows(self, hidden: Tensor, calendar: Tensor, noise, sampling: Sampling) -> Tensor:
        """White samples: draw the shifted variable, then add the endpoint back."""
        endpoint = self._endpoint(lambda: noise(0), calendar)
        hidden = self._condition(hidden, endpoint)

        def predict_noise(shifted: Tensor, step: int) -> Tensor:
            steps = torch.full((1,), step, device=shifted.device)
            predicted = self.noise.learned(self.denoiser(shifted + endpoint, steps, hidden).float())
            return predicted if self.prediction == "noise" else \
                velocity_to_noise(shifted, predicted, self.schedule.alpha_bar[step])

        return endpoint + SAMPLERS[sampling.sampler](
            predict_noise, noise(1), self.schedule, sampling.steps, lambda k: noise(2 + k))


def _rows(noise, first: int, last: int, k: int) -> Tensor:
    """Some rows of a draw, see `Forecaster.sample`."""
    return noise(k, first, last)
