"""What the pictures are drawn from is what numpy gives on all windows at once, however they come."""

import math

import numpy as np
import pytest
import torch

from utils.scores.diagnostics import Diagnostics, binned_means, pair_distances
from utils.scores.metrics import EnsembleScores

WINDOWS, MEMBERS, HORIZON, NODES = 30, 20, 4, 6


def forecasts(seed=0, mixing=None, bias=0.0):
    """Members and truth of one distribution around a common mean: (window, member, F, node), (window, F, node)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(NODES, dtype=torch.float64) if mixing is None else mixing
    mean = torch.randn((WINDOWS, 1, HORIZON, len(mixing)), generator=generator, dtype=torch.float64)
    noise = torch.randn((WINDOWS, MEMBERS + 1, HORIZON, len(mixing)), generator=generator, dtype=torch.float64)
    drawn = mean + noise @ mixing.T
    return drawn[:, 1:], drawn[:, 0] + bias


def gather(members, truth, observed=None, chunk=7):
    found = Diagnostics()
    for first in range(0, len(truth), chunk):
        part = slice(first, first + chunk)
        found.update(members[part], truth[part], None if observed is None else observed[part])
    return found


def test_the_means_of_every_node_are_those_of_all_windows_at_once():
    members, truth = forecasts()
    nodes = gather(members, truth).by_node()
    error = (members.mean(1) - truth).numpy()
    np.testing.assert_allclose(nodes["mean"], members.mean((0, 1, 2)))
    np.testing.assert_allclose(nodes["truth"], truth.mean((0, 1)))
    np.testing.assert_allclose(nodes["RMSE"], np.sqrt((error**2).mean((0, 1))))
    np.testing.assert_allclose(nodes["MAE"], np.abs(error).mean((0, 1)))
    np.testing.assert_allclose(nodes["spread"], np.sqrt(members.numpy().var(1, ddof=1).mean((0, 1))))
    low, high = np.quantile(members, [0.05, 0.95], axis=1)
    np.testing.assert_allclose(nodes["coverage90"], ((low <= truth.numpy()) & (truth.numpy() <= high)).mean((0, 1)))


def test_nodes_agree_with_the_scores():
    members, truth = forecasts()
    found, scores = gather(members, truth), EnsembleScores(HORIZON, NODES, MEMBERS)
    scores.update(members, truth)
    report, nodes = scores.compute(), found.by_node()
    assert nodes["CRPS"].mean() / truth.abs().mean() == pytest.approx(report["CRPS"])
    assert nodes["coverage90"].mean() == pytest.approx(report["coverage90"])
    assert math.sqrt((nodes["RMSE"]**2).mean()) == pytest.approx(report["RMSE"])


def test_the_size_of_the_chunks_changes_nothing():
    members, truth = forecasts()
    one, many = gather(members, truth, chunk=WINDOWS).sums, gather(members, truth, chunk=1).sums
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_what_was_not_observed_counts_nowhere():
    members, truth = forecasts()
    observed = torch.rand(truth.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    observed[:, :, 2] = False
    spoiled = truth.where(observed, math.nan)
    sums, other = gather(members, spoiled, observed).sums, gather(members, truth.where(observed, 1e6), observed).sums
    assert all(torch.equal(value, other[name]) and value.isfinite().all() for name, value in sums.items())
    nodes = gather(members, spoiled, observed).by_node()
    assert math.isnan(nodes["RMSE"][2])
    error = (members.mean(1) - truth)[..., 0][observed[..., 0]]
    assert nodes["RMSE"][0] == pytest.approx(error.square().mean().sqrt().item())


def test_targets_of_a_like_spread_are_compared_with_their_errors():
    members, truth = forecasts()
    wide = torch.arange(NODES) >= 3  # half of the nodes are eight times as uncertain
    found = gather(*(value * torch.where(wide, 8.0, 1.0) for value in (members, truth)))
    spread, error = found.spread_skill(2)
    np.testing.assert_allclose(spread, [1, 8], rtol=0.05)
    np.testing.assert_allclose(error, [1, 8], rtol=0.1)
    one = found.spread_skill(1)
    nodes = found.by_node()
    wanted = [math.sqrt((nodes[name]**2).mean()) for name in ("spread", "RMSE")]
    np.testing.assert_allclose(one, [[wanted[0] * math.sqrt(1 + 1 / MEMBERS)], [wanted[1]]])


@pytest.mark.parametrize("size", [1.0, 1e-22, 1e20])
def test_the_one_group_of_all_targets_has_the_spread_skill_of_the_scores_in_any_unit(size):
    members, truth = (size * each for each in forecasts())
    scores = EnsembleScores(HORIZON, NODES, MEMBERS)
    scores.update(members, truth)
    (spread,), (error,) = gather(members.float(), truth.float()).spread_skill(1)
    assert spread / error == pytest.approx(scores.compute()["spread_skill"], rel=1e-5)


def test_groups_of_spread_stand_in_order_and_an_ensemble_of_equal_members_has_spread_zero():
    members, truth = forecasts()
    spread, _ = gather(members * torch.linspace(0.1, 3, NODES), truth).spread_skill(8)
    assert len(spread) > 4 and (np.diff(spread) > 0).all()
    spread, error = gather(members[:, :1].expand(-1, 5, -1, -1), truth).spread_skill(3)
    assert spread.tolist() == pytest.approx([0.0], abs=1e-12) and error[0] > 0


def test_nothing_seen_is_said():
    with pytest.raises(ValueError, match="not one window"):
        Diagnostics().by_node()


def test_distances_on_a_grid_are_counted_in_steps():
    distance, unit = pair_distances(np.array([0, 0, 5]), np.array([1, 23, 5]), (5, 5))
    assert distance.tolist() == [1, 5, 0] and unit == "grid steps"  # node 23: row 4, column 3


def test_places_of_a_grid_without_a_node_keep_their_distance():
    distance, _ = pair_distances(np.array([0, 1]), np.array([1, 2]), (2, 4), np.array([0, 3, 7]))
    assert distance.tolist() == [3, 1]


def test_distances_between_coordinates_are_great_circles():
    pole, equator, opposite = (90, 0), (0, 0), (0, 180)
    london, paris = (51.5074, -0.1278), (48.8566, 2.3522)
    places = np.array([pole, equator, opposite, london, paris])
    distance, unit = pair_distances(np.array([0, 1, 3, 3]), np.array([1, 2, 4, 3]), coordinates=places)
    assert unit == "km"
    assert distance == pytest.approx([np.pi / 2 * 6371, np.pi * 6371, 343.6, 0], abs=0.5)


def test_distances_along_a_graph_are_counted_in_edges_either_way():
    graph = torch.tensor([[0, 0.2, 0, 0], [0, 0, 0, 0], [0, 0.9, 0, 0], [0, 0, 0, 1]])
    distance, unit = pair_distances(np.array([0, 0, 1, 0]), np.array([1, 2, 2, 3]), graph=graph)
    assert distance.tolist() == [1, 2, 1, np.inf] and unit == "edges"


def test_nodes_without_a_place_have_no_distance():
    assert pair_distances(np.array([0]), np.array([1])) is None


def test_binned_means_are_weighted_and_leave_out_empty_bins():
    x, y, weight = np.array([0.0, 1, 9, 10]), np.array([1.0, 3, 5, 5]), np.array([1.0, 3, 1, 1])
    means = binned_means(np.array([0, 2, 4, 10]), weight, x, y)
    np.testing.assert_allclose(means, [[0.75, 9.5], [2.5, 5]])
