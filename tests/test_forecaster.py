"""The forecaster as a whole: what the loss counts, what a forecast depends on, and that its law is right."""

import dataclasses
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import HISTORY, HORIZON, NODES, SIZES, alter, make_batch, make_forecaster, pick
from torch import nn

from data.constants import ANY_VALUE, QUANTILE_LEVELS
from data.context import Context
from data.windows import Batch
from models import ensemble_sampler
from models.denoiser import MLPDenoiser
from models.diffusion import NOISE_SCHEDULES, SAMPLERS, alpha_bar_of
from models.forecaster import Forecaster
from models.layers import Task, own_rows
from models.margins import QuantileMargin, ResidualMargin
from models.mean import MeanModel
from models.noise import CovarianceNoise, IndependentNoise
from models.quantiles import equidistant_quantiles, pit_bounds, z_from_pit
from models.scale import FluctuationScale
from utils.config import RECIPES
from utils.pipeline import validation_loss, validation_steps
from utils.training.reproducibility import MemberNoise

STEPS = 50
SCALE = torch.tensor([0.3, 0.0, 1.0, 2.0])
BETA = NOISE_SCHEDULES["quadratic"](STEPS)
ALPHA_BAR = alpha_bar_of(BETA)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


MAKE = {recipe: partial(make_forecaster, recipe) for recipe in RECIPES}
every_recipe = pytest.mark.parametrize("recipe", MAKE)


class Zero(MeanModel):
    """A mean model that forecasts zero, so that the residual is the future itself."""

    def __init__(self):
        super().__init__("mse")

    def predict(self, context):
        return torch.zeros_like(context.future_climatology).unsqueeze(1)


class Stub(nn.Module):
    """A denoiser that answers with `predict(noisy, alpha_bar, endpoint)` and records what it was given."""

    def __init__(self, predict):
        super().__init__()
        self.predict, self.encoded, self.calls = predict, [], []

    def encode(self, inputs, calendar, missing, features):
        self.encoded.append((inputs, calendar))
        return inputs.new_zeros(len(inputs), 1, 1)

    def condition(self, hidden, endpoint):
        return hidden + endpoint

    def forward(self, noisy, step, endpoint):
        self.calls.append((noisy, step, endpoint))
        return self.predict(noisy, ALPHA_BAR[step].float().view(-1, 1, 1), endpoint)


def make_published(mean_model, denoiser, scale=SCALE):
    """A forecaster of the published process with these networks, which has seen its training part."""
    margin = ResidualMargin(FluctuationScale("spectrum", NODES, HORIZON, SIZES[0]), ANY_VALUE, scaled=False,
                            center=False, inputs=())
    model = Forecaster(mean_model, margin, IndependentNoise(), denoiser, BETA, "noise", "signed")
    model.fit_statistics([make_batch()], [make_batch()], lambda: scale)
    return model


class Quantiles(MeanModel):
    """Normal quantiles with the standard deviation .1."""

    def __init__(self):
        super().__init__("quantiles")

    def predict(self, context):
        z = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS)).view(1, -1, 1, 1)
        return 0.1 * z.expand(len(context.history), -1, HORIZON, NODES)


def exact_gaussian(mean, std):
    """The best prediction when each residual is N(mean, std^2) on its own: the endpoint only shifts it."""
    def predict(noisy, alpha_bar, endpoint):
        shifted, clean = noisy - endpoint, mean - endpoint
        return (1 - alpha_bar).sqrt() * (shifted - alpha_bar.sqrt() * clean) / (alpha_bar * std**2 + 1 - alpha_bar)
    return predict


def sample(model, batch, members=5, sampler="dpm2m", steps=4, chunk=64, seed=1, kind=""):
    """Members of the kind of the recipe, unless named."""
    kind = kind or ("quantiles" if isinstance(model.margin, QuantileMargin) else "random")
    noise = MemberNoise(seed, batch.start, model.margin.num_samples(members, kind), (HORIZON, NODES))
    return model.sample(batch.context, noise, members, kind, sampler, steps, chunk)


# The mean model is frozen

@every_recipe
def test_mean_model_stays_in_eval_mode_whatever_the_mode_of_the_forecaster(recipe):
    model, batch = MAKE[recipe](), make_batch()
    before = model.mean_model(batch.context)
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert not any(module.training for module in model.mean_model.modules())
        assert all(module.training == mode for module in model.denoiser.modules())
        assert torch.equal(model.mean_model(batch.context), before)


