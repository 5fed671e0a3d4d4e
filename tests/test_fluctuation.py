"""The fluctuation scale is the spread of the weak spectral components, node by node."""

import math

import numpy as np
import pytest
import torch
from conftest import random_values, with_gaps

from data import fluctuation
from data.fluctuation import FLOOR, fluctuation_scale
from data.scaling import Scaler


def training(steps, nodes=7):
    """A daily wave and a level of its own for each node, plus noise."""
    hour = np.arange(steps)[:, None]
    level = np.linspace(5, 60, nodes)
    wave = level * np.sin(2 * math.pi * hour / 24)
    return torch.from_numpy((level + wave + random_values(steps, nodes)).astype(np.float32))


def explicit(values, threshold):
    """Eq. 8-10 as printed: transform, keep the weak components, transform back, take the spread over time."""
    scaler = Scaler.fit(values)
    spectrum = np.fft.rfft((values.double().numpy() - scaler.mean) / scaler.std, axis=0)
    amplitude = np.abs(spectrum)
    spectrum[amplitude >= threshold * amplitude.max(0)] = 0
    return np.fft.irfft(spectrum, n=len(values), axis=0).std(0)


@pytest.mark.parametrize("steps", [2, 3, 50, 51, 240, 337])
@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.5, 1.0])
def test_the_spread_read_off_the_spectrum_is_that_of_the_inverse_transform(steps, threshold):
    values = training(steps)
    scale = fluctuation_scale(values, Scaler.fit(values), threshold)
    assert scale.shape == (7,) and scale.dtype == torch.float32
    np.testing.assert_allclose(scale, np.maximum(explicit(values, threshold), FLOOR), rtol=1e-4)


def test_with_every_component_kept_it_is_the_standard_deviation_of_the_node():
    values = training(123)
    scaler = Scaler.fit(values)
    expected = scaler.standardize(values).std(0, correction=0)
    assert torch.allclose(fluctuation_scale(values, scaler, threshold=10), expected, rtol=1e-4)


def test_only_waves_weaker_than_the_threshold_count():
    time = torch.arange(400, dtype=torch.float64)[:, None]
    strong, weak = torch.cos(2 * math.pi * time / 20), 0.3 * torch.cos(2 * math.pi * time / 8)
    values = strong + weak
    scaler = Scaler(0.0, 1.0)
    assert float(fluctuation_scale(values, scaler, threshold=0.29)) == pytest.approx(FLOOR)
    assert float(fluctuation_scale(values, scaler, threshold=0.31)) == pytest.approx(0.3 / math.sqrt(2), rel=1e-5)
    assert float(fluctuation_scale(values, scaler, threshold=1.01)) == pytest.approx(
        math.sqrt((1 + 0.09) / 2), rel=1e-5
    )


def test_each_node_has_the_threshold_of_its_own_largest_component():
    time = torch.arange(400, dtype=torch.float64)[:, None]
    weak = 0.3 * torch.cos(2 * math.pi * time / 8)
    values = torch.cat([weak, weak + 100 * torch.cos(2 * math.pi * time / 20)], dim=1)
    alone, beside = fluctuation_scale(values, Scaler(0.0, 1.0), threshold=0.1).tolist()
    assert alone == pytest.approx(FLOOR) and beside == pytest.approx(0.3 / math.sqrt(2), rel=1e-5)


def test_a_constant_node_gets_the_floor():
    values = training(100)
    values[:, 3] = 12.5
    scale = fluctuation_scale(values, Scaler.fit(values))
    assert float(scale[3]) == pytest.approx(FLOOR) and (scale > 0).all()
    constant = torch.full((50, 2), 4.0)
    assert fluctuation_scale(constant, Scaler.fit(constant)).tolist() == pytest.approx([FLOOR, FLOOR])


@pytest.mark.parametrize("nodes_at_once", [1, 3, 7])
def test_nodes_may_be_taken_in_any_chunks(nodes_at_once, monkeypatch):
    values = training(150)
    scaler = Scaler.fit(values)
    whole = fluctuation_scale(values, scaler)
    monkeypatch.setattr(fluctuation, "LEAST_NODES", nodes_at_once)
    monkeypatch.setattr(fluctuation, "SPECTRUM_BYTES", 0)
    assert torch.allclose(fluctuation_scale(values, scaler), whole, rtol=1e-6, atol=0)


def test_gaps_change_the_scale_little_and_what_stands_in_them_nothing():
    values = training(2400)
    scaler, gappy = Scaler.fit(values), torch.from_numpy(with_gaps(values.numpy()))
    weak = torch.from_numpy(random_values(2400, 7, seed=3) - 20)  # no wave, no level: all of it is fluctuation
    whole = fluctuation_scale(weak, scaler, threshold=10)
    holes = fluctuation_scale(torch.where(gappy.isnan(), math.nan, weak), scaler, threshold=10)
    assert (holes / whole - 1).abs().max() < 0.05
    alone = fluctuation_scale(torch.cat([gappy[:, :1], values[:, 1:]], dim=1), scaler)
    assert torch.equal(alone[1:], fluctuation_scale(values, scaler)[1:]), "a node's gaps are its own"
    assert fluctuation_scale(gappy, scaler).isfinite().all()


def test_a_node_that_is_not_observed_where_it_is_measured_gets_the_floor():
    values = training(60, 2)
    values[:, 1] = math.nan
    assert fluctuation_scale(values, Scaler.fit(values)).tolist()[1] == pytest.approx(FLOOR)
