"""Streamed scores are those of the whole, count each window once, and agree with plain numpy."""

import dataclasses

import numpy as np
import pytest
import scoringrules
import torch
from conftest import make_field, random_values, with_gaps

from data.windows import WindowBatches, WindowedField, WindowSettings
from utils.scores import evaluation
from utils.scores.comparison import against_best, compare_simple
from utils.scores.evaluation import cross_check, evaluate_ensemble, evaluate_mean, mean_over_windows, rows_at_once
from utils.training.reproducibility import MemberNoise

MEMBERS = 6


def draw(batch):
    """An ensemble around the last history value, keyed by window."""
    shape = batch.future.shape[1:]
    noise = MemberNoise(0, batch.start, MEMBERS, shape)(0, 0, len(batch.start) * MEMBERS)
    return batch.context.history[:, None, -1:] + noise.reshape(-1, MEMBERS, *shape)


def predict(batch):
    return batch.context.history[:, -1:].expand_as(batch.future)


def flat(scores, name=""):
    """All numbers of nested scores, with their names."""
    if isinstance(scores, str):
        return {}
    if isinstance(scores, dict):
        return {inner: value for key in scores for inner, value in flat(scores[key], f"{name}/{key}").items()}
    if isinstance(scores, list):
        return {f"{name}/{place}": value for place, value in enumerate(scores)}
    return {name: scores}


def arrays(data, split="test"):
    """Members and truth of a split in physical units, in one piece, with numpy."""
    batch = next(iter(data.batches(split, 10_000)))
    physical = data.scaler.physical
    return physical(draw(batch)).double().numpy(), physical(batch.future).double().numpy()


@pytest.mark.parametrize("size", [1, 3, 7, 21])
def test_batches_of_any_size_give_the_scores_of_one_piece(data, size):
    whole, pieces = (flat(evaluate_ensemble(draw, data.batches("test", each), data.scaler.physical, MEMBERS)[0])
                     for each in (22, size))
    assert whole.keys() == pieces.keys() and whole["/windows"] == 22 and len(whole) > 40
    for name, value in whole.items():
        assert pieces[name] == (value and pytest.approx(value, rel=1e-6, abs=1e-7)), name


