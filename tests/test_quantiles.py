"""Margins: quantiles become members and back, and z is standard normal when the quantiles are right."""

import math

import pytest
import torch
from scipy import stats

from data.constants import QUANTILE_LEVELS
from models import quantiles as margins
from models.quantiles import (
    NORMAL_SCORE_LIMIT,
    equidistant_quantiles,
    keep_mean_above,
    pinball,
    quantiles_at_z,
    reorder,
    round_members,
    smooth_members,
    to_support,
)
from utils.scores.metrics import crps_quantile

NOWHERE = float("-inf")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def z_from_pit(quantiles, truth, uniform, minimum=NOWHERE, step=0.0):
    return margins.z_from_pit(margins.pit_bounds(quantiles, truth, minimum, step), uniform)


def normal_quantiles(mean=0.0, std=1.0, shape=(1, 3, 4)):
    """Quantiles (batch, level, F, node) of the same normal distribution everywhere."""
    z = torch.special.ndtri(torch.tensor(QUANTILE_LEVELS, dtype=torch.float64)).float()
    return (mean + std * z).view(1, -1, 1, 1).expand(shape[0], -1, *shape[1:])


def rising(batch=5, shape=(3, 4)):
    """Quantiles of no known law, in rising order."""
    return torch.randn(batch, len(QUANTILE_LEVELS), *shape).sort(1).values


# From quantiles to members

@pytest.mark.parametrize("members", [1, 2, 3, 19, 50, 1000])
def test_the_equidistant_quantiles_of_a_normal_law_are_its_own(members):
    found = equidistant_quantiles(normal_quantiles(3, 2), members)
    level = (torch.arange(members, dtype=torch.float64) + 0.5) / members
    wanted = (3 + 2 * torch.special.ndtri(level)).float().view(1, -1, 1, 1).expand_as(found)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("members", [2, 7, 50, 400])
def test_the_map_from_quantiles_to_members_is_linear_and_keeps_their_order(members):
    quantiles, others = rising(), rising()
    found = equidistant_quantiles(quantiles, members)
    assert found.shape == (5, members, 3, 4)
    assert (found.diff(dim=1) >= -1e-6).all()
    level = (torch.arange(members) + 0.5) / members
    inside = found[:, (level >= QUANTILE_LEVELS[0]) & (level <= QUANTILE_LEVELS[-1])]
    assert ((inside >= quantiles[:, :1] - 1e-6) & (inside <= quantiles[:, -1:] + 1e-6)).all()
    assert found[:, level < QUANTILE_LEVELS[0]].lt(quantiles[:, :1]).all()
    assert found[:, level > QUANTILE_LEVELS[-1]].gt(quantiles[:, -1:]).all()
    torch.testing.assert_close(equidistant_quantiles(2 * quantiles - 3 * others + 1, members),
                               2 * found - 3 * equidistant_quantiles(others, members) + 1, rtol=1e-4, atol=1e-4)


def test_ten_members_are_every_second_of_the_nineteen_quantiles():
    """Levels (i + 1/2) / 10 = 0.05, 0.15, ... are every second one of ours: those members are the quantiles."""
    quantiles = rising()
    torch.testing.assert_close(equidistant_quantiles(quantiles, 10), quantiles[:, ::2], rtol=0, atol=1e-6)


def test_a_place_of_the_field_has_the_members_of_its_own_quantiles():
    quantiles = rising()
    alone = equidistant_quantiles(quantiles[2:3, :, 1:2, 3:4], 20)
    torch.testing.assert_close(equidistant_quantiles(quantiles, 20)[2:3, :, 1:2, 3:4], alone)


def test_a_normal_law_read_at_z_gives_them_in_its_units():
    z = torch.randn(2, 30, 3, 4).mul(1.5).clamp(-4, 4)
    found = quantiles_at_z(normal_quantiles(3, 2, (2, 3, 4)), z)
    torch.testing.assert_close(found, 3 + 2 * z, rtol=1e-5, atol=1e-5)


