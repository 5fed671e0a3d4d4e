"""The ridge forecast of the leading modes: it finds a linear law, and gets the shrinkage weight that it earns."""

import dataclasses

import pytest
import torch

from data.context import Context
from data.windows import Batch
from models.layers import Task
from models.modes import PENALTIES, ModeForecast, leading_axes, ridge

HISTORY, HORIZON, NODES, SLOTS = 4, 3, 10, 24


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


def batch_of(history, calendar, future, target_mask=None):
    """Windows of anomalies: the climatology is 0."""
    climatology = torch.zeros(len(history), history.shape[1] + future.shape[1], history.shape[2])
    return Batch(Context(history, calendar, climatology, target_mask=target_mask), future, torch.arange(len(history)))


def make_model(modes, nodes=NODES, history=HISTORY, slots=SLOTS):
    return ModeForecast(Task(nodes, history, HORIZON, (slots,)), modes)


def common_mode(windows, noise=0.1, decay=0.9):
    """Windows of a field whose nodes follow one autoregression, by unequal weights."""
    path = torch.zeros(windows + HISTORY + HORIZON)
    for step in range(1, len(path)):
        path[step] = decay * path[step - 1] + torch.randn(())
    weights = torch.linspace(0.5, 1.5, NODES)
    values = path.unfold(0, HISTORY + HORIZON, 1)[:windows].unsqueeze(-1) * weights
    values = values + noise * torch.randn_like(values)
    calendar = torch.stack([torch.arange(windows) % SLOTS, torch.zeros(windows, dtype=torch.long)], dim=1)
    return batch_of(values[:, :HISTORY], calendar, values[:, HISTORY:])


def fitted(training, modes=2):
    model = make_model(modes)
    model.fit(training)
    return model


def test_before_it_is_fitted_it_shifts_nothing():
    windows = common_mode(20)
    shift = make_model(2)(torch.randn_like(windows.future), windows.context)
    assert shift.shape == windows.future.shape and (shift == 0).all()


@pytest.mark.parametrize("fields, nodes", [(200, 6), (5, 40), (2, 8)])
def test_leading_axes_are_orthonormal_and_span_what_varies_most(fields, nodes):
    values = torch.randn(fields, 1) @ torch.randn(1, nodes) * 10 + 0.1 * torch.randn(fields, nodes)
    axes = leading_axes(values, 3)
    torch.testing.assert_close(axes.T @ axes, torch.eye(3), rtol=0, atol=1e-5)
    assert (values @ axes[:, :1]).square().sum() > 0.98 * values.square().sum()


def test_a_forecast_without_skill_is_moved_to_the_autoregression():
    """The best forecast is decay ** (step + 1) times the last value."""
    model = fitted(common_mode(2000))
    windows = common_mode(600)
    model.weigh([(torch.zeros_like(windows.future), windows)])
    assert model.shrinkage[0] > 0.85
    windows = common_mode(600)
    moved = model(torch.zeros_like(windows.future), windows.context)
    best = windows.context.history[:, -1:] * 0.9 ** torch.arange(1, HORIZON + 1).view(1, -1, 1)
    assert (moved - best).square().mean() < 0.05 * best.square().mean()
    assert (moved - windows.future).square().mean() < 1.1 * (best - windows.future).square().mean()


def test_a_forecast_that_cannot_be_bettered_is_left_alone():
    model = fitted(common_mode(2000))
    windows = common_mode(600)
    model.weigh([(windows.future + 0.01 * torch.randn_like(windows.future), windows)])
    assert (model.shrinkage < 0.05).all()


def test_two_forecasts_with_independent_errors_of_one_size_get_equal_weights():
    model = fitted(common_mode(4000), modes=1)
    windows = common_mode(4000)
    context, future, axis = windows.context, windows.future, model.axes * model.spread
    missed = (future - model.linear(context) @ axis.T).square().mean().sqrt()
    other = future + missed / axis.square().mean().sqrt() * torch.randn(len(future), HORIZON, 1) @ axis.T
    parts = (each.split(500) for each in (other, context.history, context.calendar, future))
    model.weigh((forecast, batch_of(*part)) for forecast, *part in zip(*parts, strict=True))
    assert model.shrinkage.item() == pytest.approx(0.5, abs=0.08)


