"""Each step falls into the slot of the day, week or year that its true time says."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.calendar import make_calendar


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
    assert make_calendar("2001-02-01", (3, "month"), 5).slots[:, 0].tolist() == [1, 4, 7, 10, 1]


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
        start = np.datetime64("1860-01-01") + int(day)
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


@pytest.mark.parametrize("interval, words", [
    ((7, "minute"), "7 minutes do not divide a day"), ((5, "hour"), "300 minutes do not divide a day"),
    ((2, "day"), "do not divide a day"), ((1, "week"), "unit must be one of minute, hour, day, month"),
])
def test_an_interval_that_no_calendar_has_is_refused_with_the_reason(interval, words):
    with pytest.raises(ValueError, match=words):
        make_calendar("2020-01-01", interval, 10)