def test_quantiles_read_at_the_z_of_equidistant_levels_are_the_equidistant_quantiles():
    quantiles, level = rising(), (torch.arange(50, dtype=torch.float64) + 0.5) / 50
    z = torch.special.ndtri(level).float().view(1, -1, 1, 1).expand(5, -1, 3, 4)
    torch.testing.assert_close(quantiles_at_z(quantiles, z), equidistant_quantiles(quantiles, 50),
                               rtol=0, atol=1e-5)


def test_members_read_at_random_z_are_a_sample_of_the_law_and_have_the_ranks_of_the_z():
    """A skewed law: its mean and spread, and the share of members below each of its 19 quantiles."""
    law, levels = torch.distributions.Gumbel(2.0, 0.5), torch.tensor(QUANTILE_LEVELS)
    quantiles = law.icdf(levels).double().view(1, -1, 1, 1).expand(1, -1, 1, 3)
    z = torch.randn(1, 100_000, 1, 3, dtype=torch.float64)
    members = quantiles_at_z(quantiles, z)
    assert torch.equal(members.argsort(1), z.argsort(1))
    below = (members.unsqueeze(1) < quantiles.unsqueeze(2)).float().mean(2)[0, :, 0]
    torch.testing.assert_close(below, levels.view(-1, 1).expand(-1, 3), rtol=0, atol=0.01)
    torch.testing.assert_close(members.mean(1).flatten(), law.mean.double().expand(3), rtol=0, atol=0.02)


def test_z_may_come_in_any_layout_and_stay_as_they_are():
    quantiles, z = rising(2), torch.randn(2, 9, 4, 3).transpose(2, 3)
    kept = z.clone()
    torch.testing.assert_close(quantiles_at_z(quantiles, z), quantiles_at_z(quantiles, kept))
    assert torch.equal(z, kept)


def test_smoothed_members_are_the_quantiles_of_the_ensemble_in_the_order_of_its_members():
    """Members that are exactly the normal quantiles at i / 21 become those at (i + 1/2) / 20, in any order."""
    level = torch.arange(1, 21, dtype=torch.float64) / 21
    order = torch.stack([torch.randperm(20) for _ in range(12)], dim=1).view(1, 20, 3, 4)
    members = (5 + 2 * torch.special.ndtri(level))[order]
    wanted = (5 + 2 * torch.special.ndtri((torch.arange(20) + 0.5).double() / 20))[order]
    torch.testing.assert_close(smooth_members(members, 20), wanted, rtol=0, atol=1e-6)


def test_smoothing_is_equivariant_keeps_ranks_and_is_wider_on_average():
    members = torch.randn(6, 50, 3, 4, dtype=torch.float64)
    smooth = smooth_members(members, 50)
    assert torch.equal(smooth.argsort(1), members.argsort(1))
    torch.testing.assert_close(smooth_members(3 * members - 2, 50), 3 * smooth - 2)
    assert smooth.var(1).mean() > members.var(1).mean()


def test_quantiles_of_many_draws_are_near_those_of_the_law_in_the_order_of_the_first():
    drawn = torch.randn(4, 4000, 3, 4, dtype=torch.float64)
    found = smooth_members(drawn, 20)
    wanted = reorder(equidistant_quantiles(normal_quantiles(shape=(4, 3, 4)).double(), 20), drawn[:, :20])
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.2)
    assert torch.equal(found.argsort(1), drawn[:, :20].argsort(1))


# Order

def test_reordered_members_keep_each_margin_and_have_the_ranks_of_the_z():
    ordered, z = torch.randn(3, 40, 2, 5).sort(1).values, torch.randn(3, 40, 2, 5)
    members = reorder(ordered, z)
    assert torch.equal(members.sort(1).values, ordered)
    assert torch.equal(members.argsort(1), z.argsort(1))
    assert torch.equal(reorder(ordered, ordered), ordered)
    member = z[1, :, 0, 2].argmax()
    assert members[1, member, 0, 2] == ordered[1, -1, 0, 2]


