"""Joint scores see dependence between nodes and steps, and nothing else; the control has none."""

import math

import numpy as np
import pytest
import torch

from utils.scores import joint, metrics
from utils.scores.joint import JointScores, correlation_curve, random_nodes, random_regions, shuffled
from utils.scores.metrics import EnsembleScores

WINDOWS, MEMBERS, HORIZON, NODES = 60, 20, 5, 12
RING = (torch.arange(NODES).unsqueeze(1) + torch.tensor([0, 1, -1])) % NODES  # each node with the one on either side
START = torch.arange(WINDOWS) + 1000


def steps_apart(first, second):
    return np.abs(first - second).astype(float), "steps"


def forecasts(between_nodes=0.0, between_steps=0.0, windows=WINDOWS, seed=0):
    """Members and truth from one Gaussian distribution of variance 1 with these correlations, around a mean of 3."""
    generator = torch.Generator().manual_seed(seed)
    shape = windows, MEMBERS + 1, HORIZON
    common = torch.randn((*shape, 1), generator=generator, dtype=torch.float64)
    own = torch.randn((*shape, NODES), generator=generator, dtype=torch.float64)
    found = between_nodes**0.5 * common + (1 - between_nodes)**0.5 * own
    for step in range(1, HORIZON):
        found[:, :, step] = between_steps * found[:, :, step - 1] + (1 - between_steps**2)**0.5 * found[:, :, step]
    return 3 + found[:, 1:], 3 + found[:, 0]


def gather(members, truth, observed=None, chunk=7, neighbours=RING, start=START, distances=steps_apart):
    scores = JointScores(truth.shape[-1], neighbours, distances)
    for first in range(0, len(truth), chunk):
        part = slice(first, first + chunk)
        scores.update(members[part], truth[part], None if observed is None else observed[part], start[part])
    return scores


