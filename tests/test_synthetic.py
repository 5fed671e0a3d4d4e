"""The synthetic field follows its stated distribution, and its stated forecast is the exact one."""

from datetime import datetime, timedelta

import pytest
import torch

from data.registry import DATASETS
from data.synthetic import OracleSettings, make_oracle, seasonal_slot


def windows(field, seen, horizon, stride=1):
    """Every window of the series: history, future, first step."""
    cut = field.values.double().unfold(0, seen + horizon, stride).transpose(1, 2)
    return cut[:, :seen], cut[:, seen:], torch.arange(len(cut)) * stride


def kernel(lag):
    return 0.6 * 0.95 ** abs(lag) + 0.4 * 0.6 ** abs(lag)


def standardize(field):
    slot = seasonal_slot(torch.arange(len(field.values)))
    return (field.values - field.seasonal_mean[slot]) / field.spread[slot]


def covariance_of(law):
    """Joint covariance of each future, (batch, horizon * node, horizon * node)."""
    spread, spatial = law.spread.double().flatten(1), law.spatial_factor @ law.spatial_factor.T
    return spread[:, :, None] * torch.kron(law.temporal_covariance, spatial) * spread[:, None, :]


def mean_of(law):
    """Mean of the futures (batch, horizon, node) of a field without a skew."""
    return law.values(law.z)


@pytest.fixture(scope="module")
def long_field():
    return make_oracle(OracleSettings(6, 24 * 7 * 500), seed=1)


@pytest.fixture(scope="module")
def long_z(long_field):
    return standardize(long_field)


def test_slots_are_the_hours_of_weekdays_and_weekends():
    times = [datetime.fromisoformat(DATASETS["Oracle"].start[0]) + timedelta(hours=step) for step in range(400)]
    expected = [time.hour + 24 * (time.weekday() >= 5) for time in times]
    assert seasonal_slot(torch.arange(400)).tolist() == expected


def test_predictive_law_equals_brute_force_conditioning():
    seen, horizon, nodes, nugget, scale = 5, 3, 3, 0.02, 0.4
    field = make_oracle(OracleSettings(nodes, 200, length_scale=scale, nugget=nugget), seed=3)
    first = torch.tensor([0, 20, 117, 166])  # the last two cross into and out of a weekend
    history = torch.stack([field.values[s : s + seen] for s in first]).double()
    law = field.predictive(history, first, horizon)
    covariance = covariance_of(law)
    for b, start in enumerate(first.tolist()):
        cells = [(start + t, v) for t in range(seen + horizon) for v in range(nodes)]
        slots = [int(seasonal_slot(torch.tensor(t))) for t, _ in cells]
        mean = torch.stack([field.seasonal_mean[s, v] for s, (_, v) in zip(slots, cells, strict=True)])
        joint = torch.zeros(len(cells), len(cells), dtype=torch.float64)
        for i, (t, v) in enumerate(cells):
            for j, (s, u) in enumerate(cells):
                distance = float((field.positions[v] - field.positions[u]).square().sum()) ** 0.5
                space = (1 - nugget) * 2.718281828459045 ** (-distance / scale) + nugget * (u == v)
                joint[i, j] = field.spread[slots[i], v] * field.spread[slots[j], u] * kernel(t - s) * space
        cut = seen * nodes
        gain = joint[cut:, :cut] @ torch.linalg.inv(joint[:cut, :cut])
        expected_mean = mean[cut:] + gain @ (history[b].flatten() - mean[:cut])
        expected_covariance = joint[cut:, cut:] - gain @ joint[:cut, cut:]
        expected_std = expected_covariance.diagonal().sqrt()
        torch.testing.assert_close(mean_of(law)[b].flatten(), expected_mean, rtol=0, atol=1e-8)
        torch.testing.assert_close(covariance[b], expected_covariance, rtol=0, atol=1e-8)
        torch.testing.assert_close((law.spread * law.z_std)[b].flatten(), expected_std, rtol=0, atol=1e-8)


def test_series_has_the_stated_mean_and_spread_in_every_slot(long_field):
    slot = seasonal_slot(torch.arange(len(long_field.values)))
    for s in range(48):
        there, spread = long_field.values[slot == s].double(), long_field.spread[s]
        assert ((there.mean(0) - long_field.seasonal_mean[s]) / spread).abs().max() < 0.15
        assert (there.std(0) / spread - 1).abs().max() < 0.1


