"""The whole method: a frozen mean model and a diffusion model of the residual."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.context import Context
from data.windows import Batch

from .diffusion import SAMPLERS, alpha_bar_of, diffuse, draw_endpoint, noise_to_velocity, velocity
from .layers import mean_over, random_rows
from .margins import Margin
from .mean import MeanModel

FULL_PRECISION = contextlib.nullcontext()
PREDICTIONS = ("v", "noise")


class Forecaster(nn.Module):
    """Joint forecast of the horizon: a frozen mean model, and three exchangeable parts for the residual.

        z = margin.encode(future | mean model, context)        models/margins.py
        white = noise.whiten(z, log_scale)                     models/noise.py
        white ~ diffusion(white | context, mean, scale)        models/diffusion.py, models/denoiser.py
                                                               (Gaussian along the leading modes: `noise.learned`)

    The diffusion ends at N(endpoint, I). The endpoint is 0, or as published the fluctuation scale of each node with a
    random sign ("signed"). The network predicts the noise or v. For v its last layer starts at zero: an untrained model
    gives the Gaussian distribution that `noise` was fitted to, and a loss of 1.
    Shapes: future, z, white (batch, F, node). Units: standardized.
    Source: CoST (arXiv:2502.11013), section 4; v: Salimans and Ho 2022 (arXiv:2202.00512).
    """

    def __init__(self, mean_model: MeanModel, margin: Margin, noise: nn.Module, denoiser: nn.Module, beta: Tensor,
                 prediction: str = "v", endpoint: str = "none"):
        super().__init__()
        self.mean_model = mean_model.requires_grad_(False).eval()
        self.margin, self.noise, self.denoiser = margin, noise, denoiser
        self.prediction, self.endpoint = prediction, endpoint
        self.alpha_bars = alpha_bar_of(beta)  # on the CPU, for samplers
        self.register_buffer("alpha_bar", self.alpha_bars.clone())
        if prediction == "v":
            nn.init.zeros_(denoiser.project.weight)
            nn.init.zeros_(denoiser.project.bias)

    def train(self, mode: bool = True):
        """As in torch, but the mean model stays in eval mode."""
        super().train(mode)
        self.mean_model.eval()
        return self

    @torch.no_grad()
    def fit_statistics(self, training, validation, spectrum: Callable[[], Tensor]) -> None:
        """Estimate margin and noise before training, from batches of training windows and of validation windows.

        spectrum(): the published fluctuation scale (node,), see `data.fluctuation`.
        """
        parts = [self._prepared(batches) for batches in (training, validation)]
        self.margin.fit(*parts, spectrum)
        self.noise.fit(*((self.margin.encode(each.future, prepared, each.context, torch.rand_like(each.future)),
                          each.context, self.margin.log_scale(prepared, each.context)) for each, prepared in parts))

    def _prepared(self, batches) -> tuple[Batch, Tensor]:
        """Windows without covariates and lags, which may be large, and what `prepare` gives for them."""
        prepared, plain = [], []
        for batch in batches:
            prepared.append(self.prepare(batch.future, batch.context))
            plain.append(Batch(replace(batch.context, covariates=None, lags=None), batch.future, batch.start))
        return Batch.join(plain), torch.cat(prepared)

    @torch.no_grad()
    def prepare(self, future: Tensor, context: Context) -> Tensor:
        """What `loss` needs of the mean model. It is the same at every epoch, so that it is computed once."""
        return self.margin.given(self.mean_model, context, future)

    def loss(self, future: Tensor, context: Context, prepared: Tensor | None = None, step: Tensor | None = None,
             noise: Tensor | None = None, precision=FULL_PRECISION) -> Tensor:
        """Squared error of the prediction at one random diffusion step of each window: a scalar.

        Step (batch,) and noise (3, batch, F, node) are drawn here unless given: validation gives the same ones at
        every epoch, so that two epochs differ by their weights alone. noise[0] is added, noise[1] sets the signs of the
        endpoint, or without one the sign of z where members are centred; noise[2] places values that stand for a
        range (`z_from_pit`) and imputes missing ones. `precision` is a context for the denoiser's arithmetic.
        Validation fields have the size of training ones: their own is in the width of members.
        Source: Ho et al. 2020, Eq. 14.
        """
        if prepared is None:
            prepared = self.prepare(future, context)
        if step is None:
            step = random_rows(partial(torch.randint, len(self.alpha_bar), device=future.device), future.shape[:1])
        if noise is None:
            noise = random_rows(partial(torch.randn, device=future.device), (3, *future.shape), axis=1)
        mask, z = context.target_mask, self.margin.encode(future, prepared, context, torch.special.ndtr(noise[2]))
        if not self.training:
            z = z / self.margin.validation_size
        if self.margin.center and self.endpoint == "none":
            z = z * noise[1, :, :1, :1].sign()
        white = self.noise.whiten(z if mask is None else self.noise.impute(z, mask, noise[2]),
                                  self.margin.log_scale(prepared, context))
        endpoint, alpha_bar = self._endpoint(lambda: noise[1], context.calendar, prepared), self.alpha_bar[step]
        noisy = diffuse(white, endpoint, noise[0], alpha_bar)
        with precision:
            hidden = self.denoiser.condition(self._encode(context, prepared), endpoint)
            predicted = self.noise.learned(self.denoiser(noisy, step, hidden))
        target = noise[0] if self.prediction == "noise" else velocity(white - endpoint, noise[0], alpha_bar)
        return mean_over(F.mse_loss(predicted.float(), target, reduction="none"), mask)

    @torch.no_grad()
    def sample(self, context: Context, noise, members: int, kind: str, sampler: str, steps: int, chunk: int) -> Tensor:
        """Members of the joint forecast: (batch, member, F, node); kind: one of `margins.MEMBERS`.

        `noise(noise_index, first, last)` gives standard normal values (last - first, F, node) of the rows
        first..last-1 of the flattened (batch, sample) axis. Index 0 sets the endpoint signs, index 1 is the start of
        the sampler, 2, 3, ... are for its steps. At most `chunk` rows pass through the network at a time, which bounds
        memory and does not change the result. It is halved where memory runs out.
        """
        assert not self.training, "members are drawn in eval mode"
        batch, each = len(context.history), self.margin.num_samples(members, kind)
        given = self.margin.given(self.mean_model, context)
        hidden, log_scale = self._encode(context, given), self.margin.log_scale(given, context)
        rows, first, samples = batch * each, 0, []
        while first < rows:
            last = min(first + chunk, rows)
            if first // each == (last - 1) // each:  # one window: its inputs serve all rows
                window = slice(first // each, first // each + 1)
            else:
                window = torch.arange(first, last, device=hidden.device) // each
            try:
                own_noise = partial(noise, first=first, last=last)
                endpoint = self._endpoint(partial(own_noise, 0), context.calendar[window], given[window])
                white = self._sample_rows(hidden[window], endpoint, own_noise, SAMPLERS[sampler], steps)
                samples.append(self.noise.unwhiten(white, log_scale[window]))
            except RuntimeError as error:
                no_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
                if not no_memory or last - first == 1:
                    raise
                chunk = (last - first) // 2
                continue
            first = last
        z = torch.cat(samples).unflatten(0, (batch, each))
        return self.margin.decode(z, given, context, members, kind)

    def _endpoint(self, signs: Callable[[], Tensor], calendar: Tensor, given: Tensor) -> Tensor:
        """The endpoint of each value: 0, or the fluctuation scale with its sign."""
        if self.endpoint == "none":
            return torch.zeros((), device=calendar.device)
        return draw_endpoint(self.margin.scale(calendar, given[:, 1]), signs())

    def _encode(self, context: Context, given: Tensor) -> Tensor:
        """Hidden values of each window, see `MLPDenoiser.encode`."""
        anomalies, values = self.margin.features(given, context)
        inputs = torch.cat([*self.noise.inputs(context, anomalies), *values], dim=1)
        return self.denoiser.encode(inputs, context.calendar, context.missing, context.features)

    def _sample_rows(self, hidden: Tensor, endpoint: Tensor, noise, sampler: Callable, steps: int) -> Tensor:
        """White samples: the sampler's shifted variable plus the endpoint."""
        hidden = self.denoiser.condition(hidden, endpoint)

        def predict_velocity(shifted: Tensor, step: int) -> Tensor:
            place = torch.full((1,), step, device=shifted.device)
            predicted = self.noise.learned(self.denoiser(shifted + endpoint, place, hidden).float())
            return predicted if self.prediction == "v" else noise_to_velocity(shifted, predicted, self.alpha_bars[step])

        return endpoint + sampler(predict_velocity, noise(1), self.alpha_bars, steps,
                                  lambda noise_index: noise(2 + noise_index))
