"""The method on one screen: value = mean + residual, and a diffusion model of the residual."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .diffusion import SAMPLERS, NoiseSchedule, diffuse, draw_endpoint

FULL_PRECISION = contextlib.nullcontext()


class ResidualForecaster(nn.Module):
    """Joint forecast of the horizon: a frozen mean model plus sampled residuals.

    Shapes: history (batch, H, node), future and mean (batch, F, node), calendar (batch, cycle) of the last
    history step, fluctuation_scale (node,). Units: standardized.
    Source: CoST (arXiv:2502.11013), section 4.
    """

    def __init__(self, mean_model: nn.Module, denoiser: nn.Module, beta: Tensor, fluctuation_scale: Tensor):
        super().__init__()
        self.mean_model = mean_model.requires_grad_(False).eval()
        self.denoiser = denoiser
        self.schedule = NoiseSchedule.from_beta(beta)
        self.register_buffer("alpha_bar", self.schedule.alpha_bar.clone())
        self.register_buffer("fluctuation_scale", fluctuation_scale.clone())

    def train(self, mode: bool = True):
        """Switch the denoiser; the mean model stays in eval mode: no dropout, no gradient."""
        super().train(mode)
        self.mean_model.eval()
        return self

    @torch.no_grad()
    def mean(self, history: Tensor, calendar: Tensor) -> Tensor:
        return self.mean_model(history, calendar)

    def loss(self, history: Tensor, future: Tensor, calendar: Tensor, step: Tensor | None = None,
             noise: Tensor | None = None, precision=FULL_PRECISION) -> Tensor:
        """One Monte-Carlo draw of the noise-prediction loss (Ho et al. 2020, Eq. 14), on the horizon only.

        Step and noise are drawn here unless given: validation gives the same ones at every epoch, so that two
        epochs differ by their weights alone. The signs of the endpoint are those of a second, independent draw.
        `precision` is a context for the arithmetic of the denoiser, e.g. autocast; the mean stays in full precision,
        the same as in sampling.
        """
        residual = future - self.mean(history, calendar)
        if step is None:
            step = torch.randint(len(self.schedule), residual.shape[:1], device=residual.device)
        if noise is None:
            noise = torch.randn((2, *residual.shape), device=residual.device)
        endpoint = draw_endpoint(self.fluctuation_scale, noise[1])
        noisy = diffuse(residual, endpoint, noise[0], self.alpha_bar[step])
        with precision:
            context = self.denoiser.condition(self.denoiser.encode(history, calendar), endpoint)
            predicted = self.denoiser(noisy, step, context)
        return F.mse_loss(predicted.float(), noise[0])

    @torch.no_grad()
    def sample(self, history: Tensor, calendar: Tensor, noise, members: int, sampler: str, steps: int,
               chunk: int) -> Tensor:
        """Draw members of the joint forecast: (batch, member, F, node).

        `noise(draw, first, last)` gives standard normal values (last - first, F, node) for the rows
        first..last-1 of the flattened (batch, member) axis; draw 0 lends its signs to the endpoint, draw 1 is the
        start, draws 2, 3, ... are for the sampler. At most `chunk` rows pass through the network at a time:
        memory is bounded by it and the result does not depend on it.
        """
        assert not self.training, "members are drawn in eval mode"
        mean = self.mean(history, calendar)
        context = self.denoiser.encode(history, calendar)
        rows = len(history) * members
        residual = mean.new_empty(rows, *mean.shape[1:])
        for first in range(0, rows, chunk):
            last = min(first + chunk, rows)
            window = torch.arange(first, last, device=mean.device) // members
            residual[first:last] = self._sample_rows(
                context[window], lambda draw, a=first, b=last: noise(draw, a, b), sampler, steps
            )
        return mean.unsqueeze(1) + residual.unflatten(0, (len(history), members))

    def _sample_rows(self, context: Tensor, noise, sampler: str, steps: int) -> Tensor:
        """Residuals of some members: sample the shifted residual, then add the endpoint back."""
        endpoint = draw_endpoint(self.fluctuation_scale, noise(0))
        context = self.denoiser.condition(context, endpoint)

        def predict_noise(shifted: Tensor, step: int) -> Tensor:
            step = torch.full((1,), step, device=shifted.device)
            return self.denoiser(shifted + endpoint, step, context).float()

        return endpoint + SAMPLERS[sampler](
            predict_noise, noise(1), self.schedule, steps, lambda draw: noise(2 + draw)
        )