def test_series_has_the_stated_spatial_correlation(long_field, long_z):
    torch.testing.assert_close(torch.corrcoef(long_z.T), long_field.spatial_covariance, rtol=0, atol=0.04)
    torch.testing.assert_close(long_field.spatial_covariance.diagonal(), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("lag", [0, 1, 2, 6, 24, 60])
def test_series_has_the_stated_autocovariance(long_z, lag):
    assert (long_z[lag:] * long_z[: len(long_z) - lag]).mean().item() == pytest.approx(kernel(lag), abs=0.03)


def test_midnight_leaves_no_seam(long_z):
    at_midnight = (long_z[23:-1:24] * long_z[24::24]).mean().item()
    assert at_midnight == pytest.approx(kernel(1), abs=0.03)


def test_the_first_step_is_already_stationary():
    z = torch.cat([standardize(make_oracle(OracleSettings(600, 3, nugget=1.0), seed=s)) for s in range(10)], dim=1)
    assert (z.mean(1).abs() < 0.05).all() and ((z.std(1) - 1).abs() < 0.05).all()
    assert (z[0] * z[2]).mean().item() == pytest.approx(kernel(2), abs=0.05)


def test_samples_have_the_stated_mean_and_covariance():
    field = make_oracle(OracleSettings(4, 100), seed=2)
    history, _, first = windows(field, 12, 3, stride=40)
    law = field.predictive(history, first, 3)
    draws = law.values(law.sample_z(40_000, torch.Generator().manual_seed(0)))
    assert draws.shape == (len(first), 40_000, 3, 4)
    scale = (law.spread * law.z_std).flatten(1)
    for b in range(len(first)):
        flat = draws[b].flatten(1)
        assert ((flat.mean(0) - mean_of(law)[b].flatten()) / scale[b]).abs().max() < 0.03
        error = (torch.cov(flat.T) - covariance_of(law)[b]) / (scale[b][:, None] * scale[b])
        assert error.abs().max() < 0.04


def test_truth_is_calibrated_under_the_predictive_law(long_field):
    history, future, first = windows(long_field, 24, 6, stride=5)
    law = long_field.predictive(history, first, 6)
    score = (future - mean_of(law)) / (law.spread * law.z_std)
    pit = torch.special.ndtr(score)
    for f in range(6):
        assert score[:, f].mean().abs() < 0.03 and (score[:, f].std() - 1).abs() < 0.03
        share = torch.histc(pit[:, f], bins=10, min=0, max=1) / pit[:, f].numel()
        assert (share - 0.1).abs().max() < 0.01


def test_uncertainty_grows_with_the_lead_time_and_stays_below_climatology():
    field = make_oracle(OracleSettings(3, 60))
    law = field.predictive(field.values[None, :24], torch.tensor([0]), 36)
    error = law.temporal_covariance.diagonal()
    assert (error.diff() > 0).all() and error[0] > 0 and error[-1] < 1


def test_same_seed_same_values_and_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    field = make_oracle(OracleSettings(7, 100), seed=5)
    assert torch.equal(field.values, make_oracle(OracleSettings(7, 100), seed=5).values)
    assert not torch.equal(field.values, make_oracle(OracleSettings(7, 100), seed=6).values)
    assert torch.equal(before, torch.get_rng_state())


def test_a_longer_series_begins_with_the_shorter_one():
    longer = make_oracle(OracleSettings(33, 501), seed=5).values
    for steps in (1, 23, 24, 100):
        assert torch.equal(longer[:steps], make_oracle(OracleSettings(33, steps), seed=5).values)


@pytest.mark.parametrize("nodes", [1, 2, 600])
def test_any_number_of_nodes(nodes):
    field = make_oracle(OracleSettings(nodes, 200))
    law = field.predictive(field.values[None, :12], torch.tensor([0]), 4)
    draws = law.values(law.sample_z(3, torch.Generator().manual_seed(0)))
    assert field.values.shape == (200, nodes) and field.positions.shape == (nodes, 2)
    assert draws.shape == (1, 3, 4, nodes)
    assert mean_of(law).dtype == law.spread.dtype == law.z_std.dtype == draws.dtype == torch.float32
    assert field.values.isfinite().all() and draws.isfinite().all()


def test_values_are_physical_and_the_spread_varies_threefold():
    field = make_oracle(OracleSettings(64))
    assert field.values.dtype == torch.float32
    assert field.values.mean().item() == pytest.approx(50, abs=3)
    assert field.values.std().item() == pytest.approx(10, abs=2)
    assert 2.5 < field.spread.max() / field.spread.min() <= 3


def test_forecast_depends_on_the_history_and_the_calendar_only():
    short, longer = (make_oracle(OracleSettings(5, steps), seed=4) for steps in (48, 480))
    history, first = short.values[None, 10:34].clone(), torch.tensor([10])
    law = short.predictive(history, first, 6)
    assert torch.equal(history, short.values[None, 10:34])
    assert torch.equal(mean_of(law), mean_of(longer.predictive(history, first, 6)))
    assert torch.equal(mean_of(law), mean_of(short.predictive(history, first + 7 * 24, 6)))
    beside = short.predictive(torch.cat([history, history + 9]), torch.tensor([10, 90]), 6)
    torch.testing.assert_close(mean_of(beside)[:1], mean_of(law))
    other = short.predictive(history + 9, first, 6)
    assert not torch.allclose(mean_of(other), mean_of(law)) and torch.equal(other.spread, law.spread)
