"""Time stamps of files: read with their time zone, and written in the same way.

Everywhere, times are datetime64: in UTC where the file states a time zone, else as the file has them.
"""

import contextlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timezone, tzinfo
from itertools import product
from zoneinfo import ZoneInfo, available_timezones

import numpy as np
import pandas as pd
from pandas.tseries.api import guess_datetime_format

MONTH = np.timedelta64(1, "M")
PLAIN = ()  # the rule of stamps that are the beginning of their step, see `stamped`
PLAUSIBLE_YEARS = range(1500, 2201)
FIRST_ZONES = ("Europe/Berlin", "Europe/London", "Europe/Helsinki", "America/New_York", "America/Chicago",
               "America/Denver", "America/Los_Angeles", "Australia/Sydney")
"""Preferred names where several time zones have the offsets of a file."""
OFFSET = r"(?<=\d) ?(Z|UTC|GMT|(?:\+(?:0\d|1[0-4])|-(?:0\d|1[0-2]))(?::?[0-5]\d)?)$"  # at the end of a time
ISO = "expected ISO 8601, as 2013-01-31T18:00"
EXAMPLE = "as in pandas: frame['time'] = pandas.to_datetime(frame['time'], format='{}')"
DATES = [mark.join(order) for mark in "/.-" for order in (
    ("%d", "%m", "%Y"), ("%m", "%d", "%Y"), ("%Y", "%m", "%d"), ("%d", "%m", "%y"), ("%m", "%d", "%y"),
    ("%y", "%m", "%d"))]
MONTHS = "%b %Y", "%B %Y", "%b-%Y", "%b-%y"
CLOCKS = "", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p"
WEEK = "%G-W%V-%u"
"""Formats that are tried beside those that pandas finds: of dates, of months, of the time after a date, of a week."""
MOST_GAPS, FEW_GAPS = 10, 2  # `_unevenness`: above the first it is no series, up to the second it surely is one
PERIODS = ((r"^(\d{4})[- ]?Q([1-4])$", lambda found: f"{found[1]}-{3 * int(found[2]) - 2:02}"),
           (r"^(\d{4})M(\d\d)$", r"\1-\2"), (r"^(\d{4})-?W(\d\d)$", r"\1-W\2-1"))
"""Names of quarters, months and weeks, and how they are written as a date: the first day."""


@dataclass(frozen=True)
class Stamps:
    """The time stamps of a file, and notes for the user."""

    times: np.ndarray  # (time,) datetime64[s]
    zone: str = ""  # a name, as Europe/Berlin, or an offset, as +01:00; "" where the file states none
    notes: tuple[str, ...] = ()


def read_stamps(column: pd.Series, where: Callable[[int], str]) -> Stamps:
    """Stamps of a column, rounded to the second: times, ISO 8601, dates of one unambiguous format, or years.

    Raises: ValueError naming the first one that is no time by where(row), its file and place.
    """
    column = column.reset_index(drop=True)
    if (empty := column.isna().to_numpy()).any():
        raise ValueError(f"{where(int(empty.argmax()))}: no time; {ISO}")
    if column.dtype.kind == "M":
        zone = column.dt.tz
        return Stamps(rounded(column.dt.tz_convert(None) if zone else column), name_of(zone) if zone else "")
    whole = column.dtype.kind == "f" and (column % 1 == 0).all()
    text = (column.astype("int64") if whole else column).astype(str).str.strip()
    if column.dtype.kind in "iufb" or text.str.fullmatch(r"-?\d{1,18}|\d+\.\d").all():
        return Stamps(_of_digits(text, where))
    offset = text.str.extract(OFFSET)[0].where(text.str.contains(r"[T ]\d")).str.replace("Z|UTC|GMT", "+00", regex=True)
    if offset.isna().any() and offset.notna().any():
        row = int((offset.isna() != offset.isna().iloc[0]).to_numpy().argmax())
        raise ValueError(f"{where(row)}: time {text[row]!r} has {'no' if pd.isna(offset[row]) else 'an'} "
                         "offset from UTC, unlike those before; write all with it, or none")
    if offset.isna().all():
        wall, notes = _of_text(text, text, where)
        return Stamps(wall, notes=notes)
    wall, notes = _of_text(text.str.replace(OFFSET, "", regex=True), text, where)
    digits = offset.str.replace(":", "").str[1:].str.ljust(4, "0")
    minutes = (digits.str[:2].astype(int) * 60 + digits.str[2:].astype(int)) * offset.str[0].map({"+": 1, "-": -1})
    times = wall - minutes.to_numpy() * np.timedelta64(60, "s")
    zone, more = _zone_of(times, minutes.to_numpy())
    return Stamps(times, zone, notes=notes + more)


