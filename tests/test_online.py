"""Online correction: what it does to members and when it learns, and coverage of series that drift."""

import math

import pytest
import torch

from models.online import RATE, WIDTH_RATE, OnlineCalibration
from utils.scores.metrics import EnsembleScores

HISTORY, HORIZON, NODES, MEMBERS = 6, 6, 8, 50
WINDOWS = 500


def errors(steps, scale, level):
    """A series (step, node) of autoregressive errors, whose spread and level may change with time."""
    series = torch.zeros(steps, NODES, dtype=torch.float64)
    for step in range(1, steps):
        series[step] = 0.8 * series[step - 1] + scale[step] * torch.randn(NODES, dtype=torch.float64)
    return series + level.unsqueeze(1), series


def backtest(scale=lambda time: torch.ones_like(time), level=torch.zeros_like):
    """Exact ensembles of a stationary series, of one that drifts as said: observed series, members, truth."""
    torch.manual_seed(0)
    time = torch.linspace(0, 1, HISTORY + WINDOWS + HORIZON, dtype=torch.float64)
    observed, series = errors(len(time), scale(time), level(time))
    ahead = torch.arange(1, HORIZON + 1, dtype=torch.float64)
    last = torch.arange(HISTORY - 1, HISTORY - 1 + WINDOWS)
    mean = 0.8**ahead.view(-1, 1) * series[last].unsqueeze(1)
    spread = ((1 - 0.64**ahead) / 0.36).sqrt().view(-1, 1)
    noise = torch.randn(WINDOWS, MEMBERS, HORIZON, NODES, dtype=torch.float64)
    truth = observed[last.unsqueeze(1) + ahead.long()]
    return observed, mean.unsqueeze(1) + spread * noise, truth


def corrected(observed, members, online=None):
    online = online or OnlineCalibration()
    return torch.stack([online.correct(observed[k:k + HISTORY], each, k + HISTORY) for k, each in enumerate(members)])


def scores(members, truth):
    found = EnsembleScores(HORIZON, NODES, MEMBERS)
    found.update(members, truth)
    return found.compute()


@pytest.mark.parametrize("drift, least_gain", [
    (dict(scale=lambda time: 1 + 0.6 * time), 0.0),
    (dict(level=lambda time: 4 * time), 0.2),
    (dict(level=lambda time: 2.0 * (time > 0.5)), 0.1),
    (dict(scale=lambda time: 0.6 * torch.ones_like(time)), 0.02),
], ids=["spread grows", "level grows", "level jumps", "too wide from the start"])
def test_the_coverage_of_series_that_drift_is_within_3_per_cent_of_right(drift, least_gain):
    observed, members, truth = backtest(**drift)
    before, after = scores(members, truth), scores(corrected(observed, members), truth)
    assert abs(before["coverage90"] - before["coverage90_floor"]) > 0.06
    assert abs(after["coverage90"] - after["coverage90_floor"]) < 0.03
    assert after["CRPS"] < (1 - least_gain) * before["CRPS"]


def test_a_forecast_that_is_right_loses_at_most_a_per_cent():
    observed, members, truth = backtest()
    before, after = scores(members, truth), scores(corrected(observed, members), truth)
    assert after["CRPS"] < 1.01 * before["CRPS"]
    assert abs(after["coverage90"] - after["coverage90_floor"]) < 0.01


def test_the_share_outside_is_right_up_to_the_width_at_the_end():
    """The guarantee, whatever comes: here white noise of 5 times the spread, and all of it observed."""
    torch.manual_seed(1)
    truth = 5 * torch.randn(300, 1, NODES, dtype=torch.float64)
    online, outside = OnlineCalibration(), []
    for step, one in enumerate(truth):
        before = truth[step - 1] if step else torch.full((1, NODES), math.nan)
        members = online.correct(before, torch.randn(MEMBERS, 1, NODES), step)
        (_, quantile, _), = online._issued
        outside.append(((one < quantile[0]) | (one > quantile[2])).double().mean())
        assert members.shape == (MEMBERS, 1, NODES)
    observed = torch.stack(outside[:-1])
    assert observed.mean() - 0.1 == pytest.approx((online.width - 1) / (WIDTH_RATE * len(observed)), abs=1e-9)
    assert observed[-100:].mean() < 0.2 < observed[:20].mean()


