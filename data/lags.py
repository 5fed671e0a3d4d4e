"""Lags: values of the field a day, a week, a year or another period before each step of a window, and their means."""

from collections.abc import Callable

import torch
from torch import Tensor

from .calendar import Interval, cycles
from .scaling import recent

LAGGED_SHARE = 0.25  # share of the training steps that must have a value at a lag, or auto leaves it out
PARTS_OF_PERIOD = 12  # of which changes are compared
STANDARD_ERRORS = 2.0  # that a correlation must exceed
SHORTEST = 4  # steps of a period that is not of the calendar
STRONG = 0.3  # smallest correlation of a period that is not of the calendar
ALIKE = 0.05  # largest relative distance at which a period is taken as a multiple of another one
AVERAGED = 3  # times the shortest lag, at most, whose values are averaged
AVERAGED_SHARE = 0.25  # of the training steps, which these may be earlier

Lags = tuple[tuple[int, ...], ...]  # distances in steps, one of each lag, then several of each mean


def choose_lags(text: str, interval: Interval, predict_len: int, training: Tensor) -> Lags:
    """The lags that `--lags` names: none, auto, or numbers of steps (24,168); 24+48+72 is one lag, their mean.

    auto: those of `repeated_periods`, and the mean over up to AVERAGED times the shortest of them.
    Raises: ValueError for a lag that is shorter than the horizon, or longer than the training part.
    """
    if text == "none":
        return ()
    steps = len(training)
    if text == "auto":
        single = repeated_periods(interval, predict_len, training)
        multiples = [single[0] * count for count in range(1, AVERAGED + 1)] if single else []
        averaged = tuple(lag for lag in multiples if lag <= AVERAGED_SHARE * steps)
        return (*((lag,) for lag in single), *([averaged] if len(averaged) > 1 else ()))
    lags = sorted({tuple(map(int, part.split("+"))) for part in text.split(",")}, key=lambda lag: (len(lag) > 1, lag))
    shortest, longest = min(map(min, lags)), max(map(max, lags))
    if shortest < predict_len:
        raise ValueError(f"--lags {text}: {shortest} steps are shorter than the horizon, so they need future values; "
                         f"choose lags of at least --predict_len {predict_len}")
    if longest >= steps:
        raise ValueError(f"--lags {text}: the training part has {steps} steps, none of them has a value "
                         f"{longest} steps earlier; choose shorter lags")
    return tuple(lags)


def repeated_periods(interval: Interval, predict_len: int, training: Tensor) -> list[int]:
    """Steps of a day, a week, a year and the strongest other period, where `training` (time, node) repeats itself so.

    Shortest first. For a period shorter than the horizon a multiple of it; those that too few steps have are left out.
    """
    longest = int((1 - LAGGED_SHARE) * len(training))
    values = recent(training).T
    values = (values - values.nanmean(1, keepdim=True)).nan_to_num()
    size = values.square().mean(1, keepdim=True).sqrt()
    values = values / torch.where(size > 0, size, 1.0)
    periods = [period for period in calendar_periods(interval) if period <= longest and repeats(values, period)]
    other = strongest_period(values, longest)
    if other and not any(abs(other / period - max(1, round(other / period))) < ALIKE for period in periods):
        periods.append(other)
    lags = {-(-predict_len // period) * period for period in periods}
    return sorted(lag for lag in lags if lag <= longest)


def as_text(lags: Lags) -> list[str]:
    """Each lag as `--lags` names it."""
    return ["+".join(map(str, lag)) for lag in lags]


def lagged(lags: Lags, values: Callable[[int], Tensor]) -> Tensor:
    """The values of each lag, along a new last axis: the mean over its distances of those that are not NaN.

    values(distance): values so many steps earlier.
    """
    return torch.stack([torch.stack([values(distance) for distance in lag]).nanmean(0) for lag in lags], dim=-1)


def calendar_periods(interval: Interval) -> list[int]:
    """Steps of a day and a week, or for steps of a day or longer of a week and a year, where that is more than one."""
    steps = cycles(interval)
    periods = [round(steps[name]) for name in (("day", "week") if steps["day"] > 1 else ("week", "year"))]
    return [period for period in periods if period > 1]


def repeats(values: Tensor, period: int, least: float = 0.0) -> bool:
    """Whether changes within a period of values (node, time) resemble those of the period before.

        change = mean of a twelfth of a period - mean of the twelfth before

    The correlation of changes a period apart must exceed `least`, and STANDARD_ERRORS standard errors.
    """
    width = max(1, period // PARTS_OF_PERIOD)
    total = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    means = total[:, width:] - total[:, :-width]
    change = means[:, width:] - means[:, :-width]
    if change.shape[1] <= period + width:
        return False
    late, early = change[:, period:], change[:, :-period]
    scale = (late.square().sum(1) * early.square().sum(1)).sqrt().clamp_min(1e-12)
    correlation = ((late * early).sum(1) / scale).mean().item()
    return correlation > max(least, STANDARD_ERRORS / (late.shape[1] / width) ** 0.5)


def strongest_period(values: Tensor, longest: int) -> int | None:
    """The period of SHORTEST to `longest` steps with the highest autocorrelation of changes of values (node, time).

    Half a period apart the autocorrelation must be less than half. Of peaks of about the same height: the shortest.
    """
    change = values.diff(dim=1)
    size = change.shape[1]
    spectrum = torch.fft.rfft(change - change.mean(1, keepdim=True), n=2 * size)
    found = torch.fft.irfft(spectrum.abs().square(), n=2 * size)[:, :size].mean(0)
    found = (found / found[0].clamp_min(1e-12))[:longest + 2]
    lag = torch.arange(len(found))
    peak = (lag >= SHORTEST) & (found[lag // 2] < found / 2) & (found > STANDARD_ERRORS / size**0.5)
    peak &= (found >= found.roll(1)) & (found >= found.roll(-1)) & (lag < len(found) - 1)
    if not peak.any():
        return None
    first = int((peak & (found > 0.9 * found[peak].max())).nonzero()[0])
    around = found[first:-1][:max(1, first // 4)]  # noise makes several peaks of a broad one
    period = first + int(around.argmax())
    return period if repeats(values, period, STRONG) else None
