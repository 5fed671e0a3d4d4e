"""Scores against closed forms, against two other libraries, and against their definitions as loops."""

import itertools
import json
import math

import numpy as np
import pytest
import scoringrules
import torch
from scipy.stats import norm

from utils.scores import metrics
from utils.scores.metrics import EnsembleScores

KEYS = {
    "CRPS", "CRPS_fair", "CRPS_fair_physical", "CRPS_sum", "QICE", "IS", "coverage90", "MAE", "MAE_median",
    "RMSE", "energy_score", "variogram_score", "spread_skill", "QICE_floor", "coverage90_floor", "windows",
    "members", "per_horizon", "PIT", "PIT_error", "QICE_ties", "ensemble", "CRPS_nodes", "per_node",
}
KEYS_PER_HORIZON = {
    "CRPS", "CRPS_fair", "CRPS_fair_physical", "CRPS_sum", "QICE", "IS", "coverage90", "MAE", "MAE_median", "RMSE",
    "energy_score", "variogram_score", "spread_skill", "QICE_ties",
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def forecast(batch=6, members=9, horizon=3, node=5, dtype=torch.float64):
    """A correlated, biased, too narrow ensemble with a different level in each node."""
    level = 4 + 3 * torch.arange(node, dtype=dtype) + torch.randn(batch, horizon, node, dtype=dtype)
    shared = torch.randn(batch, members, horizon, 1, dtype=dtype)
    own = torch.randn(batch, members, horizon, node, dtype=dtype)
    truth = level + 1.2 * torch.randn(batch, horizon, node, dtype=dtype)
    return level.unsqueeze(1) + 0.3 + shared + 0.5 * own, truth


def score(members, truth, chunk=None):
    scores = EnsembleScores(horizon=truth.shape[1], node=truth.shape[2], members=members.shape[1])
    for x, y in zip(members.split(chunk or len(truth)), truth.split(chunk or len(truth)), strict=True):
        scores.update(x, y)
    return scores.compute()


def everywhere(truth):
    return torch.ones_like(truth, dtype=torch.bool)


def flat(report):
    """All scores by name; of nodes those that have any."""
    parts = {f"{name}@{part}": [each for each in values if each is not None]
             for part in ("per_horizon", "per_node") for name, values in report[part].items()}
    return {name: value for name, value in report.items() if name not in ("per_horizon", "per_node")} | parts


def assert_same(one, other, rel):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    assert one.pop("ensemble") == other.pop("ensemble")
    for name in one:
        assert one[name] == pytest.approx(other[name], rel=rel, abs=1e-12), name


# --- CRPS ---------------------------------------------------------------------------------------------------

def test_crps_of_a_large_gaussian_ensemble_is_its_closed_form():
    truth = torch.tensor([[-1.0, 0.4, 2.5, 9.0]], dtype=torch.float64)
    mean, std = torch.full_like(truth, 0.5), torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    probability = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    ordered = torch.from_numpy(norm.ppf(probability))[None, :, None] * std + mean.unsqueeze(1)
    exact = scoringrules.crps_normal(truth.numpy(), mean.numpy(), std.numpy())
    np.testing.assert_allclose(metrics.crps_fair(ordered, truth), exact, rtol=1e-3)


def test_crps_of_a_uniform_ensemble_is_its_closed_form():
    truth = torch.tensor([[0.0, 0.25, 0.5, 1.0]], dtype=torch.float64)
    ordered = ((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[None, :, None].expand(1, 4000, 4)
    exact = truth**2 - truth + 1 / 3
    torch.testing.assert_close(metrics.crps_fair(ordered, truth), exact, rtol=0, atol=1e-4)
    quantile = metrics.crps_quantile(metrics.member_quantiles(ordered), truth)
    torch.testing.assert_close(quantile, exact, rtol=0, atol=0.02)  # 19 levels are a coarse integral


@pytest.mark.parametrize("members", [2, 5, 20])
def test_fair_crps_has_no_bias_whatever_the_number_of_members(members):
    draws = torch.randn(200_000, members + 1, dtype=torch.float64)
    ordered, truth = draws[:, 1:].sort(dim=1).values, draws[:, 0]
    perfect = 1 / math.sqrt(math.pi)
    assert metrics.crps_fair(ordered, truth).mean().item() == pytest.approx(perfect, abs=0.005)


@pytest.mark.parametrize("elements", [2**22, 600])
def test_crps_agrees_with_properscoring_whatever_its_chunks(elements, monkeypatch):
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", elements)
    members, truth = forecast(members=50)
    ordered, truth = members.sort(dim=1).values.movedim(1, -1).flatten(0, -2), truth.flatten()
    theirs = metrics.crps_by_properscoring(ordered, truth)
    torch.testing.assert_close(metrics.crps_fair(ordered, truth), theirs, rtol=0, atol=1e-12)


def test_crps_agrees_with_scoringrules():
    members, truth = forecast()
    theirs = scoringrules.crps_ensemble(truth.numpy(), members.numpy(), m_axis=1, estimator="fair")
    np.testing.assert_allclose(metrics.crps_fair(members.sort(dim=1).values, truth), theirs)


@pytest.mark.parametrize("members", [1, 2, 11, 21, 50])
def test_quantiles_are_numpys(members):
    ordered = torch.randn(3, members, 4, dtype=torch.float64).sort(dim=1).values
    theirs = np.moveaxis(np.quantile(ordered.numpy(), metrics.QUANTILE_LEVELS, axis=1), 0, 1)
    np.testing.assert_allclose(metrics.member_quantiles(ordered), theirs, atol=1e-14)


def test_a_quantile_that_falls_on_a_member_is_that_member():
    ordered = torch.randn(1, 101, 400, dtype=torch.float64).sort(dim=1).values
    assert torch.equal(metrics.member_quantiles(ordered), ordered[:, 5:100:5])


# --- intervals and calibration ------------------------------------------------------------------------------

def test_interval_score_agrees_with_scoringrules():
    lower, truth = torch.randn(2, 100, dtype=torch.float64)
    upper = lower + 0.7
    theirs = scoringrules.interval_score(truth.numpy(), lower.numpy(), upper.numpy(), 0.1)
    np.testing.assert_allclose(metrics.interval_score(lower, upper, truth), theirs)


def bins_of(members, truth):
    """The bins that share one observation, and that their shares are equal."""
    quantiles = metrics.member_quantiles(torch.tensor(members).view(1, -1, 1, 1))
    truth = torch.tensor(truth).view(1, 1, 1)
    pairs = metrics.decile_counts(quantiles[:, metrics.DECILES], truth, everywhere(truth))
    counts = metrics.shared_bins(pairs)[0]
    bins = counts.nonzero().flatten().tolist()
    assert counts[bins].tolist() == pytest.approx([1 / len(bins)] * len(bins))
    return bins


def lowest_bin_counts(members, truth):
    """CARD's rule with numpy: an observation counts in the bin above all edges strictly below it."""
    edges = np.quantile(members.numpy(), np.arange(1, 10) / 10, axis=1)
    bins = (edges < truth.numpy()).sum(0)
    return np.stack([np.bincount(bins[:, h].ravel(), minlength=10) for h in range(truth.shape[1])])


def zero_inflated(zeros, nodes=400, windows=100, members=50):
    """A perfect forecast of a normal variable clipped at zero: P(0) = zeros in every node."""
    draws = (torch.randn(windows, members + 1, 1, nodes) - norm.ppf(zeros)).clamp_min(0)
    return draws[:, 1:].sort(dim=1).values, draws[:, 0]


def test_an_observation_outside_the_ensemble_counts_in_an_end_bin():
    members = [float(k) for k in range(11)]
    assert [bins_of(members, truth) for truth in (-5.0, 0.0, 10.0, 99.0)] == [[0], [0], [9], [9]]


def test_an_observation_on_an_edge_counts_half_in_both_its_bins():
    members = [float(k) for k in range(11)]
    assert [bins_of(members, float(k)) for k in range(1, 10)] == [[k - 1, k] for k in range(1, 10)]
    assert bins_of(members, 3.5) == [3]


def test_an_observation_on_many_edges_is_spread_over_all_bins_that_touch_them():
    everything = list(range(10))
    assert [bins_of([2.0] * 7, truth) for truth in (1.9, 2.0, 2.1)] == [[0], everything, [9]]
    half_zero = [0.0] * 6 + [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (bins_of(half_zero, 0.0), bins_of(half_zero, 0.5)) == ([0, 1, 2, 3, 4, 5], [5])


def test_without_ties_the_bins_are_those_of_card():
    members, truth = forecast(batch=40, members=50)
    quantiles = metrics.member_quantiles(members.sort(dim=1).values)
    pairs = metrics.decile_counts(quantiles[:, metrics.DECILES], truth, everywhere(truth))
    counts = metrics.shared_bins(pairs)
    assert counts.dtype == torch.float64
    np.testing.assert_array_equal(counts, lowest_bin_counts(members, truth))
    assert torch.equal(counts, pairs.sum(-1))


def test_observations_on_edges_count_in_the_lowest_bin_by_the_rule_of_card():
    members, truth = ((x - 8).clamp_min(0).round() for x in forecast(batch=40, members=50))
    quantiles = metrics.member_quantiles(members.sort(dim=1).values)
    pairs = metrics.decile_counts(quantiles[:, metrics.DECILES], truth, everywhere(truth))
    np.testing.assert_array_equal(pairs.sum(-1), lowest_bin_counts(members, truth))
    assert not torch.equal(pairs.sum(-1), metrics.shared_bins(pairs))
    report = score(members, truth)
    bins = lowest_bin_counts(members, truth).sum(0)
    assert report["QICE"] == pytest.approx(np.abs(bins / bins.sum() - 0.1).mean())


@pytest.mark.parametrize("zeros", [0.3, 0.82, 0.88])
def test_a_perfect_forecast_of_many_zeros_scores_near_the_floor(zeros):
    ordered, truth = zero_inflated(zeros)
    pairs = metrics.decile_counts(metrics.member_quantiles(ordered)[:, metrics.DECILES], truth, everywhere(truth))
    counts = metrics.shared_bins(pairs)
    assert metrics.bin_error(counts).item() < metrics.perfect_qice(50) + 0.002
    assert metrics.bin_error(pairs.sum(-1)).item() > (0.04 if zeros < 0.5 else 0.1)
    assert metrics.bin_error(metrics.pit_counts(ordered, truth, everywhere(truth))).item() < 0.003


@pytest.mark.parametrize("members", [3, 20, 50])
def test_the_pit_of_a_perfect_ensemble_is_flat_whatever_the_number_of_members(members):
    draws = torch.randn(200_000, members + 1)
    counts = metrics.pit_counts(draws[:, 1:].sort(dim=1).values, draws[:, 0], everywhere(draws[:, 0]))
    assert counts.sum().item() == pytest.approx(200_000)
    assert metrics.bin_error(counts).item() < 0.001


@pytest.mark.parametrize("ties", [False, True], ids=["continuous", "counts with ties"])
def test_the_pit_spreads_each_observation_over_its_ranks(ties):
    members, truth = forecast()
    if ties:
        members, truth = ((x - 8).clamp_min(0).round() for x in (members, truth))
    expected, edges = np.zeros(20), np.arange(21) / 20
    for x, y in zip(members.movedim(1, -1).reshape(-1, 9).numpy(), truth.flatten().numpy(), strict=True):
        low, high = (x < y).sum() / 10, ((x <= y).sum() + 1) / 10
        expected += np.diff(np.clip((edges - low) / (high - low), 0, 1))
    found = metrics.pit_counts(members.sort(dim=1).values, truth, everywhere(truth))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    report = score(members, truth, chunk=4)
    assert report["PIT"] == pytest.approx((expected / expected.sum()).tolist())
    assert sum(report["PIT"]) == pytest.approx(1)
    assert report["PIT_error"] == pytest.approx(np.abs(np.array(report["PIT"]) - 0.05).mean())


def test_the_pit_of_a_narrow_ensemble_piles_up_at_both_ends():
    draws = torch.randn(20_000, 21)
    counts = metrics.pit_counts((0.3 * draws[:, 1:]).sort(dim=1).values, draws[:, 0], everywhere(draws[:, 0]))
    assert counts[0] > 4 * counts[10] and counts[-1] > 4 * counts[10]


@pytest.mark.parametrize("members", [10, 50])
def test_the_floors_are_what_a_perfect_ensemble_scores(members):
    draws = torch.rand(400_000, members + 1)
    quantiles = metrics.member_quantiles(draws[:, 1:].sort(dim=1).values[..., None, None])
    truth = draws[:, :1, None]
    pairs = metrics.decile_counts(quantiles[:, metrics.DECILES], truth, everywhere(truth))
    qice = metrics.bin_error(metrics.shared_bins(pairs)).item()
    coverage = metrics.covered(quantiles[:, 0], quantiles[:, -1], truth).double().mean().item()
    assert qice == pytest.approx(metrics.perfect_qice(members), abs=4e-4)
    assert coverage == pytest.approx(metrics.perfect_coverage(members), abs=2e-3)


def test_the_floors_of_fifty_members_are_the_published_ones():
    assert round(metrics.perfect_qice(50), 4) == 0.0063
    assert round(metrics.perfect_coverage(50), 4) == 0.8647


def test_spread_skill_of_a_perfect_ensemble_is_one():
    draws = torch.randn(4000, 9, 2, 5)
    report = score(draws[:, 1:] + 3, draws[:, 0] + 3)
    assert report["spread_skill"] == pytest.approx(1, abs=0.02)


# --- joint scores -------------------------------------------------------------------------------------------

def test_energy_score_agrees_with_scoringrules():
    members, truth = forecast()
    theirs = scoringrules.es_ensemble(truth.numpy(), members.numpy(), m_axis=1, estimator="nrg")
    np.testing.assert_allclose(metrics.energy_score(members, truth), theirs)


def test_energy_score_of_one_node_is_the_crps():
    members, truth = forecast(node=1)
    crps = scoringrules.crps_ensemble(truth.numpy(), members.numpy(), m_axis=1, estimator="nrg")
    np.testing.assert_allclose(metrics.energy_score(members, truth), crps[..., 0], atol=1e-7)


def test_energy_score_survives_float32_far_from_zero():
    members, truth = forecast(node=40)
    members, truth = members.float() + 1000, truth.float() + 1000
    exact = metrics.energy_score(members.double(), truth.double())
    torch.testing.assert_close(metrics.energy_score(members, truth), exact, rtol=1e-6, atol=0)


def test_members_are_sorted_without_touching_them():
    members = forecast()[0][:, :, ::2]
    copy = members.clone()
    assert torch.equal(metrics.sort_members(members), copy.sort(dim=1).values) and torch.equal(members, copy)


def test_variogram_score_agrees_with_scoringrules():
    members, truth = forecast()
    node = truth.shape[-1]
    theirs = scoringrules.vs_ensemble(truth.numpy(), members.numpy(), m_axis=1, v_axis=-1, p=0.5)
    np.testing.assert_allclose(metrics.variogram_score(members, truth, everywhere(truth)), theirs / (node * (node - 1)))


def test_variogram_pairs_are_all_pairs_of_a_small_field():
    assert {tuple(pair) for pair in metrics.variogram_pairs(4).T.tolist()} == {
        (0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)
    }
    assert metrics.variogram_pairs(63).shape == (2, 63 * 62 // 2)


def test_variogram_pairs_of_a_large_field_are_always_the_same_distinct_ones():
    pairs = metrics.variogram_pairs(10_000)
    state = torch.get_rng_state()
    assert torch.equal(pairs, metrics.variogram_pairs(10_000))
    assert torch.equal(state, torch.get_rng_state())
    assert len({tuple(pair) for pair in pairs.T.tolist()}) == metrics.MAX_VARIOGRAM_PAIRS
    assert pairs.min() >= 0 and pairs.max() < 10_000 and (pairs[0] < pairs[1]).all()


def test_variogram_score_does_not_depend_on_its_chunks(monkeypatch):
    members, truth = forecast()
    whole = metrics.variogram_score(members, truth, everywhere(truth))
    monkeypatch.setattr(metrics, "_CACHE_ELEMENTS", 3 * members[..., 0].numel())
    torch.testing.assert_close(metrics.variogram_score(members, truth, everywhere(truth)), whole)


def test_joint_scores_punish_a_forecast_whose_nodes_were_shuffled():
    node = 12
    root = torch.linalg.cholesky(0.9 ** (torch.arange(node)[:, None] - torch.arange(node)).abs())
    draws = torch.randn(300, 31, 1, node) @ root.T + 10
    truth, joint = draws[:, 0], draws[:, 1:]
    shuffled = joint.gather(1, torch.rand(joint.shape).argsort(dim=1))
    joint, shuffled = score(joint, truth), score(shuffled, truth)
    for name in ("energy_score", "variogram_score", "CRPS_sum"):
        assert shuffled[name] > 1.02 * joint[name], name
    for name in ("CRPS", "CRPS_fair", "QICE", "IS", "MAE", "MAE_median", "RMSE"):
        assert shuffled[name] == pytest.approx(joint[name], rel=1e-4), name


# --- the accumulator ----------------------------------------------------------------------------------------

def literal_scores(members, truth):
    """method.md, section 5, word by word."""
    def crps(x, y):
        per_level = []
        for q in np.arange(1, 20) / 20:
            forecast = np.quantile(x, q, axis=1)
            per_level.append(np.sum(2 * np.abs((forecast - y) * ((y <= forecast) - q))) / np.sum(np.abs(y)))
        return np.mean(per_level)

    batch, count, horizon, node = members.shape
    lowest, bins, interval, inside, error, error_median = np.zeros(10), np.zeros(10), [], [], [], []
    fair, variance = 0.0, []
    for b in range(batch):
        for h in range(horizon):
            for v in range(node):
                x, y = members[b, :, h, v], truth[b, h, v]
                edges = np.quantile(x, np.arange(1, 10) / 10)
                touched = slice(sum(edge < y for edge in edges), sum(edge <= y for edge in edges) + 1)
                bins[touched] += 1 / (touched.stop - touched.start)
                lowest[touched.start] += 1
                low, high = np.quantile(x, [0.05, 0.95])
                fine = 20 * (low - y) * (y < low) + 20 * (y - high) * (y > high)
                interval.append(high - low + fine)
                inside.append(low <= y <= high)
                error.append(x.mean() - y)
                error_median.append(np.median(x) - y)
                gaps = sum(abs(a - c) for a in x for c in x)
                fair += np.abs(x - y).mean() - gaps / (2 * count * (count - 1))
                variance.append(x.var(ddof=1))
    rmse = np.sqrt(np.mean(np.square(error)))
    return {
        "CRPS": crps(members, truth),
        "CRPS_sum": crps(members.sum(-1), truth.sum(-1)),
        "CRPS_fair": fair / np.abs(truth).sum(),
        "CRPS_fair_physical": fair / truth.size,
        "QICE": np.mean(np.abs(lowest / lowest.sum() - 0.1)),
        "QICE_ties": np.mean(np.abs(bins / bins.sum() - 0.1)),
        "IS": np.mean(interval),
        "coverage90": np.mean(inside),
        "MAE": np.mean(np.abs(error)),
        "MAE_median": np.mean(np.abs(error_median)),
        "RMSE": rmse,
        "spread_skill": np.sqrt((count + 1) / count * np.mean(variance)) / rmse,
    }


@pytest.mark.parametrize("counts", [False, True], ids=["continuous", "counts with ties"])
def test_scores_are_their_written_definitions(counts):
    members, truth = forecast()
    if counts:
        members, truth = ((x - 8).clamp_min(0).round() for x in (members, truth))
    report = score(members, truth)
    for name, value in literal_scores(members.numpy(), truth.numpy()).items():
        assert report[name] == pytest.approx(value, rel=1e-9), name
    for h in range(truth.shape[1]):
        literal = literal_scores(members[:, :, [h]].numpy(), truth[:, [h]].numpy())
        for name in KEYS_PER_HORIZON & literal.keys():
            assert report["per_horizon"][name][h] == pytest.approx(literal[name], rel=1e-9), name


def test_a_report_has_exactly_its_keys_and_is_json():
    report = score(*forecast(dtype=torch.float32))
    assert report.keys() == KEYS | metrics.SCORES.keys()
    assert report["per_horizon"].keys() == KEYS_PER_HORIZON | metrics.SCORES.keys()
    assert all(len(values) == 3 for values in report["per_horizon"].values())
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["windows"], report["members"]) == (6, 9)


def test_crps_nodes_is_the_mean_over_nodes_of_crps_over_their_own_mean_truth():
    members, truth = forecast()
    report, by_node = score(members, truth), [score(members[..., [node]], truth[..., [node]]) for node in range(5)]
    assert report["per_node"]["CRPS"] == pytest.approx([each["CRPS"] for each in by_node], rel=1e-12)
    assert report["CRPS_nodes"] == pytest.approx(np.mean([each["CRPS"] for each in by_node]), rel=1e-12)
    physical = [each["CRPS"] * float(truth[..., node].abs().mean()) for node, each in enumerate(by_node)]
    assert report["per_node"]["CRPS_physical"] == pytest.approx(physical, rel=1e-12)


@pytest.mark.parametrize("factors", [[1, 1e-6, 1, 1e9, -3], [1e5] * 5])
def test_crps_nodes_is_the_same_in_any_unit_of_each_node_and_crps_is_not(factors):
    (members, truth), factors = forecast(), torch.tensor(factors, dtype=torch.float64)
    one, other = score(members, truth), score(members * factors, truth * factors)
    assert other["CRPS_nodes"] == pytest.approx(one["CRPS_nodes"], rel=1e-9)
    assert (other["CRPS"] == pytest.approx(one["CRPS"], rel=1e-9)) is (len(factors.unique()) == 1)


def test_a_node_whose_truth_is_zero_throughout_has_no_normalized_crps_and_counts_in_no_mean():
    members, truth = forecast()
    truth[..., 3] = 0
    report, others = score(members, truth), [0, 1, 2, 4]
    assert report["per_node"]["CRPS"][3] is None and report["per_node"]["CRPS_physical"][3] > 0
    assert report["CRPS_nodes"] == pytest.approx(score(members[..., others], truth[..., others])["CRPS_nodes"])


@pytest.mark.parametrize("chunk", [1, 4])
def test_streamed_chunks_score_as_one_piece(chunk):
    members, truth = forecast(batch=7, members=50, node=70, dtype=torch.float32)
    assert_same(score(members, truth, chunk), score(members, truth), rel=1e-6)


def test_the_sums_of_two_accumulators_add_up():
    members, truth = forecast()
    whole, left, right = (EnsembleScores(3, 5, 9) for _ in range(3))
    whole.update(members, truth)
    left.update(members[:2], truth[:2])
    right.update(members[2:], truth[2:])
    left.sums = {name: left.sums[name] + right.sums[name] for name in left.sums}
    assert_same(left.compute(), whole.compute(), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_the_scores_of_each_window_are_kept_in_the_order_seen(chunk):
    members, truth = forecast(dtype=torch.float32)
    scores = EnsembleScores(3, 5, 9)
    for x, y in zip(members.split(chunk), truth.split(chunk), strict=True):
        scores.update(x, y)
    windows, report = scores.by_window(), scores.compute()
    assert windows.keys() == set(metrics.BY_WINDOW)
    assert all(value.shape == (6,) and value.dtype == torch.float64 for value in windows.values())
    for name, (above, below) in {"CRPS": ("crps", "abs_truth"), "CRPS_fair": ("crps_fair", "abs_truth"),
                                 "CRPS_sum": ("crps_sum", "abs_truth_sum"), "IS": ("interval_score", "targets"),
                                 "MAE": ("error_mean", "targets"), "MAE_median": ("error_median", "targets"),
                                 "energy_score": ("energy_score", "fields"),
                                 "variogram_score": ("variogram_score", "paired_fields")}.items():
        assert (windows[above].sum() / windows[below].sum()).item() == pytest.approx(report[name]), name
    for b in range(6):
        alone = score(members[b:b + 1], truth[b:b + 1])
        assert (windows["crps"] / windows["abs_truth"])[b].item() == pytest.approx(alone["CRPS"])
        for name in ("energy_score", "variogram_score"):
            assert windows[name][b].item() == pytest.approx(3 * alone[name]), name


def test_the_order_of_members_changes_nothing():
    members, truth = forecast()
    assert_same(score(members[:, torch.randperm(9)], truth), score(members, truth), rel=1e-9)


def test_horizons_average_to_the_totals():
    members, truth = forecast()
    report = score(members, truth)
    per_horizon = report["per_horizon"]
    mean = {name: np.mean(values) for name, values in per_horizon.items()}
    for name in ("MAE", "MAE_median", "IS", "coverage90"):
        assert report[name] == pytest.approx(mean[name], rel=1e-12), name
    assert report["RMSE"] == pytest.approx(np.sqrt(np.mean(np.square(per_horizon["RMSE"]))), rel=1e-12)
    weight = truth.abs().sum((0, 2)).numpy()
    for name in ("CRPS", "CRPS_fair"):
        assert report[name] == pytest.approx(np.average(per_horizon[name], weights=weight), rel=1e-12)
    assert report["QICE"] <= mean["QICE"]


def test_one_window_of_one_node_is_scored():
    report = score(*forecast(batch=1, horizon=1, node=1))
    assert report["variogram_score"] == 0
    assert report["CRPS_sum"] == pytest.approx(report["CRPS"])


def test_updating_leaves_the_forecast_alone():
    members, truth = forecast(dtype=torch.float32)
    copies = members.clone(), truth.clone()
    score(members, truth)
    assert torch.equal(members, copies[0]) and torch.equal(truth, copies[1])


def test_half_precision_members_are_scored_in_float64():
    members, truth = forecast(dtype=torch.float32)
    assert_same(score(members.bfloat16(), truth), score(members.bfloat16().float(), truth), rel=1e-12)


def test_members_that_are_not_finite_are_refused_and_counted():
    members, truth = forecast()
    members[0, 1, 2, 3], members[5, 0, 0, 0] = math.nan, math.inf
    scores = EnsembleScores(3, 5, 9)
    with pytest.raises(ValueError, match=r"2 of 810 member values and 0 of 90 true values"):
        scores.update(members, truth)
    assert not scores.sums


def test_a_truth_that_is_not_finite_is_refused():
    members, truth = forecast()
    truth[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 90 true values"):
        score(members, truth)


def test_the_wrong_number_of_members_is_refused():
    members, truth = forecast()
    with pytest.raises(ValueError, match=r"10 members \(--nsample\)"):
        EnsembleScores(3, 5, 10).update(members, truth)


def test_shapes_that_do_not_match_are_refused():
    members, truth = forecast()
    for pair in ((members[..., :4], truth), (members, truth[:5]), (members[0], truth), (members, truth[0])):
        with pytest.raises(ValueError, match="cannot score members"):
            EnsembleScores(3, 5, 9).update(*pair)


def test_one_member_is_no_ensemble():
    with pytest.raises(ValueError, match="--nsample 1"):
        EnsembleScores(3, 5, 1)


def test_an_all_zero_truth_has_no_normalised_crps():
    members, truth = forecast()
    found = score(members, torch.zeros_like(truth))
    assert {name for name in ("CRPS", "CRPS_sum", "CRPS_nodes", "MAE", "IS", "QICE") if found[name] is None} == {
        "CRPS", "CRPS_sum", "CRPS_nodes"}


def test_no_windows_have_no_scores():
    with pytest.raises(ValueError, match="not one window"):
        EnsembleScores(3, 5, 9).compute()
    with pytest.raises(ValueError, match="not one window"):
        EnsembleScores(3, 5, 9).by_window()


def test_a_ratio_that_does_not_exist_is_none():
    members, truth = forecast()
    members[:, :, 0], truth[:, 0] = 0, 0
    report = score(members, truth)
    assert report["per_horizon"]["CRPS"][0] is None and report["per_horizon"]["spread_skill"][0] is None
    assert report["per_horizon"]["CRPS"][1] > 0 and report["CRPS"] > 0


# --- missing targets ----------------------------------------------------------------------------------------

def score_masked(members, truth, observed):
    scores = EnsembleScores(horizon=truth.shape[1], node=truth.shape[2], members=members.shape[1])
    for x, y, seen in zip(members.split(4), truth.split(4), observed.split(4), strict=True):
        scores.update(x, y, seen)
    return scores


def test_a_masked_value_changes_no_score():
    (members, truth), observed = forecast(), torch.rand(6, 3, 5) < 0.7
    reports, windows = [], []
    for value in (0.0, 1e9, math.nan):
        scores = score_masked(members.where(observed.unsqueeze(1), -value), truth.where(observed, value), observed)
        reports.append(scores.compute())
        windows.append(scores.by_window())
    assert reports[0] == reports[1] == reports[2] != score(members, truth)
    assert reports[0]["missing_share"] == pytest.approx(float((~observed).double().mean()))
    for other in windows[1:]:
        assert all(torch.equal(other[name], value) for name, value in windows[0].items())


def test_with_nothing_masked_the_scores_are_those_without_a_mask():
    members, truth = forecast()
    found = score_masked(members, truth, torch.ones_like(truth, dtype=torch.bool)).compute()
    assert_same(found, score(members, truth), rel=1e-12)


def test_a_node_that_is_always_masked_is_a_field_without_the_node():
    (members, truth), observed = forecast(), torch.ones(6, 3, 5, dtype=torch.bool)
    observed[..., 2] = False
    others = [0, 1, 3, 4]
    found = score_masked(members, truth, observed).compute()
    assert found.pop("missing_share") == pytest.approx(0.2)
    assert_same(found, score(members[..., others], truth[..., others]), rel=1e-9)


def test_a_window_that_is_all_masked_counts_in_no_score():
    (members, truth), observed = forecast(), torch.ones(6, 3, 5, dtype=torch.bool)
    observed[2] = False
    found = score_masked(members, truth, observed)
    others = [0, 1, 3, 4, 5]
    wanted = score(members[others], truth[others])
    for name in KEYS_PER_HORIZON:
        assert found.compute()[name] == pytest.approx(wanted[name], rel=1e-12), name
    assert all(value[2] == 0 for value in found.by_window().values())


def test_masked_scores_are_those_of_the_observed_targets_one_by_one():
    (members, truth), observed = forecast(), torch.rand(6, 3, 5) < 0.6
    found = score_masked(members, truth, observed).compute()
    crps, square, energy, pairs = [], [], [], []
    for b, h in itertools.product(range(6), range(3)):
        seen = observed[b, h]
        x, y = members[b:b + 1, :, h:h + 1, seen], truth[b:b + 1, h:h + 1, seen]
        if not seen.any():
            continue
        crps.append(metrics.crps_fair(x.sort(dim=1).values, y).flatten())
        square.append((x.mean(1) - y).square().flatten())
        energy.append(metrics.energy_score(x, y))
        if seen.sum() > 1:
            pairs.append(metrics.variogram_score(x, y, everywhere(y)))
    assert found["CRPS_fair_physical"] == pytest.approx(float(torch.cat(crps).mean()), rel=1e-9)
    assert found["RMSE"] == pytest.approx(float(torch.cat(square).mean().sqrt()), rel=1e-9)
    assert found["energy_score"] == pytest.approx(float(torch.stack(energy).mean()), rel=1e-9)
    assert found["variogram_score"] == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-9)
    sums = [(members[b, :, h, observed[b, h]].sum(-1), truth[b, h, observed[b, h]].sum())
            for b, h in itertools.product(range(6), range(3))]
    x, y = torch.stack([each for each, _ in sums]).T[None], torch.stack([each for _, each in sums])[None]
    crps_sum = metrics.crps_quantile(metrics.member_quantiles(x.sort(dim=1).values), y).sum() / y.abs().sum()
    assert found["CRPS_sum"] == pytest.approx(float(crps_sum), rel=1e-9)


# Events

def test_the_brier_score_of_an_event_agrees_with_scoringrules():
    members, truth = forecast()
    found = EnsembleScores(*truth.shape[1:], members.shape[1], threshold=8.0)
    for chunk in range(len(truth)):
        found.update(members[[chunk]], truth[[chunk]])
    report = found.compute()
    event, probability = (truth > 8).double().numpy(), (members > 8).double().mean(1).numpy()
    literal = scoringrules.brier_score(event, probability)
    assert 0 < event.mean() < 1 and report["threshold"] == 8
    assert report["Brier"] == pytest.approx(literal.mean())
    assert report["per_horizon"]["Brier"] == pytest.approx(literal.mean((0, 2)))
    assert report["event_rate"] == pytest.approx(event.mean())
    assert report["Brier_skill"] == pytest.approx(1 - literal.mean() / event.var())
    assert json.dumps(report)


def test_the_reliability_of_an_event_is_its_share_among_targets_of_the_same_probability():
    members, truth = forecast(batch=40)
    found = EnsembleScores(*truth.shape[1:], members.shape[1], threshold=8.0)
    found.update(members, truth)
    event, probability = (truth > 8).flatten().numpy(), (members > 8).double().mean(1).flatten().numpy()
    place = np.minimum((probability * 10).astype(int), 9)
    rows = [(sum(place == k), probability[place == k].mean(), event[place == k].mean()) for k in np.unique(place)]
    for name, column in zip(("targets", "probability", "event_rate"), zip(*rows, strict=True), strict=True):
        assert found.compute()["reliability"][name] == pytest.approx(column)


def test_a_masked_value_is_no_event():
    members, truth = forecast()
    observed = torch.rand(truth.shape) < 0.7
    one, other = (EnsembleScores(*truth.shape[1:], members.shape[1], threshold=8.0) for _ in range(2))
    one.update(members, truth, observed)
    other.update(members, truth.where(observed, 1e6), observed)
    report = one.compute()
    literal = ((members > 8).double().mean(1) - (truth > 8).double()).square()[observed]
    assert report == other.compute()
    assert report["Brier"] == pytest.approx(literal.mean().item())
    assert report["event_rate"] == pytest.approx((truth > 8)[observed].double().mean().item())
    assert sum(report["reliability"]["targets"]) == observed.sum()