@every_recipe
def test_training_moves_every_weight_of_the_denoiser_and_nothing_else(recipe):
    model, batch = MAKE[recipe]().train(), make_batch(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(value.requires_grad == name.startswith("denoiser.") for name, value in model.named_parameters())
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    model.loss(batch.future, batch.context).backward()
    assert all(value.grad is None for value in model.mean_model.parameters())
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("denoiser."), name


def test_no_gradient_flows_through_the_mean():
    model = make_forecaster("published")
    model.denoiser = Stub(lambda noisy, alpha_bar, endpoint: noisy)
    batch = make_batch()
    for part in (batch.context.history, batch.context.climatology):
        part.requires_grad_()
    assert not model.loss(batch.future, batch.context).requires_grad


def test_the_endpoint_is_the_whole_fluctuation_scale_where_that_depends_on_the_state():
    """By the quantiles it is the spread of these times a table; members and loss get the same."""
    margin = ResidualMargin(FluctuationScale("quantiles", NODES, HORIZON, SIZES[0]), ANY_VALUE, scaled=False,
                            center=False, inputs=())
    stub, batch = Stub(lambda noisy, alpha_bar, endpoint: torch.zeros_like(noisy)), make_batch()
    model = Forecaster(Quantiles(), margin, IndependentNoise(), stub, BETA, "noise", "signed").eval()
    margin.scale.table.fill_(2.0)
    model.loss(batch.future, batch.context)
    model.sample(batch.context, lambda index, first, last: torch.randn(last - first, HORIZON, NODES),
                 5, "random", "ancestral", 2, 1000)
    for _, _, endpoint in stub.calls:
        torch.testing.assert_close(endpoint.abs(), torch.full_like(endpoint, 2 * 0.1))


# Loss

def test_a_perfect_denoiser_has_no_loss_at_any_step():
    batch = make_batch(STEPS)

    def perfect(noisy, alpha_bar, endpoint):
        return (noisy - endpoint - alpha_bar.sqrt() * (batch.future - endpoint)) / (1 - alpha_bar).sqrt()

    model = make_published(Zero(), Stub(perfect))
    assert model.loss(batch.future, batch.context, step=torch.arange(STEPS)) < 1e-7
    assert model.loss(batch.future, batch.context) < 1e-7
    off = make_published(Zero(), Stub(lambda *given: perfect(*given) + 0.5))
    assert float(off.loss(batch.future, batch.context)) == pytest.approx(0.25, abs=1e-3)


def test_loss_is_the_mean_square_over_the_horizon_of_the_residual_noised_as_in_the_paper():
    model, batch = make_published(make_forecaster("published").mean_model, make_denoiser()).eval(), make_batch()
    step, noise = torch.tensor([0, 20, 49]), torch.randn(3, 3, HORIZON, NODES)
    residual = (batch.future - model.mean_model(batch.context)).double()
    squares = []
    for row in range(3):
        root, spread = math.sqrt(ALPHA_BAR[step[row]]), math.sqrt(1 - ALPHA_BAR[step[row]])
        endpoint = torch.where(noise[1, row] > 0, SCALE, -SCALE)
        noisy = root * residual[row] + (1 - root) * endpoint + spread * noise[0, row]
        one = pick(batch, [row]).context
        hidden = model.denoiser.encode(one.history, one.calendar, None, None)
        predicted = model.denoiser(noisy.float().unsqueeze(0), step[row:row + 1],
                                   model.denoiser.condition(hidden, endpoint.unsqueeze(0)))
        squares.append((predicted[0] - noise[0, row]).square().mean())
    found = model.loss(batch.future, batch.context, step=step, noise=noise)
    assert found.item() == pytest.approx(sum(square.item() for square in squares) / 3, rel=1e-4)


def test_the_denoiser_sees_the_history_without_noise_and_only_the_horizon_with_it():
    batch, stub = make_batch(), Stub(lambda noisy, alpha_bar, endpoint: torch.zeros_like(noisy))
    model = make_published(Zero(), stub)
    noise = torch.randn(3, 3, HORIZON, NODES)
    loss = model.loss(batch.future, batch.context, step=torch.tensor([49] * 3), noise=noise)
    (history, calendar), = stub.encoded
    (noisy, _, _), = stub.calls
    assert torch.equal(history, batch.context.history) and torch.equal(calendar, batch.context.calendar)
    assert noisy.shape == (3, HORIZON, NODES) != batch.context.history.shape
    assert float(loss) == pytest.approx(float(noise[0].square().mean()), rel=1e-6)


def test_steps_are_drawn_evenly_and_signs_independently_of_the_noise():
    stub = Stub(lambda noisy, alpha_bar, endpoint: torch.zeros_like(noisy))
    model, count = make_published(Zero(), stub, torch.ones(NODES)), 20_000
    future = torch.zeros(count, HORIZON, NODES)
    model.loss(future, zeros_before(future).context)
    (noisy, step, endpoint), = stub.calls
    drawn = torch.bincount(step, minlength=STEPS)
    assert len(drawn) == STEPS
    assert (drawn - count / STEPS).abs().max() < 5 * math.sqrt(count / STEPS)
    alpha_bar = ALPHA_BAR[step].view(-1, 1, 1)
    noise = (noisy - (1 - alpha_bar.sqrt()) * endpoint) / (1 - alpha_bar).sqrt()
    bound = 5 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < bound and abs(noise.var() - 1) < 2 * bound
    assert abs(endpoint.mean()) < bound
    assert abs((noise * endpoint).mean()) < bound
    assert endpoint.abs().unique().tolist() == [1]


@pytest.mark.parametrize("first", [0, 1_000_000, 30_000_000, 10**9])
def test_the_validation_steps_of_any_stretch_of_windows_are_all_steps_evenly(first):
    visits = torch.bincount(validation_steps(first + torch.arange(2000), STEPS), minlength=STEPS)
    assert len(visits) == STEPS and (visits - 2000 / STEPS).abs().max() <= 3


@every_recipe
def test_two_losses_differ_by_their_draws_unless_step_and_noise_are_given(recipe):
    model, batch = MAKE[recipe]().eval(), make_batch()
    windows = batch.future, batch.context
    given = dict(step=torch.tensor([3, 30, 40]), noise=torch.randn(3, 3, HORIZON, NODES))
    assert model.loss(*windows).item() != model.loss(*windows).item()
    assert model.loss(*windows, **given).item() == model.loss(*windows, **given).item()


@every_recipe
def test_validation_loss_of_a_window_does_not_depend_on_its_batch_or_on_earlier_draws(recipe):
    model, batch = MAKE[recipe]().eval(), make_batch(5)
    config = SimpleNamespace(seed=3, val_batch_size=0, val_windows=0)

    def scored(*parts):
        torch.rand(len(parts))
        batches = SimpleNamespace(share_windows=lambda rank, count: [pick(batch, part) for part in parts])
        data = SimpleNamespace(predict_len=HORIZON, batches=lambda *args, **kwargs: batches)
        return float(validation_loss(model, data, config))

    whole = scored(slice(None))
    assert scored(slice(0, 2), slice(2, 5)) == pytest.approx(whole, rel=1e-5)
    assert scored([4], [0], [3, 2, 1]) == pytest.approx(whole, rel=1e-5)
    config.seed = 4
    assert scored(slice(None)) != pytest.approx(whole, rel=1e-5)


# Sampling

@every_recipe
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_works_by_name_in_any_number_of_steps(recipe, name):
    model, batch = MAKE[recipe]().eval(), make_batch()
    for steps in (1, 2, STEPS):
        members = sample(model, batch, sampler=name, steps=steps)
        assert members.shape == (3, 5, HORIZON, NODES)
        assert members.dtype == torch.float32 and members.isfinite().all() and not members.requires_grad


@every_recipe
def test_the_named_sampler_takes_the_named_number_of_steps(recipe):
    model, batch = MAKE[recipe]().eval(), make_batch()
    members = [sample(model, batch, members=40, sampler=name, steps=steps) for name in SAMPLERS for steps in (5, 6)]
    for index, one in enumerate(members):
        for other in members[:index]:
            assert not torch.allclose(one, other)


@every_recipe
@pytest.mark.parametrize("name", SAMPLERS)
def test_members_do_not_depend_on_the_chunk(recipe, name):
    model, batch = MAKE[recipe]().eval(), make_batch()
    whole = sample(model, batch, sampler=name, chunk=1000)
    for chunk in (1, 3, 7, 15):
        torch.testing.assert_close(sample(model, batch, sampler=name, chunk=chunk), whole, rtol=2e-6, atol=2e-5)


def test_no_more_rows_than_the_chunk_pass_through_the_network_at_a_time():
    stub = Stub(lambda noisy, alpha_bar, endpoint: noisy)
    model, batch = make_published(Zero(), stub).eval(), make_batch()
    sample(model, batch, members=5, steps=2, chunk=4)
    assert [len(noisy) for noisy, _, _ in stub.calls] == [4, 4, 4, 4, 4, 4, 3, 3]


@every_recipe
@pytest.mark.parametrize("name", SAMPLERS)
def test_members_do_not_depend_on_the_other_windows_of_the_batch(recipe, name):
    model, batch = MAKE[recipe]().eval(), make_batch(4)
    together = sample(model, batch, sampler=name, chunk=7)
    for rows in ([0], [1], [2], [3], [3, 1], [2, 0, 1]):
        torch.testing.assert_close(sample(model, pick(batch, rows), sampler=name, chunk=7), together[rows],
                                   rtol=2e-6, atol=2e-5)


def test_a_member_of_a_small_ensemble_is_the_same_member_of_a_large_one():
    model, batch = make_forecaster("published").eval(), make_batch()
    few, many = sample(model, batch, members=5), sample(model, batch, members=50)
    torch.testing.assert_close(many[:, :5], few, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("recipe", ["cost", "published"])
def test_members_windows_and_seeds_draw_their_own_noise(recipe):
    model, batch = MAKE[recipe]().eval(), make_batch()
    batch = dataclasses.replace(pick(batch, [0, 0, 0]), start=batch.start)
    members = torch.cat([sample(model, batch, seed=1), sample(model, batch, seed=2)]).flatten(0, 1).flatten(1)
    assert torch.cdist(members, members)[~torch.eye(len(members), dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")])
def test_where_memory_runs_out_half_as_many_members_are_sampled_at_a_time_and_are_the_same(monkeypatch, error):
    """faults 47"""
    model, batch, rows = make_forecaster().eval(), make_batch(), []
    expected, forward = sample(model, batch), type(model.denoiser).forward

    def short_of_memory(self, noisy, step, context):
        rows.append(len(noisy))
        if len(noisy) > 4:
            raise error
        return forward(self, noisy, step, context)

    monkeypatch.setattr(type(model.denoiser), "forward", short_of_memory)
    assert torch.allclose(sample(model, batch), expected, atol=1e-5)
    assert rows[:3] == [15, 7, 3] and max(rows[2:]) == 3
    monkeypatch.setattr(type(model.denoiser), "forward", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):  # not even one member fits
        sample(model, batch)


def test_any_other_error_of_sampling_is_raised(monkeypatch):
    """faults 47"""
    model, calls = make_forecaster().eval(), []
    monkeypatch.setattr(type(model.denoiser), "forward", lambda *_: [calls.append(1), 1 / 0])
    with pytest.raises(ZeroDivisionError):
        sample(model, make_batch())
    assert calls == [1]


@every_recipe
def test_two_processes_draw_for_their_rows_what_one_draws_for_all(recipe):
    """faults 50"""
    model, batch = MAKE[recipe](dropout=0.5).train(), make_batch(8)
    torch.manual_seed(3)
    whole = model.loss(batch.future, batch.context)
    parts = []
    for first, last in ((0, 3), (3, 8)):
        torch.manual_seed(3)
        own = pick(batch, slice(first, last))
        with own_rows((first, last, 8)):
            parts.append(float(model.loss(own.future, own.context).detach()) * (last - first))
    assert sum(parts) / 8 == pytest.approx(float(whole.detach()), rel=1e-5)


@pytest.mark.parametrize("center", [True, False])
def test_training_takes_z_and_its_negative_alike_where_members_are_centred(center):
    """The sign of the first value of noise[1] is that of z: a future mirrored at the mean, 0, has the same loss."""
    margin = ResidualMargin(FluctuationScale("spectrum", NODES, HORIZON, SIZES[0]), ANY_VALUE, center=center)
    model = Forecaster(Zero(), margin, IndependentNoise(), Stub(lambda noisy, *_: noisy), BETA, "noise").eval()
    batch, step, noise = make_batch(), torch.tensor([0, 1, STEPS - 1]), torch.randn(3, 3, HORIZON, NODES)
    loss = model.loss(batch.future, batch.context, step=step, noise=noise)
    mirrored = noise * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1, 1)
    assert torch.equal(model.loss(batch.future, batch.context, step=step, noise=mirrored), loss) != center
    assert torch.equal(model.loss(-batch.future, batch.context, step=step, noise=mirrored), loss) == center


@every_recipe
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_leaves_the_global_random_numbers_alone_and_does_not_read_them(recipe, name):
    model, batch = MAKE[recipe]().eval(), make_batch()
    before = torch.get_rng_state()
    first = sample(model, batch, sampler=name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(sample(model, batch, sampler=name), first)


def test_start_endpoint_and_sampler_draw_from_different_noise():
    taken = []

    def noise(noise_index, first, last):
        taken.append((noise_index, first, last))
        return torch.randn(last - first, HORIZON, NODES)

    model, batch = make_forecaster("published").eval(), make_batch()
    model.sample(batch.context, noise, 2, "random", "ancestral", 4, chunk=4)
    assert sorted(taken) == sorted((noise_index, *rows) for noise_index in range(5) for rows in ((0, 4), (4, 6)))


def test_start_is_the_endpoint_plus_noise_and_the_denoiser_sees_that_endpoint():
    stub = Stub(lambda noisy, alpha_bar, endpoint: noisy - endpoint)
    model, batch = make_published(Zero(), stub), make_batch(2)
    noise = MemberNoise(1, batch.start, 3, (HORIZON, NODES))
    model.eval().sample(batch.context, noise, 3, "random", "adams", 2, chunk=64)
    (noisy, step, endpoint), (_, last, _) = stub.calls
    assert torch.equal(endpoint, torch.where(noise(0, 0, 6) > 0, SCALE, -SCALE))
    torch.testing.assert_close(noisy, endpoint + noise(1, 0, 6))
    assert (step.tolist(), last.tolist()) == ([STEPS - 1], [0])


def test_forecast_is_the_mean_plus_the_residual_of_the_right_window():
    """A denoiser that is sure of a residual for each window: every member is then mean + that residual."""
    batch, model = make_batch(), make_forecaster("published").eval()
    residual = torch.randn(3, HORIZON, NODES)
    stub = Stub(lambda noisy, alpha_bar, context: context)
    stub.encode = lambda *_: residual
    stub.condition = lambda context, endpoint: torch.stack([context.expand_as(endpoint), endpoint])
    stub.predict = lambda noisy, alpha_bar, context: exact_gaussian(context[0], 0.0)(noisy, alpha_bar, context[1])
    mean, model.denoiser = model.mean_model(batch.context), stub
    for name in SAMPLERS:
        members = sample(model, batch, sampler=name, chunk=4)
        atol = 2e-3 if name == "adams" else 2e-5  # adams integrates to the clean value, the others end at it
        torch.testing.assert_close(members, (mean + residual).unsqueeze(1).expand_as(members), rtol=2e-6, atol=atol)


def test_sampled_residuals_of_an_exact_gaussian_have_its_mean_and_spread():
    """Each node and horizon step its own law; dpm2m in 20 steps, within 3 % and the sampling error."""
    mean = torch.tensor([0.5, -1.0, 0.0, 0.2]) + torch.tensor([[0.0], [0.1], [0.3]])
    std = torch.tensor([0.7, 0.3, 0.1, 1.0]) * torch.tensor([[1.0], [0.8], [1.2]])
    model = make_published(Zero(), Stub(exact_gaussian(mean, std))).eval()
    batch, members = make_batch(2), 4000
    found = sample(model, batch, members=members, steps=20, chunk=2000).flatten(0, 1)
    count = len(found)
    assert ((found.mean(0) - mean).abs() < 5 * std / math.sqrt(count) + 0.006 * (mean.abs() + SCALE)).all()
    assert (found.std(0) / std - 1).abs().max() < 0.03 + 5 / math.sqrt(2 * count)
    scaled = ((found - found.mean(0)) / found.std(0)).flatten(1)
    assert (torch.corrcoef(scaled.T) - torch.eye(HORIZON * NODES)).abs().max() < 5 / math.sqrt(count)


def test_the_endpoint_of_a_member_leaves_no_trace_in_a_well_predicted_residual():
    """Its sign is noise of ours: members that end at +scale and at -scale have the same mean."""
    mean, std = torch.zeros(NODES), torch.full((NODES,), 0.5)
    model = make_published(Zero(), Stub(exact_gaussian(mean, std))).eval()
    batch = make_batch(1)
    found = sample(model, batch, members=8000, steps=20, chunk=2000)[0]
    sign = MemberNoise(1, batch.start, 8000, (HORIZON, NODES))(0, 0, 8000).sign()
    assert ((found * sign).mean(0).abs() < 5 * 0.5 / math.sqrt(8000) + 0.006 * SCALE).all()


@every_recipe
def test_a_forecast_does_not_depend_on_the_future(recipe):
    """Through the function that every score and picture uses: the future is gone, the forecast is the same."""
    model, batch = MAKE[recipe]().eval(), make_batch()
    kind = "quantiles" if recipe == "copula" else "random"
    settings = dict(predict_len=HORIZON, sample_batch=4, sample_precision="float32", seed=1, nsample=3, sampler="adams",
                    sample_steps=3, members=kind)
    draw = ensemble_sampler(model, settings, torch.device("cpu"))
    members = draw(batch)
    series = torch.cat([batch.context.history, torch.full_like(batch.future, math.nan)], dim=1)
    blind = dataclasses.replace(alter(batch, history=series[:, :HISTORY]), future=series[:, HISTORY:])
    assert torch.equal(draw(blind), members) and members.isfinite().all()
    torch.testing.assert_close(members, sample(model, batch, members=3, sampler="adams", steps=3), rtol=2e-6, atol=2e-5)
    history = batch.context.history.clone()
    history[:, -1] += 1
    assert not torch.allclose(draw(alter(batch, history=history)), members)


@every_recipe
def test_bfloat16_sampling_stays_within_five_per_cent_of_the_spread_of_float32(recipe):
    model, batch = MAKE[recipe]().eval(), make_batch()
    full = sample(model, batch, members=20, steps=20)
    model.denoiser.round_to(torch.bfloat16)
    rounded = sample(model, batch, members=20, steps=20)
    assert rounded.dtype == torch.float32
    error = (rounded - full).square().mean().sqrt() / full.std(1).square().mean().sqrt()
    assert 0 < error < 0.05


# State

@every_recipe
def test_all_of_a_forecaster_is_saved_and_restored_and_forecasts_are_the_same_to_the_bit(recipe):
    model, other, batch = MAKE[recipe]().eval(), MAKE[recipe]().eval(), make_batch()
    state = model.state_dict()
    parts = {"cost": {"margin.scale.table", "noise.class_edges"}, "published": {"margin.scale.table"},
             "copula": {"noise.axes", "noise.root", "noise.spread", "noise.history_spread"}}[recipe]
    assert {"alpha_bar", *parts} < set(state) and state["alpha_bar"].dtype == torch.float64
    assert not torch.allclose(sample(other, batch), sample(model, batch))
    other.load_state_dict(state)
    for choices in ({}, dict(members=7, sampler="ancestral")):
        assert torch.equal(sample(other, batch, **choices), sample(model, batch, **choices))


def test_the_callers_scale_is_copied():
    scale = SCALE.clone()
    model = make_published(Zero(), make_denoiser(), scale)
    model.margin.scale.table.add_(1)
    assert torch.equal(scale, SCALE)


# Kinds of members

@pytest.mark.parametrize("recipe, kind, samples", [("cost", "random", 5), ("cost", "quantiles", 20),
                                                 ("copula", "random", 5), ("copula", "quantiles", 5)])
def test_an_ensemble_takes_as_many_samples_as_its_kind_needs(recipe, kind, samples):
    model, batch = MAKE[recipe]().eval(), make_batch()
    assert model.margin.num_samples(5, kind) == samples
    assert sample(model, batch, kind=kind).shape == (3, 5, HORIZON, NODES)


# The Gaussian distribution before the first step

class NormalMargins(MeanModel):
    """A stage 1 whose forecast is normal with this `mean` and `std` everywhere."""

    def __init__(self, mean=0.0, std=1.0):
        super().__init__("quantiles")
        self.mean, self.std = mean, std

    def predict(self, context):
        z = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS)).view(1, -1, 1, 1)
        return self.mean + self.std * z.expand(len(context.history), -1, HORIZON, NODES)


def zeros_before(future):
    """A batch with this future and a context of zeros."""
    count, nodes = len(future), future.shape[-1]
    context = Context(torch.zeros(count, HISTORY, nodes), torch.zeros(count, 2, dtype=torch.long),
                      torch.zeros(count, HISTORY + HORIZON, nodes))
    return Batch(context, future, torch.arange(count))


def make_denoiser(nodes=NODES, steps=HISTORY, endpoint=True):
    return MLPDenoiser(Task(nodes, HISTORY, HORIZON, SIZES), steps, channels=16, layers=2, embedding=8,
                       endpoint=endpoint)


def untrained(future, modes, margin="quantile", support=ANY_VALUE):
    """Statistics fitted to `future`, by residuals around 0 or standard normal quantiles; the network as it was made."""
    if margin == "quantile":
        mean_model, margin = NormalMargins(), QuantileMargin(support)
    else:
        scale = FluctuationScale("cycle", NODES, HORIZON, SIZES[0])
        mean_model, margin = Zero(), ResidualMargin(scale, support)
    noise = CovarianceNoise(NODES, HORIZON, modes)
    denoiser = make_denoiser(NODES, HISTORY + HORIZON * len(margin.inputs), endpoint=False)
    model = Forecaster(mean_model, margin, noise, denoiser, BETA)
    batches = [zeros_before(part) for part in future.split(1000)]
    model.fit_statistics(batches, batches, None)
    return model.eval()


both_margins = pytest.mark.parametrize("margin", ["quantile", "scaled"])


def correlated_future(count):
    """Paths over the horizon, correlated among steps (0.7 each) and nodes, and the correlation of node and step."""
    nodes = torch.tensor([[1.0, 0.8, 0.0, 0.5], [0.8, 1.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 1.0]])
    lag = (torch.arange(HORIZON).unsqueeze(1) - torch.arange(HORIZON)).abs()
    correlation = torch.kron(0.7**lag, nodes)
    drawn = torch.randn(count, HORIZON * NODES) @ torch.linalg.cholesky(correlation).T
    return drawn.unflatten(1, (HORIZON, NODES)), correlation


@both_margins
def test_an_untrained_forecaster_has_a_loss_of_1_on_white_gaussian_data(margin):
    model = untrained(torch.randn(4000, HORIZON, NODES), 0, margin)
    fresh = torch.randn(20_000, HORIZON, NODES)
    assert model.loss(fresh, zeros_before(fresh).context).item() == pytest.approx(1, abs=0.02)
    for step in (0, 25, STEPS - 1):
        steps = torch.full((20_000,), step)
        assert model.loss(fresh, zeros_before(fresh).context, step=steps).item() == pytest.approx(1, abs=0.03)


@both_margins
@pytest.mark.parametrize("modes", [2, 4])
def test_a_forecaster_fitted_to_the_covariance_has_a_loss_of_1(margin, modes):
    model = untrained(correlated_future(4000)[0], modes, margin)
    fresh, _ = correlated_future(20_000)
    assert model.loss(fresh, zeros_before(fresh).context).item() == pytest.approx(1, abs=0.05)
    wide = 1.5 * fresh
    assert model.loss(wide, zeros_before(wide).context) > 1.2


@both_margins
@pytest.mark.parametrize("modes", [2, 4])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_untrained_forecaster_draws_the_covariance_that_it_was_fitted_to_with_every_sampler(margin, name, modes):
    future, correlation = correlated_future(4000)
    model, batch = untrained(future, modes, margin), zeros_before(torch.zeros(1, HORIZON, NODES))
    members = sample(model, batch, members=3000, sampler=name, steps=10, chunk=1000)[0]
    found = torch.corrcoef(members.flatten(1).T)
    white = torch.randn(50_000, HORIZON, NODES)
    log_scale = model.margin.log_scale(model.margin.given(model.mean_model, batch.context), batch.context)
    exact = torch.corrcoef(model.noise.unwhiten(white, log_scale).flatten(1).T)
    assert (found - exact).abs().max() < 5 / math.sqrt(3000)
    assert (exact - torch.eye(HORIZON * NODES)).abs().max() > 0.6
    if modes == NODES:
        assert (found - correlation).abs().max() < 0.1


def test_an_untrained_forecaster_of_residuals_draws_them_as_wide_as_they_are():
    """Each node its own spread, around the mean of stage 1; dpm2m in 20 steps, within 5 %."""
    spread = torch.tensor([0.2, 1.0, 3.0, 0.5])
    future = spread * correlated_future(4000)[0]
    members = sample(untrained(future, 2, "scaled"), zeros_before(future[:1]), members=3000, steps=20, chunk=1000)[0]
    torch.testing.assert_close(members.std(0), spread.expand(HORIZON, -1), rtol=0.07, atol=0)
    assert members.mean(0).abs().max() < 1e-5, "centred"


def test_errors_persist_in_members_where_they_persist_in_training_by_the_size_of_their_scale():
    spread, lag = torch.tensor([0.1, 0.2, 3.0, 5.0]), torch.tensor([0.0, 0.0, 0.9, 0.9])
    steps = torch.randn(4000, HORIZON, NODES)
    path = [steps[:, 0]]
    for step in steps[:, 1:].unbind(1):
        path.append(lag * path[-1] + (1 - lag.square()).sqrt() * step)
    future = spread * torch.stack(path, dim=1)
    members = sample(untrained(future, 0, "scaled"), zeros_before(future[:1]), members=3000, sampler="adams",
                     steps=10, chunk=1000)[0] / spread
    torch.testing.assert_close((members[:, 1:] * members[:, :-1]).mean((0, 1)), lag, rtol=0, atol=0.06)


def test_random_members_of_quantiles_have_the_law_of_the_quantiles():
    model = untrained(correlated_future(4000)[0], 2)
    model.mean_model = NormalMargins(2.0, 3.0)
    members = sample(model, zeros_before(torch.zeros(1, HORIZON, NODES)), 4000, steps=20, chunk=1000, kind="random")[0]
    assert (members.mean(0) - 2).abs().max() < 5 * 3 / math.sqrt(4000)
    torch.testing.assert_close(members.std(0), torch.full((HORIZON, NODES), 3.0), rtol=0.08, atol=0)
    assert torch.corrcoef(members.flatten(1).T)[0, 1] > 0.6


@both_margins
def test_an_untrained_network_predicts_nothing_and_learns_from_the_first_step_on(margin):
    recipe = {"quantile": "copula", "scaled": "cost"}[margin]
    model, batch = MAKE[recipe](trained=False).train(), make_batch(16)
    given = dict(step=torch.full((16,), 25), noise=torch.randn(3, 16, HORIZON, NODES))
    seen = []
    hook = model.denoiser.register_forward_hook(lambda _, inputs, output: seen.append(output))
    model.loss(batch.future, batch.context, **given)
    assert (seen[0] == 0).all()
    hook.remove()
    optimizer = torch.optim.SGD(model.denoiser.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(batch.future, batch.context, **given)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_a_perfect_velocity_has_no_loss_at_any_step():
    future = torch.randn(STEPS, HORIZON, NODES)
    model, batch = untrained(torch.randn(500, HORIZON, NODES), 0), zeros_before(future)
    bounds = pit_bounds(model.mean_model.predict(batch.context), future, *ANY_VALUE)
    white = model.noise.whiten(z_from_pit(bounds, torch.rand_like(future)), torch.zeros(len(future), NODES))
    model.denoiser = Stub(lambda noisy, alpha_bar, hidden: (alpha_bar.sqrt() * noisy - white) / (1 - alpha_bar).sqrt())
    assert float(model.loss(future, batch.context, step=torch.arange(STEPS))) < 1e-5


# Quantile margins

@pytest.mark.parametrize("name", SAMPLERS)
def test_the_margins_of_a_copula_are_the_equidistant_quantiles_whatever_the_denoiser(name):
    batch = make_batch()
    for model in (make_forecaster("copula").eval(), make_forecaster("copula", trained=False).eval()):
        members = sample(model, batch, members=40, sampler=name)
        wanted = equidistant_quantiles(model.mean_model.predict(batch.context), 40)
        assert torch.equal(members.sort(1).values, wanted.sort(1).values)
        assert not torch.equal(members, wanted), "members are not to be in rising order"


@every_recipe
def test_members_are_never_below_the_minimum_and_reach_it_where_the_law_does(recipe):
    batch, model = make_batch(20), MAKE[recipe]().eval()
    lowest = float(sample(model, batch, members=20).median())
    model.margin.support = lowest, 0.0
    members = sample(model, batch, members=20)
    assert members.min() == torch.tensor(lowest) and 0.1 < float((members == lowest).float().mean()) < 0.9


@every_recipe
def test_members_of_a_field_of_counts_are_values_that_it_can_take(recipe):
    minimum, step = -0.7, 0.4
    model = MAKE[recipe](support=[minimum, step]).eval()
    members = sample(model, make_batch(20), members=20)
    count = (members - minimum) / step
    torch.testing.assert_close(count, count.round(), rtol=0, atol=1e-3)
    assert members.min() >= minimum - 1e-6 and len(count.round().unique()) > 3


def test_a_value_at_the_minimum_stands_for_all_the_probability_there():
    """A normal distribution cut off at its 30 % quantile: z is standard normal all the same."""
    future, cut = torch.randn(20_000, HORIZON, NODES), float(torch.special.ndtri(torch.tensor(0.3)))
    future = future.clamp_min(cut)
    model, context = untrained(future, 0, support=(cut, 0.0)), zeros_before(future).context
    prepared = model.prepare(future, context)
    z = model.margin.encode(future, prepared, context, torch.rand_like(future))
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel()) + 0.005
    assert float(z.std()) == pytest.approx(1, abs=0.01)
    for level in (0.05, 0.2, 0.3, 0.6):
        share = float((z < torch.special.ndtri(torch.tensor(level))).float().mean())
        assert share == pytest.approx(level, abs=0.006)
    assert model.loss(future, context).item() == pytest.approx(1, abs=0.02)


def test_the_noise_is_fitted_to_z_of_the_training_windows():
    future, _ = correlated_future(2000)
    model, batch = untrained(future, 2), zeros_before(future)
    bounds = pit_bounds(model.mean_model.predict(batch.context), future, *ANY_VALUE)
    reference = CovarianceNoise(NODES, HORIZON, 2)
    z = z_from_pit(bounds, torch.rand_like(future))
    reference.fit(*2 * [(z, batch.context, torch.zeros(len(z), NODES))])
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.noise.state_dict()[name], value, rtol=0, atol=1e-6)


@every_recipe
def test_statistics_hold_the_windows_without_their_covariates_and_lags(recipe, monkeypatch):
    """Of a large field with lags those would take as much memory as all else together."""
    model, kept = MAKE[recipe](), []
    monkeypatch.setattr(type(model.noise), "fit", lambda self, training, validation: kept.append(training[1]))
    covariates = torch.randn(40, HISTORY + HORIZON, 1, 2)
    batch = alter(make_batch(40), covariates=covariates, lags=torch.randn(40, HISTORY + HORIZON, NODES, 1))
    monkeypatch.setattr(model, "prepare", lambda future, context: torch.ones(len(future), 2, HORIZON, NODES) / 2)
    model.fit_statistics([batch, batch], [batch], lambda: SCALE)
    assert kept[0].features is None and len(kept[0].history) == 80


# What the denoiser is given

@pytest.mark.parametrize("recipe", ["cost", "copula"])
def test_with_a_covariance_the_denoiser_is_given_the_history_as_anomaly_from_the_climatology(recipe):
    model, batch = MAKE[recipe]().eval(), make_batch()
    context, seen = batch.context, Stub(None)
    model.denoiser = seen
    given = model.margin.given(model.mean_model, context)
    moved = alter(batch, history=context.history + 3, climatology=context.climatology + 3).context
    model._encode(context, given)
    model._encode(moved, given + 3 if recipe == "copula" else torch.stack([given[:, 0] + 3, given[:, 1]], dim=1))
    torch.testing.assert_close(seen.encoded[0][0], seen.encoded[1][0], rtol=0, atol=1e-5)
    wanted = (context.history - context.climatology[:, :HISTORY]) / model.noise.history_spread[:NODES]
    torch.testing.assert_close(seen.encoded[0][0][:, :HISTORY, :NODES], wanted)


def test_by_default_the_denoiser_is_also_given_the_anomaly_of_the_mean_and_the_logarithm_of_the_scale():
    model, batch = make_forecaster().eval(), make_batch()
    seen = model.denoiser = Stub(None)
    given = model.margin.given(model.mean_model, batch.context)
    model._encode(batch.context, given)
    _, anomaly, scale = seen.encoded[0][0][..., :NODES].split([HISTORY, HORIZON, HORIZON], dim=1)
    wanted = (model.mean_model(batch.context) - batch.context.future_climatology) / model.noise.history_spread[:NODES]
    torch.testing.assert_close(anomaly, wanted)
    torch.testing.assert_close(scale, model.margin.scale(batch.context.calendar, given[:, 1]).log())
    bare = make_forecaster(condition_mean=False, condition_scale=False)
    assert bare.denoiser.embed_inputs.in_features == HISTORY


@every_recipe
def test_no_recipe_writes_to_the_callers_tensors(recipe):
    model, batch = MAKE[recipe](), make_batch()
    kept = Batch(Context.join([batch.context]), batch.future.clone(), batch.start.clone())
    model.train().loss(batch.future, batch.context).backward()
    for name in SAMPLERS:
        sample(model.eval(), batch, sampler=name)
    for name in ("history", "calendar", "climatology"):
        assert torch.equal(getattr(batch.context, name), getattr(kept.context, name)), name
    assert torch.equal(batch.future, kept.future) and torch.equal(batch.start, kept.start)


# Missing values

def with_gaps(batch, share=0.3):
    observed, target_mask = (torch.rand_like(values) >= share for values in (batch.context.history, batch.future))
    history = batch.context.history.where(observed, batch.context.climatology[:, :HISTORY])
    return alter(batch, history=history, observed=observed, target_mask=target_mask)


def make_masked(recipe):
    """A forecaster fitted to windows with gaps, whose networks depend on every gap."""
    model = make_forecaster(recipe, masked=True, batches=[with_gaps(make_batch(40)), with_gaps(make_batch(40))])
    for module in model.modules():
        if getattr(module, "gaps", None) is not None:
            torch.nn.init.normal_(module.gaps.weight, std=0.3)
    return model.eval()


@every_recipe
def test_a_missing_target_changes_no_loss(recipe):
    model, batch = make_masked(recipe), with_gaps(make_batch(8))
    given = dict(step=torch.arange(8) * 6, noise=torch.randn(3, 8, HORIZON, NODES))
    losses = [model.loss(batch.future.where(batch.target_mask, value), batch.context, **given) for value in (0.0, 50.0)]
    assert torch.equal(*losses) and losses[0].isfinite() and losses[0] > 0
    whole = alter(batch, target_mask=torch.ones_like(batch.target_mask))
    assert model.loss(batch.future, whole.context, **given) != losses[0]
    nothing = alter(batch, target_mask=torch.zeros_like(batch.target_mask))
    assert model.loss(batch.future, nothing.context, **given) == 0


@every_recipe
def test_a_forecast_sees_the_gaps_of_the_history_and_not_those_of_the_future(recipe):
    model, batch = make_masked(recipe), with_gaps(make_batch(3))
    members = sample(model, batch)
    assert members.isfinite().all()
    observed = batch.context.observed.clone()
    assert torch.equal(sample(model, alter(batch, target_mask=~batch.target_mask)), members)
    observed[:, 1] = ~observed[:, 1]
    assert not torch.allclose(sample(model, alter(batch, observed=observed)), members)


@every_recipe
def test_without_gaps_in_its_data_a_forecaster_made_for_gaps_is_the_plain_one(recipe):
    model, batch = make_masked(recipe), make_batch(3)
    whole = alter(batch, observed=torch.ones_like(batch.context.history, dtype=torch.bool),
                  target_mask=torch.ones_like(batch.future, dtype=torch.bool))
    assert torch.equal(sample(model, whole), sample(model, batch))
    given = dict(step=torch.tensor([3, 20, 40]), noise=torch.randn(3, 3, HORIZON, NODES))
    torch.testing.assert_close(model.loss(whole.future, whole.context, **given),
                               model.loss(batch.future, batch.context, **given))


# The output of stage 1 for a training window is computed once

@every_recipe
def test_the_loss_takes_nothing_from_stage_1_but_what_was_prepared(recipe):
    model, batch = MAKE[recipe](), make_batch(16)
    given = dict(step=torch.arange(16), noise=torch.randn(3, 16, HORIZON, NODES))
    computed = model.eval().loss(batch.future, batch.context, **given)
    prepared = model.prepare(batch.future, batch.context)
    model.mean_model = None
    assert torch.equal(model.loss(batch.future, batch.context, prepared=prepared, **given), computed)
    other = model.loss(batch.future, batch.context, prepared=prepared.flip(0), **given)
    assert not torch.isclose(other, computed)