def test_an_ensemble_is_scored_in_physical_units(data):
    scores, _ = evaluate_ensemble(draw, data.batches("test", 5), data.scaler.physical, MEMBERS)
    members, truth = arrays(data)
    error = members.mean(1) - truth
    assert scores["MAE"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert scores["RMSE"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert scores["per_horizon"]["RMSE"] == pytest.approx(np.sqrt((error**2).mean((0, 2))).tolist(), rel=1e-5)
    assert scores["members"] == MEMBERS


@pytest.mark.parametrize("size", [1, 7, 22])
def test_every_window_is_scored_under_its_start(data, size):
    _, windows = evaluate_ensemble(draw, data.batches("test", size), data.scaler.physical, MEMBERS)
    members, truth = arrays(data)
    assert windows["start"].tolist() == list(range(89, 111))
    np.testing.assert_allclose(windows["abs_truth"], np.abs(truth).sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(windows["error_mean"], np.abs(members.mean(1) - truth).sum((1, 2)), rtol=1e-4)


def test_a_sample_that_is_not_finite_is_not_scored(data):
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate_ensemble(lambda batch: draw(batch) / 0, data.batches("test", 5), data.scaler.physical, MEMBERS)


@pytest.mark.parametrize("size", [1, 7, 22])
def test_the_scores_of_a_mean_are_those_of_numpy(data, size):
    scores = evaluate_mean(predict, data.batches("test", size), data.scaler.physical)
    values = data.field.values.double().numpy()
    error = np.stack([values[start + 5] - values[start + 6:start + 10] for start in range(89, 111)])
    assert scores["windows"] == 22
    assert scores["MAE"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert scores["RMSE"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert scores["per_horizon"]["MAE"] == pytest.approx(np.abs(error).mean((0, 2)).tolist(), rel=1e-5)
    assert scores["per_horizon"]["RMSE"] == pytest.approx(np.sqrt((error**2).mean((0, 2))).tolist(), rel=1e-5)


def test_a_mean_over_windows_weighs_a_small_last_batch_by_its_windows(data):
    means = [float(mean_over_windows(lambda batch: batch.start.double().mean(), data.batches("test", size)))
             for size in (22, 21, 5)]
    assert means == pytest.approx([99.5] * 3)


def test_evaluation_keeps_no_gradients(data):
    weight = torch.ones((), requires_grad=True)
    value = mean_over_windows(lambda batch: (batch.future * weight).mean(), data.batches("test", 22))
    assert not value.requires_grad
    evaluate_mean(lambda batch: predict(batch) * weight, data.batches("test", 22), data.scaler.physical)


def test_the_cross_check_reports_both_estimators_and_their_difference(data, monkeypatch):
    batches = data.batches("test", 1, torch.Generator().manual_seed(0), limit=3)
    check = cross_check(draw, batches, data.scaler.physical)
    members, truth = arrays(data)
    chosen = [int(batch.start) - 89 for batch in batches]
    truths = scoringrules.crps_ensemble(truth[chosen], members[chosen], m_axis=1, estimator="fair").mean()
    assert check["windows"] == 3 and check["properscoring"] == pytest.approx(truths, rel=1e-5)
    assert check["ours"] == pytest.approx(truths, rel=1e-5) and check["largest_difference"] < 1e-5

    differences = iter([0.1, 0.7, 0.4])
    monkeypatch.setattr(evaluation, "crps_fair", lambda ordered, truth: torch.ones_like(truth))
    monkeypatch.setattr(evaluation, "crps_by_properscoring", lambda ordered, truth: 1 + next(differences) + 0 * truth)
    assert cross_check(draw, batches, data.scaler.physical) == pytest.approx({
        "windows": 3, "ours": 1.0, "properscoring": 1.4, "largest_difference": 0.7})


@pytest.mark.parametrize("nodes, device, chosen, rows", [
    (75, "cpu", 0, 80), (20_000, "cpu", 0, 1), (75, "cuda", 0, 13_333), (75, "cpu", 9, 9),
])
def test_the_rows_at_a_time_shrink_with_the_nodes_unless_chosen(nodes, device, chosen, rows):
    assert rows_at_once(nodes, torch.device(device), chosen) == rows


def test_one_node_and_one_step_ahead_can_be_scored():
    data = WindowedField(make_field(random_values(40, 1)), 3, 1)
    scores, _ = evaluate_ensemble(draw, data.batches("test", 4), data.scaler.physical, MEMBERS)
    assert np.isfinite(scores["CRPS"]) and scores["windows"] == len(data.starts["test"])


# Precision

IN_UNIT = ("CRPS_physical", "CRPS_fair_physical", "IS", "MAE", "MAE_median", "RMSE", "energy_score", "variogram_score")


@pytest.mark.parametrize("factor", [1e-20, 1e-5, 1.0, 1e5, 1e20])
@pytest.mark.parametrize("kind", ["around a level", "many zeros", "gaps", "a node 1e6 times larger"])
def test_scores_do_not_depend_on_the_unit_of_the_field(kind, factor):
    values = random_values(120, 5).astype(np.float64)
    if kind == "many zeros":
        values = (values - 22).clip(0)
    if kind == "gaps":
        values = with_gaps(values)
    if kind == "a node 1e6 times larger":
        values[:, 2] *= 1e6

    def scores(times):
        data = WindowedField(make_field((values * times).astype(np.float32)), 6, 4)
        minimum = data.scaler.standardize(torch.zeros(()))
        ensemble, windows = evaluate_ensemble(
            lambda batch: draw(batch).clamp_min(minimum) if kind == "many zeros" else draw(batch),
            data.batches("test", 5), data.scaler.physical, MEMBERS)
        mean = evaluate_mean(predict, data.batches("test", 5), data.scaler.physical)
        return {"ensemble": ensemble, "mean": mean, "windows": {name: x.tolist() for name, x in windows.items()}}

    # 4096 is a power of 2: the arithmetic of float32 is the same in that unit, and no field here is near its limits
    wanted, found = flat(scores(4096.0)), flat(scores(factor))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        group, *rest = name[1:].split("/")
        physical = rest[-1] in IN_UNIT or (len(rest) > 1 and rest[-2] in IN_UNIT) or (
            group == "windows" and rest[0] not in ("start", "targets", "fields", "paired_fields"))
        size, near = factor / 4096 if physical else 1, 1e-5 if group == "windows" else 1e-6
        assert found[name] == (value and pytest.approx(value * size, rel=near, abs=1e-6 * size)), name


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1e20, 1e22])
def test_squares_of_very_small_and_very_large_fields_neither_vanish_nor_overflow(size):
    data = WindowedField(make_field((random_values(120, 5) * size).astype(np.float32)), 6, 4)
    found = evaluate_ensemble(draw, data.batches("test", 5), data.scaler.physical, MEMBERS)[0]
    mean = evaluate_mean(predict, data.batches("test", 5), data.scaler.physical)
    members, truth = arrays(data)
    assert found["RMSE"] == pytest.approx(np.sqrt((((members.mean(1) - truth) / size)**2).mean()) * size, rel=1e-5)
    assert found["spread_skill"] == pytest.approx(
        np.sqrt((MEMBERS + 1) / MEMBERS * (members / size).var(1, ddof=1).mean()) / (found["RMSE"] / size), rel=1e-5)
    assert mean["RMSE"] > 0 and all(value is None or np.isfinite(value) for value in flat(found).values())


def test_truth_without_any_value_but_zero_has_no_normalised_score_whatever_the_mean_of_training():
    values = random_values(120, 5) + 100  # with this mean 0, standardized in float32 and back, is 7.6e-6
    values[80:] = 0
    data = WindowedField(make_field(values), 6, 4)
    scores, windows = evaluate_ensemble(draw, data.batches("test", 5, limit=4), data.scaler.physical, MEMBERS)
    assert scores["CRPS"] is None is scores["CRPS_sum"] and scores["MAE"] > 1
    simple = compare_simple(windows, {"other": (scores, windows)}, 10)
    assert simple["other"]["difference"] is None and "undefined" in against_best(simple)


def test_nodes_that_add_up_to_zero_have_every_score_but_that_of_the_sum():
    one = random_values(120, 1)
    data = WindowedField(make_field(np.concatenate([one, -one], axis=1)), 6, 4)
    scores, _ = evaluate_ensemble(draw, data.batches("test", 5, limit=4), data.scaler.physical, MEMBERS)
    assert scores["CRPS_sum"] is None and scores["CRPS"] > 0


@pytest.mark.parametrize("length", [1, 4])
def test_texture_of_one_step_has_no_steps(length):
    data = WindowedField(make_field(random_values(220, 6)), 6, length)
    found = evaluate_ensemble(draw, data.batches("test", 5), data.scaler.physical, MEMBERS)[0]
    texture = found["joint"]["texture"]
    assert (texture["step"] is None) is (length == 1) and 0.2 < texture["AUC"] <= 1


def test_a_step_that_was_never_observed_leaves_the_other_errors_of_the_mean():
    values = random_values(120, 3)
    values[-2] = np.nan
    field = make_field(values)
    data = WindowedField(dataclasses.replace(field, missing_share=1 / 120, masked=True), 6, 4)
    batches = data.batches("test", 5)
    last = WindowBatches(data, batches.starts[-1:], 5)
    found = evaluate_mean(predict, last, data.scaler.physical)
    assert found["per_horizon"]["MAE"][2] is None and found["MAE"] > 0 and found["RMSE"] > 0


def test_a_node_a_billion_times_larger_leaves_the_truth_of_the_others_as_it_is():
    values = random_values(120, 5)
    values[:, 2] *= 1e9
    data = WindowedField(make_field(values), 6, 4)
    truth = np.stack([values[start + 6:start + 10] for start in range(89, 111)]).astype(np.float64)
    seen = []
    _, windows = evaluate_ensemble(draw, data.batches("test", 5), data.scaler.physical, MEMBERS,
                                   watch=lambda members, truth, observed: seen.append(truth))
    assert np.array_equal(torch.cat(seen).numpy(), truth)
    np.testing.assert_allclose(windows["abs_truth"], np.abs(truth).sum((1, 2)), rtol=1e-12)


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("scaling", ["field", "node", "log"])
def test_members_of_an_observed_value_and_of_a_threshold_equal_it_whatever_its_decimals(scaling, precise):
    """Values in tenths have the ties and events of the same ones times ten, which are whole."""
    tenths = np.random.default_rng(0).integers(1, 9, size=(120, 3)).astype(np.float64)

    def scores(values, threshold):
        values = values if precise else values.astype(np.float32)
        data = WindowedField(make_field(values), 6, 4, WindowSettings(scaling=scaling))
        steps = 7 * torch.arange(21).unsqueeze(1) % 60 + torch.arange(4)  # of training, for 21 members
        members = data.scaler.standardize(torch.from_numpy(values))[steps]
        # each quantile that is scored is one of the 21 members, none an average of two
        return evaluate_ensemble(lambda batch: members.expand(len(batch.start), -1, -1, -1), data.batches("test", 5),
                                 data.scaler.physical, 21, threshold=threshold)[0]

    whole, found = scores(tenths, 3.0), scores(tenths / 10, 0.3)
    assert found["threshold"] == 0.3 and found["event_rate"] == whole["event_rate"] > 0
    for name in ("QICE", "QICE_ties", "PIT_error", "coverage90", "Brier"):
        assert found[name] == pytest.approx(whole[name], abs=1e-12), name


# Missing values

@pytest.fixture
def gappy():
    return WindowedField(make_field(with_gaps(random_values(120, 5))), 6, 4)


def test_missing_targets_count_in_no_error_and_no_validation_loss(gappy):
    batch = next(iter(gappy.batches("test", 100)))
    error = gappy.scaler.physical(predict(batch)) - gappy.scaler.physical(batch.future)
    error = error[batch.target_mask].double()
    scores = evaluate_mean(predict, gappy.batches("test", 5), gappy.scaler.physical)
    assert scores["MAE"] == pytest.approx(float(error.abs().mean()), rel=1e-6)
    assert scores["RMSE"] == pytest.approx(float(error.square().mean().sqrt()), rel=1e-6)
    values = [float(mean_over_windows(lambda batch: (batch.future * batch.target_mask).mean(),
                                      gappy.batches("test", size)))
              for size in (1, 5, 100)]
    assert values == pytest.approx([float((batch.future * batch.target_mask).mean())] * 3, abs=1e-6)


def test_an_ensemble_of_a_field_with_gaps_says_how_much_was_missing(gappy):
    scores, windows = evaluate_ensemble(draw, gappy.batches("test", 5), gappy.scaler.physical, MEMBERS)
    batch = next(iter(gappy.batches("test", 100)))
    assert scores["missing_share"] == pytest.approx(float((~batch.target_mask).double().mean()))
    assert torch.equal(windows["targets"], batch.target_mask.sum((1, 2)).double())
    check = cross_check(draw, gappy.batches("test", 1, limit=3), gappy.scaler.physical)
    assert check["largest_difference"] < 1e-9
