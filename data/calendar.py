"""Calendar: which slot of the day, week or year each step of a series falls into."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .stamps import PLAIN, local_times, stamp, stamp_rule, stamped, stamps_as_text, utc_times
from .table import listed

DAY = 1440  # minutes
YEAR = 365.25 * DAY
MINUTES = {"minute": 1, "hour": 60, "day": DAY, "week": 7 * DAY}
UNITS = {"min": (1, "minute"), "t": (1, "minute"), "h": (1, "hour"), "d": (1, "day"), "w": (1, "week"),
         "M": (1, "month"), "MS": (1, "month"), "ME": (1, "month"), "q": (3, "month"), "y": (12, "month")}
"""Units that `--freq` accepts as pandas writes them, beside the words themselves."""

Interval = tuple[int, str]
SUNDAY = 3  # 1970-01-01 plus so many days; most clocks are changed on a Sunday
MOST_MISSING = 10  # missing rows for each row of a file; more mean a wrong stamp


@dataclass(frozen=True)
class Calendar:
    """Slots of every step of a regular series in those cycles that `make_calendar` finds for its interval."""

    slots: Tensor  # (time, cycle) integers, of local time; 0 is midnight, Monday, January
    sizes: tuple[int, ...]  # number of slots of each cycle
    names: tuple[str, ...]  # of the cycles
    times: np.ndarray  # (time,) datetime64, the stamps, in UTC where there is a time zone
    zone: str = ""
    interval: Interval | None = None

    @property
    def ends(self) -> list[str]:
        """The first and the last stamp, as text."""
        return stamps_as_text(self.times[[0, -1]], self.zone).tolist()


def make_calendar(start: str, interval: Interval, num_steps: int, zone: str = "", rule: tuple = PLAIN,
                  first: int = 0) -> Calendar:
    """Calendar of `num_steps` steps of `interval`, e.g. (5, "minute"), from step `first` after the ISO time `start`.

    start is local time for steps of whole days or months, else UTC where there is a time zone `zone`. rule: see
    `stamps.stamped`. Where the step does not divide the cycle, a slot is the part of the cycle in which a step begins.
    Source: STID's identities (arXiv:2208.05233); differs from the authors' release: slots come from the true
    interval, so that 5-minute data have 288 of them and not 2, and the weekday from the true start.
    """
    (count, unit), size = interval, step_size(interval)
    clock = np.datetime64(start, np.datetime_data(size)[0]) + np.arange(first, first + num_steps) * size
    if unit == "month":
        cycle = 12 // math.gcd(12, count)  # steps until the same month
        found = {"month": (clock.astype(int) // count % cycle, cycle)}
    else:
        minutes = count * MINUTES[unit]
        local = clock if _is_local(interval) else local_times(clock, zone).astype("datetime64[m]")
        days = local.astype("datetime64[D]")
        weekday = (days.astype(int) + 3) % 7  # 1970-01-01 was a Thursday
        if minutes > DAY:
            step_of_year = (local - local.astype("datetime64[Y]")).astype(int) // minutes
            found = {"step of year": (step_of_year, -(-366 * DAY // minutes))}
        elif minutes == DAY:
            found = {"day of week": (weekday, 7), "month": (local.astype("datetime64[M]").astype(int) % 12, 12)}
        else:
            step_of_day = (local - days).astype(int) // minutes
            found = {"step of day": (step_of_day, -(-DAY // minutes)), "day of week": (weekday, 7)}
    slots, sizes = zip(*found.values(), strict=True)
    times = stamped(clock, rule, count)
    times = utc_times(times, zone) if _is_local(interval) else times
    seconds = zone or rule and rule[0] in ("start", "end") and rule[1] % 60
    times = times.astype("datetime64[s]" if seconds else "datetime64[m]")
    return Calendar(torch.from_numpy(np.stack(slots, axis=1)), sizes, (*found,), times, zone, interval)


def cycles(interval: Interval) -> dict[str, float]:
    """Number of steps in a day, a week and a year."""
    count, unit = interval
    step = count * (YEAR / 12 if unit == "month" else MINUTES[unit])
    return {"day": DAY / step, "week": 7 * DAY / step, "year": YEAR / step}


def season_of(interval: Interval) -> int:
    """Steps of the first cycle of a calendar, rounded: a day; a week of daily steps; a year of longer ones."""
    steps = cycles(interval)
    return max(1, round(steps["day" if steps["day"] > 1 else "week" if steps["day"] == 1 else "year"]))


def _is_local(interval: Interval) -> bool:
    """Whether steps follow the local clock, as days do: their length in UTC changes with daylight saving."""
    count, unit = interval
    return unit == "month" or count * MINUTES[unit] % DAY == 0


def clock_of(times: np.ndarray, interval: Interval, zone: str = "") -> np.ndarray:
    """Stamps (time,) on the clock where steps of `interval` have equal length: months, local times or UTC."""
    if not _is_local(interval):
        return times.astype("datetime64[s]")
    local = local_times(times, zone).astype("datetime64[M]" if interval[1] == "month" else "datetime64[s]")
    if not zone or interval[1] == "month":
        return local
    size, clocks = step_size(interval), local - local.astype("datetime64[D]")
    begin = local[0] - clocks[0] + np.sort(clocks)[(len(clocks) - 1) // 2]
    due = begin + np.round((local - begin) / size).astype(int) * size  # midnight may not exist: clocks change
    return np.where(utc_times(due, zone) == times, due, local)


def step_size(interval: Interval) -> np.timedelta64:
    count, unit = interval
    return np.timedelta64(count, "M") if unit == "month" else np.timedelta64(count * MINUTES[unit], "m")


def first_step(times: np.ndarray, interval: Interval, zone: str = "") -> tuple[str, tuple | None]:
    """The arguments `start` and `rule` of `make_calendar` that give the stamps (time,); rule None: no rule does."""
    clock = clock_of(times, interval, zone)
    start = clock[0].astype("datetime64[m]")
    if interval[1] == "month":
        return str(start), stamp_rule(clock, local_times(times, zone).astype("datetime64[s]"), interval[0])
    seconds = int((clock[0] - start).astype(int))
    return str(start), ("start", seconds) if seconds else PLAIN


def parse_interval(text: str) -> Interval:
    """The interval of `--freq`: 5min, 1h, d, 2w, 1M, or with the unit as a word (15 minutes). Raises: ValueError."""
    match = re.fullmatch(r"(\d*) ?([A-Za-z]+)", text.strip())
    count, letters = match.groups() if match else ("0", "")
    word = letters.lower().removesuffix("s")
    factor, unit = UNITS.get(letters) or UNITS.get(letters.lower()) or (1, word)
    if unit not in (*MINUTES, "month") or int(count or 1) < 1:
        raise ValueError(f"--freq {text}: expected a number and a unit: 5min, 1h, 1d, 1w or 1M (M: months)")
    count = int(count or 1) * factor
    return (count, unit) if unit == "month" else _in_largest_unit(count * MINUTES[unit])


def in_words(interval: Interval) -> str:
    count, unit = interval
    return f"{count} {unit}{'s' if count > 1 else ''}"


def regular_axis(times: np.ndarray, where: Callable[[int], str], wanted: Interval | None = None, zone: str = "",
                 gaps: bool = False) -> tuple[Interval, np.ndarray]:
    """The interval between the stamps `times` (time,), `wanted` or else the most frequent, and their steps from 0 on.

    where(step): file and place of a step, for messages. gaps: rows may be missing.
    Raises: ValueError for the first stamp at another distance from the one before; it lists all missing rows.
    """
    if len(times) < 2 and wanted is None:
        raise ValueError(f"{where(0)}: one time stamp does not determine the interval; give --freq")
    found = _most_frequent(times, where, zone) if len(times) > 2 or wanted is None else wanted
    interval = wanted or found
    clock, size = clock_of(times, interval, zone), step_size(interval)
    steps = np.diff(clock) / size
    missing = np.where((steps > 1) & (steps % 1 == 0), steps - 1, 0)
    too_many = missing.sum() > MOST_MISSING * len(times)
    allowed = (steps == 1) | (missing > 0) & (gaps and found == interval)
    wrong = steps == steps.max() if too_many else ~allowed
    if not wrong.any():
        return interval, ((clock - clock[0]) // size).astype(int)
    step = int(wrong.argmax()) + 1
    distance, lacking = steps[step - 1], f"{int(missing[step - 1])} missing"
    if found != interval:
        kind = f"steps of the file are {in_words(found)}"
    elif distance <= 0 or (steps < 0).sum() > 1:
        kind = "stamps must ascend: sort the rows" if distance else "it occurs twice"
    elif too_many:
        kind = f"{lacking}, many more than there are: is this stamp right?"
    elif distance % 1:
        kind = "steps must be equally long"
    else:
        kind = f"{lacking}: add a row for each, its values left empty, or give --missing mask"
        kind += f"; in all {missing_rows(times, interval, zone)}" if (missing > 0).sum() > 1 else ""
    expected = clock[step - 1] + size
    on_sunday = expected.astype("datetime64[D]").astype(int) % 7 == SUNDAY
    if on_sunday and interval[1] != "month" and abs(clock[step] - expected) == np.timedelta64(1, "h") and not (
            zone and not _is_local(interval)):
        kind += "; write times of a zone with daylight saving with their offset from UTC, as 2013-01-31T00:00+01:00"
    asked = ", as --freq or the run says" if wanted else ""
    raise ValueError(f"{where(step)}: time {stamp(times[step], zone)}, expected {clock_text(expected, interval, zone)} "
                     f"({in_words(interval)} after {stamp(times[step - 1], zone)}{asked}): {kind}")


def clock_text(clock: np.datetime64, interval: Interval, zone: str) -> str:
    """A time of `clock_of` as text: a month, or a stamp."""
    if interval[1] == "month":
        return str(clock)
    return stamp(utc_times(clock[None], zone)[0] if _is_local(interval) else clock, zone)


def missing_rows(times: np.ndarray, interval: Interval, zone: str = "") -> str:
    """The places where rows are missing between stamps (time,), in words."""
    clock, size = clock_of(times, interval, zone), step_size(interval)
    counts = (np.diff(clock) // size).astype(int) - 1
    after = np.flatnonzero(counts > 0)
    places = [f"{clock_text(clock[place] + size, interval, zone)} ({counts[place]})" for place in after]
    total = counts[after].sum()
    return f"{total} step{'s are' if total > 1 else ' is'} missing, from {listed(places)}"


def _most_frequent(times: np.ndarray, where: Callable[[int], str], zone: str = "") -> Interval:
    """The most frequent distance of two stamps in time order; 28 days or more are months, if a rule fits them."""
    local = local_times(times, zone).astype("datetime64[s]")
    for clock in (local, times.astype("datetime64[s]")):
        forward = np.diff(clock).astype(int)
        forward = forward[forward > 0]
        if not len(forward):
            raise ValueError(f"{where(1)}: time {stamp(times[1], zone)}, not after {stamp(times[0], zone)}: stamps "
                             "must ascend")
        seconds = int(pd.Series(forward).mode()[0])
        if seconds % (DAY * 60) == 0:
            break  # days of the local clock; shorter steps are measured in UTC
    if seconds % 60:
        raise ValueError(f"{where(1)}: steps of {seconds} seconds; the interval must be whole minutes: round the "
                         "times, or average the values, as in pandas: frame.resample('1min').mean()")
    clock = local.astype("datetime64[M]")
    months = np.diff(clock).astype(int)
    if seconds >= 28 * DAY * 60 and (months > 0).any():
        count = int(pd.Series(months[months > 0]).mode()[0])
        equal = len(times) > 2 and (forward % seconds == 0).all()
        if not equal or (months > 0).all() and stamp_rule(clock, local, count):
            return count, "month"
    return _in_largest_unit(seconds // 60)


def _in_largest_unit(minutes: int) -> Interval:
    unit = next(unit for unit in reversed(MINUTES) if minutes % MINUTES[unit] == 0)
    return minutes // MINUTES[unit], unit