def test_gains_of_one_stretch_of_time_alone_get_less_weight_than_steady_ones():
    model = fitted(common_mode(2000), modes=1)
    windows = common_mode(800)
    late = (torch.arange(800) >= 700).view(-1, 1, 1)
    steady, once = 0 * windows.future, torch.where(late, 0, windows.future)
    weights = []
    for forecast in (steady, once):
        model.weigh([(forecast, windows)])
        weights.append(model.shrinkage.item())
    assert weights[0] > 0.85 and weights[1] < 0.1


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_gaps_do_not_draw_a_forecast_towards_the_usual(share):
    """A gap holds the climatology, an anomaly of 0: fit and weights must not take it for an observation."""
    def with_gaps(windows):
        history, calendar = windows.context.history, windows.context.calendar
        observed = torch.rand(len(history), HISTORY + HORIZON, NODES) > share
        return batch_of(history * observed[:, :HISTORY], calendar, windows.future * observed[:, HISTORY:],
                        observed[:, HISTORY:])

    model, whole = fitted(with_gaps(common_mode(3000)), modes=1), common_mode(900)
    best = whole.context.history[:, -1:] * 0.9 ** torch.arange(1, HORIZON + 1).view(1, -1, 1)
    windows = with_gaps(whole)
    model.weigh([(best, windows)])
    moved = best + model(best, windows.context)
    assert (moved - whole.future).square().mean() < 1.02 * (best - whole.future).square().mean()


@pytest.mark.parametrize("future", [torch.zeros(60, HORIZON, NODES), torch.ones(60, HORIZON, NODES)])
def test_a_mode_without_a_gain_gets_no_weight(future):
    windows = dataclasses.replace(common_mode(60), future=future)
    model = fitted(windows)
    model.weigh([(future, windows)])
    assert (model.shrinkage == 0).all()


def test_with_too_few_windows_all_weights_are_zero():
    model = fitted(common_mode(500))
    windows = common_mode(2 * HORIZON - 1)
    model.weigh([(torch.zeros_like(windows.future), windows)])
    assert (model.shrinkage == 0).all()


def test_the_time_of_the_cycle_is_part_of_the_forecast():
    """A mode that is a sine of the slot, whatever the history: only the calendar determines it."""
    count, calendar = 960, common_mode(960).context.calendar
    angle = 2 * torch.pi * calendar[:, 0] / SLOTS
    future = angle.sin().view(-1, 1, 1).expand(-1, HORIZON, NODES) + 0.05 * torch.randn(count, HORIZON, NODES)
    windows = batch_of(torch.randn(count, HISTORY, NODES), calendar, future)
    model = fitted(windows, modes=1)
    found = model.linear(windows.context) * model.spread @ model.axes.T
    assert (found - future).square().mean() < 0.05 * future.square().mean()


@pytest.mark.parametrize("nodes, history, slots, modes", [(1, 1, 1, 4), (3, 2, 2, 16), (5, 12, 7, 0)])
def test_small_fields_short_histories_and_short_cycles_are_taken(nodes, history, slots, modes):
    model, future = make_model(modes, nodes, history, slots), torch.randn(40, HORIZON, nodes)
    windows = batch_of(torch.randn(40, history, nodes), torch.randint(slots, (40, 1)), future)
    model.fit(windows)
    model.weigh([(future * 0, windows)])
    assert model.modes == min(modes, nodes) and model(future, windows.context).isfinite().all()


def test_ridge_finds_a_plane_and_shrinks_noise():
    features = torch.randn(3000, 5).double() * torch.tensor([1.0, 1.0, 100.0, 1e-3, 1.0])
    features[:, 0] = 1
    wanted = torch.tensor([[2.0], [1.0], [0.02], [500.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(ridge(features, features @ wanted), wanted, rtol=2e-2, atol=2e-2)
    few = features[:30]
    noise = torch.randn(30, 1, dtype=torch.float64)
    plain = torch.linalg.lstsq(few / few.square().mean(0).sqrt(), noise).solution
    shrunk = ridge(few, noise) * few.square().mean(0).sqrt().unsqueeze(1)
    assert shrunk[1:].norm() < 0.5 * plain[1:].norm() and max(PENALTIES) > 1


def test_a_mode_is_forecast_from_the_history_of_the_largest_one_too():
    """White noise in the largest mode. A smaller one repeats it after three steps: its own past has no information."""
    large, delay = torch.randn(2000 + HISTORY + HORIZON), 3
    small = 0.3 * large.roll(delay)
    weights = torch.stack([torch.ones(NODES), torch.ones(NODES).cumsum(0) % 2 * 2 - 1])  # orthogonal
    values = (torch.stack([large, small], dim=-1) @ weights).unfold(0, HISTORY + HORIZON, 1)[delay:].transpose(1, 2)
    calendar = torch.zeros(len(values), 2, dtype=torch.long)
    training, test = (batch_of(part[:, :HISTORY], calendar[:len(part)], part[:, HISTORY:])
                      for part in values.tensor_split([1500]))
    model = fitted(training)
    future = model._project(test.future)
    missed = (model.linear(test.context) - future).square().mean((0, 1)) / future.square().mean((0, 1))
    assert missed[0] > 0.9 and missed[1] < 0.1
