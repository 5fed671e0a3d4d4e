"""Paired differences: a known one is found, its interval holds it as often as it claims, mistakes are refused."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.fft import dct

from utils.scores.comparison import SCORES, against_best, compare_simple, half_width, in_words, paired_difference
from utils.scores.joint import JointScores
from utils.scores.metrics import EnsembleScores

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


@pytest.mark.parametrize("count, memory", [(200, 0.0), (400, 0.7), (1700, 0.9)])
def test_the_interval_of_overlapping_correlated_windows_holds_the_truth_as_often_as_it_says(count, memory):
    """Errors as those of windows that share 24 steps of an autoregressive process."""
    generator, inside, repeats = np.random.default_rng(0), 0, 600
    for _ in range(repeats):
        noise = np.convolve(autoregressive(generator, count + 23, memory), np.ones(24) / 24, "valid")
        theirs = 20 + generator.standard_normal(count) / 100
        found = paired_difference(windows_of(theirs + 1 + noise / noise.std()), windows_of(theirs), "CRPS", 24)
        inside += found["lower"] <= 0.05 <= found["upper"]
    assert 0.92 <= inside / repeats <= 0.975


def test_the_half_width_is_students_for_what_the_slowest_cosines_hold():
    """White noise: n / 4 of its cosines, each of the variance of the noise."""
    values = torch.randn(400, 240, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slow = dct(values.numpy(), norm="ortho")[:, 1:61]
    wanted = stats.t.ppf(0.975, 60) * np.sqrt((slow**2).mean(1) / 240)
    found = half_width(values, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert (values.mean(1).abs() < found).double().mean() == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("count, block, given", [(95, 12, False), (96, 12, True), (191, 24, False), (192, 24, True)])
def test_fewer_than_eight_blocks_have_a_difference_but_no_interval(count, block, given):
    generator = np.random.default_rng(1)
    ours, theirs = (windows_of(10 + generator.standard_normal(count)) for _ in range(2))
    found = paired_difference(ours, theirs, "IS", block)
    assert (found["lower"] is not None) == (found["upper"] is not None) == given
    assert found["relative"] == pytest.approx(float(ours["interval_score"].sum() / theirs["interval_score"].sum() - 1))
    assert ("no interval" in in_words(found)) != given


def test_a_difference_in_words():
    assert in_words({"relative": -0.0312, "lower": -0.05, "upper": 0.012}) == "-3.1% [-5.0%, +1.2%]"
    assert in_words({"relative": 0.2, "lower": None, "upper": None}) == "+20.0% (no interval)"


def test_windows_that_all_add_the_same_leave_no_doubt():
    windows, other = windows_of(torch.full((WINDOWS,), 3.0)), windows_of(torch.full((WINDOWS,), 2.0))
    found = paired_difference(windows, other, "IS", 7)
    assert [found[name] for name in ("relative", "lower", "upper")] == pytest.approx([0.5] * 3)


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


@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "with gaps"])
def test_the_windows_of_an_accumulator_can_be_compared_by_every_score(gaps):
    """Gaps: single targets, all nodes of a step but one, a whole step, and a whole window."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20, 2, 3, generator=generator)
    observed = torch.ones_like(truth, dtype=torch.bool)
    if gaps:
        observed[::2, 0, 1] = observed[5, 1, 1:] = observed[6, 0] = observed[7] = False
    runs, reports = [], []
    for width in (1, 3):
        scores, joint = EnsembleScores(2, 3, 8), JointScores(3, torch.tensor([[0, 1], [1, 2], [2, 1]]))
        members = width * torch.randn(20, 8, 2, 3, generator=generator)
        scores.update(members, truth, observed)
        joint.update(members, truth, observed, torch.arange(20))
        runs.append(scores.by_window() | joint.by_window() | {"start": torch.arange(20)})
        reports.append(scores.compute() | joint.compute())
    for score in SCORES:
        found = paired_difference(*runs, score, 2)
        assert found["difference"] == pytest.approx(reports[0][score] - reports[1][score], rel=1e-6), score
        assert found["lower"] < found["relative"] < found["upper"]


def test_what_cannot_be_paired_is_refused():
    windows = windows_of(torch.ones(WINDOWS))
    for other in (windows_of(torch.ones(WINDOWS), start=1), windows_of(torch.ones(WINDOWS - 1))):
        with pytest.raises(ValueError, match="different windows"):
            paired_difference(windows, [windows, other], "CRPS", BLOCK)
    with pytest.raises(ValueError, match="no CRPS_regions in the windows of every forecast"):
        paired_difference(windows, {"start": windows["start"]}, "CRPS_regions", BLOCK)
    with pytest.raises(ValueError, match="variogram_score is 0"):
        paired_difference(windows, windows_of(torch.zeros(WINDOWS)), "variogram_score", BLOCK)


def test_the_last_line_compares_with_the_simple_forecaster_of_the_lowest_crps():
    count = 200
    truth = torch.ones(count, dtype=torch.float64)
    noise = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def windows(level):
        return {"start": torch.arange(count), "crps": level + 0.01 * noise, "abs_truth": truth}

    simple = {name: ({"CRPS": windows(level)["crps"].mean().item()}, windows(level))
              for name, level in (("persistence", 0.4), ("ridge", 0.2))}
    line = against_best(compare_simple(windows(0.1), simple, 4))
    assert line.startswith("CRPS against ridge (0.2") and "best of persistence, ridge: -4" in line and "[" in line
    few = against_best(compare_simple(windows(0.1), simple, 40))
    assert few.endswith("(no interval: the test windows are too few)")
    zero = compare_simple(windows(0.1), {"persistence": ({"CRPS": 0.0}, windows(0.0))}, 4)
    assert zero["persistence"]["difference"] is None and "nothing is better" in against_best(zero)
