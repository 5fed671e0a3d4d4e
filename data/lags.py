"""Lags: what the field itself was a day, a week or a year before each step of a window."""

from .calendar import DAY, MINUTES, YEAR, Interval

KNOWN_SHARE = 0.25  # of the training steps must have a value that much earlier, or auto leaves a lag out


def choose_lags(text: str, interval: Interval, predict_len: int, training_steps: int) -> tuple[int, ...]:
    """The lags that `--lags` names, in steps, shortest first: none, auto, or numbers (24,168).

    auto: a day and a week of hourly data, a week of daily ones, a year of longer steps; where that is shorter than the
    horizon a multiple of it, and none that too little of the training part has.
    Raises: ValueError for a lag that is shorter than the horizon, or longer than the training part.
    """
    if text == "none":
        return ()
    if text == "auto":
        count, unit = interval
        step = count * (YEAR / 12 if unit == "month" else MINUTES[unit])
        periods = (DAY, 7 * DAY) if step < DAY else (7 * DAY,) if step == DAY else (YEAR,)
        cycles = [round(period / step) for period in periods]
        lags = {-(-predict_len // cycle) * cycle for cycle in cycles if cycle > 1}  # else no step is like another
        return tuple(sorted(lag for lag in lags if lag <= (1 - KNOWN_SHARE) * training_steps))
    lags = sorted({int(part) for part in text.split(",")})
    if lags[0] < predict_len:
        raise ValueError(f"--lags {text}: {lags[0]} steps before the last step of the horizon lies the future; "
                         f"choose lags of at least --predict_len {predict_len}")
    if lags[-1] >= training_steps:
        raise ValueError(f"--lags {text}: the training part has {training_steps} steps, none of them has a value "
                         f"{lags[-1]} steps earlier; choose shorter lags")
    return tuple(lags)
