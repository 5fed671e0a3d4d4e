"""The method as a whole: what the loss counts, what a forecast depends on, and that its law is right."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.windows import Batch
from main_train import ensemble_drawer, validation_loss
from models import DENOISERS, MEAN_MODELS, ResidualForecaster
from models.diffusion import NOISE_SCHEDULES, SAMPLERS, NoiseSchedule
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
                 torch.randperm(1000)[:batch])


def make_forecaster(dropout=0.5):
    mean = MEAN_MODELS["stid"](NODES, HISTORY, HORIZON, SIZES, channels=8, layers=2, dropout=dropout)
    denoiser = DENOISERS["mlp"](NODES, HISTORY, HORIZON, SIZES, channels=16, layers=2, embedding=8, dropout=dropout)
    return ResidualForecaster(mean, denoiser, BETA, SCALE)


class Zero(nn.Module):
    """A mean model that forecasts zero, so that the residual is the future itself."""

    def forward(self, history, calendar):
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
    noise = MemberNoise(seed, batch.start, members, (HORIZON, NODES))
    return model.sample(batch.history, batch.calendar, noise, members, sampler, steps, chunk)


def pick(batch, rows):
    return Batch(*(getattr(batch, field.name)[rows] for field in dataclasses.fields(batch)))


# The mean model is frozen

def test_mean_model_stays_in_eval_mode_whatever_the_mode_of_the_forecaster():
    model, batch = make_forecaster(), make_batch()
    known = model.mean(batch.history, batch.calendar)
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert not any(module.training for module in model.mean_model.modules())
        assert all(module.training == mode for module in model.denoiser.modules())
        assert torch.equal(model.mean(batch.history, batch.calendar), known)


def test_training_moves_every_weight_of_the_denoiser_and_none_of_the_mean_model():
    model, batch = make_forecaster().train(), make_batch(16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(value.requires_grad == name.startswith("denoiser.") for name, value in model.named_parameters())
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    model.loss(batch.history, batch.future, batch.calendar).backward()
    assert all(value.grad is None for value in model.mean_model.parameters())
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("denoiser."), name


def test_no_gradient_flows_through_the_mean():
    model = make_forecaster()
    model.denoiser = Stub(lambda noisy, alpha_bar, endpoint: noisy)
    batch = make_batch()
    history = batch.history.requires_grad_()
    assert not model.loss(history, batch.future, batch.calendar).requires_grad


# Loss

def test_a_perfect_denoiser_has_no_loss_at_any_step():
    batch = make_batch(STEPS)

    def perfect(noisy, alpha_bar, endpoint):
        return (noisy - endpoint - alpha_bar.sqrt() * (batch.future - endpoint)) / (1 - alpha_bar).sqrt()

    model = ResidualForecaster(Zero(), Stub(perfect), BETA, SCALE)
    assert model.loss(batch.history, batch.future, batch.calendar, step=torch.arange(STEPS)) < 1e-7
    assert model.loss(batch.history, batch.future, batch.calendar) < 1e-7
    off = ResidualForecaster(Zero(), Stub(lambda *given: perfect(*given) + 0.5), BETA, SCALE)
    assert float(off.loss(batch.history, batch.future, batch.calendar)) == pytest.approx(0.25, abs=1e-3)


def test_loss_is_the_mean_square_over_the_horizon_of_the_residual_noised_as_in_the_paper():
    model, batch = make_forecaster().eval(), make_batch()
    step, noise = torch.tensor([0, 20, 49]), torch.randn(2, 3, HORIZON, NODES)
    residual = (batch.future - model.mean_model(batch.history, batch.calendar)).double()
    squares = []
    for row in range(3):
        root, spread = math.sqrt(ALPHA_BAR[step[row]]), math.sqrt(1 - ALPHA_BAR[step[row]])
        endpoint = torch.where(noise[1, row] > 0, SCALE, -SCALE)
        noisy = root * residual[row] + (1 - root) * endpoint + spread * noise[0, row]
        context = model.denoiser.encode(batch.history[row:row + 1], batch.calendar[row:row + 1])
        predicted = model.denoiser(noisy.float().unsqueeze(0), step[row:row + 1],
                                   model.denoiser.condition(context, endpoint.unsqueeze(0)))
        squares.append((predicted[0] - noise[0, row]).square().mean())
    found = model.loss(batch.history, batch.future, batch.calendar, step, noise)
    assert found.item() == pytest.approx(sum(square.item() for square in squares) / 3, rel=1e-4)


def test_the_denoiser_sees_the_history_without_noise_and_only_the_horizon_with_it():
    batch, stub = make_batch(), Stub(lambda noisy, alpha_bar, endpoint: torch.zeros_like(noisy))
    model = ResidualForecaster(Zero(), stub, BETA, SCALE)
    noise = torch.randn(2, 3, HORIZON, NODES)
    loss = model.loss(batch.history, batch.future, batch.calendar, torch.tensor([49] * 3), noise)
    (history, calendar), = stub.encoded
    (noisy, _, _), = stub.calls
    assert torch.equal(history, batch.history) and torch.equal(calendar, batch.calendar)
    assert noisy.shape == (3, HORIZON, NODES) != batch.history.shape
    assert float(loss) == pytest.approx(float(noise[0].square().mean()), rel=1e-6)


def test_steps_are_drawn_evenly_and_signs_independently_of_the_noise():
    stub = Stub(lambda noisy, alpha_bar, endpoint: torch.zeros_like(noisy))
    model, count = ResidualForecaster(Zero(), stub, BETA, torch.ones(NODES)), 20_000
    future = torch.zeros(count, HORIZON, NODES)
    model.loss(torch.zeros(count, HISTORY, NODES), future, torch.zeros(count, 2, dtype=torch.long))
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


def test_two_losses_differ_by_their_draws_unless_step_and_noise_are_given():
    model, batch = make_forecaster().eval(), make_batch()
    windows = batch.history, batch.future, batch.calendar
    given = torch.tensor([3, 30, 40]), torch.randn(2, 3, HORIZON, NODES)
    assert model.loss(*windows).item() != model.loss(*windows).item()
    assert model.loss(*windows, *given).item() == model.loss(*windows, *given).item()


def test_validation_loss_of_a_window_does_not_depend_on_its_batch_or_on_earlier_draws():
    model, batch = make_forecaster().eval(), make_batch(5)
    config = SimpleNamespace(seed=3, val_batch_size=0, val_windows=0)

    def scored(*parts):
        torch.rand(len(parts))
        data = SimpleNamespace(batches=lambda *args, **kwargs: [pick(batch, part) for part in parts])
        return float(validation_loss(model, data, config))

    known = scored(slice(None))
    assert scored(slice(0, 2), slice(2, 5)) == pytest.approx(known, rel=1e-5)
    assert scored([4], [0], [3, 2, 1]) == pytest.approx(known, rel=1e-5)
    config.seed = 4
    assert scored(slice(None)) != pytest.approx(known, rel=1e-5)


# Sampling

@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_works_by_name_in_any_number_of_steps(name):
    model, batch = make_forecaster().eval(), make_batch()
    for steps in (1, 2, STEPS):
        members = sample(model, batch, sampler=name, steps=steps)
        assert members.shape == (3, 5, HORIZON, NODES)
        assert members.dtype == torch.float32 and members.isfinite().all() and not members.requires_grad


def test_the_named_sampler_takes_the_named_number_of_steps():
    model, batch = make_forecaster().eval(), make_batch()
    members = [sample(model, batch, sampler=name, steps=steps) for name in SAMPLERS for steps in (5, 6)]
    for index, one in enumerate(members):
        for other in members[:index]:
            assert not torch.allclose(one, other)


@pytest.mark.parametrize("name", SAMPLERS)
def test_members_do_not_depend_on_the_chunk(name):
    model, batch = make_forecaster().eval(), make_batch()
    whole = sample(model, batch, sampler=name, chunk=1000)
    for chunk in (1, 3, 7, 15):
        torch.testing.assert_close(sample(model, batch, sampler=name, chunk=chunk), whole, rtol=0, atol=2e-5)


def test_no_more_rows_than_the_chunk_pass_through_the_network_at_a_time():
    stub = Stub(lambda noisy, alpha_bar, endpoint: noisy)
    model, batch = ResidualForecaster(Zero(), stub, BETA, SCALE).eval(), make_batch()
    sample(model, batch, members=5, steps=2, chunk=4)
    assert [len(noisy) for noisy, _, _ in stub.calls] == [4, 4, 4, 4, 4, 4, 3, 3]


@pytest.mark.parametrize("name", SAMPLERS)
def test_members_do_not_depend_on_the_other_windows_of_the_batch(name):
    model, batch = make_forecaster().eval(), make_batch(4)
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
    batch = Batch(batch.history[:1].expand(3, -1, -1), batch.future, batch.calendar[:1].expand(3, -1), batch.start)
    members = torch.cat([sample(model, batch, seed=1), sample(model, batch, seed=2)]).flatten(0, 1).flatten(1)
    assert torch.cdist(members, members)[~torch.eye(len(members), dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_leaves_the_global_random_numbers_alone_and_does_not_read_them(name):
    model, batch = make_forecaster().eval(), make_batch()
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
    model.sample(batch.history, batch.calendar, noise, 2, "ancestral", 4, chunk=4)
    assert sorted(asked) == sorted((draw, *rows) for draw in range(5) for rows in ((0, 4), (4, 6)))


def test_start_is_the_endpoint_plus_noise_and_the_denoiser_sees_that_endpoint():
    stub = Stub(lambda noisy, alpha_bar, endpoint: noisy - endpoint)
    model, batch = ResidualForecaster(Zero(), stub, BETA, SCALE), make_batch(2)
    noise = MemberNoise(1, batch.start, 3, (HORIZON, NODES))
    model.eval().sample(batch.history, batch.calendar, noise, 3, "ddim", 2, chunk=64)
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
    stub.condition = lambda context, endpoint: torch.stack([context, endpoint])
    stub.predict = lambda noisy, alpha_bar, context: exact_gaussian(context[0], 0.0)(noisy, alpha_bar, context[1])
    mean, model.denoiser = model.mean(batch.history, batch.calendar), stub
    for name in SAMPLERS:
        members = sample(model, batch, sampler=name, chunk=4)
        torch.testing.assert_close(members, (mean + residual).unsqueeze(1).expand_as(members), rtol=0, atol=2e-5)


def test_sampled_residuals_of_an_exact_gaussian_have_its_mean_and_spread():
    """Each node and horizon step its own law; dpm2m in 20 steps, within 3 % and the sampling error."""
    mean = torch.tensor([0.5, -1.0, 0.0, 0.2]) + torch.tensor([[0.0], [0.1], [0.3]])
    std = torch.tensor([0.7, 0.3, 0.1, 1.0]) * torch.tensor([[1.0], [0.8], [1.2]])
    model = ResidualForecaster(Zero(), Stub(exact_gaussian(mean, std)), BETA, SCALE).eval()
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
    model = ResidualForecaster(Zero(), Stub(exact_gaussian(mean, std)), BETA, SCALE).eval()
    batch = make_batch(1)
    found = sample(model, batch, members=8000, steps=20, chunk=2000)[0]
    sign = MemberNoise(1, batch.start, 8000, (HORIZON, NODES))(0, 0, 8000).sign()
    assert ((found * sign).mean(0).abs() < 5 * 0.5 / math.sqrt(8000) + 0.006 * SCALE).all()


def test_a_forecast_does_not_depend_on_the_future():
    """Through the function that every score and picture uses: the future is gone, the forecast is the same."""
    model, batch = make_forecaster().eval(), make_batch()
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


def test_bfloat16_sampling_stays_within_five_per_cent_of_the_spread_of_float32():
    model, batch = make_forecaster().eval(), make_batch()
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


def test_the_callers_tensors_are_not_written_to():
    model, batch = make_forecaster(), make_batch()
    kept = dataclasses.replace(batch, **{field.name: getattr(batch, field.name).clone()
                                         for field in dataclasses.fields(batch)})
    model.train().loss(batch.history, batch.future, batch.calendar).backward()
    for name in SAMPLERS:
        sample(model.eval(), batch, sampler=name)
    for field in dataclasses.fields(batch):
        assert torch.equal(getattr(batch, field.name), getattr(kept, field.name)), field.name
    scale = SCALE.clone()
    model.fluctuation_scale.add_(1)
    assert torch.equal(scale, SCALE)
