"""Texture of members beside that of errors, on Gaussian fields whose covariance is known."""

import pytest
import torch

from utils.scores.texture import TextureScores, laplacian_axes, two_sample_auc

NODES, HORIZON, WINDOWS, MEMBERS = 40, 6, 160, 20
RING = (torch.arange(NODES).unsqueeze(1) + torch.tensor([0, 1, -1, 2, -2])) % NODES


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


def fields(count, share=0.0, lag=0.0):
    """Unit variance; nodes share one signal with this share of the variance; steps correlate by `lag`."""
    steps = lag ** (torch.arange(HORIZON).unsqueeze(1) - torch.arange(HORIZON)).abs().double()
    root = torch.linalg.cholesky(steps)
    common, own = (torch.einsum("pq,nqv->npv", root, torch.randn(count, HORIZON, width).double())
                   for width in (1, NODES))
    return share**0.5 * common + (1 - share) ** 0.5 * own


def scored(truth, members, spread=1.0, nearest=RING, observed=None):
    scores = TextureScores(torch.full((NODES,), spread), nearest)
    for part in torch.arange(len(truth)).split(50):
        scores.update(members[part], truth[part], None if observed is None else observed[part], part)
    return scores.compute(scores.by_window())


def drawn(**law):
    return fields(WINDOWS * MEMBERS, **law).unflatten(0, (WINDOWS, MEMBERS))


def test_members_of_the_same_law_cannot_be_told_from_observations():
    found = scored(fields(WINDOWS, share=0.3, lag=0.6), drawn(share=0.3, lag=0.6))
    assert found["near"] == pytest.approx(1, abs=0.05) and found["step"] == pytest.approx(1, abs=0.05)
    assert found["spectrum"] == pytest.approx([1] * 4, abs=0.06) and 0.4 < found["AUC"] < 0.6


@pytest.mark.parametrize("size", [1, 0.1])
def test_members_without_dependence_are_rougher_by_the_share_that_nodes_and_steps_have_in_common(size):
    """Squared difference over variance: 2 (1 - share) of nodes, 2 (1 - lag) of steps, 2 of the noise of the mean."""
    of_mean = size**2 / MEMBERS
    found = scored(fields(WINDOWS, share=0.5), size * drawn())
    assert found["near"] == pytest.approx(2 * (1 + of_mean) / (1 + 2 * of_mean), rel=0.05) and found["AUC"] > 0.95
    found = scored(fields(WINDOWS, lag=0.6), size * drawn())
    assert found["step"] == pytest.approx(2 * (1 + of_mean) / (0.8 + 2 * of_mean), rel=0.05)


def test_the_unit_of_a_node_changes_nothing():
    truth, members, unit = fields(WINDOWS, share=0.5), drawn(), torch.logspace(-3, 3, NODES).double()
    plain, scaled = TextureScores(torch.ones(NODES), RING), TextureScores(unit, RING)
    start = torch.arange(WINDOWS)
    plain.update(members, truth, None, start)
    scaled.update(unit * members, unit * truth, None, start)
    one, other = (each.compute(each.by_window()) for each in (plain, scaled))
    assert one["near"] == pytest.approx(other["near"]) and one["spectrum"] == pytest.approx(other["spectrum"])


def test_windows_without_an_observation_are_left_out():
    truth, members = fields(WINDOWS, share=0.5), drawn(share=0.5)
    observed = torch.ones(truth.shape, dtype=torch.bool)
    observed[::8], kept = False, torch.arange(WINDOWS) % 8 > 0
    found = scored(truth.where(observed, torch.nan), members, observed=observed)
    wanted = scored(truth[kept], members[kept])
    assert found["AUC"] == pytest.approx(wanted["AUC"]) and found["near"] == pytest.approx(wanted["near"])


def test_a_node_that_was_never_observed_is_left_out():
    truth, members = fields(WINDOWS, share=0.5), drawn(share=0.5)
    observed, spread, start = torch.ones(truth.shape, dtype=torch.bool), torch.ones(NODES), torch.arange(WINDOWS)
    truth[..., 3], observed[..., 3], spread[3] = torch.nan, False, torch.nan
    scores = TextureScores(spread, RING)
    scores.update(members, truth, observed, start)
    found = scores.compute(scores.by_window())
    assert found["near"] == pytest.approx(1, abs=0.1) and found["step"] == pytest.approx(1, abs=0.05)
    assert 0.3 < found["AUC"] < 0.7


def test_smooth_fields_have_their_variance_in_the_first_quarter_of_the_spectrum():
    axes = laplacian_axes(RING).double()
    smooth = (torch.randn(WINDOWS, HORIZON, 8).double() @ axes[:, 1:9].T)
    found = scored(smooth, drawn())
    assert found["spectrum"][0] == pytest.approx(0.26, abs=0.04), "ten of 39 axes, against all of the variance"
    assert found["near"] > 2


@pytest.mark.parametrize("missing", [1e6, torch.nan])
def test_what_is_not_observed_changes_nothing(missing):
    truth, members = fields(WINDOWS, share=0.5), drawn(share=0.5)
    observed = torch.rand(truth.shape) < 0.7
    wild = torch.where(observed, truth, missing)
    assert scored(truth, members, observed=observed) == scored(wild, members, observed=observed)


def test_without_neighbours_only_steps_are_compared():
    found = scored(fields(WINDOWS), drawn(), nearest=None)
    assert found["near"] is None and found["spectrum"] is None and found["step"] == pytest.approx(1, abs=0.05)


def test_the_classifier_is_judged_on_windows_that_it_was_not_fitted_to():
    """Features that only the first half has in common with its label say nothing about the second."""
    observed, members = torch.randn(80, 4).double(), torch.randn(80, 6, 4).double()
    observed[:38, 0] += 5
    assert 0.3 < two_sample_auc(observed, members) < 0.7
    observed[42:, 0] += 5
    assert two_sample_auc(observed, members) > 0.99
    assert two_sample_auc(observed[:10], members[:10]) is None


@pytest.mark.parametrize("varying", [True, False])
def test_equal_features_cannot_be_told_apart(varying):
    """The sign of one node at one step, divided by its size: all equal, or two values."""
    observed, members = torch.ones(400, 1).double(), torch.ones(400, 6, 1).double()
    if varying:
        observed[::2], members[::2] = -1, -1
    assert two_sample_auc(observed, members) == pytest.approx(0.5, abs=1e-6)
