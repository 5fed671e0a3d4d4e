"""Calendar: which slot of the day, week or year each step of a series falls into."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

DAY = 1440  # minutes
YEAR = 365.25 * DAY
MINUTES = {"minute": 1, "hour": 60, "day": DAY, "week": 7 * DAY}
UNITS = {"min": (1, "minute"), "t": (1, "minute"), "h": (1, "hour"), "d": (1, "day"), "w": (1, "week"),
         "M": (1, "month"), "MS": (1, "month"), "ME": (1, "month"), "q": (3, "month"), "y": (12, "month")}
"""Units that `--freq` accepts as pandas writes them, beside the words themselves."""

Interval = tuple[int, str]


@dataclass(frozen=True)
class Calendar:
    """Slots of every step of a regular series.

    slots (time, cycle) integers; sizes: number of slots of each cycle; names of the cycles; times (time,) as
    datetime64. A step of less than a day has two cycles (step of day, day of week with Monday = 0), a step of
    one day (day of week, month), a longer one the step of the year (weeks: 0 to 52), a step of months the month
    (January = 0).
    """

    slots: Tensor
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    times: np.ndarray


def make_calendar(start: str, interval: Interval, num_steps: int) -> Calendar:
    """Calendar of `num_steps` steps of `interval`, e.g. (5, "minute"), from the ISO time `start`.

    Where steps do not divide their cycle, a slot is the stretch of it, as long as a step, in which a step begins.
    Raises: ValueError for an unknown unit.
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
    if minutes > DAY:
        step_of_year = (times - times.astype("datetime64[Y]")).astype(int) // minutes
        slots, sizes, names = (step_of_year,), (-(-366 * DAY // minutes),), ("step of year",)
    elif minutes == DAY:
        month = times.astype("datetime64[M]").astype(int) % 12
        slots, sizes, names = (weekday, month), (7, 12), ("day of week", "month")
    else:
        step_of_day = (times - days).astype(int) // minutes
        slots, sizes, names = (step_of_day, weekday), (-(-DAY // minutes), 7), ("step of day", "day of week")
    return Calendar(torch.from_numpy(np.stack(slots, axis=1)), sizes, names, times)


def parse_interval(text: str) -> Interval:
    """The interval that `--freq` names: 5min, 1h, d, 2w, 1M, or with the unit as a word (15 minutes).

    Raises: ValueError with what is accepted.
    """
    match = re.fullmatch(r"(\d*) ?([A-Za-z]+)", text.strip())
    count, letters = match.groups() if match else ("0", "")
    word = letters.lower().removesuffix("s")
    factor, unit = UNITS.get(letters) or UNITS.get(letters.lower()) or (1, word)
    if unit not in (*MINUTES, "month") or int(count or 1) < 1:
        raise ValueError(f"--freq {text}: expected a number and a unit: 5min, 1h, 1d, 1w or 1M (M: months)")
    count = int(count or 1) * factor
    return (count, unit) if unit == "month" else _in_largest_unit(count * MINUTES[unit])


def parse_time(text: str, flag: str) -> np.datetime64:
    """The time, in UTC, that a flag names in ISO 8601.

    Raises: ValueError that begins with the flag.
    """
    time, = pd.to_datetime([text], format="ISO8601", errors="coerce", utc=True).tz_localize(None)
    if pd.isna(time):
        raise ValueError(f"{flag} {text}: expected a time in ISO 8601, as 2013-01-31 or 2013-01-31T18:00")
    return time.to_datetime64().astype("datetime64[s]")


def in_words(interval: Interval) -> str:
    count, unit = interval
    return f"{count} {unit}{'s' if count > 1 else ''}"


def stamp(time: np.datetime64) -> str:
    """A time as ISO text, without seconds that are zero."""
    return str(time.astype("datetime64[s]")).removesuffix(":00")


def regular_interval(times: np.ndarray, where: Callable[[int], str], wanted: Interval | None = None) -> Interval:
    """The interval at which the stamps `times` (datetime64) follow each other: `wanted`, else the most frequent.

    A monthly stamp may be any day of its month, as climate files write the middle. where(step): the step's place in
    its file, with which messages begin.
    Raises: ValueError for the first stamp that does not follow the one before.
    """
    if len(times) < 2 and wanted is None:
        raise ValueError(f"{where(0)}: one time stamp does not tell the interval; give --freq")
    count, unit = interval = wanted or _usual_interval(times, where)
    months = unit == "month"
    clock = times.astype("datetime64[M]" if months else "datetime64[s]")
    size = np.timedelta64(count, "M") if months else np.timedelta64(count * MINUTES[unit] * 60, "s")
    wrong = np.flatnonzero(np.diff(clock) != size)
    if not len(wrong):
        return interval
    step = int(wrong[0]) + 1
    before, found, expected = clock[step - 1], clock[step], clock[step - 1] + size
    if wanted and len(times) > 2 and (usual := _usual_interval(times, where)) != wanted:
        kind = f"steps of the file are {in_words(usual)}"
    elif found == before:
        kind = "it comes twice"
    elif found < before:
        kind = "stamps must ascend"
    elif (found - before) % size == 0 * size:
        kind = f"{(found - before) // size - 1} missing: add a row for each, its values left empty"
    else:
        kind = "steps must be equally long"
    if not months and abs(found - expected) == np.timedelta64(1, "h") and int(str(expected)[11:13]) <= 4:
        kind += "; local time with daylight saving must be written in UTC"
    asked = ", as --freq or the run says" if wanted else ""
    due = expected if months else stamp(expected)
    raise ValueError(f"{where(step)}: time {stamp(times[step])}, expected {due} ({in_words(interval)} after "
                     f"{stamp(times[step - 1])}{asked}): {kind}")


def _usual_interval(times: np.ndarray, where: Callable[[int], str]) -> Interval:
    """The most frequent distance of two stamps in time order; 28 days or more are months."""
    forward = np.diff(times.astype("datetime64[s]")).astype(int)
    counted = Counter(forward[forward > 0].tolist())
    if not counted:
        raise ValueError(f"{where(1)}: time {stamp(times[1])}, not after {stamp(times[0])}: stamps must ascend")
    seconds = max(sorted(counted), key=counted.get)
    if seconds % 60:
        raise ValueError(f"{where(1)}: steps of {seconds} seconds; the interval must be whole minutes")
    if seconds >= 28 * DAY * 60:
        months = np.diff(times.astype("datetime64[M]")).astype(int)
        return Counter(months[months > 0].tolist()).most_common(1)[0][0], "month"
    return _in_largest_unit(seconds // 60)


def _in_largest_unit(minutes: int) -> Interval:
    unit = next(unit for unit in reversed(MINUTES) if minutes % MINUTES[unit] == 0)
    return minutes // MINUTES[unit], unit
