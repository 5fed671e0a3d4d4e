"""Calendar: which slot of the day, week or year each step of a series falls into."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MINUTES = {"minute": 1, "hour": 60, "day": 1440}


@dataclass(frozen=True)
class Calendar:
    """Slots of every step of a regular series.

    slots (time, cycle) integers; sizes: number of slots of each cycle; names of the cycles; times (time,) as
    datetime64. A step of less than a day has two cycles (step of day, day of week with Monday = 0), a step of
    one day (day of week, month), a step of months one (month, January = 0).
    """

    slots: Tensor
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    times: np.ndarray


def make_calendar(start: str, interval: tuple[int, str], num_steps: int) -> Calendar:
    """Calendar of `num_steps` steps of `interval`, e.g. (5, "minute"), from the ISO time `start`.

    Raises: ValueError for an interval that does not divide a day, or an unknown unit.
    Source: STID's identities (arXiv:2208.05233); differs from the authors' release: slots come from the true
    interval, so that 5-minute data have 288 of them and not 2, and the weekday from the true start.
    """
    count, unit = interval
    if unit == "month":
        times = np.datetime64(start, "M") + np.arange(num_steps) * count
        month = times.astype(int) % 12
        return Calendar(torch.from_numpy(month[:, None]), (12,), ("month",), times.astype("datetime64[m]"))
    if unit not in MINUTES:
        raise ValueError(f"interval {interval}: the unit must be one of {', '.join([*MINUTES, 'month'])}")
    minutes = count * MINUTES[unit]
    times = np.datetime64(start, "m") + np.arange(num_steps) * minutes
    days = times.astype("datetime64[D]")
    weekday = (days.astype(int) + 3) % 7  # 1970-01-01 was a Thursday
    if minutes == 1440:
        month = times.astype("datetime64[M]").astype(int) % 12
        slots, sizes, names = (weekday, month), (7, 12), ("day of week", "month")
    elif 1440 % minutes == 0:
        step_of_day = (times - days).astype(int) // minutes
        slots, sizes, names = (step_of_day, weekday), (1440 // minutes, 7), ("step of day", "day of week")
    else:
        raise ValueError(f"interval {interval}: {minutes} minutes do not divide a day")
    return Calendar(torch.from_numpy(np.stack(slots, axis=1)), sizes, names, times)
