"""One mean and one standard deviation, those of the training values, without overflow or cancellation."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, random_values, with_gaps

from data import scaling
from data.scaling import NodeStatistics, Scaler, add_at


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


# Of each node

def node_scaler(values, scaling="auto"):
    values = torch.as_tensor(values)
    return NodeStatistics.of(values).scaler(values, scaling)


def celsius_beside_pascal(steps=400):
    values = random_values(steps, 4)
    values[:, 2:] = 101_325 + 100 * (values[:, 2:] - 20)
    return values


def test_each_node_has_its_own_scale_where_units_differ():
    values = celsius_beside_pascal()
    scaler = node_scaler(values)
    exact = values.astype(np.float64)
    assert scaler.by_node
    np.testing.assert_allclose(scaler.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scaler.std, exact.std(0), rtol=1e-9)
    standardized = scaler.standardize(torch.from_numpy(values))
    np.testing.assert_allclose(standardized.std(0, correction=0), 1, rtol=1e-5)
    np.testing.assert_allclose(scaler.physical(standardized), exact, rtol=0, atol=1e-3)
    np.testing.assert_allclose(scaler.physical(standardized)[:, :2], exact[:, :2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("factors, by_node", [([1, 1, 1], False), ([1, 2, 3], False), ([1, 1, 30], True)])
def test_auto_is_the_published_scale_of_the_field_unless_nodes_differ_by_more_than_ten_times(factors, by_node):
    values = torch.from_numpy(random_values(300, 3) - 20) * torch.tensor(factors)
    assert node_scaler(values).by_node is by_node and node_scaler(values, "node").by_node
    assert node_scaler(values, "field") == Scaler.fit(values)
    assert by_node or node_scaler(values) == Scaler.fit(values)


@pytest.mark.parametrize("scaling", ["auto", "node"])
@pytest.mark.parametrize("spikes", [1, 3])
def test_outliers_do_not_squash_a_node_and_are_cut(scaling, spikes):
    values = random_values(700, 4)
    values[100:100 + spikes, 1] = 1e6
    scaler = node_scaler(values, scaling)
    assert scaler.by_node is (scaling == "node")
    standardized = scaler.standardize(torch.from_numpy(values))
    usual = np.delete(standardized[:, 1].numpy(), np.s_[100:100 + spikes])
    assert usual.std() == pytest.approx(1, abs=0.1) and standardized.abs().max() < 15
    assert node_scaler(np.delete(values, np.s_[100:100 + spikes], 0), "field").std == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("count", [2, 5, 8, 12, 25])
def test_of_few_normal_values_none_is_an_outlier(count):
    torch.manual_seed(0)
    assert NodeStatistics.of(torch.randn(count, 1000)).outlying.double().mean() < 0.01


def test_a_largest_value_is_a_bound_where_it_occurs_often_enough():
    training = torch.tensor([[1.0, 1.0], [2.0, 2.0], *[[math.nan, 2.0]] * 4])
    assert NodeStatistics.of(training).upper_bounds(training, training) == (math.inf, 2.0)


def test_values_in_float64_are_not_overwritten():
    values = torch.ones(3, dtype=torch.float64)
    assert Scaler(10.0, 2.0).physical(values).tolist() == [12.0] * 3 and values.tolist() == [1.0] * 3


def test_heavy_tails_are_no_outliers():
    rain = np.random.default_rng(0).exponential(3, (2000, 3)) * (np.random.default_rng(1).random((2000, 3)) < 0.05)
    heavy = np.exp(2 * np.random.default_rng(2).normal(size=(2000, 3)))
    for values in (rain, heavy):
        assert not NodeStatistics.of(torch.from_numpy(values)).outlying.any()


def test_a_constant_node_is_scaled_by_its_size_and_one_of_zeros_by_the_others():
    values = celsius_beside_pascal()
    values[:, 0], values[:, 3] = 0, 101_325
    scaler = node_scaler(values)
    assert scaler.std[3] == 101_325 and scaler.std[0] in (scaler.std[1], scaler.std[2])
    assert (scaler.standardize(torch.from_numpy(values))[:, [0, 3]] == 0).all()


def test_gaps_count_in_no_statistic_of_a_node():
    values = celsius_beside_pascal(2000)
    gappy = with_gaps(values)
    np.testing.assert_allclose(node_scaler(gappy).mean, np.nanmean(gappy.astype(np.float64), 0), rtol=1e-12)
    np.testing.assert_allclose(node_scaler(gappy).std, np.nanstd(gappy.astype(np.float64), 0), rtol=1e-9)
    assert torch.equal(node_scaler(gappy).standardize(torch.from_numpy(gappy)).isnan(),
                       torch.from_numpy(np.isnan(gappy)))


def test_counts_beside_other_values_come_back_as_whole_numbers_and_the_others_as_they_are():
    values = celsius_beside_pascal()
    values[:, 1] = values[:, 1].round() * 1000
    scaler = node_scaler(values)
    assert scaler.whole == (False, True, False, False)
    found = scaler.physical(scaler.standardize(torch.from_numpy(values)))
    assert torch.equal(found[:, 1], torch.from_numpy(values[:, 1]).double())
    assert (found[:, 0] != found[:, 0].round()).any()


# Resolution, and no value below zero

def test_values_in_float64_keep_what_float32_would_lose():
    values = 1e9 + torch.arange(713, dtype=torch.float64).view(-1, 1)
    scaler = Scaler.fit(values)
    standardized = scaler.standardize(values)
    assert scaler.precise and standardized.dtype == torch.float32 and len(standardized.unique()) == 713
    assert torch.equal(scaler.physical(standardized).round(), values)


def test_a_spread_that_the_type_does_not_resolve_is_seen():
    values = 1e9 + torch.from_numpy(random_values(400, 2)).double()
    assert not NodeStatistics.of(values).unresolved.any() and NodeStatistics.of(values.float()).unresolved.all()


@pytest.mark.parametrize("level, whole", [(65_000.0, True), (65_000.3, False), (3e6, True)])
def test_no_value_below_zero_comes_back_where_none_can_be(level, whole):
    """Also of those next to the standardized zero, which rounding puts below."""
    for shift in range(30):
        scaler = Scaler(level + shift, level / 10 + shift, whole, nonnegative=True)
        near = scaler.zero() * (1 + torch.arange(-40, 41) * 2.0**-24)
        found = scaler.physical(near)
        assert found.min() == 0 and (found[near == scaler.zero()] == 0).all()
    assert replace(scaler, nonnegative=False).physical(near).min() < 0 or whole


def test_rows_of_an_index_add_up_by_one_function_since_others_have_no_order_on_a_gpu():
    table = torch.zeros(3, 2)
    found = add_at(table, torch.tensor([2, 0, 2]), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert found is table and table.tolist() == [[3, 4], [0, 0], [6, 8]]
    without = re.compile(r"\.(index_add|scatter_add|scatter_reduce|index_reduce)_?\(")
    users = {path.relative_to(ROOT).as_posix() for folder in ("data", "models", "utils")
             for path in (ROOT / folder).rglob("*.py") if without.search(path.read_text())}
    assert users == {"data/scaling.py"}


# Logarithms

def growing(steps=300, nodes=2, seasonal=True, multiplicative=True):
    """A trend with a season and noise, both in proportion to the level or not."""
    time = np.arange(steps)
    level = 100 * np.exp(0.01 * time) if multiplicative else 100 + 5 * time
    season, noise = np.sin(2 * np.pi * time / 12), np.random.default_rng(0).normal(size=(nodes, steps))
    around = 0.2 * season * seasonal + 0.03 * noise
    return torch.from_numpy((level * np.exp(around) if multiplicative else level + 100 * around).T)


@pytest.mark.parametrize("seasonal", [True, False])
def test_logarithms_are_taken_where_changes_are_proportional_to_the_level(seasonal):
    assert node_scaler(growing(seasonal=seasonal)).least
    assert not node_scaler(growing(seasonal=seasonal, multiplicative=False)).least
    assert not node_scaler(growing(seasonal=seasonal) - 95).least  # not all values are positive


def test_small_counts_and_outliers_have_no_logarithms():
    values = growing()
    assert node_scaler(values.round()).least and not node_scaler((values / 20).round()).least
    values[50] = 1e9
    assert not node_scaler(values).least


@pytest.mark.parametrize("jump, share", [(30, 0.05), (900, 0.12)])
def test_series_with_rare_jumps_have_no_logarithms(jump, share):
    """Members of their logarithms would be a thousand times as large as any value."""
    random = np.random.default_rng(0)
    level = np.exp(3.5 + 0.1 * random.normal(size=(400, 3)))
    values = torch.from_numpy(level * np.where(random.random((400, 3)) < share, jump, 1))
    assert not NodeStatistics.of(values).multiplicative(values, 12)
    assert not node_scaler(values).least


def test_a_scale_of_logarithms_goes_there_and_back_and_gives_positive_values():
    values = growing()
    scaler = node_scaler(values, "log")
    standardized = scaler.standardize(values)
    np.testing.assert_allclose(standardized.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(standardized.std(0, correction=0), 1, rtol=1e-6)
    np.testing.assert_allclose(scaler.physical(standardized), values, rtol=1e-6)
    np.testing.assert_allclose(scaler.mean, values.log().mean(0), rtol=1e-9)
    assert (scaler.physical(torch.tensor([[-9.0, -30.0]])) > 0).all()
    least = values.amin(0) / 10  # smaller values are taken for these
    assert torch.equal(scaler.standardize(torch.tensor([[0.0, -5.0]])), scaler.standardize(least.unsqueeze(0)))
    assert scaler.of_nodes(slice(1, 2)).least == scaler.least[1:]


def test_a_node_that_hardly_varies_and_a_constant_one_have_a_spread_of_logarithms():
    values = growing(nodes=3)
    values[:, 1], values[:, 2] = 50 * torch.exp(1e-7 * torch.randn(300)), 1e6
    scaler = node_scaler(values, "log")
    assert scaler.std[1:] == (1e-3, 1.0)
    highest = scaler.physical(torch.full((1, 3), 1e9))
    np.testing.assert_allclose(highest, 1000 * values.amax(0, keepdim=True), rtol=1e-6)


def test_logarithms_of_zero_are_refused():
    with pytest.raises(ValueError, match="--scaling log: there are training values down to 0; only positive ones"):
        node_scaler(growing() - growing().amin(0), "log")
