"""Recalibration: it finds how far off and how narrow quantiles were, and believes little of what little data say."""

import pytest
import torch

from models.quantiles import LEVELS, levels_of, normal_scores
from models.recalibration import BINS, CLAMPED_VARIANCE, LARGEST_SCORE, Recalibration

HORIZON, NODES = 3, 4


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def calendar_of(windows, size=24):
    return torch.stack([torch.arange(windows) % size, torch.zeros(windows, dtype=torch.long)], dim=1)


def normal_quantiles(count):
    levels = torch.special.ndtri(torch.tensor(LEVELS, dtype=torch.float64)).float()
    return levels.view(1, -1, 1, 1).expand(count, -1, HORIZON, NODES)


def test_before_it_is_fitted_it_changes_nothing():
    quantiles = torch.randn(30, len(LEVELS), HORIZON, NODES).sort(1).values
    torch.testing.assert_close(Recalibration(NODES, HORIZON, 24)(quantiles, calendar_of(30)), quantiles,
                               rtol=0, atol=1e-5)


def test_quantiles_that_are_too_low_are_lifted_to_where_they_are_right():
    offset = torch.tensor([0.5, -0.3, 0.0, 0.2]) + torch.tensor([[0.0], [0.1], [-0.1]])
    truth = torch.randn(9600, HORIZON, NODES) + offset
    scores = normal_scores(levels_of(normal_quantiles(9600), truth, float("-inf"), 0.0), torch.rand_like(truth))
    recalibration = Recalibration(NODES, HORIZON, 24)
    recalibration.fit(zip(scores.split(4000), calendar_of(9600).split(4000), (None,) * 3, strict=True))
    moved = recalibration(normal_quantiles(24), calendar_of(24))[:, 9]
    assert (moved - offset).abs().mean() < 0.05 and (moved - offset).abs().max() < 0.25


def test_each_time_of_the_cycle_has_a_shift_of_its_own():
    calendar = calendar_of(2400)
    late = calendar[:, 0] >= 12
    scores = torch.where(late, 0.5, -0.5).view(-1, 1, 1).expand(-1, HORIZON, NODES)
    recalibration = Recalibration(NODES, HORIZON, 24)
    recalibration.fit([(scores, calendar, None)])
    shift = recalibration.shift[recalibration.bins(calendar)]
    assert (shift[late] > 0.3).all() and (shift[~late] < -0.3).all()


def test_the_more_cycles_the_more_is_believed_and_a_time_never_seen_is_left_alone():
    shifts = []
    for days in (1, 5, 500):
        recalibration = Recalibration(NODES, HORIZON, 24)
        recalibration.fit([(torch.full((24 * days, HORIZON, NODES), 0.4), calendar_of(24 * days), None)])
        shifts.append(float(recalibration.shift.mean()))
    assert 0 < shifts[0] < shifts[1] < shifts[2] < 0.4 and shifts[2] > 0.38
    recalibration = Recalibration(NODES, HORIZON, 24)
    recalibration.fit([(torch.ones(5, HORIZON, NODES), torch.zeros(5, 2, dtype=torch.long), None)])
    assert (recalibration.shift[0] > 0).all() and (recalibration.shift[1:] == 0).all()


@pytest.mark.parametrize("size, bins", [(7, 7), (12, 12), (24, min(24, BINS)), (288, BINS)])
def test_a_cycle_is_split_into_even_times(size, bins):
    recalibration = Recalibration(NODES, HORIZON, size)
    found = recalibration.bins(calendar_of(size, size))
    assert len(recalibration.shift) == bins and found.unique().tolist() == list(range(bins))
    assert found.bincount().max() - found.bincount().min() <= 1 and (found.diff() >= 0).all()


def test_missing_values_count_in_no_shift_whatever_stands_there():
    scores, observed = torch.randn(240, HORIZON, NODES), torch.rand(240, HORIZON, NODES) < 0.7
    one, other, reference = (Recalibration(NODES, HORIZON, 24) for _ in range(3))
    one.fit([(scores, calendar_of(240), observed)])
    other.fit([(torch.where(observed, scores, 2.0), calendar_of(240), observed)])
    assert torch.equal(one.shift, other.shift) and one.shift.abs().max() > 0.01
    kept = observed[:, 1, 2]
    reference.fit([(scores[kept], calendar_of(240)[kept], None)])
    torch.testing.assert_close(one.shift[:, 1, 2], reference.shift[:, 1, 2])


def fitted(scores, size=24, observed=None):
    recalibration = Recalibration(NODES, HORIZON, size)
    recalibration.fit([(scores, calendar_of(len(scores), size), observed)])
    return recalibration


def test_quantiles_that_are_too_narrow_are_widened_to_where_they_cover_what_they_should():
    truth = 0.4 + 1.3 * torch.randn(9600, HORIZON, NODES)
    scores = normal_scores(levels_of(normal_quantiles(9600), truth, float("-inf"), 0.0), torch.rand_like(truth))
    recalibration = fitted(scores)
    moved = recalibration(normal_quantiles(9600), calendar_of(9600))
    covered = ((truth > moved[:, 0]) & (truth < moved[:, -1])).float().mean()
    assert recalibration.widening > 1.2 and abs(covered - 0.9) < 0.02
    torch.testing.assert_close(moved[:, 9], recalibration.shift[recalibration.bins(calendar_of(9600))])


def test_quantiles_are_never_narrowed_and_left_alone_where_they_are_right():
    assert fitted(0.8 * torch.randn(2400, HORIZON, NODES)).widening == 1
    assert fitted(torch.randn(24000, HORIZON, NODES)).widening < 1.01


def test_the_more_cycles_the_more_of_a_widening_is_believed():
    found = [float(fitted(1.25 * torch.randn(24 * days, HORIZON, NODES)).widening) for days in (2, 10, 200)]
    assert 1 < found[0] < found[1] < found[2] < 1.3


@pytest.mark.parametrize("cycles", [2, 5, 40])
def test_widening_is_that_of_a_cycle_which_the_shifts_have_not_seen(cycles):
    """Scores that share most of their deviation within a cycle: the shifts follow the cycles they were fitted to."""
    found, wanted = [], []
    for _ in range(200):
        common = torch.randn(2 * cycles, 1, HORIZON, NODES)
        seen, unseen = (1.5 * common).expand(-1, 24, -1, -1).flatten(0, 1).clamp(-LARGEST_SCORE, LARGEST_SCORE).chunk(2)
        recalibration = fitted(seen)
        belief = cycles / (cycles + 3)
        found.append(float(recalibration.widening) ** (2 / belief))
        around = unseen - recalibration.shift[recalibration.bins(calendar_of(len(unseen)))]
        wanted.append(float(around.square().mean()) / CLAMPED_VARIANCE)
    assert sum(found) == pytest.approx(sum(wanted), rel=0.05)


def test_missing_values_widen_nothing_and_without_any_value_nothing_moves():
    scores, observed = torch.randn(240, HORIZON, NODES), torch.rand(240, HORIZON, NODES) < 0.7
    widening = fitted(1.3 * scores, observed=observed).widening
    assert widening == fitted(torch.where(observed, 1.3 * scores, 2.5), observed=observed).widening > 1
    empty = fitted(scores, observed=torch.zeros_like(observed))
    assert empty.widening == 1 and (empty.shift == 0).all()


def test_the_variance_of_scores_that_are_held_within_limits():
    held = torch.randn(4_000_000).clamp(-LARGEST_SCORE, LARGEST_SCORE)
    assert held.square().mean() == pytest.approx(CLAMPED_VARIANCE, abs=3e-3)
