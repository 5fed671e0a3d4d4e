"""Each step falls into the slot of the day, week or year that its true time says."""

import re
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.calendar import make_calendar, parse_interval, regular_axis


@pytest.mark.parametrize("interval, sizes, names", [
    ((5, "minute"), (288, 7), ("step of day", "day of week")),
    ((15, "minute"), (96, 7), ("step of day", "day of week")),
    ((30, "minute"), (48, 7), ("step of day", "day of week")), ((1, "hour"), (24, 7), ("step of day", "day of week")),
    ((6, "hour"), (4, 7), ("step of day", "day of week")), ((1, "day"), (7, 12), ("day of week", "month")),
    ((24, "hour"), (7, 12), ("day of week", "month")), ((1, "month"), (12,), ("month",)),
])
def test_the_slots_of_an_interval_are_all_used_and_none_is_left_over(interval, sizes, names):
    calendar = make_calendar("2012-03-01", interval, 3000)
    assert calendar.sizes == sizes and calendar.names == names
    assert calendar.slots.shape == (3000, len(sizes)) and calendar.times.shape == (3000,)
    for cycle, size in enumerate(sizes):
        assert calendar.slots[:, cycle].unique().tolist() == list(range(size))


def test_five_minute_data_begin_on_thursday_the_first_of_march_2012_in_slot_0():
    calendar = make_calendar("2012-03-01", (5, "minute"), 2016)
    assert calendar.slots[0].tolist() == [0, 3] and calendar.slots[287].tolist() == [287, 3]
    assert calendar.slots[288].tolist() == [0, 4] and calendar.slots[-1].tolist() == [287, 2]


def test_months_before_1970_count_from_january_as_0():
    calendar = make_calendar("1850-01-01", (1, "month"), 1980)
    assert calendar.slots[:14, 0].tolist() == [*range(12), 0, 1]
    assert str(calendar.times[-1])[:7] == "2014-12"


def test_every_third_month_is_a_quarter():
    quarters, halves = make_calendar("2001-02-01", (3, "month"), 5), make_calendar("2001-08-01", (6, "month"), 3)
    assert quarters.slots[:, 0].tolist() == [0, 1, 2, 3, 0] and quarters.sizes == (4,)
    assert halves.slots[:, 0].tolist() == [1, 0, 1] and halves.sizes == (2,)
    years, odd = make_calendar("2001-08-01", (12, "month"), 3), make_calendar("2001-01-01", (5, "month"), 4)
    assert years.sizes == (1,) == make_calendar("2001-08-01", (24, "month"), 3).sizes
    assert odd.sizes == (12,) and (np.diff(odd.slots[:, 0]) % 12 == 1).all()  # a slot later at every step


def test_a_leap_day_has_its_own_day_of_the_week():
    days = make_calendar("2024-02-28", (1, "day"), 3)
    assert [str(time)[:10] for time in days.times] == ["2024-02-28", "2024-02-29", "2024-03-01"]
    assert days.slots.tolist() == [[2, 1], [3, 1], [4, 2]]
    assert make_calendar("1900-02-28", (1, "day"), 2).slots[1].tolist() == [3, 2]  # 1900 had no leap day


