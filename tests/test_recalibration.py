"""Recalibration: it finds by how much the quantiles were too low, and believes little of what little data say."""

import pytest
import torch

from models.quantiles import LEVELS, levels_of, normal_scores
from models.recalibration import BINS, Recalibration

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