def test_reordering_leaves_its_arguments_alone():
    ordered, z = torch.randn(2, 9, 2, 2).sort(1).values, torch.randn(2, 9, 2, 2)
    kept = ordered.clone(), z.clone()
    reorder(ordered, z)
    assert torch.equal(ordered, kept[0]) and torch.equal(z, kept[1])


# From values to z

def test_the_z_of_the_equidistant_quantiles_are_those_of_their_levels():
    """Inside the quantiles and beyond them, whatever the law."""
    quantiles, members = rising(1) + torch.linspace(0, 1, 19).view(1, -1, 1, 1), 200
    values = equidistant_quantiles(quantiles, members)
    found = z_from_pit(quantiles.expand(members, -1, -1, -1), values[0], torch.rand(members, 3, 4), NOWHERE)
    wanted = torch.special.ndtri((torch.arange(members) + 0.5) / members).view(-1, 1, 1).expand_as(found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-3.0, 0.2), (10.0, 5.0)])
def test_z_under_a_normal_law_are_the_standardized_values(mean, std):
    values = mean + std * torch.linspace(-3.5, 3.5, 71).view(-1, 1, 1).expand(-1, 3, 4)
    found = z_from_pit(normal_quantiles(mean, std, (71, 3, 4)), values, torch.rand(71, 3, 4), NOWHERE)
    torch.testing.assert_close(found, (values - mean) / std, rtol=0, atol=1e-3)


def test_z_of_data_from_the_law_of_the_quantiles_are_standard_normal():
    """A skewed law, whose quantiles are exact at 19 levels only."""
    law = torch.distributions.Weibull(torch.tensor(1.0), torch.tensor(1.8))
    quantiles = law.icdf(torch.tensor(QUANTILE_LEVELS)).view(1, -1, 1, 1).expand(20_000, -1, 1, 2)
    z = z_from_pit(quantiles, law.sample((20_000, 1, 2)), torch.rand(20_000, 1, 2), NOWHERE)
    inside = z[z.abs() < torch.special.ndtri(torch.tensor(0.95))].double()
    assert len(inside) == pytest.approx(0.9 * z.numel(), abs=5 * math.sqrt(0.09 * z.numel()))
    assert stats.kstest(inside.numpy(), stats.truncnorm(-1.645, 1.645).cdf).statistic < 0.01
    assert abs(z.mean()) < 0.03 and z.std() == pytest.approx(1, abs=0.04)


def test_z_rise_with_the_value_and_stay_within_the_limit():
    quantiles = rising(1).expand(101, -1, -1, -1)
    values = torch.linspace(-1e4, 1e4, 101).view(-1, 1, 1).expand(-1, 3, 4)
    z = z_from_pit(quantiles, values, torch.rand(101, 3, 4), NOWHERE)
    assert (z.diff(dim=0) >= 0).all()
    assert float(z.min()) == pytest.approx(-NORMAL_SCORE_LIMIT, abs=0.01)
    assert float(z.max()) == pytest.approx(NORMAL_SCORE_LIMIT, abs=0.01)


@pytest.mark.parametrize("distance", [4.5, 50.0, 1e6])
def test_a_value_far_outside_has_a_level_below_1_in_float32_and_a_z_of_4(distance):
    """A level of 1 has no finite z, and one of 50 would outweigh all others in a covariance."""
    values = torch.tensor([-distance, distance]).view(-1, 1, 1).expand(-1, 3, 4)
    bounds = margins.pit_bounds(normal_quantiles(shape=(2, 3, 4)), values, NOWHERE, 0.0)
    assert bounds.dtype == torch.float32 and (bounds > 0).all() and (bounds < 1).all()
    found = margins.z_from_pit(bounds, torch.rand(2, 3, 4))
    torch.testing.assert_close(found, torch.tensor([-4.0, 4.0]).view(-1, 1, 1).expand(-1, 3, 4), rtol=0, atol=0.01)


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3])
def test_z_of_a_node_that_hardly_varies_is_as_exact_as_that_of_any(spread):
    z = torch.linspace(-2.5, 2.5, 101).view(-1, 1, 1).expand(-1, 3, 4)
    quantiles = spread * normal_quantiles(shape=(101, 3, 4))
    found = z_from_pit(quantiles, spread * z, torch.full_like(z, 0.5), NOWHERE)
    torch.testing.assert_close(found, z, rtol=0, atol=5e-3)