def close(found, wanted, rel=1e-9):
    """Whether two nested reports hold the same numbers."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[name], wanted[name], rel) for name in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return found == (pytest.approx(wanted, rel=rel, abs=1e-12) if isinstance(wanted, float) else wanted)


# The control

@pytest.mark.parametrize("axis", [2, 3])
def test_shuffling_keeps_the_members_of_every_target_and_whole_lines_of_the_other_axis(axis):
    members, _ = forecasts()
    found = shuffled(members, START, axis)
    assert torch.equal(found.sort(dim=1).values, members.sort(dim=1).values) and not torch.equal(found, members)
    whole, wanted = (x.movedim(axis, 1) for x in (found, members))  # (window, place, member, the rest of the path)
    same = (whole.unsqueeze(3) == wanted.unsqueeze(2)).all(-1)
    assert (same.sum(-1) == 1).all()  # each path of the control is a path of the ensemble


def test_an_order_follows_from_the_start_of_its_window_alone():
    members, _ = forecasts()
    order = torch.randperm(WINDOWS)
    assert torch.equal(shuffled(members[order], START[order], 3), shuffled(members, START, 3)[order])
    assert not torch.equal(shuffled(members, START + 1, 3), shuffled(members, START, 3))


def test_with_independent_nodes_and_steps_the_control_is_as_good():
    members, truth = forecasts(windows=300)
    found = gather(members, truth, start=torch.arange(300)).compute()
    for name, value in found["control"].items():
        if name.startswith("CRPS"):
            assert value == pytest.approx(found[name], rel=0.01), name


def test_with_dependence_every_score_of_the_control_is_worse_and_those_of_the_right_ensemble_are_calibrated():
    members, truth = forecasts(0.6, 0.5, windows=300)
    found = gather(members, truth, start=torch.arange(300)).compute()
    own = EnsembleScores(HORIZON, NODES, MEMBERS)
    own.update(members, truth)
    found |= {name: own.compute()[name] for name in ("energy_score", "variogram_score")}
    control = found["control"]
    for name in ("CRPS_sum", "CRPS_regions", "CRPS_neighbourhoods", "CRPS_max", "CRPS_increments", "energy_score",
                 "variogram_score"):
        assert control[name] > 1.01 * found[name], name
    for name in ("sum", "regions", "neighbourhoods", "max"):
        assert control[f"PIT_error_{name}"] > 0.015 > 2 * found[f"PIT_error_{name}"], name
    for name in ("correlation_gap", "autocorrelation_gap"):
        assert control[name] > 0.15 > 3 * found[name], name
    assert found["autocorrelation"]["forecast"] == pytest.approx([0.5**lag for lag in range(1, HORIZON)], abs=0.03)
    assert found["correlation"]["forecast"] == pytest.approx([0.6] * 11, abs=0.02)
    assert found["correlation"]["control"] == pytest.approx([0.0] * 11, abs=0.02)
    assert found["correlation"]["distance"] == pytest.approx(range(1, 12)) and found["correlation"]["unit"] == "steps"


def test_the_ensemble_of_independent_nodes_is_told_from_a_dependent_truth():
    (_, truth), (members, _) = forecasts(0.9, windows=300), forecasts(windows=300, seed=1)
    (right, _) = forecasts(0.9, windows=300, seed=2)
    wrong, right = (gather(each, truth, start=torch.arange(300)).compute() for each in (members, right))
    for name in ("CRPS_sum", "CRPS_regions", "CRPS_neighbourhoods", "CRPS_max"):
        assert wrong[name] > 1.03 * right[name], name


# Against plain computation

def test_every_crps_is_that_of_its_sets_one_by_one():
    members, truth = forecasts(0.5)
    found, windows = gather(members, truth).compute(), gather(members, truth).by_window()

    def crps(x, y):
        return metrics.crps_quantile(metrics.member_quantiles(x.sort(dim=1).values), y)

    reduced = {
        "regions": [(members[..., nodes].mean(-1), truth[..., nodes].mean(-1)) for nodes in random_regions(NODES)],
        "neighbourhoods": [(members[..., nodes].mean(-1), truth[..., nodes].mean(-1)) for nodes in RING],
        "max": [(members[..., nodes].amax(-1), truth[..., nodes].amax(-1)) for nodes in random_regions(NODES)],
        "increments": [(members[..., node].diff(dim=2), truth[..., node].diff(dim=1)) for node in range(NODES)],
        "sum": [(members.sum(-1), truth.sum(-1))],
    }
    for name, pairs in reduced.items():
        above, below = (sum(each.sum(1) for each in terms) for terms in
                        zip(*((crps(x, y), y.abs()) for x, y in pairs), strict=True))
        assert found[f"CRPS_{name}"] == pytest.approx(float(above.sum() / below.sum()), rel=1e-9), name
        if name != "sum":
            torch.testing.assert_close(windows[f"crps_{name}"], above)
            torch.testing.assert_close(windows[f"abs_truth_{name}"], below)


def test_the_sum_over_the_field_has_the_crps_sum_of_the_scores_and_the_control_their_energy_and_variogram():
    members, truth = forecasts(0.5)
    report = gather(members, truth).compute()
    for x, found in ((members, report), (shuffled(members, START, 3), report["control"])):
        scores = EnsembleScores(HORIZON, NODES, MEMBERS)
        scores.update(x, truth)
        assert found["CRPS_sum"] == pytest.approx(scores.compute()["CRPS_sum"], rel=1e-9)
    assert {name: report["control"][name] for name in ("energy_score", "variogram_score")} == pytest.approx(
        {name: scores.compute()[name] for name in ("energy_score", "variogram_score")}, rel=1e-9)


def test_correlations_are_those_of_errors_and_of_members_around_their_mean():
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn((NODES, NODES), generator=generator, dtype=torch.float64)
    members, truth = (x @ mixing for x in forecasts())
    pairs = gather(members, truth + 3).correlations()  # a constant error of the mean is no correlation
    errors = (truth - members.mean(1)).flatten(0, 1).numpy()
    around = (members - members.mean(1, keepdim=True)).flatten(0, 2).numpy()
    upper = np.triu_indices(NODES, 1)
    np.testing.assert_array_equal([pairs["first"], pairs["second"]], upper)
    np.testing.assert_allclose(pairs["observed"], np.corrcoef(errors.T)[upper], atol=1e-9)
    np.testing.assert_allclose(pairs["forecast"], np.corrcoef(around.T)[upper], atol=1e-9)
    np.testing.assert_allclose(pairs["weight"], np.outer(errors.std(0), errors.std(0))[upper], rtol=1e-9)
    assert np.abs(pairs["control"]).max() < 0.1


def test_a_node_that_never_varies_has_no_correlation():
    members, truth = forecasts()
    members[..., 1], truth[..., 1] = 5.0, 5.0
    pairs = gather(members, truth).correlations()
    assert len(pairs["first"]) == 55 and 1 not in pairs["first"] and 1 not in pairs["second"]


def test_the_curve_weighs_pairs_and_without_distances_goes_by_what_is_forecast():
    pairs = {"observed": np.array([0.2, 0.4, 0.9]), "forecast": np.array([0.1, 0.3, 0.8]),
             "control": np.zeros(3), "weight": np.array([1.0, 3, 1])}
    curve = correlation_curve(pairs, (np.array([1.0, 1, 5]), "km"))
    assert curve["distance"] == [1, 5] and curve["observed"] == pytest.approx([0.35, 0.9]) and curve["unit"] == "km"
    assert correlation_curve(pairs, (np.array([1.0, 1, np.inf]), "edges"))["forecast"] == pytest.approx([0.25])
    curve = correlation_curve(pairs, None)
    assert curve["distance"] is curve["unit"] is None and curve["forecast"] == pytest.approx([0.1, 0.3, 0.8])


# Streaming

@pytest.mark.parametrize("chunk", [1, 60])
def test_the_size_of_the_chunks_changes_nothing(chunk):
    members, truth = forecasts(0.5, 0.5)
    assert close(gather(members, truth, chunk=chunk).compute(), gather(members, truth).compute())


def test_the_sums_of_two_processes_may_be_added():
    members, truth = forecasts(0.5, 0.5)
    whole, left = gather(members, truth), gather(members[:25], truth[:25], start=START[:25])
    right = gather(members[25:], truth[25:], start=START[25:])
    left.sums = {name: value + right.sums[name] for name, value in left.sums.items()}
    assert close(left.compute(), whole.compute())
    for name, value in whole.by_window().items():
        torch.testing.assert_close(torch.cat([left.by_window()[name], right.by_window()[name]]), value)


def test_regions_reach_from_two_nodes_to_all_and_never_change():
    regions = random_regions(560)
    assert [len(each) for each in regions][0] == 2 and len(regions[-1]) == 560 and len(regions) == joint.REGIONS
    assert all(len(each.unique()) == len(each) for each in regions)
    assert all(map(torch.equal, regions, random_regions(560)))
    assert torch.equal(random_nodes(560, 9), random_nodes(560, 9))
    assert [each.tolist() for each in random_regions(1)[:2]] == [[0], [0]]


# Missing targets, and what does not exist

def test_a_masked_value_changes_no_score():
    (members, truth), observed = forecasts(0.5), torch.rand(WINDOWS, HORIZON, NODES) < 0.7
    reports = [gather(members.where(observed.unsqueeze(1), -value), truth.where(observed, value), observed).compute()
               for value in (0.0, 1e9, math.nan)]
    assert reports[0] == reports[1] == reports[2] and not close(reports[0], gather(members, truth).compute())


def test_with_nothing_masked_the_scores_are_those_without_a_mask():
    members, truth = forecasts(0.5)
    assert close(gather(members, truth, torch.ones_like(truth).bool()).compute(), gather(members, truth).compute())


def test_maxima_of_negative_values_are_those_of_the_observed_nodes():
    members, truth = (x - 100 for x in forecasts())
    observed = torch.ones_like(truth).bool()
    observed[..., 4] = False
    found = gather(members, truth, observed).by_window()["abs_truth_max"]
    nodes = [[node for node in region.tolist() if node != 4] for region in random_regions(NODES)]
    torch.testing.assert_close(found, sum(truth[..., each].amax(-1).abs().sum(1) for each in nodes if each))


def test_a_window_that_is_all_masked_counts_in_no_score():
    (members, truth), observed = forecasts(0.5), torch.ones(WINDOWS, HORIZON, NODES, dtype=torch.bool)
    observed[2] = False
    others = [window for window in range(WINDOWS) if window != 2]
    found = gather(members, truth, observed)
    assert close(found.compute(), gather(members[others], truth[others], start=START[others]).compute())
    assert all(value[2] == 0 for value in found.by_window().values())


def test_without_places_or_steps_or_nodes_what_needs_them_is_left_out():
    members, truth = forecasts()
    found = gather(members, truth, neighbours=None, distances=lambda first, second: None).compute()
    assert not [name for name in found if "neighbourhoods" in name] and found["correlation"]["unit"] is None
    assert "crps_neighbourhoods" not in gather(members, truth, neighbours=None).by_window()
    one = gather(members[:, :, :1, :1], truth[:, :1, :1], neighbours=None).compute()
    assert one["CRPS_increments"] is one["correlation_gap"] is one["autocorrelation_gap"] is None
    assert one["CRPS_regions"] == pytest.approx(one["CRPS_sum"]) and one["correlation"]["observed"] == []
