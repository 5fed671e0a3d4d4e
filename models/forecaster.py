"""The method on one screen: stage 1 says what is expected, a diffusion model draws what is not known."""

import contextlib
from functools import partial

import torch
from torch import Tensor, nn

from .dependence import FactorModel
from .diffusion import SAMPLERS, NoiseSchedule, diffuse, draw_endpoint
from .draws import draw
from .layers import counted, extra_inputs, mean_over, squared_error
from .quantiles import ANY_VALUE, equidistant_quantiles, keep_mean_above, normal_scores, reorder, to_support

FULL_PRECISION = contextlib.nullcontext()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no memory, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _rows(noise, first: int, last: int, draw: int) -> Tensor:
    """Some rows of a draw, see `Forecaster.sample`."""
    return noise(draw, first, last)


class Forecaster(nn.Module):
    """Joint forecast of the horizon: a frozen stage-1 model and a diffusion model on top of it.

    A process says what its `loss` takes from stage 1 (`prepare`: the same at every epoch, so that it can be computed
    once), and how what is diffused becomes members of the field (`decode`).

    `known` is what a forecast may see: history, calendar, climatology, and the extras of a field that has any.
    Shapes: history (batch, H, node), future (batch, F, node), calendar (batch, cycle) of the last history step,
    climatology (batch, H + F, node); what is diffused (batch, F, coordinate). Units: standardized.
    """

    def __init__(self, mean_model: nn.Module, denoiser: nn.Module, beta: Tensor):
        super().__init__()
        self.mean_model = mean_model.requires_grad_(False).eval()
        self.denoiser = denoiser
        self.schedule = NoiseSchedule.from_beta(beta)
        self.register_buffer("alpha_bar", self.schedule.alpha_bar.clone())

    def sampled_by(self, sampler: str, steps: int) -> dict:
        """What a report says of how members are drawn."""
        return {"sampler": sampler, "steps": steps}

    def train(self, mode: bool = True):
        """Switch the denoiser; the stage-1 model stays in eval mode: no dropout, no gradient."""
        super().train(mode)
        self.mean_model.eval()
        return self

    @torch.no_grad()
    def mean(self, *known) -> Tensor:
        return self.mean_model(*known)

    @torch.no_grad()
    def sample(self, *known, noise, members: int, sampler: str, steps: int, chunk: int) -> Tensor:
        """Draw members of the joint forecast: (batch, member, F, node).

        `noise(draw, first, last)` gives standard normal values (last - first, F, coordinate) for the rows
        first..last-1 of the flattened (batch, member) axis; draw 0 lends its signs to an endpoint, draw 1 is the
        start, draws 2, 3, ... are for the sampler. At most `chunk` rows pass through the network at a time:
        memory is bounded by it and the result does not depend on it. Where memory runs out, half as many do.
        """
        assert not self.training, "members are drawn in eval mode"
        context, (history, *_) = self.encode(*known), known
        rows, first, drawn = len(history) * members, 0, []
        while first < rows:
            last = min(first + chunk, rows)
            if first // members == (last - 1) // members:  # one window: its context serves all rows
                window = slice(first // members, first // members + 1)
            else:
                window = torch.arange(first, last, device=history.device) // members
            try:
                drawn.append(self._sample_rows(context[window], partial(_rows, noise, first, last), sampler, steps))
            except RuntimeError as error:
                if not is_out_of_memory(error) or last - first == 1:
                    raise
                chunk = (last - first) // 2
                continue
            first = last
        drawn = torch.cat(drawn).unflatten(0, (len(history), members))
        return self.decode(drawn, *known)


    def _draw_step(self, rows: Tensor) -> Tensor:
        """A diffusion step for each row."""
        return draw(partial(torch.randint, len(self.schedule), device=rows.device), rows.shape[:1])


class ResidualForecaster(Forecaster):
    """The published process (`--process cost`): diffuse the residual around the mean, aware of each node's scale.

        future = mean + residual,    noisy residual -> N(endpoint, I),    endpoint = +-fluctuation_scale

    fluctuation_scale (node,); its signs are all positive where `signs` is off. Members are moved to values
    of the `support` (see `CopulaForecaster`), their mean being kept; as published they may lie outside it.
    Source: CoST (arXiv:2502.11013), section 4.
    """

    equidistant = False  # members are independent draws

    def __init__(self, mean_model: nn.Module, denoiser: nn.Module, beta: Tensor, num_nodes: int, signs: bool = True,
                 support: tuple[float, float] = ANY_VALUE):
        super().__init__(mean_model, denoiser, beta)
        self.signs, self.support = signs, support
        self.register_buffer("fluctuation_scale", torch.zeros(num_nodes))

    def fit_statistics(self, batches, fluctuation_scale) -> None:
        """Take over what is measured on the training part before the first step: `fluctuation_scale()`."""
        self.fluctuation_scale.copy_(fluctuation_scale())

    @property
    def coordinates(self) -> int:
        return len(self.fluctuation_scale)

    def prepare(self, future: Tensor, *known) -> Tensor:
        """The residual of the future, and what is expected of it, 0, in place of a missing one: (batch, F, node)."""
        residual, observed = future - self.mean(*known), counted(future, *known)
        return residual if observed is None else residual.where(observed, 0.0)

    def loss(self, future: Tensor, *known, prepared: Tensor | None = None, step: Tensor | None = None,
             noise: Tensor | None = None, precision=FULL_PRECISION) -> Tensor:
        """One Monte-Carlo draw of the noise-prediction loss (Ho et al. 2020, Eq. 14), on the horizon only.

        Step and noise are drawn here unless given: validation gives the same ones at every epoch, so that two
        epochs differ by their weights alone. The signs of the endpoint are those of a second, independent draw.
        `precision` is a context for the arithmetic of the denoiser, e.g. autocast; the mean stays in full precision,
        the same as in sampling.
        """
        residual = self.prepare(future, *known) if prepared is None else prepared
        if step is None:
            step = self._draw_step(residual)
        if noise is None:
            noise = draw(partial(torch.randn, device=residual.device), (2, *residual.shape), axis=1)
        endpoint = self._endpoint(noise[1])
        noisy = diffuse(residual, endpoint, noise[0], self.alpha_bar[step])
        with precision:
            context = self.denoiser.condition(self.encode(*known), endpoint)
            predicted = self.denoiser(noisy, step, context)
        return squared_error(predicted.float(), noise[0], counted(future, *known))

    def encode(self, history: Tensor, calendar: Tensor, climatology: Tensor, extras=None) -> Tensor:
        return self.denoiser.encode(history, calendar, *extra_inputs(history, extras))

    def decode(self, drawn: Tensor, *known) -> Tensor:
        members = self.mean(*known).unsqueeze(1) + drawn
        return to_support(keep_mean_above(members, self.support[0]), *self.support)

    def _endpoint(self, noise: Tensor) -> Tensor:
        return draw_endpoint(self.fluctuation_scale, noise if self.signs else noise.abs())

    def _sample_rows(self, context: Tensor, noise, sampler: str, steps: int) -> Tensor:
        """Residuals of some members: sample the shifted residual, then add the endpoint back."""
        endpoint = self._endpoint(noise(0))
        context = self.denoiser.condition(context, endpoint)

        def predict_noise(shifted: Tensor, step: int) -> Tensor:
            step = torch.full((1,), step, device=shifted.device)
            return self.denoiser(shifted + endpoint, step, context).float()

        return endpoint + SAMPLERS[sampler](
            predict_noise, noise(1), self.schedule, steps, lambda draw: noise(2 + draw)
        )


class CopulaForecaster(Forecaster):
    """The default process (`--process copula`): stage 1 gives the margins, the diffusion their dependence.

        white = whiten(normal_scores(future under the conditional quantiles))
        members = conditional quantiles in the rank order of colour(white drawn)

    The diffusion runs on white coordinates (`FactorModel`). Its network predicts v = sqrt(alpha_bar) noise -
    sqrt(1 - alpha_bar) white and starts at zero, which is exact for white Gaussian data: an untrained model draws
    from the Gaussian copula of the training data with a loss of 1, and what the network learns lowers it. The
    margins of the ensemble are those of the quantiles, whatever the diffusion does.
    `support`: the smallest value that the field can take, and the distance between two values (0: none).
    Source: v: Salimans and Ho 2022 (arXiv:2202.00512), App. D; rank order: Schefzik et al. 2013.
    """

    equidistant = True  # at every node and step the members are quantiles at equidistant levels

    def __init__(self, mean_model: nn.Module, denoiser: nn.Module, beta: Tensor, dependence: FactorModel,
                 support: tuple[float, float]):
        super().__init__(mean_model, denoiser, beta)
        nn.init.zeros_(denoiser.project.weight)
        nn.init.zeros_(denoiser.project.bias)
        self.dependence = dependence
        self.support = support

    @property
    def coordinates(self) -> int:
        return self.dependence.width

    @torch.no_grad()
    def fit_statistics(self, batches, fluctuation_scale) -> None:
        """Estimate the linear part of the dependence from training batches."""
        scores, histories, observed = [], [], []
        for batch in batches:
            scores.append(self.mean_model.scores(batch.future, torch.rand_like(batch.future), self.support,
                                                 *batch.known))
            histories.append(self._anomaly(batch.history, batch.climatology))
            observed.append(batch.observed)
        masked = observed[0] is not None
        self.dependence.fit(torch.cat(scores), torch.cat(histories), torch.cat(observed) if masked else None)

    def prepare(self, future: Tensor, *known) -> Tensor:
        """The levels between which the future lies under its conditional quantiles: (batch, 2, F, node)."""
        return self.mean_model.levels(future, self.support, *known)

    def loss(self, future: Tensor, *known, prepared: Tensor | None = None, step: Tensor | None = None,
             noise: Tensor | None = None, precision=FULL_PRECISION) -> Tensor:
        """One Monte-Carlo draw of the squared error of v; 1 for a network that knows nothing but the covariance.

        Step and noise (3, batch, F, coordinate) are drawn here unless given, see `ResidualForecaster.loss`; the last
        draw places truths that stand for a range of values, see `normal_scores`, and stands in for missing ones, see
        `FactorModel.impute`; coordinates of those count in no loss.
        """
        if step is None:
            step = self._draw_step(future)
        if noise is None:
            noise = self._draw_noise(future)
        scores, observed = self._scores(noise[2], prepared, future, *known)
        white = self.dependence.whiten(scores)
        level = self.alpha_bar[step].to(white.dtype).view(-1, 1, 1)
        noisy = level.sqrt() * white + (1 - level).sqrt() * noise[0]
        with precision:
            velocity = self.denoiser(noisy, step, self.encode(*known))
        return squared_error(velocity.float(), level.sqrt() * noise[0] - (1 - level).sqrt() * white, observed)

    def encode(self, history: Tensor, calendar: Tensor, climatology: Tensor, extras=None) -> Tensor:
        anomaly = self.dependence.history(self._anomaly(history, climatology))
        return self.denoiser.encode(anomaly, calendar, *map(self.dependence.extra, extra_inputs(history, extras)))

    def decode(self, drawn: Tensor, *known) -> Tensor:
        quantiles = self.mean_model.quantiles(*known)
        scores = self.dependence.colour(drawn.flatten(0, 1)).unflatten(0, drawn.shape[:2])
        return to_support(reorder(equidistant_quantiles(quantiles, drawn.shape[1]), scores), *self.support)

    def _draw_noise(self, future: Tensor) -> Tensor:
        return draw(partial(torch.randn, device=future.device), (3, *future.shape[:2], self.coordinates), axis=1)

    def _scores(self, noise: Tensor, prepared: Tensor | None, future: Tensor,
                *known) -> tuple[Tensor, Tensor | None]:
        """Normal scores of the future, and which coordinates count in the loss; None: all."""
        noise = noise[..., :future.shape[-1]]
        levels = self.prepare(future, *known) if prepared is None else prepared
        scores = normal_scores(levels, torch.special.ndtr(noise))
        observed = counted(future, *known)
        if observed is None:
            return scores, None
        return self.dependence.impute(scores, observed, noise), self.dependence.counted(observed)

    def _anomaly(self, history: Tensor, climatology: Tensor) -> Tensor:
        return history - climatology[:, :history.shape[1]]

    def _sample_rows(self, context: Tensor, noise, sampler: str, steps: int) -> Tensor:
        def predict_noise(noisy: Tensor, step: int) -> Tensor:
            level = self.schedule.alpha_bar[step]
            velocity = self.denoiser(noisy, torch.full((1,), step, device=noisy.device), context).float()
            return (1 - level).sqrt() * noisy + level.sqrt() * velocity

        return SAMPLERS[sampler](predict_noise, noise(1), self.schedule, steps, lambda draw: noise(2 + draw))


class OnePassForecaster(CopulaForecaster):
    """No diffusion (`--process one_pass`): the network bends white noise in a single call per member.

        white = noise + network(noise),    trained on the fair CRPS of two members

    Scored at every node and in every mode: the first teaches margins of the scores, the second how nodes go
    together. It starts as the Gaussian copula, as `CopulaForecaster` does. Sampler and steps have no effect.
    Source: training on a proper score: Bouchacourt et al. 2016 (arXiv:1606.02556); fair: Ferro 2014.
    """

    def loss(self, future: Tensor, *known, prepared: Tensor | None = None, step: Tensor | None = None,
             noise: Tensor | None = None, precision=FULL_PRECISION) -> Tensor:
        """Fair CRPS of two members in normal scores, mean over nodes plus mean over modes of unit variance."""
        if noise is None:
            noise = self._draw_noise(future)
        scores, observed = self._scores(noise[2], prepared, future, *known)
        truth = self.dependence.coordinates(scores)
        context = self.encode(*known)
        with precision:
            one, two = (self._bend(each, context) for each in noise[:2])
        one, two = (self.dependence.coordinates(self.dependence.colour(white)) for white in (one, two))
        crps = ((one - truth).abs() + (two - truth).abs() - (one - two).abs()) / 2
        sizes = [self.dependence.num_nodes, self.dependence.modes]
        counts = (None, None) if observed is None else observed.split(sizes, dim=-1)
        nodes, modes = zip(crps.split(sizes, dim=-1), counts, strict=True)
        return mean_over(*nodes) + (mean_over(*modes) if self.dependence.modes else 0.0)

    def sampled_by(self, sampler: str, steps: int) -> dict:
        return {"sampler": "one pass", "steps": 1}

    def _bend(self, noise: Tensor, context: Tensor) -> Tensor:
        return noise + self.denoiser(noise, torch.zeros(1, dtype=torch.long, device=noise.device), context).float()

    def _sample_rows(self, context: Tensor, noise, sampler: str, steps: int) -> Tensor:
        return self._bend(noise(1), context)


PROCESSES = {"copula": CopulaForecaster, "one_pass": OnePassForecaster, "cost": ResidualForecaster}
