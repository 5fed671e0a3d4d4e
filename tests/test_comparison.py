"""Paired block bootstrap: finds a known difference, covers it as often as it claims, refuses what cannot be paired."""

import numpy as np
import pytest
import torch

from utils.comparison import SCORES, paired_difference
from utils.joint import JointScores
from utils.metrics import EnsembleScores

WINDOWS, BLOCK = 240, 24


def windows_of(numerator, denominator=None, start=0):
    """The windows of a forecast whose every score has this numerator."""
    numerator = torch.as_tensor(numerator, dtype=torch.float64)
    denominator = torch.ones_like(numerator) if denominator is None else denominator
    windows = {name: value for above, below in SCORES.values()
               for name, value in ((above, numerator), (below, denominator)) if name}
    return windows | {"start": torch.arange(start, start + len(numerator))}


def autoregressive(generator, count=WINDOWS, memory=0.8):
    noise = generator.standard_normal(count + 50)
    for step in range(1, len(noise)):
        noise[step] += memory * noise[step - 1]
    return noise[50:]


@pytest.mark.parametrize("score", SCORES)
def test_identical_forecasts_do_not_differ(score):
    windows = windows_of(1 + torch.rand(WINDOWS), 1 + torch.rand(WINDOWS, dtype=torch.float64))
    assert paired_difference(windows, windows, score, BLOCK) == {
        "difference": 0, "relative": 0, "lower": 0, "upper": 0}


@pytest.mark.parametrize("score", ["CRPS", "IS", "energy_score"])
def test_a_known_shift_is_found(score):
    generator = np.random.default_rng(1)
    theirs = 10 + autoregressive(generator)
    ours = theirs * 0.9 + 0.01 * generator.standard_normal(WINDOWS)
    found = paired_difference(windows_of(ours), windows_of(theirs), score, BLOCK)
    assert found["relative"] == pytest.approx(-0.1, abs=1e-3)
    assert found["difference"] == pytest.approx(ours.mean() - theirs.mean())
    assert found["lower"] < found["relative"] < found["upper"] < -0.09


def test_a_normalised_score_is_a_ratio_of_sums_not_a_mean_of_ratios():
    truth = torch.linspace(1, 9, WINDOWS, dtype=torch.float64)
    ours, theirs = truth.sqrt(), truth.square()
    found = paired_difference(windows_of(ours, truth), windows_of(theirs, truth), "CRPS", BLOCK)
    assert found["difference"] == pytest.approx(float((ours.sum() - theirs.sum()) / truth.sum()))
    assert found["relative"] == pytest.approx(float(ours.sum() / theirs.sum() - 1))


def test_the_interval_of_autocorrelated_windows_covers_the_truth_as_often_as_it_says():
    generator, inside, narrower = np.random.default_rng(0), 0, 0
    for seed in range(200):
        theirs = 20 + generator.standard_normal(640)
        ours = theirs + 1 + autoregressive(generator, 640, 0.7)
        blocks, single = (paired_difference(windows_of(ours), windows_of(theirs), "CRPS", block, 500, seed)
                          for block in (24, 1))
        inside += blocks["lower"] <= 0.05 <= blocks["upper"]
        narrower += single["upper"] - single["lower"] < blocks["upper"] - blocks["lower"]
    assert 0.88 <= inside / 200 <= 0.99
    assert narrower == 200


def test_a_resample_has_as_many_windows_as_the_original_though_the_blocks_do_not_fit():
    windows = windows_of(torch.full((WINDOWS,), 3.0))
    other = windows_of(torch.full((WINDOWS,), 2.0))
    found = paired_difference(windows, other, "IS", 7)
    assert [found[name] for name in ("relative", "lower", "upper")] == pytest.approx([0.5] * 3)


def test_a_block_of_one_is_the_ordinary_bootstrap():
    generator = np.random.default_rng(2)
    ours = 10 + generator.standard_normal(WINDOWS)
    found = paired_difference(windows_of(ours), windows_of(np.full(WINDOWS, 10.0)), "energy_score", 1, 20_000)
    width = 2 * 1.96 * ours.std() / np.sqrt(WINDOWS) / 10
    assert found["upper"] - found["lower"] == pytest.approx(width, rel=0.03)


def test_seeds_are_averaged_window_by_window():
    generator = np.random.default_rng(3)
    ours, theirs = (10 + generator.standard_normal((3, WINDOWS)) for _ in range(2))
    seeds = [[windows_of(values) for values in each] for each in (ours, theirs[:2])]
    found = paired_difference(*seeds, "CRPS", BLOCK)
    mean = paired_difference(windows_of(ours.mean(0)), windows_of(theirs[:2].mean(0)), "CRPS", BLOCK)
    assert found == pytest.approx(mean)


def test_windows_are_matched_by_their_start_from_numpy_as_from_torch():
    ours, theirs = windows_of(1 + torch.rand(WINDOWS)), windows_of(1 + torch.rand(WINDOWS))
    order = torch.randperm(WINDOWS)
    shuffled = {name: value[order].numpy() for name, value in theirs.items()}
    assert paired_difference(ours, shuffled, "CRPS", BLOCK) == paired_difference(ours, theirs, "CRPS", BLOCK)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    ours, theirs = windows_of(1 + torch.rand(WINDOWS)), windows_of(1 + torch.rand(WINDOWS))
    one, same, other = (paired_difference(ours, theirs, "CRPS", BLOCK, seed=seed) for seed in (5, 5, 6))
    assert one == same and one["lower"] != other["lower"] and one["relative"] == other["relative"]


def test_the_windows_of_an_accumulator_can_be_compared_by_every_score():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20, 2, 3, generator=generator)
    runs, reports = [], []
    for width in (1, 3):
        scores, joint = EnsembleScores(2, 3, 8), JointScores(3, torch.tensor([[0, 1], [1, 2], [2, 1]]))
        members = width * torch.randn(20, 8, 2, 3, generator=generator)
        scores.update(members, truth)
        joint.update(members, truth, torch.arange(20))
        runs.append(scores.by_window() | joint.by_window() | {"start": torch.arange(20)})
        reports.append(scores.compute() | joint.compute())
    for score in SCORES:
        found = paired_difference(*runs, score, 4)
        assert found["difference"] == pytest.approx(reports[0][score] - reports[1][score], rel=1e-6), score
        assert found["lower"] < found["relative"] < found["upper"]


def test_what_cannot_be_paired_is_refused():
    windows = windows_of(torch.ones(WINDOWS))
    for other in (windows_of(torch.ones(WINDOWS), start=1), windows_of(torch.ones(WINDOWS - 1))):
        with pytest.raises(ValueError, match="different windows"):
            paired_difference(windows, [windows, other], "CRPS", BLOCK)
    with pytest.raises(ValueError, match="choose from CRPS"):
        paired_difference(windows, windows, "QICE", BLOCK)
    with pytest.raises(ValueError, match="no CRPS_regions in the windows of every forecast"):
        paired_difference(windows, {"start": windows["start"]}, "CRPS_regions", BLOCK)
    for block in (0, WINDOWS // 2 + 1):
        with pytest.raises(ValueError, match="fit twice into 240"):
            paired_difference(windows, windows, "CRPS", block)
    with pytest.raises(ValueError, match="variogram_score is 0"):
        paired_difference(windows, windows_of(torch.zeros(WINDOWS)), "variogram_score", BLOCK)
