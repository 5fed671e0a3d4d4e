"""Paired differences of two forecasts on the same windows, with intervals."""

import torch
from scipy.fft import dct
from scipy.special import stdtrit

from utils.scores import metrics
from utils.scores.joint import AGGREGATES

SCORES = {  # numerator and denominator in what `evaluate_ensemble` returns of windows
    **{name: (score.column, score.per) for name, score in metrics.SCORES.items() if score.by_window},
    **{f"CRPS_{name}": (f"crps_{name}", f"abs_truth_{name}") for name in AGGREGATES},
}
CONFIDENCE = 0.95
FEWEST_BLOCKS = 8  # independent blocks of windows; of fewer no interval is given
BLOCKS_PER_COSINE = 4  # slower cosines see little of the correlation within a block


def paired_difference(ours, theirs, score, block):
    """How much the score of one forecast differs from another's, and its 95 % interval.

        relative = (ours - theirs) / theirs,    score = sum numerator / sum denominator (`SCORES`)
        lower, upper = relative -+ half width of the mean of what each window adds to it, see `half_width`

    `block`: so many windows in a row share steps of the series, history_len + predict_len for windows one step apart.
    `ours`, `theirs`: the windows that `evaluate_ensemble` returns (torch or numpy), or a list of them, one per seed,
    which are averaged; they are matched by `start`. Negative means that ours is better.
    -> dict of difference (in units of the score), relative, lower, upper; the last two are None for too few windows.
    Raises: ValueError for a score that is missing in a forecast, windows that differ, or a score of 0 of theirs.
    """
    ours, theirs = ([each] if isinstance(each, dict) else list(each) for each in (ours, theirs))
    if not all(run.keys() >= {*SCORES[score]} for run in ours + theirs):
        raise ValueError(f"no {score} in the windows of every forecast: evaluate them again")
    runs = [_in_order(run) for run in ours + theirs]
    start = runs[0]["start"]
    for run in runs[1:]:
        if not torch.equal(run["start"], start):
            raise ValueError(f"cannot pair forecasts of different windows: one has {len(start)}, another "
                             f"{len(run['start'])}; evaluate both on the same ones")
    (ours, ours_size), (theirs, theirs_size) = (_sums(each, score) for each in (runs[:len(ours)], runs[len(ours):]))
    ours_score, theirs_score = ours.sum() / ours_size.sum(), theirs.sum() / theirs_size.sum()
    if theirs_score == 0:
        raise ValueError(f"the other forecast's {score} is 0: there is no relative difference to it")
    ratio = ours_score / theirs_score
    added = (ours - ours_score * ours_size) / ours_size.mean() - ratio * (
        theirs - theirs_score * theirs_size) / theirs_size.mean()
    half = half_width(added / theirs_score, block)
    relative = (ratio - 1).item()
    return {
        "difference": (ours_score - theirs_score).item(), "relative": relative,
        "lower": None if half is None else relative - half, "upper": None if half is None else relative + half,
    }


def half_width(values, block):
    """Half the width of the 95 % interval of a mean of correlated values; None for fewer than FEWEST_BLOCKS blocks.

        weight_j = sqrt(2 / n) * sum_w values_w * cos(pi * j * (w + 1/2) / n),    j = 1 .. B
        half width = t(.975, B) * sqrt(mean_j weight_j^2 / n),    B = n / (BLOCKS_PER_COSINE * block), rounded

    The slowest cosines measure the variance of the mean, and their number is the degrees of freedom of Student's t.
    docs/results/intervals.md compares it with a bootstrap of blocks.
    Shapes: values (..., n) -> a number, or (...). Source: Mueller 2004; Lazarus, Lewis, Stock and Watson 2018.
    """
    count = values.shape[-1]
    if count < FEWEST_BLOCKS * block:
        return None
    cosines = round(count / (BLOCKS_PER_COSINE * block))
    weights = torch.from_numpy(dct(values.numpy(), norm="ortho"))[..., 1:cosines + 1]
    half = (weights.square().mean(-1) / count).sqrt() * stdtrit(cosines, (1 + CONFIDENCE) / 2)
    return half.item() if half.dim() == 0 else half


def independent_block(starts, length):
    """Windows in a row that share steps of the series, where a window takes `length` steps."""
    stride = int(starts.diff().median()) if len(starts) > 1 else 1
    return max(1, -(-length // stride))


def in_words(found):
    """A relative difference with its interval: "-3.1% [-5.0%, -1.2%]", without one "-3.1% (no interval)"."""
    if found["lower"] is None:
        return f"{found['relative']:+.1%} (no interval)"
    return f"{found['relative']:+.1%} [{found['lower']:+.1%}, {found['upper']:+.1%}]"


def compare_simple(windows, simple, length):
    """Scores of simple forecasters (`pipeline.score_simple`), each with the `difference` of the run's CRPS, or None."""
    block = independent_block(windows["start"], length)
    return {name: scores | {"difference": paired_difference(windows, theirs, "CRPS", block) if scores["CRPS"] else None}
            for name, (scores, theirs) in simple.items()}


def against_best(simple):
    """The difference of a run's CRPS to the best simple forecaster's, in one line; `simple`: of `compare_simple`."""
    if not simple:
        return "no simple forecaster can be fitted to compare with"
    if any(scores["CRPS"] is None for scores in simple.values()):
        return "no observed value of the test windows differs from 0: CRPS, relative to their mean size, is undefined"
    best = min(simple, key=lambda name: simple[name]["CRPS"])
    if simple[best]["difference"] is None:
        return f"the CRPS of {best}, the best simple forecaster, is 0: nothing is better"
    text = in_words(simple[best]["difference"]).replace("(no interval)", "(no interval: the test windows are too few)")
    return f"CRPS against {best} ({simple[best]['CRPS']:.4g}), the best of {', '.join(simple)}: {text}"


def _in_order(run):
    order = torch.as_tensor(run["start"]).argsort()
    return {name: torch.as_tensor(value)[order] for name, value in run.items()}


def _sums(runs, score):
    """Numerator and denominator of a score in every window, averaged over runs. Shapes: -> (2, windows), float64."""
    pairs = [torch.stack([run[name].double() for name in SCORES[score]]) for run in runs]
    return torch.stack(pairs).mean(0)
