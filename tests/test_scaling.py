"""One mean and one standard deviation, those of the training values, without overflow or cancellation."""

import numpy as np
import pytest
import torch
from conftest import random_values, with_gaps

from data import scaling
from data.scaling import Scaler


@pytest.mark.parametrize("steps", [1, 2, scaling.BLOCK - 1, scaling.BLOCK, scaling.BLOCK + 1, 3000])
def test_mean_and_std_are_those_of_all_values_whatever_the_blocks(steps):
    values = random_values(steps, 3)
    scaler = Scaler.fit(torch.from_numpy(values))
    assert scaler.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)
    assert scaler.std == pytest.approx(values.astype(np.float64).std(), rel=1e-12)


def test_standardized_values_have_mean_zero_and_spread_one_and_come_back():
    values = torch.from_numpy(random_values(500, 4))
    scaler = Scaler.fit(values)
    standardized = scaler.standardize(values)
    assert standardized.dtype == torch.float32
    assert float(standardized.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standardized.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(scaler.physical(standardized), values.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", [0.0, 7.3, -1e9, 1e30])
def test_a_constant_field_has_std_1_and_standardizes_to_zero(level):
    values = torch.full((2000, 3), level)
    scaler = Scaler.fit(values)
    assert scaler.std == 1.0
    assert torch.equal(scaler.standardize(values), torch.zeros(2000, 3))


def test_a_tiny_spread_is_a_spread_and_not_a_constant():
    values = torch.from_numpy(random_values(100, 3)) * 1e-20
    assert Scaler.fit(values).std == pytest.approx(float(values.double().std(correction=0)))


def test_a_small_spread_on_a_large_level_is_not_cancelled():
    values = 1e6 + torch.tensor([[-0.5, 0.5]]).repeat(4000, 1)
    assert Scaler.fit(values).std == pytest.approx(0.5, rel=1e-6)


def test_small_integers_do_not_overflow():
    values = torch.full((5000, 4), 250, dtype=torch.uint8)
    values[::2] = 240
    assert Scaler.fit(values) == Scaler(245.0, 5.0, whole=True)
    assert Scaler(245.0, 5.0).standardize(values).unique().tolist() == [-1.0, 1.0]


def test_a_node_a_billion_times_larger_stays_finite():
    values = torch.from_numpy(random_values(300, 5))
    values[:, 2] *= 1e9
    scaler = Scaler.fit(values)
    assert np.isfinite(scaler.std) and scaler.standardize(values).isfinite().all()


def test_counts_come_back_as_whole_numbers_and_other_values_as_they_are():
    counts = torch.randint(0, 3000, (400, 7)).float()
    scaler = Scaler.fit(counts)
    assert scaler.whole and (scaler.physical(scaler.standardize(counts)) == counts).all()
    between = torch.tensor([0.5, 2.25])
    torch.testing.assert_close(scaler.physical(scaler.standardize(between)), between.double(), rtol=0, atol=1e-3)
    assert not Scaler.fit(counts + 0.5).whole


def test_missing_values_count_in_neither_mean_nor_spread_nor_the_question_of_whole_numbers():
    values = with_gaps(random_values(3000, 3))
    observed = values[~np.isnan(values)].astype(np.float64)
    scaler = Scaler.fit(torch.from_numpy(values))
    assert scaler.mean == pytest.approx(observed.mean(), rel=1e-12)
    assert scaler.std == pytest.approx(observed.std(), rel=1e-12)
    assert Scaler.fit(torch.tensor([[1.0, float("nan")], [3.0, 8.0]])).whole


@pytest.mark.parametrize("level, spread", [(20.0, 5.0), (-3e4, 0.7), (1e-22, 1e-23), (1e21, 3e20)])
def test_zero_comes_back_as_exactly_zero_and_physical_values_are_float64(level, spread):
    values = level + spread * torch.from_numpy(random_values(60, 3)).sub(20).div(5)
    scaler = Scaler.fit(values)
    assert not scaler.whole
    found = scaler.physical(scaler.standardize(torch.tensor([0.0, level, level + spread])))
    assert found.dtype == torch.float64 and found[0] == 0
    exact = torch.tensor([0.0, level, level + spread]).double()
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6 * spread)


def test_values_that_no_float32_could_hold_a_fraction_of_are_not_taken_for_counts():
    values = torch.from_numpy(random_values(100, 3))
    values[:, 0] = 0
    assert not Scaler.fit(values * 1e20).whole and not Scaler.fit(torch.zeros(50, 2)).whole
    counts = values.round()
    counts[:, 1] *= 1e9
    assert Scaler.fit(counts).whole
