"""Both processes as a whole: what the loss counts, what a forecast depends on, and that its law is right."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.windows import ANY_VALUE, Batch
from main_train import ensemble_drawer, validation_loss
from models import (
    DENOISERS,
    MEAN_MODELS,
    PROCESSES,
    CopulaForecaster,
    FactorModel,
    OnePassForecaster,
    ResidualForecaster,
)
from models.diffusion import NOISE_SCHEDULES, SAMPLERS, NoiseSchedule
from models.draws import own_rows
from models.quantiles import LEVELS, equidistant_quantiles
from models.stid import QuantileSTID
from utils.reproducibility import MemberNoise

HISTORY, HORIZON, NODES, SIZES, STEPS = 5, 3, 4, (24, 7), 50
SCALE = torch.tensor([0.3, 0.0, 1.0, 2.0])
BETA = NOISE_SCHEDULES["quadratic"](STEPS)
ALPHA_BAR = NoiseSchedule.from_beta(BETA).alpha_bar


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def make_batch(batch=3):
    calendar = torch.stack([torch.randint(size, (batch,)) for size in SIZES], dim=1)
    return Batch(torch.randn(batch, HISTORY, NODES), torch.randn(batch, HORIZON, NODES), calendar,
                 torch.randn(batch, HISTORY + HORIZON, NODES), torch.randperm(1000)[:batch])


def make_cost(mean_model, denoiser, scale=SCALE):
    """A forecaster of the published process that has seen its training part."""
    model = ResidualForecaster(mean_model, denoiser, BETA, NODES)
    model.fit_statistics(None, lambda: scale)
    return model


def make_forecaster(dropout=0.5):
    mean = MEAN_MODELS["stid"](NODES, HISTORY, HORIZON, SIZES, channels=8, layers=2, dropout=dropout)
    return make_cost(mean, DENOISERS["mlp"](NODES, HISTORY, HORIZON, SIZES, channels=16, layers=2, embedding=8,
                                            dropout=dropout))


def make_copula(dropout=0.0, trained=True, support=ANY_VALUE, modes=2, process=CopulaForecaster):
    """A forecaster of the default process; `trained`: its denoiser says something, as after some steps."""
    mean = MEAN_MODELS["quantile_stid"](NODES, HISTORY, HORIZON, SIZES, channels=8, layers=2, dropout=dropout, tokens=2)
    dependence = FactorModel(NODES, HORIZON, modes)
    denoiser = DENOISERS["mlp"](dependence.width, HISTORY, HORIZON, SIZES, channels=16, layers=2, embedding=8,
                                dropout=dropout, endpoint=False)
    model = process(mean, denoiser, BETA, dependence, support)
    model.fit_statistics([make_batch(40), make_batch(40)], lambda: SCALE)
    if trained:
        torch.nn.init.normal_(denoiser.project.weight, std=0.1)
    return model


def make_one_pass(dropout=0.0):
    return make_copula(dropout, process=OnePassForecaster)


MAKE = {"cost": make_forecaster, "copula": make_copula, "one_pass": make_one_pass}
every_process = pytest.mark.parametrize("process", MAKE)


class Zero(nn.Module):
    """A mean model that forecasts zero, so that the residual is the future itself."""

    def forward(self, history, calendar, climatology):
        return history.new_zeros(len(history), HORIZON, NODES)


class Stub(nn.Module):
    """A denoiser that answers with `predict(noisy, alpha_bar, endpoint)` and records what it was given."""

    def __init__(self, predict):
        super().__init__()
        self.predict, self.encoded, self.calls = predict, [], []

    def encode(self, history, calendar):
        self.encoded.append((history, calendar))
        return history.new_zeros(len(history), 1, 1)

    def condition(self, context, endpoint):
        return context + endpoint

    def forward(self, noisy, step, endpoint):
        self.calls.append((noisy, step, endpoint))
        return self.predict(noisy, ALPHA_BAR[step].float().view(-1, 1, 1), endpoint)


def exact_gaussian(mean, std):
    """The best prediction when each residual is N(mean, std^2) on its own: the endpoint only shifts it."""
    def predict(noisy, alpha_bar, endpoint):
        shifted, clean = noisy - endpoint, mean - endpoint
        return (1 - alpha_bar).sqrt() * (shifted - alpha_bar.sqrt() * clean) / (alpha_bar * std**2 + 1 - alpha_bar)
    return predict


def sample(model, batch, members=5, sampler="dpm2m", steps=4, chunk=64, seed=1):
    noise = MemberNoise(seed, batch.start, members, (HORIZON, model.coordinates))
    return model.sample(*batch.known, noise=noise, members=members, sampler=sampler, steps=steps, chunk=chunk)


def pick(batch, rows):
    values = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return Batch(*(value if value is None else value[rows] for value in values))


# The mean model is frozen

@every_process
def test_mean_model_stays_in_eval_mode_whatever_the_mode_of_the_forecaster(process):
    model, batch = MAKE[process](), make_batch()
    known = model.mean(*batch.known)
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert not any(module.training for module in model.mean_model.modules())
        assert all(module.training == mode for module in model.denoiser.modules())
        assert torch.equal(model.mean(*batch.known), known)


@every_process
def test_training_moves_every_weight_of_the_denoiser_and_nothing_else(process):
    model, batch = MAKE[process]().train(), make_batch(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(value.requires_grad == name.startswith("denoiser.") for name, value in model.named_parameters())
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    model.loss(batch.future, *batch.known).backward()
    assert all(value.grad is None for value in model.mean_model.parameters())
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("denoiser."), name


def test_no_gradient_flows_through_the_mean():
    model = make_forecaster()
    model.denoiser = Stub(lambda noisy, alpha_bar, endpoint: noisy)
    batch = make_batch()
    for known in (batch.history, batch.climatology):
        known.requires_grad_()
    assert not model.loss(batch.future, *batch.known).requires_grad


# Loss

def test_a_perfect_denoiser_has_no_loss_at_any_step():
    batch = make_batch(STEPS)

    def perfect(noisy, alpha_bar, endpoint):
        return (noisy - endpoint - alpha_bar.sqrt() * (batch.future - endpoint)) / (1 - alpha_bar).sqrt()

    model = make_cost(Zero(), Stub(perfect))
    assert model.loss(batch.future, *batch.known, step=torch.arange(STEPS)) < 1e-7
    assert model.loss(batch.future, *batch.known) < 1e-7
    off = make_cost(Zero(), Stub(lambda *given: perfect(*given) + 0.5))
    assert float(off.loss(batch.future, *batch.known)) == pytest.approx(0.25, abs=1e-3)


def test_loss_is_the_mean_square_over_the_horizon_of_the_residual_noised_as_in_the_paper():
    model, batch = make_forecaster().eval(), make_batch()
    step, noise = torch.tensor([0, 20, 49]), torch.randn(2, 3, HORIZON, NODES)
    residual = (batch.future - model.mean_model(*batch.known)).double()
    squares = []
    for row in range(3):
        root, spread = math.sqrt(ALPHA_BAR[step[row]]), math.sqrt(1 - ALPHA_BAR[step[row]])
        endpoint = torch.where(noise[1, row] > 0, SCALE, -SCALE)
        noisy = root * residual[row] + (1 - root) * endpoint + spread * noise[0, row]
        context = model.denoiser.encode(batch.history[row:row + 1], batch.calendar[row:row + 1])
        predicted = model.denoiser(noisy.float().unsqueeze(0), step[row:row + 1],
                                   model.denoiser.condition(context, endpoint.unsqueeze(0)))
        squares.append((predicted[0] - noise[0, row]).square().mean())
    found = model.loss(batch.future, *batch.known, step=step, noise=noise)
    assert found.item() == pytest.approx(sum(square.item() for square in squares) / 3, rel=1e-4)


def test_the_denoiser_sees_the_history_without_noise_and_only_the_horizon_with_it():
    batch, stub = make_batch(), Stub(lambda noisy, alpha_bar, endpoint: torch.zeros_like(noisy))
    model = make_cost(Zero(), stub)
    noise = torch.randn(2, 3, HORIZON, NODES)
    loss = model.loss(batch.future, *batch.known, step=torch.tensor([49] * 3), noise=noise)
    (history, calendar), = stub.encoded
    (noisy, _, _), = stub.calls
    assert torch.equal(history, batch.history) and torch.equal(calendar, batch.calendar)
    assert noisy.shape == (3, HORIZON, NODES) != batch.history.shape
    assert float(loss) == pytest.approx(float(noise[0].square().mean()), rel=1e-6)


def test_steps_are_drawn_evenly_and_signs_independently_of_the_noise():
    stub = Stub(lambda noisy, alpha_bar, endpoint: torch.zeros_like(noisy))
    model, count = make_cost(Zero(), stub, torch.ones(NODES)), 20_000
    future = torch.zeros(count, HORIZON, NODES)
    model.loss(future, torch.zeros(count, HISTORY, NODES), torch.zeros(count, 2, dtype=torch.long),
               torch.zeros(count, HISTORY + HORIZON, NODES))
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


@every_process
def test_two_losses_differ_by_their_draws_unless_step_and_noise_are_given(process):
    model, batch = MAKE[process]().eval(), make_batch()
    windows = batch.future, *batch.known
    given = dict(step=torch.tensor([3, 30, 40]), noise=torch.randn(3, 3, HORIZON, model.coordinates))
    assert model.loss(*windows).item() != model.loss(*windows).item()
    assert model.loss(*windows, **given).item() == model.loss(*windows, **given).item()


@every_process
def test_validation_loss_of_a_window_does_not_depend_on_its_batch_or_on_earlier_draws(process):
    model, batch = MAKE[process]().eval(), make_batch(5)
    config = SimpleNamespace(seed=3, val_batch_size=0, val_windows=0)

    def scored(*parts):
        torch.rand(len(parts))
        data = SimpleNamespace(predict_len=HORIZON,
                               batches=lambda *args, **kwargs: [pick(batch, part) for part in parts])
        return float(validation_loss(model, data, config))

    known = scored(slice(None))
    assert scored(slice(0, 2), slice(2, 5)) == pytest.approx(known, rel=1e-5)
    assert scored([4], [0], [3, 2, 1]) == pytest.approx(known, rel=1e-5)
    config.seed = 4
    assert scored(slice(None)) != pytest.approx(known, rel=1e-5)


# Sampling

@every_process
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_works_by_name_in_any_number_of_steps(process, name):
    model, batch = MAKE[process]().eval(), make_batch()
    for steps in (1, 2, STEPS):
        members = sample(model, batch, sampler=name, steps=steps)
        assert members.shape == (3, 5, HORIZON, NODES)
        assert members.dtype == torch.float32 and members.isfinite().all() and not members.requires_grad


@pytest.mark.parametrize("process", ["cost", "copula"])
def test_the_named_sampler_takes_the_named_number_of_steps(process):
    model, batch = MAKE[process]().eval(), make_batch()
    members = [sample(model, batch, sampler=name, steps=steps) for name in SAMPLERS for steps in (5, 6)]
    for index, one in enumerate(members):
        for other in members[:index]:
            assert not torch.allclose(one, other)


@every_process
@pytest.mark.parametrize("name", SAMPLERS)
def test_members_do_not_depend_on_the_chunk(process, name):
    model, batch = MAKE[process]().eval(), make_batch()
    whole = sample(model, batch, sampler=name, chunk=1000)
    for chunk in (1, 3, 7, 15):
        torch.testing.assert_close(sample(model, batch, sampler=name, chunk=chunk), whole, rtol=0, atol=2e-5)


def test_no_more_rows_than_the_chunk_pass_through_the_network_at_a_time():
    stub = Stub(lambda noisy, alpha_bar, endpoint: noisy)
    model, batch = make_cost(Zero(), stub).eval(), make_batch()
    sample(model, batch, members=5, steps=2, chunk=4)
    assert [len(noisy) for noisy, _, _ in stub.calls] == [4, 4, 4, 4, 4, 4, 3, 3]


@every_process
@pytest.mark.parametrize("name", SAMPLERS)
def test_members_do_not_depend_on_the_other_windows_of_the_batch(process, name):
    model, batch = MAKE[process]().eval(), make_batch(4)
    together = sample(model, batch, sampler=name, chunk=7)
    for rows in ([0], [1], [2], [3], [3, 1], [2, 0, 1]):
        torch.testing.assert_close(sample(model, pick(batch, rows), sampler=name, chunk=7), together[rows],
                                   rtol=0, atol=2e-5)


def test_a_member_of_a_small_ensemble_is_the_same_member_of_a_large_one():
    model, batch = make_forecaster().eval(), make_batch()
    few, many = sample(model, batch, members=5), sample(model, batch, members=50)
    torch.testing.assert_close(many[:, :5], few, rtol=0, atol=2e-5)


def test_members_windows_and_seeds_draw_their_own_noise():
    model, batch = make_forecaster().eval(), make_batch()
    batch = dataclasses.replace(pick(batch, [0, 0, 0]), start=batch.start)
    members = torch.cat([sample(model, batch, seed=1), sample(model, batch, seed=2)]).flatten(0, 1).flatten(1)
    assert torch.cdist(members, members)[~torch.eye(len(members), dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")])
def test_where_memory_runs_out_half_as_many_members_are_sampled_at_a_time_and_are_the_same(monkeypatch, error):
    """faults 47"""
    model, batch, rows = make_copula().eval(), make_batch(), []
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
    model, calls = make_copula().eval(), []
    monkeypatch.setattr(type(model.denoiser), "forward", lambda *_: [calls.append(1), 1 / 0])
    with pytest.raises(ZeroDivisionError):
        sample(model, make_batch())
    assert calls == [1]


@pytest.mark.parametrize("process", MAKE)
def test_two_processes_draw_for_their_rows_what_one_draws_for_all(process):
    """faults 50"""
    model, batch = MAKE[process](dropout=0.5).train(), make_batch(8)
    torch.manual_seed(3)
    whole = model.loss(batch.future, *batch.known)
    parts = []
    for first, last in ((0, 3), (3, 8)):
        torch.manual_seed(3)
        own = pick(batch, slice(first, last))
        with own_rows((first, last, 8)):
            parts.append(float(model.loss(own.future, *own.known).detach()) * (last - first))
    assert sum(parts) / 8 == pytest.approx(float(whole.detach()), rel=1e-5)


@every_process
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_leaves_the_global_random_numbers_alone_and_does_not_read_them(process, name):
    model, batch = MAKE[process]().eval(), make_batch()
    before = torch.get_rng_state()
    first = sample(model, batch, sampler=name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(sample(model, batch, sampler=name), first)


def test_start_endpoint_and_sampler_draw_from_different_noise():
    asked = []

    def noise(draw, first, last):
        asked.append((draw, first, last))
        return torch.randn(last - first, HORIZON, NODES)

    model, batch = make_forecaster().eval(), make_batch()
    model.sample(*batch.known, noise=noise, members=2, sampler="ancestral", steps=4, chunk=4)
    assert sorted(asked) == sorted((draw, *rows) for draw in range(5) for rows in ((0, 4), (4, 6)))


def test_start_is_the_endpoint_plus_noise_and_the_denoiser_sees_that_endpoint():
    stub = Stub(lambda noisy, alpha_bar, endpoint: noisy - endpoint)
    model, batch = make_cost(Zero(), stub), make_batch(2)
    noise = MemberNoise(1, batch.start, 3, (HORIZON, NODES))
    model.eval().sample(*batch.known, noise=noise, members=3, sampler="ddim", steps=2, chunk=64)
    (noisy, step, endpoint), (_, last, _) = stub.calls
    assert torch.equal(endpoint, torch.where(noise(0, 0, 6) > 0, SCALE, -SCALE))
    torch.testing.assert_close(noisy, endpoint + noise(1, 0, 6))
    assert (step.tolist(), last.tolist()) == ([STEPS - 1], [0])


def test_forecast_is_the_mean_plus_the_residual_of_the_right_window():
    """A denoiser that is sure of a residual for each window: every member is then mean + that residual."""
    batch, model = make_batch(), make_forecaster().eval()
    residual = torch.randn(3, HORIZON, NODES)
    stub = Stub(lambda noisy, alpha_bar, context: context)
    stub.encode = lambda history, calendar: residual
    stub.condition = lambda context, endpoint: torch.stack([context.expand_as(endpoint), endpoint])
    stub.predict = lambda noisy, alpha_bar, context: exact_gaussian(context[0], 0.0)(noisy, alpha_bar, context[1])
    mean, model.denoiser = model.mean(*batch.known), stub
    for name in SAMPLERS:
        members = sample(model, batch, sampler=name, chunk=4)
        torch.testing.assert_close(members, (mean + residual).unsqueeze(1).expand_as(members), rtol=0, atol=2e-5)


def test_sampled_residuals_of_an_exact_gaussian_have_its_mean_and_spread():
    """Each node and horizon step its own law; dpm2m in 20 steps, within 3 % and the sampling error."""
    mean = torch.tensor([0.5, -1.0, 0.0, 0.2]) + torch.tensor([[0.0], [0.1], [0.3]])
    std = torch.tensor([0.7, 0.3, 0.1, 1.0]) * torch.tensor([[1.0], [0.8], [1.2]])
    model = make_cost(Zero(), Stub(exact_gaussian(mean, std))).eval()
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
    model = make_cost(Zero(), Stub(exact_gaussian(mean, std))).eval()
    batch = make_batch(1)
    found = sample(model, batch, members=8000, steps=20, chunk=2000)[0]
    sign = MemberNoise(1, batch.start, 8000, (HORIZON, NODES))(0, 0, 8000).sign()
    assert ((found * sign).mean(0).abs() < 5 * 0.5 / math.sqrt(8000) + 0.006 * SCALE).all()


@every_process
def test_a_forecast_does_not_depend_on_the_future(process):
    """Through the function that every score and picture uses: the future is gone, the forecast is the same."""
    model, batch = MAKE[process]().eval(), make_batch()
    settings = dict(predict_len=HORIZON, sample_batch=4, sample_precision="float32", seed=1, nsample=3, sampler="ddim",
                    sample_steps=3)
    draw = ensemble_drawer(model, settings, torch.device("cpu"))
    known = draw(batch)
    series = torch.cat([batch.history, torch.full_like(batch.future, math.nan)], dim=1)
    blind = dataclasses.replace(batch, history=series[:, :HISTORY], future=series[:, HISTORY:])
    assert torch.equal(draw(blind), known) and known.isfinite().all()
    torch.testing.assert_close(known, sample(model, batch, members=3, sampler="ddim", steps=3), rtol=0, atol=2e-5)
    history = batch.history.clone()
    history[:, -1] += 1
    assert not torch.allclose(draw(dataclasses.replace(batch, history=history)), known)


@every_process
def test_bfloat16_sampling_stays_within_five_per_cent_of_the_spread_of_float32(process):
    model, batch = MAKE[process]().eval(), make_batch()
    full = sample(model, batch, members=20, steps=20)
    model.denoiser.round_to(torch.bfloat16)
    rounded = sample(model, batch, members=20, steps=20)
    assert rounded.dtype == torch.float32
    error = (rounded - full).square().mean().sqrt() / full.std(1).square().mean().sqrt()
    assert 0 < error < 0.05


# State

def test_weights_of_both_networks_the_scale_and_the_noise_levels_are_saved_and_restored():
    model, other, batch = make_forecaster().eval(), make_forecaster().eval(), make_batch()
    state = model.state_dict()
    assert {"fluctuation_scale", "alpha_bar"} < set(state) and state["alpha_bar"].dtype == torch.float64
    assert not torch.allclose(sample(other, batch), sample(model, batch))
    other.load_state_dict(state)
    assert torch.equal(sample(other, batch), sample(model, batch))


def test_the_callers_scale_is_copied():
    model, scale = make_forecaster(), SCALE.clone()
    model.fluctuation_scale.add_(1)
    assert torch.equal(scale, SCALE)


# The copula process

class NormalMargins(nn.Module):
    """A stage 1 that says standard normal everywhere, or normal with this `mean` and `std`."""

    def __init__(self, mean=0.0, std=1.0):
        super().__init__()
        self.mean, self.std = mean, std

    levels, scores = QuantileSTID.levels, QuantileSTID.scores

    def raw_quantiles(self, history, calendar, climatology):
        levels = torch.special.ndtri(torch.tensor(LEVELS)).view(1, -1, 1, 1)
        return self.mean + self.std * levels.expand(len(history), -1, HORIZON, NODES)

    quantiles = raw_quantiles


def zeros_before(future):
    """A batch with this future of which nothing else is known."""
    count, nodes = len(future), future.shape[-1]
    return Batch(torch.zeros(count, HISTORY, nodes), future, torch.zeros(count, 2, dtype=torch.long),
                 torch.zeros(count, HISTORY + HORIZON, nodes), torch.arange(count))


def untrained_copula(future, modes, support=ANY_VALUE, process=CopulaForecaster):
    """Standard normal margins and a linear dependence fitted to `future`; the network is as it was made."""
    dependence = FactorModel(NODES, HORIZON, modes)
    denoiser = DENOISERS["mlp"](dependence.width, HISTORY, HORIZON, SIZES, channels=16, layers=2, embedding=8,
                                endpoint=False)
    model = process(NormalMargins(), denoiser, BETA, dependence, support)
    model.fit_statistics([zeros_before(part) for part in future.split(1000)], None)
    return model.eval()


def correlated_future(count):
    """Paths over the horizon, correlated among steps (0.7 each) and nodes, and the correlation of node and step."""
    nodes = torch.tensor([[1.0, 0.8, 0.0, 0.5], [0.8, 1.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 1.0]])
    lag = (torch.arange(HORIZON).unsqueeze(1) - torch.arange(HORIZON)).abs()
    correlation = torch.kron(0.7**lag, nodes)
    drawn = torch.randn(count, HORIZON * NODES) @ torch.linalg.cholesky(correlation).T
    return drawn.unflatten(1, (HORIZON, NODES)), correlation


def test_an_untrained_copula_has_a_loss_of_1_on_white_gaussian_data():
    future = torch.randn(4000, HORIZON, NODES)
    model = untrained_copula(future, 0)
    fresh = torch.randn(20_000, HORIZON, NODES)
    assert model.loss(fresh, *zeros_before(fresh).known).item() == pytest.approx(1, abs=0.02)
    for step in (0, 25, STEPS - 1):
        steps = torch.full((20_000,), step)
        assert model.loss(fresh, *zeros_before(fresh).known, step=steps).item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("modes, share", [(0, 1), (2, 5 / 6)])
def test_a_copula_that_knows_the_covariance_has_a_loss_of_1_less_the_share_of_the_modes(modes, share):
    """The rests of 4 nodes have 4 - modes degrees of freedom in 4 + modes coordinates: near 5/6 of the variance."""
    future, _ = correlated_future(4000)
    model = untrained_copula(future, modes)
    fresh, _ = correlated_future(20_000)
    assert model.loss(fresh, *zeros_before(fresh).known).item() == pytest.approx(share, abs=0.05)
    wide = 1.5 * fresh
    assert model.loss(wide, *zeros_before(wide).known) > 1.2


@pytest.mark.parametrize("modes", [0, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_untrained_copula_draws_its_linear_dependence_with_every_sampler(name, modes):
    future, correlation = correlated_future(4000)
    model, batch = untrained_copula(future, modes), zeros_before(torch.zeros(1, HORIZON, NODES))
    members = sample(model, batch, members=3000, sampler=name, steps=10, chunk=1000)[0]
    found = torch.corrcoef(members.flatten(1).T)
    exact = torch.corrcoef(model.dependence.colour(torch.randn(50_000, HORIZON, model.coordinates)).flatten(1).T)
    assert (found - exact).abs().max() < 5 / math.sqrt(3000)
    assert (exact - torch.eye(HORIZON * NODES)).abs().max() > 0.6
    own = torch.eye(NODES, dtype=torch.bool).repeat(HORIZON, HORIZON)  # a node at two steps: no question of modes
    assert (found - correlation)[own].abs().max() < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_margins_of_a_copula_are_the_equidistant_quantiles_whatever_the_denoiser(name):
    batch = make_batch()
    for model in (make_copula().eval(), make_copula(trained=False).eval()):
        members = sample(model, batch, members=40, sampler=name)
        wanted = equidistant_quantiles(model.mean_model.quantiles(*batch.known), 40)
        assert torch.equal(members.sort(1).values, wanted.sort(1).values)
        assert not torch.equal(members, wanted), "members are not to be in rising order"


def test_members_are_never_below_the_minimum_and_reach_it_where_the_quantiles_do():
    batch = make_batch(20)
    free = make_copula().eval()
    lowest = float(sample(free, batch, members=20).median())
    free.support = lowest, 0.0
    members = sample(free, batch, members=20)
    assert members.min() == torch.tensor(lowest) and 0.2 < float((members == lowest).float().mean()) < 0.8


def test_members_of_a_field_of_counts_are_values_that_it_can_take():
    minimum, step = -0.7, 0.4
    members = sample(make_copula(support=(minimum, step)).eval(), make_batch(20), members=20)
    count = (members - minimum) / step
    torch.testing.assert_close(count, count.round(), rtol=0, atol=1e-4)
    assert members.min() >= minimum - 1e-6 and len(count.round().unique()) > 3


def test_a_value_at_the_minimum_stands_for_all_the_probability_there():
    """A normal law cut off at its 30 % quantile: the normal scores are standard normal all the same."""
    future, cut = torch.randn(20_000, HORIZON, NODES), float(torch.special.ndtri(torch.tensor(0.3)))
    future = future.clamp_min(cut)
    model = untrained_copula(future, 0, (cut, 0.0))
    scores = model.mean_model.scores(future, torch.rand_like(future), model.support, *zeros_before(future).known)
    sample_size = scores.numel()
    assert abs(float(scores.mean())) < 5 / math.sqrt(sample_size) + 0.005
    assert float(scores.std()) == pytest.approx(1, abs=0.01)
    for level in (0.05, 0.2, 0.3, 0.6):
        share = float((scores < torch.special.ndtri(torch.tensor(level))).float().mean())
        assert share == pytest.approx(level, abs=0.006)
    assert model.loss(future, *zeros_before(future).known).item() == pytest.approx(1, abs=0.02)


def test_the_linear_dependence_is_fitted_to_the_scores_of_the_training_windows():
    future, _ = correlated_future(2000)
    model = untrained_copula(future, 2)
    reference = FactorModel(NODES, HORIZON, 2)
    scores = model.mean_model.scores(future, torch.rand_like(future), ANY_VALUE, *zeros_before(future).known)
    reference.fit(scores, torch.zeros(2000, HISTORY, NODES))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.dependence.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_copula_before_its_first_step_says_nothing_and_learns_from_the_first_on():
    model, batch = make_copula(trained=False).train(), make_batch(16)
    context = model.encode(*batch.known)
    assert (model.denoiser(torch.randn(16, HORIZON, model.coordinates), torch.tensor([3]), context) == 0).all()
    optimizer = torch.optim.SGD(model.denoiser.parameters(), lr=0.1)
    given = dict(step=torch.full((16,), 25), noise=torch.randn(3, 16, HORIZON, model.coordinates))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(batch.future, *batch.known, **given)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_a_perfect_velocity_has_no_loss_at_any_step():
    future = torch.randn(STEPS, HORIZON, NODES)
    model, batch = untrained_copula(torch.randn(500, HORIZON, NODES), 2), zeros_before(future)
    white = model.dependence.whiten(model.mean_model.scores(future, torch.rand_like(future), ANY_VALUE, *batch.known))
    stub = Stub(lambda noisy, alpha_bar, context: (alpha_bar.sqrt() * noisy - white) / (1 - alpha_bar).sqrt())
    model.denoiser = stub
    assert float(model.loss(future, *batch.known, step=torch.arange(STEPS))) < 1e-5


def test_a_copula_sees_the_history_as_anomaly_from_the_climatology():
    model, batch = make_copula().eval(), make_batch()
    seen = Stub(None)
    model.denoiser = seen
    model.encode(*batch.known)
    model.encode(batch.history + 3, batch.calendar, batch.climatology + 3)
    torch.testing.assert_close(seen.encoded[0][0], seen.encoded[1][0], rtol=0, atol=1e-5)
    wanted = (batch.history - batch.climatology[:, :HISTORY]) / model.dependence.history_spread[:NODES]
    torch.testing.assert_close(seen.encoded[0][0][..., :NODES], wanted)


def test_all_of_a_copula_is_saved_and_restored_and_forecasts_are_the_same_to_the_bit():
    batch = make_batch()
    model, other = make_copula(support=(-0.5, 0.0)).eval(), make_copula(support=(-0.5, 0.0)).eval()
    state = model.state_dict()
    assert {"alpha_bar", "dependence.axes", "dependence.root", "dependence.spread",
            "dependence.history_spread"} < set(state)
    assert not torch.allclose(sample(other, batch), sample(model, batch))
    other.load_state_dict(state)
    assert torch.equal(sample(other, batch), sample(model, batch))
    assert torch.equal(sample(other, batch, members=7, sampler="ancestral"),
                       sample(model, batch, members=7, sampler="ancestral"))


@every_process
def test_neither_process_writes_to_the_callers_tensors(process):
    model, batch = MAKE[process](), make_batch()
    kept = pick(batch, slice(None))
    names = [field.name for field in dataclasses.fields(kept) if getattr(kept, field.name) is not None]
    kept = dataclasses.replace(kept, **{name: getattr(kept, name).clone() for name in names})
    model.train().loss(batch.future, *batch.known).backward()
    for name in SAMPLERS:
        sample(model.eval(), batch, sampler=name)
    for name in names:
        assert torch.equal(getattr(batch, name), getattr(kept, name)), name


# One pass

def test_an_untrained_one_pass_draws_from_the_gaussian_copula_in_one_call_per_member():
    future, correlation = correlated_future(4000)
    model = untrained_copula(future, 2, process=OnePassForecaster)
    calls = []
    model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    members = sample(model, zeros_before(future[:1]), members=4000, chunk=1000)[0]
    assert len(calls) == 4
    drawn = torch.corrcoef(members.flatten(1).T)
    assert (drawn - correlation).abs().max() < 0.12


def test_the_loss_of_one_pass_is_least_where_the_law_is_right():
    """Fair CRPS is proper: an ensemble too narrow, too wide or shifted scores worse on the same draws."""
    future, _ = correlated_future(4000)
    model = untrained_copula(future, 2, process=OnePassForecaster)
    fresh, _ = correlated_future(20_000)
    batch, noise = zeros_before(fresh), torch.randn(3, 20_000, HORIZON, model.coordinates)

    def loss(bend):
        model._bend = bend
        return model.loss(batch.future, *batch.known, noise=noise).item()

    right = loss(lambda noise, context: noise)
    assert right < loss(lambda noise, context: 0.7 * noise) - 0.01
    assert right < loss(lambda noise, context: 1.4 * noise) - 0.01
    assert right < loss(lambda noise, context: noise + 0.3) - 0.01


# Missing values

def with_gaps(batch, share=0.3):
    observed = torch.rand(batch.climatology.shape) >= share
    history = batch.history.where(observed[:, :HISTORY], batch.climatology[:, :HISTORY])
    return dataclasses.replace(batch, history=history, observed=observed)


def make_masked(process):
    """A forecaster fitted to windows with gaps, whose networks say something of every gap."""
    kind = {"cost": "stid"}.get(process, "quantile_stid")
    mean = MEAN_MODELS[kind](NODES, HISTORY, HORIZON, SIZES, channels=8, layers=2, dropout=0, tokens=2, masked=True)
    dependence = FactorModel(NODES, HORIZON, 2)
    settings = dict(channels=16, layers=2, embedding=8, dropout=0, masked=True, endpoint=process == "cost")
    denoiser = DENOISERS["mlp"](NODES if process == "cost" else dependence.width, HISTORY, HORIZON, SIZES, **settings)
    if process == "cost":
        model = make_cost(mean, denoiser)
    else:
        model = PROCESSES[process](mean, denoiser, BETA, dependence, ANY_VALUE)
        model.fit_statistics([with_gaps(make_batch(40)), with_gaps(make_batch(40))], lambda: SCALE)
    for network in (*getattr(mean, "networks", [mean]), denoiser):
        torch.nn.init.normal_(network.extra.gaps.weight, std=0.3)
        torch.nn.init.normal_(network.project.weight, std=0.1)
    return model.eval()


@every_process
def test_a_missing_target_changes_no_loss(process):
    model, batch = make_masked(process), with_gaps(make_batch(8))
    given = dict(step=torch.arange(8) * 6, noise=torch.randn(3, 8, HORIZON, model.coordinates))
    losses = [model.loss(batch.future.where(batch.scored, value), *batch.known, **given) for value in (0.0, 50.0)]
    assert torch.equal(*losses) and losses[0].isfinite() and losses[0] > 0
    whole = dataclasses.replace(batch, observed=torch.ones_like(batch.observed))
    assert model.loss(batch.future, *whole.known, **given) != losses[0]
    nothing = dataclasses.replace(batch, observed=torch.zeros_like(batch.observed))
    assert model.loss(batch.future, *nothing.known, **given) == 0


@every_process
def test_a_forecast_sees_the_gaps_of_the_history_and_not_those_of_the_future(process):
    model, batch = make_masked(process), with_gaps(make_batch(3))
    known = sample(model, batch)
    assert known.isfinite().all()
    observed = batch.observed.clone()
    observed[:, HISTORY:] = ~observed[:, HISTORY:]
    assert torch.equal(sample(model, dataclasses.replace(batch, observed=observed)), known)
    observed[:, 1] = ~observed[:, 1]
    assert not torch.allclose(sample(model, dataclasses.replace(batch, observed=observed)), known)


@every_process
def test_without_gaps_in_its_data_a_forecaster_made_for_gaps_is_the_plain_one(process):
    model, batch = make_masked(process), make_batch(3)
    whole = dataclasses.replace(batch, observed=torch.ones(batch.climatology.shape, dtype=torch.bool))
    assert torch.equal(sample(model, whole), sample(model, batch))
    given = dict(step=torch.tensor([3, 20, 40]), noise=torch.randn(3, 3, HORIZON, model.coordinates))
    torch.testing.assert_close(model.loss(whole.future, *whole.known, **given),
                               model.loss(batch.future, *batch.known, **given))


# What stage 1 says of a training window is computed once

@every_process
def test_the_loss_takes_nothing_from_stage_1_but_what_was_prepared(process):
    model, batch = MAKE[process](), make_batch(16)
    given = dict(step=torch.arange(16), noise=torch.randn(3, 16, HORIZON, model.coordinates))
    asked, prepared = model.eval().loss(batch.future, *batch.known, **given), model.prepare(batch.future, *batch.known)
    model.mean_model = None
    assert torch.equal(model.loss(batch.future, *batch.known, prepared=prepared, **given), asked)
    other = model.loss(batch.future, *batch.known, prepared=prepared.flip(0), **given)
    assert not torch.isclose(other, asked)