def rounded(times) -> np.ndarray:
    """Times (time,) to the nearest second, as datetime64[s]: what float days or microseconds were meant to be."""
    return pd.Series(times).dt.round("s").to_numpy().astype("datetime64[s]")


def _of_digits(text: pd.Series, where) -> np.ndarray:
    """Times of mostly consecutive plausible years, or of dates as 20240131 (202401, 2024013118, 202401311830)."""
    if text.str.fullmatch(r"\d+").all():
        values = np.unique(text.astype("int64"))
        mostly = 2 * (np.diff(values) == 1).sum() > len(values)  # a year may be missing
        if values[0] in PLAUSIBLE_YEARS and values[-1] in PLAUSIBLE_YEARS and mostly:
            return text.to_numpy(str).astype("datetime64[Y]").astype("datetime64[s]")
        for digits, form in ((6, "%Y%m"), (8, "%Y%m%d"), (10, "%Y%m%d%H"), (12, "%Y%m%d%H%M")):
            if {int(value) // 10 ** (digits - 4) for value in values[[0, -1]]} <= {*PLAUSIBLE_YEARS}:
                times = pd.to_datetime(text, format=form, errors="coerce")
                if times.notna().all() and (digits > 6 or len(values) > 12):  # no count passes by the end of a year
                    return rounded(times)
    raise ValueError(f"{where(0)}: time {text[0]} is a number; {ISO}, or leave the column out and give --freq and "
                     "--start")


def _of_text(text: pd.Series, whole: pd.Series, where) -> tuple[np.ndarray, tuple[str, ...]]:
    """Wall times of texts without offset, and a note where they are not ISO 8601.

    Of several formats that suit all of them, the only one that gives the times of a series is taken.
    """
    for pattern, date in PERIODS if text.str.contains("[QMW]").any() else ():
        text = text.str.replace(pattern, date, regex=True)
    plain = text.str.contains(r"^\d") & ~text.str.contains(r":\d\d ?[+-]")  # pandas takes 08:00-14:00 for an offset
    iso = pd.to_datetime(text.where(plain), format="ISO8601", errors="coerce")
    if iso.notna().all():
        return rounded(iso), ()
    forms = set()
    if pd.isna(iso[0]):
        with warnings.catch_warnings(action="ignore"):  # that the first row tells day and month apart
            forms = {guess_datetime_format(text[0], dayfirst=first) for first in (False, True)}
        forms = {form for form in forms if form and not re.match("%Y.%d", form) and "%z" not in form.lower()}
        forms |= {*map("".join, product(DATES, CLOCKS)), *MONTHS, WEEK}
    tried = {form: pd.to_datetime(text, format=form, errors="coerce") for form in sorted(forms)
             if pd.notna(pd.to_datetime(text[0], format=form, errors="coerce"))}
    found = {form: rounded(times) for form, times in tried.items() if times.notna().all()}
    if len(found) > 1:
        uneven = {form: _unevenness(times) for form, times in found.items()}
        series = [form for form in found if uneven[form] <= MOST_GAPS]
        if len(series) == 1 and uneven[series[0]] <= FEW_GAPS:
            found = {series[0]: found[series[0]]}
    if not found:
        row = max(int(times.isna().to_numpy().argmax()) for times in (iso, *tried.values()))
        first = "" if row else "; remove a line of units or types"
        raise ValueError(f"{where(row)}: time {whole[row]!r}; {ISO}: write all times so{first}")
    (form, times), *other = found.items()
    if differing := [int((times != values).argmax()) for _, values in other if (times != values).any()]:
        row = min(differing)
        ways = " or ".join(f"{form} ({times[row].astype('datetime64[D]')})" for form, times in found.items())
        raise ValueError(f"{where(row)}: time {whole[row]!r} may be {ways}: write ISO 8601, {EXAMPLE.format(form)}")
    return times, (f"its times are read as {form}: the first one is {stamp(times[0])}",)


def _unevenness(times: np.ndarray) -> float:
    """Mean step over median step of distinct times, by their first rows; infinite where they neither rise nor fall."""
    steps = np.diff(pd.unique(times).astype(int))
    if not len(steps) or abs(np.sign(steps).sum()) < len(steps):
        return np.inf
    return np.abs(steps).mean() / np.median(np.abs(steps))


def holds_times(column: pd.Series) -> bool:
    """Whether a column is of times, or its first cell is a time and not a number."""
    if column.dtype.kind == "M":
        return bool(column.notna().any())
    if column.dtype.kind in "iufb" or not len(column) or pd.isna(column.iloc[0]):
        return False
    text = str(column.iloc[0]).strip()
    if text.isdigit():
        return False
    try:
        return bool(len(read_stamps(pd.Series([column.iloc[0]]), str).times))
    except ValueError as error:
        return "may be" in str(error)


# Time zones

def _offset_text(minutes: int) -> str:
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if minutes else "UTC"


def _zone_of(times: np.ndarray, minutes: np.ndarray) -> tuple[str, tuple[str, ...]]:
    """The time zone of stamps (time,), UTC, with these offsets in minutes, and a note where the offsets change."""
    if (minutes == minutes[0]).all():
        return _offset_text(int(minutes[0])), ()
    order = np.argsort(times, kind="stable")
    times, minutes = times[order], minutes[order]
    change = np.flatnonzero(np.diff(minutes))
    changes = np.unique([0, *change, *change + 1, len(times) - 1])
    for name in (*FIRST_ZONES, *sorted(available_timezones() - set(FIRST_ZONES))):
        if (offsets(times[changes], name) == minutes[changes]).all() and (offsets(times, name) == minutes).all():
            return name, (f"the offsets of its times change as those of the time zone {name}, which outputs keep",)
    last = _offset_text(int(minutes[-1]))
    return last, (f"its offsets from UTC follow no known time zone: outputs have the last one, {last}",)


def name_of(zone: tzinfo) -> str:
    """The name of a time zone (of zoneinfo, or of pytz in pandas 2), or the offset from UTC as +01:00."""
    named = getattr(zone, "key", None) or getattr(zone, "zone", None)
    offset = zone.utcoffset(None)
    return named or (str(zone) if offset is None else re.sub(r"^UTC(?=[+-])", "", str(timezone(offset))))


def zone_of(name: str) -> ZoneInfo | str:
    """What pandas takes for a time zone, or an offset, of this name: the same in all its versions."""
    return name if name[0] in "+-" else ZoneInfo(name)


def local_times(times: np.ndarray, zone: str) -> np.ndarray:
    """Local times of times in UTC; unchanged without a time zone."""
    if not zone:
        return times
    seconds = np.asarray(times).astype("datetime64[s]")
    local = pd.DatetimeIndex(seconds.ravel()).tz_localize("UTC").tz_convert(zone_of(zone)).tz_localize(None)
    return local.to_numpy().astype("datetime64[s]").reshape(seconds.shape)


def utc_times(local: np.ndarray, zone: str) -> np.ndarray:
    """Local times (time,) in UTC: the first of an hour that occurs twice, the next time for one that is skipped."""
    if not zone:
        return local
    index = pd.DatetimeIndex(local.astype("datetime64[s]"))
    aware = index.tz_localize(zone_of(zone), ambiguous=np.ones(len(index), bool), nonexistent="shift_forward")
    return aware.tz_convert(None).to_numpy().astype("datetime64[s]")


def offsets(times: np.ndarray, zone: str) -> np.ndarray:
    """Offsets from UTC, in minutes, of times in UTC."""
    return ((local_times(times, zone) - times) // np.timedelta64(60, "s")).astype("int32")


def stamps_as_text(times: np.ndarray, zone: str = "") -> np.ndarray:
    """Times (time,) as ISO text without seconds that are zero; with their offset where there is a time zone."""
    local = local_times(times, zone).astype("datetime64[s]")
    texts = [text.removesuffix(":00") for text in np.datetime_as_string(local).tolist()]
    if zone:
        texts = [text + _offset_text(minutes).replace("UTC", "+00:00")
                 for text, minutes in zip(texts, offsets(times, zone).tolist(), strict=True)]
    return np.array(texts)


def stamp(time: np.datetime64, zone: str = "") -> str:
    return str(stamps_as_text(np.atleast_1d(time), zone)[0])


def parse_time(text: str, flag: str, zone: str = "") -> np.datetime64:
    """The time of a text in ISO 8601, local or with an offset: in UTC where the data have a time zone `zone`.

    Raises: ValueError that begins with the flag.
    """
    found = None
    with contextlib.suppress(ValueError):
        found = read_stamps(pd.Series([text]), str)
    if found is None or found.notes:
        raise ValueError(f"{flag} {text}: expected a time in ISO 8601, as 2013-01-31 or 2013-01-31T18:00")
    time, = found.times
    if not zone and found.zone not in ("", "UTC"):
        raise ValueError(f"{flag} {text}: the data state no time zone; write the time without an offset, as they do")
    if found.zone or not zone:
        return time
    instant = pd.Timestamp(time).tz_localize(zone_of(zone), ambiguous="NaT", nonexistent="NaT")
    if pd.isna(instant):
        raise ValueError(f"{flag} {text}: the clocks of {zone} are changed then; give the offset too, as "
                         "2013-10-27T02:30+01:00")
    return instant.tz_convert(None).to_datetime64().astype("datetime64[s]")


# Which moment of its step a stamp is

def stamped(clock: np.ndarray, rule: tuple, months: int = 1) -> np.ndarray:
    """The stamps, as datetime64[s], of steps that begin at `clock` (time,): months, or times.

    rule = ()                   the beginning
           ("start", s)         s seconds after the beginning, also of steps that are no months
           ("end", s)           s seconds before the end of the month
           ("middle", k, unit)  middle of the `months` of which the month is the one after k; unit D: its day
    """
    kind, *values = rule or ("start", 0)
    begin = clock.astype("datetime64[s]")
    if kind == "start":
        return begin + np.timedelta64(values[0], "s")
    if kind == "end":
        return (clock + MONTH).astype("datetime64[s]") - np.timedelta64(values[0], "s")
    before, unit = values
    first, last = ((clock + (count - before) * MONTH).astype("datetime64[s]") for count in (0, months))
    return (first + (last - first) // 2).astype(f"datetime64[{unit}]").astype("datetime64[s]")


def stamp_rule(clock: np.ndarray, local: np.ndarray, months: int) -> tuple | None:
    """The rule of `stamped` that gives the stamps `local` (time,) of months, or None."""
    after = int((local[0] - clock[0].astype("datetime64[s]")).astype(int))
    before = int(((clock[0] + MONTH).astype("datetime64[s]") - local[0]).astype(int))
    rules = [*([("start", after) if after else PLAIN] if after < 28 * 86400 else []), ("end", before),
             *(("middle", number, unit) for number, unit in product(range(months), "sD"))]
    return next((rule for rule in rules if (stamped(clock, rule, months) == local).all()), None)


def check_zone(zone: str, wanted: str, source: str) -> None:
    """Raises: ValueError where only one of the stamps and the data states a time zone."""
    if zone and not wanted:
        raise ValueError(f"{source}: its times are of the time zone {zone}, those of the data state none; write them "
                         "without an offset, on the clock of the data")
    if wanted and not zone:
        raise ValueError(f"{source}: its times state no time zone, those of the data are of {wanted}; write them with "
                         "their offset from UTC, as 2013-01-31T18:00+01:00")
