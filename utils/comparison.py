"""Is one forecast better than another, or were the test windows kind to it? Paired over the same windows."""

import torch

SCORES = {  # numerator and denominator in what `evaluate_ensemble` returns of windows; None: a mean over windows
    "CRPS": ("crps", "abs_truth"),
    "CRPS_fair": ("crps_fair", "abs_truth"),
    "CRPS_sum": ("crps_sum", "abs_truth_sum"),
    "IS": ("interval_score", "targets"),
    "MAE_median": ("error_median", "targets"),
    "energy_score": ("energy_score", None),
    "variogram_score": ("variogram_score", None),
    **{f"CRPS_{name}": (f"crps_{name}", f"abs_truth_{name}")
       for name in ("regions", "neighbourhoods", "max", "increments")},
}
COVERAGE = 0.95


def paired_difference(ours, theirs, score, block, resamples=2000, seed=0):
    """How much the score of one forecast differs from another's, and a 95 % interval from a paired block bootstrap.

        relative = (ours - theirs) / theirs,    score = sum numerator / sum denominator (`SCORES`)
        lower, upper = 2.5 % and 97.5 % quantile of `relative` over resamples of circular blocks of windows

    Neighbouring windows share their steps, so single windows would make the interval too narrow: `block` windows
    in a row are drawn together, history_len + predict_len for windows one step apart. Several seeds of a method
    are averaged, window by window, before resampling: the interval is about the windows, not about the seeds.
    `ours`, `theirs`: what `evaluate_ensemble` returns of the windows (torch or numpy), or a list of it, one per
    seed; windows are matched by `start`, whatever their order. Negative means that ours is better.
    -> dict of difference (in units of the score), relative, lower, upper.
    Raises: ValueError for an unknown score, one that a forecast has not, windows that differ, fewer than two blocks, or
    a score of 0 of theirs.
    Source: Kunsch 1989 (moving blocks); Politis and Romano 1992 (circular).
    """
    if score not in SCORES:
        raise ValueError(f"no paired comparison by {score!r}: choose from {', '.join(SCORES)}")
    ours, theirs = ([each] if isinstance(each, dict) else list(each) for each in (ours, theirs))
    if not all(SCORES[score][0] in run for run in ours + theirs):
        raise ValueError(f"no {score} in the windows of every forecast: evaluate them again")
    runs = [_in_order(run) for run in ours + theirs]
    start = runs[0]["start"]
    for run in runs[1:]:
        if not torch.equal(run["start"], start):
            raise ValueError(
                f"cannot pair forecasts of different windows: one has {len(start)} (from step {_first(start)}), "
                f"another {len(run['start'])} (from step {_first(run['start'])}); evaluate both on the same windows"
            )
    if not 1 <= block <= len(start) // 2:
        raise ValueError(f"blocks of {block} windows do not fit twice into {len(start)}: evaluate more windows")

    ours, theirs = (_sums(each, score) for each in (runs[:len(ours)], runs[len(ours):]))
    ours_score, theirs_score = (each.sum(1)[0] / each.sum(1)[1] for each in (ours, theirs))
    if theirs_score == 0:
        raise ValueError(f"the other forecast's {score} is 0: there is no relative difference to it")
    resampled = _resampled_sums(torch.cat([ours, theirs]), block, resamples, seed)
    ratio = resampled[0] / resampled[1] / (resampled[2] / resampled[3]) - 1
    tail = (1 - COVERAGE) / 2
    lower, upper = torch.quantile(ratio, ratio.new_tensor([tail, 1 - tail])).tolist()
    return {
        "difference": (ours_score - theirs_score).item(),
        "relative": ((ours_score - theirs_score) / theirs_score).item(),
        "lower": lower, "upper": upper,
    }


def _first(start):
    return start[0].item() if len(start) else None


def _in_order(run):
    """The windows of one forecast as tensors in the order of their start."""
    run = {name: torch.as_tensor(value) for name, value in run.items()}
    order = run["start"].argsort()
    return {name: value[order] for name, value in run.items()}


def _sums(runs, score):
    """Numerator and denominator of a score in every window, averaged over runs. Shapes: -> (2, windows), float64."""
    above, below = SCORES[score]
    pairs = [torch.stack([run[above], torch.ones_like(run[above]) if below is None else run[below]]).double()
             for run in runs]
    return torch.stack(pairs).mean(0)


def _resampled_sums(values, block, resamples, seed):
    """Sums over resamples of circular blocks, cut to the length of the original.

    Shapes: values (row, windows) -> (row, resamples): every row sees the same blocks.
    """
    windows = values.shape[1]
    whole, rest = divmod(windows, block)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(windows, (resamples, whole + 1), generator=generator)

    def block_sums(length):
        upto = torch.cat([torch.zeros_like(values[:, :1]), values, values[:, :length]], 1).cumsum(1)
        return upto[:, length:length + windows] - upto[:, :windows]

    return block_sums(block)[:, first[:, :-1]].sum(-1) + block_sums(rest)[:, first[:, -1]]