def test_members_stay_as_they_are_until_something_is_observed_and_keep_their_ranks_then():
    torch.manual_seed(2)
    online, members = OnlineCalibration(), torch.randn(MEMBERS, HORIZON, NODES, dtype=torch.float64)
    first = online.correct(torch.zeros(HISTORY, NODES), members, 10)
    torch.testing.assert_close(first, members, rtol=0, atol=1e-12)
    second = online.correct(torch.full((HISTORY, NODES), 9.0), members, 11)
    assert torch.equal(second.argsort(0), members.argsort(0))
    assert (second.mean(0)[0] > members.mean(0)[0]).all()  # of the one step that was observed
    assert online.shift[0].numpy() == pytest.approx(RATE / 2) and online.shift[1:].eq(0).all()
    assert online.width == pytest.approx(1 + 0.9 * WIDTH_RATE)


@pytest.mark.parametrize("least", [None, torch.full((NODES,), 0.1, dtype=torch.float64)])
def test_no_corrected_member_is_above_the_highest_value(least):
    torch.manual_seed(5)
    highest = torch.linspace(1, 4, NODES, dtype=torch.float64)
    members = torch.rand(MEMBERS, HORIZON, NODES, dtype=torch.float64) * highest
    online = OnlineCalibration(least=least, highest=highest)
    online.correct(torch.ones(HISTORY, NODES), members, 10)
    moved = online.correct(torch.full((HISTORY, NODES), 9.0), members, 11)
    assert moved[:, 0].gt(members[:, 0]).any() and (moved <= highest * (1 + 1e-12)).all()


def test_a_wider_symmetric_ensemble_keeps_its_mean():
    online, half = OnlineCalibration(), torch.rand(MEMBERS // 2, 1, NODES, dtype=torch.float64)
    members = torch.cat([3 - half, 3 + half])
    online.correct(torch.zeros(1, NODES), members, 0)
    online.width = 1.7
    moved = online.correct(torch.full((1, NODES), math.nan), members, 1)
    assert moved.std(0).gt(1.2 * members.std(0)).all()
    torch.testing.assert_close(moved.mean(0), members.mean(0))


def test_each_observation_is_learned_from_once_and_a_missing_one_never():
    """Windows three steps apart, whose histories overlap: the horizon's steps are seen as their targets arrive."""
    online, members = OnlineCalibration(), torch.randn(MEMBERS, HORIZON, NODES)
    history = torch.full((HISTORY, NODES), 50.0)
    history[-1, 0] = math.nan
    online.correct(history, members, 20)
    online.correct(history, members, 23)  # steps 1 to 3 of the first window
    expected = torch.zeros(HORIZON, NODES, dtype=torch.float64)
    expected[:3] = RATE / 2 / torch.tensor([[1.0], [2.0], [3.0]])
    expected[2, 0] = 0
    torch.testing.assert_close(online.shift, expected)
    online.correct(history, members, 26)  # steps 4 to 6 of the first, 1 to 3 of the second
    expected += RATE / 2 / torch.arange(1.0, 7).view(-1, 1)
    expected[[2, 5], 0] -= RATE / 2 / torch.tensor([3.0, 6.0])
    torch.testing.assert_close(online.shift, expected)
    assert len(online._issued) == 2


def test_calibrated_forecasts_of_many_zeros_stay_as_wide_as_they_are():
    """Ties of observation and quantile count by their share; equal members change nothing."""
    torch.manual_seed(3)
    online, rain = OnlineCalibration((0.0, 0.0)), torch.distributions.Gamma(0.6, 0.5)

    def values(*shape):
        return torch.where(torch.rand(shape) < 0.06, rain.sample(shape), 0.0)

    for step in range(400):
        moved = online.correct(values(1, 60), values(MEMBERS, 1, 60), step)
    assert moved.min() == 0 and (moved == 0).double().mean() > 0.85
    assert 0.7 < online.width < 1.4
    flat = OnlineCalibration()
    flat.correct(torch.zeros(1, NODES), torch.ones(MEMBERS, 1, NODES), 0)
    assert torch.equal(flat.correct(torch.zeros(1, NODES), torch.ones(MEMBERS, 1, NODES), 1),
                       torch.ones(MEMBERS, 1, NODES, dtype=torch.float64))
    assert flat.width == 1


def test_windows_of_another_shape_are_refused():
    online = OnlineCalibration()
    online.correct(torch.zeros(3, 2), torch.zeros(5, 4, 2), 3)
    with pytest.raises(ValueError, match=r"windows of \(4, 1\) \(step, node\) after those of \(4, 2\)"):
        online.correct(torch.zeros(3, 1), torch.zeros(5, 4, 1), 4)


def test_windows_in_another_order_are_refused():
    online, members = OnlineCalibration(), torch.randn(MEMBERS, HORIZON, NODES)
    online.correct(torch.zeros(HISTORY, NODES), members, 5)
    with pytest.raises(ValueError, match="order of time"):
        online.correct(torch.zeros(HISTORY, NODES), members, 5)