def test_equal_quantiles_give_finite_z():
    quantiles = torch.zeros(4, len(QUANTILE_LEVELS), 1, 1)
    values = torch.tensor([-1.0, 0.0, 1e-9, 1.0]).view(-1, 1, 1)
    for minimum in (NOWHERE, 0.0, -1.0):
        z = z_from_pit(quantiles, values, torch.tensor([0.0, 0.5, 1.0, 0.5]).view(-1, 1, 1), minimum)
        assert z.isfinite().all() and z.abs().max() <= NORMAL_SCORE_LIMIT


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.6, 0.9])
def test_quantiles_that_are_equal_at_the_minimum_give_standard_normal_z(probability):
    """As the base has them, whose quantiles are clamped."""
    minimum = float(torch.special.ndtri(torch.tensor(probability)))
    quantiles = normal_quantiles(shape=(20_000, 1, 1)).clamp_min(minimum)
    z = z_from_pit(quantiles, torch.randn(20_000, 1, 1).clamp_min(minimum), torch.rand(20_000, 1, 1), minimum)
    assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.05  # linear between the last two levels


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.6, 0.9])
def test_values_at_the_minimum_get_z_below_that_of_their_probability_evenly_in_level(probability):
    """A normal distribution of which all below its quantile at `probability` is at the minimum."""
    minimum = float(torch.special.ndtri(torch.tensor(probability)))
    quantiles, values = normal_quantiles(shape=(5000, 1, 2)), torch.full((5000, 1, 2), minimum)
    z = z_from_pit(quantiles, values, torch.rand(5000, 1, 2), minimum)
    level = torch.special.ndtr(z).flatten()
    assert level.max() < probability + 1e-3
    assert stats.kstest((level / probability).numpy(), "uniform").statistic < 0.025
    above = z_from_pit(quantiles, values + 1e-3, torch.rand(5000, 1, 2), minimum)
    assert (above > minimum).all() and above.std() < 1e-5


def test_z_of_a_law_with_much_of_its_weight_at_the_minimum_is_standard_normal():
    law, minimum = torch.randn(20_000, 1, 2), 0.4
    z = z_from_pit(normal_quantiles(shape=(20_000, 1, 2)), law.clamp_min(minimum), torch.rand(20_000, 1, 2),
                   minimum)
    assert stats.kstest(z.flatten().numpy(), "norm").statistic < 0.01


def test_without_a_minimum_the_uniform_numbers_do_not_matter():
    quantiles, values = rising(), torch.randn(5, 3, 4)
    one, other = (z_from_pit(quantiles, values, torch.rand(5, 3, 4), NOWHERE) for _ in range(2))
    assert torch.equal(one, other)


def test_z_of_rounded_values_are_standard_normal_and_of_no_value_outside_its_step():
    """Whole steps of 0.8 from the minimum up, of normal values: only a random level within the step is normal."""
    law, minimum, step = torch.randn(20_000, 1, 2), -0.6, 0.8
    values = to_support(law, minimum, step)
    assert len(values.unique()) < 8
    z = z_from_pit(normal_quantiles(shape=(20_000, 1, 2)), values, torch.rand(20_000, 1, 2), minimum, step)
    assert stats.kstest(z.flatten().numpy(), "norm").statistic < 0.01
    inside = values > minimum
    assert ((z - values)[inside].abs() < step / 2 + 1e-2).all() and (z[~inside] < minimum + step / 2).all()


# Support