@given(start=st.datetimes(datetime(1800, 1, 1), datetime(2150, 1, 1)), minutes=st.sampled_from([1, 5, 15, 30, 60, 360]),
       steps=st.integers(1, 400))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_slots_agree_with_the_standard_library_from_any_start(start, minutes, steps):
    start = start.replace(second=0, microsecond=0)
    interval = (minutes // 60, "hour") if minutes % 60 == 0 else (minutes, "minute")
    calendar = make_calendar(start.isoformat(timespec="minutes"), interval, steps)
    times = [start + timedelta(minutes=minutes * step) for step in range(steps)]
    assert calendar.slots[:, 0].tolist() == [(time.hour * 60 + time.minute) // minutes for time in times]
    assert calendar.slots[:, 1].tolist() == [time.weekday() for time in times]
    assert calendar.times.astype(datetime).tolist() == times


@pytest.mark.parametrize("interval, frequency", [
    ((5, "minute"), "5min"), ((30, "minute"), "30min"), ((1, "hour"), "h"), ((1, "day"), "D"), ((1, "month"), "MS"),
])
def test_slots_agree_with_pandas(interval, frequency):
    for day in np.random.default_rng(0).integers(0, 60_000, 20):
        start = np.datetime64("1860-01-01") + np.timedelta64(int(day), "D")
        start = start.astype("datetime64[M]").astype("datetime64[D]") if interval[1] == "month" else start
        calendar = make_calendar(str(start), interval, 500)
        times = pd.date_range(str(start), periods=500, freq=frequency)
        truth = {
            "step of day": (times.hour * 60 + times.minute) * calendar.sizes[0] // 1440,
            "day of week": times.day_of_week, "month": times.month - 1,
        }
        for cycle, name in enumerate(calendar.names):
            assert calendar.slots[:, cycle].tolist() == truth[name].tolist()
        assert (calendar.times == times.to_numpy()).all()


def test_a_week_falls_into_its_week_of_the_year():
    calendar = make_calendar("2019-12-30", (1, "week"), 105)
    assert (calendar.sizes, calendar.names) == ((53,), ("step of year",))
    assert calendar.slots[:54, 0].tolist() == [51, *range(52), 0]  # from day 363 of 2019 to day 3 of 2021


@pytest.mark.parametrize("interval, sizes", [((7, "minute"), (206, 7)), ((5, "hour"), (5, 7)), ((10, "day"), (37,)),
                                             ((2, "week"), (27,)), ((36, "hour"), (244,))])
def test_steps_that_do_not_divide_their_cycle_have_a_slot_for_every_stretch_of_it(interval, sizes):
    calendar = make_calendar("2020-01-01", interval, 5000)
    assert calendar.sizes == sizes
    for cycle, size in enumerate(sizes):
        assert calendar.slots[:, cycle].unique().tolist() == list(range(size))


# Intervals from flags and from time stamps

@pytest.mark.parametrize("text, interval", [
    ("5min", (5, "minute")), ("1h", (1, "hour")), ("d", (1, "day")), ("2w", (2, "week")), ("1M", (1, "month")),
    ("15 minutes", (15, "minute")), ("3MS", (3, "month")), ("1y", (12, "month")), ("60min", (1, "hour")),
    ("7d", (1, "week")), ("24H", (1, "day")), ("Hours", (1, "hour")),
])
def test_an_interval_is_read_as_it_is_written(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["0h", "m", "x", "5", "-1h", "1.5h", "", "1h30min"])
def test_what_is_no_interval_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=f"--freq {re.escape(text)}: .* 5min, 1h, 1d, 1w or 1M"):
        parse_interval(text)


@pytest.mark.parametrize("interval", [(5, "minute"), (1, "hour"), (36, "hour"), (1, "day"), (1, "week"), (1, "month"),
                                      (3, "month")])
def test_stamps_of_a_regular_calendar_tell_its_interval(interval):
    times = make_calendar("1999-11-01", interval, 40).times
    assert regular_axis(times, str)[0] == interval == regular_axis(times, str, interval)[0]


def test_monthly_stamps_may_be_any_day_of_their_month():
    times = np.array(["1950-01-16T12", "1950-02-15", "1950-03-16T12", "1950-04-30"], "datetime64[s]")
    assert regular_axis(times, str)[0] == (1, "month")


@pytest.mark.parametrize("stamps, message", [
    (["2013-01-01T00", "2013-01-01T01", "2013-01-01T01"], "row 2: time 2013-01-01T01:00, expected 2013-01-01T02:00 .1 "
     "hour after 2013-01-01T01:00.: it occurs twice"),
    (["2013-01-01T00", "2013-01-01T01", "2013-01-01T00:30"], "row 2: .*: stamps must ascend"),
    (["2013-01-01T00", "2013-01-01T01", "2013-01-01T05"], "row 2: .*: 3 missing: add a row for each"),
    (["2013-01-01T00", "2013-01-01T01", "2013-01-01T02:20"], "row 2: .*: steps must be equally long"),
    (["2013-01-16", "2013-02-15", "2013-04-15"], "row 2: time 2013-04-15T00:00, expected 2013-03 "),
    (["2013-10-27T01", "2013-10-27T02", "2013-10-27T02"], "write times of a zone with daylight saving"),
    (["2013-03-31T01", "2013-03-31T03", "2013-03-31T04"], "row 1: .*write times of a zone with daylight saving"),
    (["2013-01-01", "2013-01-01"], "row 1: .*stamps must ascend"),
    (["2013-01-01T00:00:00", "2013-01-01T00:00:10"], "row 1: steps of 10 seconds; .* whole minutes"),
    (["2013-01-01"], "row 0: one time stamp does not determine the interval; give --freq"),
])
def test_stamps_that_are_not_regular_are_refused_with_the_first_bad_row(stamps, message):
    """faults 18"""
    with pytest.raises(ValueError, match=message):
        regular_axis(np.array(stamps, "datetime64[s]"), lambda step: f"row {step}")


def test_stamps_that_contradict_the_interval_of_the_flag_are_refused_with_both():
    """faults 17"""
    times = make_calendar("2013-01-01", (1, "day"), 5).times
    with pytest.raises(ValueError, match=r"time 2013-01-02T00:00, expected 2013-01-01T01:00 .*or the run says\): "
                                         "steps of the file are 1 day"):
        regular_axis(times, str, (1, "hour"))