def test_members_are_moved_to_the_nearest_value_that_the_field_can_take():
    values = torch.tensor([-3.0, -0.51, -0.29, 0.0, 0.11, 0.85])
    assert torch.equal(to_support(values, NOWHERE, 0.0), values)
    assert to_support(values, -0.3, 0.0).tolist() == pytest.approx([-0.3, -0.3, -0.29, 0, 0.11, 0.85])
    assert to_support(values, -0.5, 0.4).tolist() == pytest.approx([-0.5, -0.5, -0.1, -0.1, 0.3, 0.7])


# Loss

def test_the_mean_pinball_loss_is_the_quantile_form_of_the_crps():
    quantiles, truth = rising(), torch.randn(5, 3, 4)
    torch.testing.assert_close(pinball(quantiles, truth).mean(1), crps_quantile(quantiles, truth))


def test_pinball_is_asymmetric_as_its_level_says():
    loss = pinball(torch.zeros(1, len(QUANTILE_LEVELS)), torch.tensor([2.0]))[0]
    assert loss.tolist() == pytest.approx([2 * level * 2 for level in QUANTILE_LEVELS])
    loss = pinball(torch.zeros(1, len(QUANTILE_LEVELS)), torch.tensor([-2.0]))[0]
    assert loss.tolist() == pytest.approx([2 * (1 - level) * 2 for level in QUANTILE_LEVELS])


def test_members_are_raised_above_the_minimum_as_little_as_keeps_their_mean():
    members = torch.randn(3, 7, 2, 5, dtype=torch.float64) + 0.4
    kept = keep_mean_above(members, -0.2)
    assert kept.min() == -0.2 and torch.equal(kept.argsort(1)[:, -1], members.argsort(1)[:, -1])
    torch.testing.assert_close(kept.mean(1), members.mean(1).clamp_min(-0.2))
    for _ in range(50):  # no other members above the minimum, with that mean, are nearer
        other = (kept + 0.3 * torch.randn_like(kept)).clamp_min(-0.2) + 0.2
        other = other * ((kept + 0.2).sum(1, keepdim=True) / other.sum(1, keepdim=True)) - 0.2
        assert ((other - members).square().sum(1) >= (kept - members).square().sum(1) - 1e-12).all()


def test_members_of_counts_are_the_nearest_whole_numbers_that_keep_their_mean():
    """0, 0, 0.3, 0.4, 0.45 and 1.9 add up to 3.05: 1.9 and the largest remainder are rounded up."""
    members = torch.tensor([0.0, 0.4, 0.3, 1.9, 0.45, 0.0]).view(1, -1, 1, 1)
    assert round_members(members, 0.0, 1.0).flatten().tolist() == [0, 0, 0, 2, 1, 0]
    rare = 0.2 * torch.rand(4, 50, 3, 5)
    assert (to_support(rare, 0.0, 1.0) == 0).all(), "to the nearest number, none would be left"
    for minimum, step in ((0.0, 1.0), (-0.7, 0.25)):
        for given in (rare, torch.rand(4, 50, 3, 5) ** 4 * 9):
            found = round_members(given, minimum, step)
            units = (found - minimum) / step
            torch.testing.assert_close(units, units.round(), rtol=0, atol=1e-4)
            assert ((found - given).abs() < step + 1e-5).all() and found.min() >= minimum
            assert ((found - given).mean(1).abs() <= step / 100 + 1e-6).all()


def test_members_of_nodes_that_hold_any_value_are_not_rounded():
    members, minimum, step = torch.rand(2, 9, 3, 2) - 0.5, torch.tensor([NOWHERE, -0.5]), torch.tensor([0.0, 0.5])
    found = round_members(members, minimum, step)
    assert torch.equal(found[..., 0], members[..., 0]) and len(found[..., 1].unique()) == 3
    assert torch.equal(round_members(members, -0.2, 0.0), members.clamp_min(-0.2))


def test_members_that_need_no_raising_stay():
    members = torch.rand(2, 9, 3, 4)
    torch.testing.assert_close(keep_mean_above(members, 0.0), members)
    assert keep_mean_above(members, NOWHERE) is members
    assert (keep_mean_above(members - 2, 0.0) == 0).all()  # the mean lies below
