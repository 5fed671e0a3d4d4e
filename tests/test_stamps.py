"""Times of files are those that pandas and xarray read, and outputs have them as the file does."""

import dataclasses
import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from conftest import ROOT, random_values
from hypothesis import given, settings
from hypothesis import strategies as st

from data.calendar import clock_of, first_step, make_calendar, regular_axis
from data.covariates import read_covariates
from data.fields import OwnFile, load_field
from data.stamps import parse_time, stamp, stamp_rule, stamped
from data.summary import FieldSummary
from data.windows import WindowedField, WindowSettings
from utils.config import TrainConfig
from utils.output import forecasts
from utils.output.forecasts import Forecast, write_forecasts
from utils.pipeline import open_run_field

STEPS = 60


def saved(path, times, values=None, name="time"):
    """A table of two nodes at these times (anything that pandas writes), by the ending of the path."""
    values = random_values(len(times), 2) if values is None else values
    frame = pd.DataFrame({name: times, "a": values[:, 0], "b": values[:, 1]})
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".nc":
        xarray.Dataset({"v": (("time", "node"), values)}, {"time": times}).to_netcdf(path)
    else:
        frame.to_csv(path, index=False)
    return path


def opened(path, missing="error", **flags):
    return load_field("mine", ROOT, own=OwnFile(str(path), **flags), missing=missing)


def refusal(path, missing="error", **flags) -> str:
    with pytest.raises(ValueError) as caught:
        opened(path, missing, **flags)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def instants(times) -> np.ndarray:
    """Times as pandas has them: UTC where they have a time zone."""
    index = pd.DatetimeIndex(times)
    return (index.tz_convert(None) if index.tz else index).to_numpy().astype("datetime64[s]")


def summary_of(field) -> FieldSummary:
    """What a checkpoint holds of a field, after it was one."""
    file = io.BytesIO()
    torch.save(FieldSummary.of(WindowedField(field, 6, 4)).state(), file)
    file.seek(0)
    return FieldSummary.from_state(torch.load(file, weights_only=True))


def forecast_of(summary, step, steps=5) -> Forecast:
    """Some forecast of one window whose first forecast step has the position `step`."""
    times = summary.times(step - 1, 1 + steps)[None]
    members = np.zeros((1, 2, steps, summary.num_nodes), np.float32)
    return Forecast(members, times[:, 1:], times[:, 0], summary, "a test")


def written(forecast, folder) -> dict:
    """The times forecast as pandas, NumPy or xarray reads them from each kind of output."""
    found, nodes = {}, forecast.field.num_nodes
    for ending in forecasts.WRITERS:
        path = folder / f"out{ending}"
        write_forecasts(path, iter([forecast]))
        if ending == ".csv":
            found[ending] = pd.read_csv(path)["valid_time"][::nodes].tolist()
        elif ending == ".parquet":
            found[ending] = pd.DatetimeIndex(pd.read_parquet(path)["valid_time"][::nodes])
        elif ending == ".nc":
            with xarray.open_dataset(path) as dataset:
                found[ending] = dataset.load()
        else:
            with np.load(path) as archive:
                found[ending] = dict(archive)
    return found


def check_outputs(field, wanted: pd.DatetimeIndex, folder, first=STEPS):
    """Every output of a forecast from the step `first` on has the times `wanted`, with their time zone."""
    found = written(forecast_of(summary_of(field), first, len(wanted)), folder)
    for texts, expected in zip(found[".csv"], wanted, strict=True):
        assert pd.Timestamp(texts) == expected and pd.Timestamp(texts).utcoffset() == expected.utcoffset()
    assert [each.isoformat() for each in found[".parquet"]] == [each.isoformat() for each in wanted]
    assert (found[".npz"]["times"][0] == instants(wanted)).all()
    assert (found[".nc"].time.values[0] == instants(wanted)).all()
    if wanted.tz is None:
        assert "time_zone" not in found[".npz"] and "utc_offset" not in found[".nc"]
    else:
        minutes = [each.utcoffset().total_seconds() / 60 for each in wanted]
        assert found[".npz"]["times_utc_offset"][0].tolist() == minutes == found[".nc"].utc_offset[0].values.tolist()
        assert str(found[".npz"]["time_zone"]) == found[".nc"].time.attrs["time_zone"] == field.spec.time_zone


# Rounding

@pytest.mark.parametrize("ending", [".csv", ".parquet", ".nc"])
@pytest.mark.parametrize("error", [-1, 1, -400_000, 499_999])
def test_microseconds_off_are_rounded_to_the_second(tmp_path, ending, error):
    hours = pd.date_range("2024-01-01", periods=STEPS, freq="h").astype("datetime64[us]")
    times = hours + pd.to_timedelta(np.arange(STEPS) % 2 * error, unit="us")
    field = opened(saved(tmp_path / f"a{ending}", times))
    assert (field.calendar.times == instants(hours)).all() and field.spec.interval == (1, "hour")
    assert field.calendar.slots[:25, 0].tolist() == [*range(24), 0]


@pytest.mark.parametrize("units, step", [("days since 1990-01-01", 1 / 24), ("hours since 1900-01-01", 1 / 3),
                                         ("days since 2000-01-01", 5 / 1440)])
def test_float_days_are_the_times_that_they_were_meant_to_be(tmp_path, units, step):
    values = np.arange(STEPS) * step + 1000 / 3 // step * step
    array = xarray.Dataset({"v": (("time", "node"), random_values(STEPS, 2))}, {"time": ("time", values,
                                                                                       {"units": units})})
    array.to_netcdf(tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "a.nc") as read:
        wanted = read.time.to_index().round("s")
    field = opened(tmp_path / "a.nc")
    assert (field.calendar.times == instants(wanted)).all()
    assert field.calendar.slots[:, 0].tolist() == ((wanted.hour * 60 + wanted.minute) // round(
        step * (1440 if "days" in units else 60))).tolist()


# Time zones

ZONED = {
    "fixed offset": pd.date_range("2024-03-30", periods=STEPS + 5, freq="h", tz="Etc/GMT-1").tz_convert("+01:00"),
    "UTC": pd.date_range("2024-03-30", periods=STEPS + 5, freq="h", tz="UTC"),
    "half hours": pd.date_range("2024-03-30", periods=STEPS + 5, freq="30min", tz="+05:30"),
    "spring in Berlin": pd.date_range("2024-03-30", periods=STEPS + 5, freq="h", tz="Europe/Berlin"),
    "autumn in New York": pd.date_range("2024-11-02", periods=STEPS + 5, freq="h", tz="America/New_York"),
    "days over a spring": pd.date_range("2024-02-20", periods=STEPS + 5, freq="D", tz="Europe/Berlin"),
    "weeks": pd.date_range("2023-01-01", periods=STEPS + 5, freq="W-SUN", tz="Europe/Helsinki"),
    "midnights that do not exist": pd.date_range("2018-09-20 00:00", periods=STEPS + 5, freq="D").tz_localize(
        "America/Sao_Paulo", nonexistent="shift_forward"),
    "months": pd.date_range("2019-01-01", periods=STEPS + 5, freq="MS", tz="+01:00"),
    "ends of months": pd.date_range("2019-01-01", periods=STEPS + 5, freq="ME", tz="America/Chicago"),
}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("times", ZONED.values(), ids=ZONED)
def test_time_zones_survive_to_every_output(tmp_path, times, ending):
    field = opened(saved(tmp_path / f"a{ending}", times[:STEPS]))
    assert (field.calendar.times == instants(times[:STEPS])).all()
    truth = {"step of day": (times.hour * 60 + times.minute) * field.calendar.sizes[0] // 1440,
             "day of week": times.day_of_week, "month": times.month - 1}
    for cycle, name in enumerate(field.calendar.names):
        if name in truth:
            assert field.calendar.slots[:, cycle].tolist() == truth[name][:STEPS].tolist(), name
    check_outputs(field, times[STEPS:], tmp_path)
    check_outputs(field, times[30:34], tmp_path, first=30)
    text = " to ".join(each.isoformat()[:16] for each in times[[0, STEPS - 1]])
    assert re.sub(r"([+-]\d\d:\d\d)", "", " to ".join(field.calendar.ends)) == text


def test_mixed_offsets_are_noted_as_the_time_zone_that_has_them(tmp_path):
    spring = opened(saved(tmp_path / "a.csv", ZONED["spring in Berlin"][:STEPS]))
    assert spring.spec.time_zone == "Europe/Berlin"
    assert any("offsets of its times change as those of the time zone Europe/Berlin" in note for note in spring.notes)


def test_offsets_of_no_time_zone_are_noted(tmp_path):
    times = [each.isoformat() for each in ZONED["UTC"][:40]] + [
        each.tz_convert("+01:00").isoformat() for each in ZONED["UTC"][40:STEPS]]
    times[10] = ZONED["UTC"][10].tz_convert("+07:00").isoformat()
    field = opened(saved(tmp_path / "a.csv", times))
    assert (field.calendar.times == instants(ZONED["UTC"][:STEPS])).all()
    assert any("follow no known time zone: outputs have the last one, +01:00" in note for note in field.notes)


def test_some_stamps_with_and_some_without_an_offset_are_refused(tmp_path):
    times = [each.isoformat() for each in ZONED["UTC"][:STEPS]]
    times[7] = times[7].removesuffix("+00:00")
    assert "line 9: time '2024-03-30T07:00:00' has no offset from UTC, unlike those before" in refusal(
        saved(tmp_path / "a.csv", times))


def test_a_time_in_a_flag_is_local_time_of_the_data_unless_it_says_its_offset():
    assert parse_time("2024-01-01T06:00", "--at", "Europe/Berlin") == np.datetime64("2024-01-01T05:00")
    assert parse_time("2024-01-01T06:00Z", "--at", "Europe/Berlin") == np.datetime64("2024-01-01T06:00")
    for changed in ("2024-03-31T02:30", "2024-10-27T02:30"):
        with pytest.raises(ValueError, match=f"--at {changed}: the clocks of Europe/Berlin are changed then"):
            parse_time(changed, "--at", "Europe/Berlin")
    with pytest.raises(ValueError, match="--at .*: the data state no time zone"):
        parse_time("2024-01-01T06:00+01:00", "--at")
    for text in ("now", "today", "5", "01/02/2024", "", "2024-13-01"):
        with pytest.raises(ValueError, match=f"--at {text}: expected a time in ISO 8601"):
            parse_time(text, "--at")


def test_the_start_of_an_array_keeps_its_offset(tmp_path):
    np.save(tmp_path / "a.npy", random_values(STEPS, 2))
    field = opened(tmp_path / "a.npy", freq="1h", start="2024-01-01T00:00+02:00")
    times = pd.date_range("2024-01-01", periods=STEPS + 5, freq="h", tz="+02:00")
    assert (field.calendar.times == instants(times[:STEPS])).all() and field.calendar.slots[0, 0] == 0
    check_outputs(field, times[STEPS:], tmp_path)


def test_steps_are_found_by_local_text_and_by_utc(tmp_path):
    for name in ("spring in Berlin", "days over a spring", "midnights that do not exist", "months"):
        times = ZONED[name]
        summary = summary_of(opened(saved(tmp_path / "a.parquet", times[:STEPS])))
        for step in (0, 30, STEPS + 4):
            assert summary.step_at(instants(times)[step]) == summary.step_at(times[step].isoformat()) == step
    assert summary.step_at("2019-03-01") == 2 == summary.step_at(pd.Timestamp("2019-03-01"))


def newer(field, path):
    """Values and position of a newer file, as scripts.forecast reads it for a run on `field`."""
    content = {"config": dataclasses.asdict(TrainConfig()), "field": summary_of(field).state()}
    found, position = open_run_field(content, "", str(path))
    return found.values, position


def test_a_newer_file_is_dated_by_its_instants_and_one_of_another_kind_of_time_is_refused(tmp_path):
    times = ZONED["spring in Berlin"]
    aware = opened(saved(tmp_path / "a.csv", times[:STEPS]))
    naive = opened(saved(tmp_path / "n.csv", times[:STEPS].tz_convert(None)))
    in_utc = saved(tmp_path / "utc.csv", times[40:].tz_convert("UTC"))
    assert newer(aware, in_utc)[1] == 40 == newer(naive, saved(tmp_path / "m.csv", times[40:].tz_convert(None)))[1]
    with pytest.raises(ValueError, match="utc.csv: its times are of the time zone UTC, those of the data state none"):
        newer(naive, in_utc)
    with pytest.raises(ValueError, match="m.csv: its times state no time zone, those of the data are of Europe/Berlin"):
        newer(aware, tmp_path / "m.csv")


@pytest.mark.parametrize("frequency", ["h", "D"])
def test_a_newer_file_of_another_fixed_offset_is_noted(tmp_path, capsys, frequency):
    times = pd.date_range("2024-01-01", periods=STEPS, freq=frequency, tz="+01:00")
    field = opened(saved(tmp_path / "a.csv", times))
    offset = "its offset from UTC (+02:00) is not that of the run (+01:00)"
    later = saved(tmp_path / "b.csv", (times + pd.Timedelta("60D")).tz_localize(None).tz_localize("+02:00"))
    if frequency == "h":
        assert newer(field, later)[1] == 60 * 24 - 1 and offset in capsys.readouterr().err
    else:
        with pytest.raises(ValueError, match=f"no step begins then.*{re.escape(offset)}"):
            newer(field, later)
    for same in (times, times.tz_convert("UTC"), times.tz_convert("Europe/Berlin")):  # in winter
        newer(field, saved(tmp_path / "c.csv", same))
    assert "offset" not in capsys.readouterr().err


@pytest.mark.parametrize("texts", [["1880.5", "1881.5", "1882.5"], ["2005.1", "2005.2", "2005.3", "2005.4", "2006.1"]])
def test_decimal_years_in_a_column_of_text_are_refused(tmp_path, texts):
    assert f"time {texts[0]} is a number" in refusal(saved(tmp_path / "a.csv", texts))


def test_the_start_of_months_without_stamps_keeps_its_day(tmp_path):
    np.save(tmp_path / "a.npy", random_values(STEPS, 2))
    times = opened(tmp_path / "a.npy", freq="1M", start="2010-01-31").calendar.times
    assert [str(time)[:10] for time in times[:3]] == ["2010-01-31", "2010-02-28", "2010-03-31"]


def test_covariates_are_matched_by_their_instants_and_local_months(tmp_path):
    for name in ("spring in Berlin", "days over a spring", "months"):
        times = ZONED[name][:STEPS]
        field = opened(saved(tmp_path / "a.parquet", times))
        same = saved(tmp_path / "same.csv", times if name == "months" else times.tz_convert("UTC"))
        assert read_covariates(same, field.calendar, field.node_names).values.shape[0] == STEPS
        for wrong, words in ((times[1:].append(times[-1:] + pd.Timedelta("400D")), "the field has"),
                             (times.tz_localize(None), "state no time zone")):
            with pytest.raises(ValueError, match=f"--covariates .*{words}"):
                read_covariates(saved(tmp_path / "wrong.csv", wrong), field.calendar, field.node_names)


def test_parts_of_a_split_begin_at_local_times(tmp_path):
    times = pd.date_range("2024-03-20", periods=20 * 24, freq="h", tz="Europe/Berlin")
    data = WindowedField(opened(saved(tmp_path / "a.csv", times)), 6, 4, WindowSettings("2024-03-30,2024-04-03"))
    first = [pd.Timestamp(data.field.calendar.times[int(data.starts[part][0]) + 6], tz="UTC")
             for part in ("validation", "test")]
    assert first == [pd.Timestamp("2024-03-30", tz="Europe/Berlin"), pd.Timestamp("2024-04-03", tz="Europe/Berlin")]
    assert str(data.local_times(int(data.starts["test"][0]))[6]).startswith("2024-04-03T00:00")


def test_a_run_of_a_field_with_another_time_zone_has_other_data(tmp_path):
    times = ZONED["UTC"][:STEPS]
    marks = [WindowedField(opened(saved(tmp_path / "a.csv", each)), 6, 4).fingerprint["first_time"]
             for each in (times, times.tz_localize(None))]
    assert marks == ["2024-03-30T00:00UTC", "2024-03-30T00:00"]


# Which moment of its step a stamp is

def mid_months(periods):
    first = pd.date_range("1999-11-01", periods=periods + 1, freq="MS")
    return first[:-1] + (first[1:] - first[:-1]) / 2


STAMPS = {
    "ends of months": pd.date_range("1999-11-30", periods=STEPS + 5, freq="ME"),
    "last seconds of months": pd.date_range("1999-11-30T23:59:59", periods=STEPS + 5, freq="ME"),
    "middle of months": mid_months(STEPS + 5),
    "day of the middle": mid_months(STEPS + 5).floor("D"),
    "fifteenths": pd.date_range("1999-11-01", periods=STEPS + 5, freq="MS") + pd.Timedelta("14D"),
    "ends of quarters": pd.date_range("1980-03-31", periods=STEPS + 5, freq="QE"),
    "starts of quarters": pd.date_range("1980-01-01", periods=STEPS + 5, freq="QS"),
    "ends of years": pd.date_range("1900-12-31", periods=STEPS + 5, freq="YE"),
    "years from July": pd.date_range("1900-07-01", periods=STEPS + 5, freq="YS-JUL"),
    "middle of years": pd.DatetimeIndex([pd.Timestamp(year, 1, 1) + (pd.Timestamp(year + 1, 1, 1) - pd.Timestamp(
        year, 1, 1)) / 2 for year in range(1900, 1905 + STEPS)]),
    "weeks ending on Sunday": pd.date_range("1999-11-07", periods=STEPS + 5, freq="W-SUN"),
    "last seconds of weeks": pd.date_range("1999-11-07T23:59:59", periods=STEPS + 5, freq="W-SUN"),
    "four weeks": pd.date_range("1999-11-07", periods=STEPS + 5, freq="28D"),
    "thirty days": pd.date_range("1999-11-07", periods=STEPS + 5, freq="30D"),
    "hours at half past": pd.date_range("1999-11-07T00:30", periods=STEPS + 5, freq="h"),
    "last seconds of days": pd.date_range("1999-11-07T23:59:59", periods=STEPS + 5, freq="D"),
}


@pytest.mark.parametrize("ending", [".csv", ".nc"])
@pytest.mark.parametrize("times", STAMPS.values(), ids=STAMPS)
def test_stamps_come_back_in_outputs_as_the_file_has_them(tmp_path, times, ending):
    field = opened(saved(tmp_path / f"a{ending}", times[:STEPS]))
    assert (field.calendar.times == instants(times[:STEPS])).all() and field.notes == ()
    check_outputs(field, times[STEPS:], tmp_path)
    check_outputs(field, times[20:24], tmp_path, first=20)
    summary = summary_of(field)
    assert [summary.step_at(time) for time in instants(times[:5])] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("rule", ["MS", "ME"])
def test_a_month_of_a_time_zone_begins_there_and_not_the_evening_before(tmp_path, rule):
    times = pd.date_range("2000-01-01", periods=STEPS, freq=rule, tz="America/New_York")
    summary = summary_of(opened(saved(tmp_path / "a.csv", times)))
    assert [summary.step_at(time) for time in (*instants(times[:3]), "2000-02-01", "2000-02-17")] == [0, 1, 2, 1, 1]
    with pytest.raises(ValueError, match="--at 2000-02-29T19:00-05:00: no step begins then; a step takes 1 month"):
        summary.step_at(np.datetime64("2000-03-01"), "--at")


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("count", [1, 2, 40])
def test_days_that_begin_without_a_midnight_are_read(first, count):
    """In Chile clocks go forward at midnight: 2021-09-05 begins at 01:00."""
    days, zone = pd.date_range("2021-09-03", periods=STEPS, freq="D")[first:first + count], "America/Santiago"
    times = instants(days.tz_localize(zone, nonexistent="shift_forward"))
    assert regular_axis(times, str, (1, "day"), zone)[0] == (1, "day")
    wanted = days + pd.Timedelta(hours=1) if count == 1 and first == 2 else days
    assert (clock_of(times, (1, "day"), zone) == wanted).all()


def test_monthly_stamps_without_a_rule_are_noted(tmp_path):
    times = STAMPS["fifteenths"][:STEPS].to_numpy().astype("datetime64[D]") + np.arange(STEPS) ** 2 % 7
    field = opened(saved(tmp_path / "a.csv", times))
    assert field.notes == ("its monthly times (1999-11-15T00:00, ...) follow no known rule: outputs have the "
                           "first of each month",)
    assert str(field.calendar.times[1]) == "1999-12-01T00:00"


def test_a_newer_monthly_file_may_write_another_day_of_the_month(tmp_path):
    field = opened(saved(tmp_path / "a.csv", STAMPS["ends of months"][:STEPS]))
    assert newer(field, saved(tmp_path / "b.csv", STAMPS["fifteenths"][30:]))[1] == 30


@given(st.integers(1, 3), st.integers(1880, 2100), st.integers(1, 12), st.integers(0, 27 * 86400))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_rule_gives_the_stamps_that_it_was_found_from(months, year, month, seconds):
    clock = np.datetime64(f"{year}-{month:02}", "M") + np.arange(40) * months
    for rule in (("start", seconds), ("end", seconds % 86400 + 1), ("middle", 0, "s")):
        local = stamped(clock, rule, months)
        found = stamp_rule(clock, local, months)
        later = np.arange(40, 90) * months + clock[0]
        assert (stamped(later, found, months) == stamped(later, rule, months)).all(), (rule, found)


# Numbers, columns, formats

@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["time", "year", "Year", "date"])
def test_consecutive_years_are_years(tmp_path, name, ending):
    years = np.arange(1950, 1950 + STEPS)
    field = opened(saved(tmp_path / f"a{ending}", years, name=name))
    assert field.spec.interval == (12, "month") and field.node_names == ("a", "b")
    assert (field.calendar.times.astype("datetime64[Y]").astype(int) + 1970 == years).all()


def test_a_year_that_is_missing_is_named_or_a_gap(tmp_path):
    path = saved(tmp_path / "a.csv", np.delete(np.arange(1950, 1951 + STEPS), 3), name="year")
    assert "line 5: time 1954-01-01T00:00, expected 1953-01 " in refusal(path)
    field = opened(path, "mask")
    assert len(field.values) == STEPS + 1 and field.values[3].isnan().all() and not field.values[4].isnan().any()


@pytest.mark.parametrize("numbers", [np.arange(STEPS), np.arange(1950, 1950 + 2 * STEPS, 2),
                                     np.arange(STEPS) * 3600 + 1_704_067_200])
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_other_numbers_are_no_times(tmp_path, numbers, ending):
    message = refusal(saved(tmp_path / f"a{ending}", numbers), freq="1h", start="2024-01-01")
    assert f"time {numbers[0]} is a number; expected ISO 8601" in message
    assert "or leave the column out and give --freq and --start" in message


@pytest.mark.parametrize("text, frequency", [("%Y%m%d", "D"), ("%Y%m%d%H", "h"), ("%Y%m%d%H%M", "15min")])
def test_dates_without_marks_between_their_digits_are_dates(tmp_path, text, frequency):
    times = pd.date_range("2023-12-20", periods=STEPS, freq=frequency)
    field = opened(saved(tmp_path / "a.csv", times.strftime(text)))
    assert (field.calendar.times == instants(times)).all()


@pytest.mark.parametrize("upper", [str.lower, str.capitalize, str.upper])
def test_columns_of_the_parts_of_a_time_are_one_column_of_times(tmp_path, upper):
    times = pd.date_range("2023-12-20", periods=STEPS, freq="h")
    parts = {upper(name): getattr(times, name) for name in ("year", "month", "day", "hour")}
    if upper is str.upper:
        parts = dict(zip(("YEAR", "MO", "DY", "HR"), parts.values(), strict=True))
    pd.DataFrame(parts | {"a": np.arange(STEPS)}).to_csv(tmp_path / "a.csv", index=False)
    field = opened(tmp_path / "a.csv")
    assert field.node_names == ("a",) and (field.calendar.times == instants(times)).all()


def test_columns_of_years_and_months_are_the_first_days_of_months_also_of_a_long_table(tmp_path):
    times = pd.date_range("2023-11-01", periods=STEPS, freq="MS").repeat(2)
    pd.DataFrame({"Month": times.month, "Year": times.year, "station": ["a", "b"] * STEPS, "value": 1.5}).to_csv(
        tmp_path / "a.csv", index=False)
    field = opened(tmp_path / "a.csv")
    assert field.node_names == ("a", "b") and (field.calendar.times == instants(times[::2])).all()


def test_parts_of_no_time_are_refused_by_their_line(tmp_path):
    pd.DataFrame({"year": [2023] * 3, "month": [11, 12, 13], "a": range(3)}).to_csv(tmp_path / "a.csv", index=False)
    assert "line 4: year, month: 2023, 13; expected the parts of a time, years of four digits" in (
        refusal(tmp_path / "a.csv"))


@pytest.mark.parametrize("name, form", [
    ("Time", "%H:%M"), ("time", "%H:%M:%S"), ("Time", "%H.%M.%S"), ("Time", "%I:%M %p"), ("Hour", "%H"), ("HR", "%H")])
def test_columns_of_date_and_time_of_day_are_one_column_of_times(tmp_path, name, form):
    times = pd.date_range("2023-12-20", periods=STEPS, freq="h")
    pd.DataFrame({"Date": times.strftime("%d/%m/%Y"), name: times.strftime(form), "a": np.arange(STEPS)}).to_csv(
        tmp_path / "a.csv", index=False)
    field = opened(tmp_path / "a.csv")
    assert field.node_names == ("a",) and (field.calendar.times == instants(times)).all()


FORMATS = ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%d-%m-%Y %H:%M", "%d %b %Y %H:%M",
           "%b %d, %Y %H:%M", "%d-%b-%Y %H:%M", "%Y/%m/%d %H:%M", "%d.%m.%Y %H:%M:%S.%f", "%m/%d/%Y %I:%M %p",
           "%m/%d/%y %H:%M", "%Y-%m-%d %I:%M:%S %p"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["time", "Zeit"])
def test_dates_of_one_unambiguous_format_are_read_as_pandas_reads_them(tmp_path, form, name):
    times = pd.date_range("2023-12-20", periods=STEPS, freq="h")
    text = times.strftime(form)
    path = saved(tmp_path / "a.csv", text, name=name)
    field = opened(path)
    assert (field.calendar.times == instants(pd.to_datetime(text, format=form))).all()
    assert (field.notes != ()) == (form != "%Y/%m/%d %H:%M")


@pytest.mark.parametrize("form", ["%d.%m.%y", "%y-%m-%d", "%m/%d/%y"])
def test_two_digit_years_are_read_in_the_order_that_gives_a_series(tmp_path, form):
    times = pd.date_range("2012-12-20", periods=STEPS)
    field = opened(saved(tmp_path / "a.csv", times.strftime(form)))
    assert (field.calendar.times == instants(times)).all() and form in field.notes[0]


@pytest.mark.parametrize("texts, frequency", [
    (lambda times: times.strftime("%b %Y"), "MS"), (lambda times: times.strftime("%b-%y"), "MS"),
    (lambda times: times.strftime("%YM%m"), "MS"), (lambda times: times.to_period("Q").astype(str), "QS"),
    (lambda times: times.to_period("Q").strftime("%Y-Q%q"), "QS"), (lambda times: times.strftime("%G-W%V"), "W-MON"),
    (lambda times: times.strftime("%GW%V"), "W-MON"),
])
def test_names_of_months_quarters_and_weeks_are_their_first_days(tmp_path, texts, frequency):
    times = pd.date_range("2013-12-01", periods=STEPS, freq=frequency)
    assert (opened(saved(tmp_path / "a.csv", texts(times))).calendar.times == instants(times)).all()


@pytest.mark.parametrize("text", ["12/20/2023 noon", "20 Nivose", "2023Q5"])
def test_other_dates_are_refused_with_the_way_out(tmp_path, text):
    assert f"line 2: time {text!r}; expected ISO 8601" in refusal(saved(tmp_path / "a.csv", [text] * STEPS))


@pytest.mark.parametrize("form", ["%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y"])
def test_dates_that_may_be_two_things_are_refused_with_both(tmp_path, form):
    text = pd.date_range("2024-01-02", periods=9, freq="D").strftime(form)
    message = refusal(saved(tmp_path / "a.csv", text))
    assert f"line 2: time {text[0]!r} may be" in message and "2024-01-02" in message and "2024-02-01" in message
    assert "pandas.to_datetime(frame['time'], format=" in message
    text = pd.date_range("2024-01-01", periods=9, freq="MS").strftime("%d/%m/%Y")
    assert "line 3: time '01/02/2024' may be" in refusal(saved(tmp_path / "a.csv", text))  # the first that differs


@pytest.mark.parametrize("row, text", [(3, "soon"), (5, "13/13/2024"), (4, "2024-01-05")])
def test_the_first_row_of_another_format_is_named(tmp_path, row, text):
    texts = pd.date_range("2024-01-20", periods=STEPS, freq="D").strftime("%d/%m/%Y").tolist()
    texts[row] = text
    assert f"line {row + 2}: time {text!r}; expected ISO 8601" in refusal(saved(tmp_path / "a.csv", texts))


# Order and gaps

@pytest.mark.parametrize("ending", [".csv", ".parquet", ".nc"])
def test_rows_that_descend_in_time_are_turned_with_a_note(tmp_path, ending):
    times, values = pd.date_range("2024-01-01", periods=STEPS, freq="h"), random_values(STEPS, 2)
    field = opened(saved(tmp_path / f"a{ending}", times[::-1], values[::-1]))
    assert torch.equal(field.values, torch.from_numpy(values)) and (field.calendar.times == instants(times)).all()
    assert field.notes == ("its rows descend in time: they are taken in the opposite order",)


def test_local_days_in_utc_are_refused_with_the_way_out(tmp_path):
    path = saved(tmp_path / "a.csv", ZONED["days over a spring"][:STEPS].tz_convert("UTC"))
    assert "write times of a zone with daylight saving with their offset from UTC" in refusal(path)


def test_a_bad_row_of_a_descending_file_is_named_by_its_line(tmp_path):
    times = pd.date_range("2024-01-01", periods=STEPS, freq="h")[::-1].delete(10)
    assert "line 11: time 2024-01-03T02:00, expected 2024-01-03T01:00" in refusal(saved(tmp_path / "a.csv", times))


GAPS = {
    "hours": pd.date_range("2024-01-01", periods=STEPS, freq="h"),
    "business days": pd.date_range("2024-01-01", periods=STEPS, freq="D"),
    "months": pd.date_range("2019-01-01", periods=STEPS, freq="ME"),
    "days over a spring": ZONED["days over a spring"][:STEPS],
    "spring in Berlin": ZONED["spring in Berlin"][:STEPS],
}


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("times", GAPS.values(), ids=GAPS)
def test_missing_rows_are_gaps_under_a_mask_and_all_told_at_once_without(tmp_path, times, ending):
    values = random_values(STEPS, 2)
    left = np.delete(np.arange(STEPS), [5, 6, 20, 40, 41, 42])
    path = saved(tmp_path / f"a{ending}", times[left], values[left])
    wanted = pd.DataFrame(values[left], times[left]).reindex(times)  # pandas, independently
    field = opened(path, "mask")
    np.testing.assert_array_equal(field.values, wanted.to_numpy(np.float32))
    assert (field.calendar.times == instants(times)).all() and field.missing_share == pytest.approx(6 / STEPS)
    places = [stamp(instants(times)[step], field.spec.time_zone) for step in (5, 20, 40)]
    places = [place[:7] for place in places] if len(field.calendar.names) == 1 else places
    told = f"6 steps are missing, from {places[0]} (2), {places[1]} (1), {places[2]} (3)"
    assert field.notes[-1].startswith(f"{told}: inserted as gaps")
    message = refusal(path)
    assert told in message and "add a row for each, its values left empty, or give --missing mask" in message


def test_a_missing_row_is_a_gap_in_a_long_table_too(tmp_path):
    times = pd.date_range("2024-01-01", periods=STEPS, freq="h")
    frame = pd.DataFrame(random_values(STEPS, 2), pd.Index(times, name="time"), list("ab"))
    frame.drop(times[7]).melt(var_name="node", ignore_index=False).to_csv(tmp_path / "a.csv")
    field = opened(tmp_path / "a.csv", "mask")
    assert field.values.isnan().all(1).nonzero().flatten().tolist() == [7]


def test_other_faults_are_refused_under_a_mask_too(tmp_path):
    hours = pd.date_range("2024-01-01", periods=STEPS, freq="h")
    for place, time, words in ((8, hours[7], "it occurs twice"), (8, hours[3], "stamps must ascend"),
                               (8, hours[8] + pd.Timedelta("20min"), "steps must be equally long"),
                               (STEPS - 1, pd.Timestamp("2204-01-01"), "more than there are: is this stamp right")):
        times = hours.delete(place).insert(place, time)
        assert words in refusal(saved(tmp_path / "a.csv", times), "mask")
    assert "steps of the file are 1 hour" in refusal(saved(tmp_path / "a.csv", hours), "mask", freq="30min")


def test_a_newer_file_with_missing_rows_is_read_by_a_run_that_takes_gaps(tmp_path, capsys):
    times, values = pd.date_range("2024-01-01", periods=STEPS, freq="h"), random_values(STEPS, 2)
    later = saved(tmp_path / "b.csv", times[30:].delete(4), np.delete(values[30:], 4, 0))
    with pytest.raises(ValueError, match="b.csv: line 6: .*1 missing"):
        newer(opened(saved(tmp_path / "a.csv", times, values)), later)
    values[3, 0] = np.nan
    found, first = newer(opened(saved(tmp_path / "a.csv", times, values), "mask"), later)
    assert first == 30 and found.isnan().all(1).nonzero().flatten().tolist() == [4]
    assert "b.csv: 1 step is missing, from 2024-01-02T10:00 (1): inserted as gaps" in capsys.readouterr().err


# Calendars of climate models

def of_model(path, calendar, frequency="D", periods=800, start="2003-03-01"):
    times = xarray.date_range(start, periods=periods, freq=frequency, calendar=calendar, use_cftime=True)
    xarray.Dataset({"v": (("time", "node"), random_values(periods, 2))}, {"time": times}).to_netcdf(path)
    return path


@pytest.mark.parametrize("frequency, share", [("D", 1), ("6h", 4)])
def test_leap_days_that_the_calendar_lacks_are_gaps_under_a_mask(tmp_path, frequency, share):
    path = of_model(tmp_path / "a.nc", "noleap", frequency, 800 * share)
    with xarray.open_dataset(path) as read:  # xarray, independently
        wanted = read.convert_calendar("standard", missing=np.nan).v
    field = opened(path, "mask")
    np.testing.assert_array_equal(field.values, wanted.values.astype(np.float32))
    assert (field.calendar.times == instants(wanted.time.to_index())).all()
    missing = f"{share} steps are" if share > 1 else "1 step is"
    assert field.notes == ("its times are of the calendar noleap; their digits are taken as dates",
                           f"{missing} missing, from 2004-02-29T00:00 ({share}): inserted as gaps")
    assert "expected 2004-02-29T00:00" in refusal(path)


def test_a_calendar_of_days_that_no_year_has_is_named_with_the_way_out(tmp_path):
    path = of_model(tmp_path / "a.nc", "360_day")
    for missing in ("error", "mask"):
        assert "calendar 360_day has days that no real year has" in refusal(path, missing)
    recipe, = re.findall(r"convert the file: (xarray.*)$", refusal(path))
    converted = eval(recipe, {"xarray": xarray, "FILE": path})
    converted.to_netcdf(tmp_path / "converted.nc")
    assert opened(tmp_path / "converted.nc", "mask").spec.interval == (1, "day")


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_months_of_a_climate_model_are_months_and_its_calendar_is_named(tmp_path, calendar):
    field = opened(of_model(tmp_path / "a.nc", calendar, "MS", STEPS))
    assert field.spec.interval == (1, "month") and field.calendar.ends == ["2003-03-01T00:00", "2008-02-01T00:00"]
    assert field.notes == (f"its times are of the calendar {calendar}; their digits are taken as dates",)


# Anything that pandas writes

@st.composite
def axes(draw):
    """Regular time axes as pandas makes them."""
    frequency = draw(st.sampled_from(["5min", "15min", "h", "6h", "D", "W-MON", "MS", "ME", "QE", "YS", "36h"]))
    zone = draw(st.sampled_from([None, "UTC", "+05:30", "Europe/Paris", "America/Denver", "Australia/Lord_Howe"]))
    zone = None if frequency in ("6h", "36h") else zone
    start = draw(st.datetimes(pd.Timestamp("1975-01-01"), pd.Timestamp("2030-01-01"))).replace(microsecond=0)
    start = pd.Timestamp(start).floor("D" if frequency[0] not in "5h1" else "15min")
    if zone and frequency in ("5min", "15min", "h"):
        return pd.date_range(start.tz_localize("UTC"), periods=40, freq=frequency).tz_convert(zone)
    return pd.date_range(start, periods=40, freq=frequency).tz_localize(zone)


@given(axes(), st.sampled_from([".csv", ".parquet", ".nc"]), st.sets(st.integers(1, 38), max_size=6), st.booleans())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_axis_that_is_accepted_is_the_one_that_pandas_and_xarray_read(tmp_path_factory, times, ending, left_out,
                                                                          turned):
    path, values = tmp_path_factory.mktemp("axes") / f"a{ending}", random_values(len(times), 2)
    kept = np.delete(np.arange(len(times)), sorted(left_out))
    rows = kept[::-1] if turned else kept
    saved(path, times[rows] if ending != ".nc" else times[rows].tz_localize(None), values[rows])
    if ending == ".nc":
        with xarray.open_dataset(path) as read:
            read = read.sortby("time").v.to_pandas()
    else:
        read = pd.read_csv(path) if ending == ".csv" else pd.read_parquet(path)
        read = read.set_index(pd.to_datetime(read.pop("time"), utc=times.tz is not None)).sort_index()
        read.index = read.index.tz_convert(times.tz) if times.tz else read.index
    field = opened(path, "mask")
    wanted = read.reindex(times if ending != ".nc" else times.tz_localize(None))
    np.testing.assert_array_equal(field.values, wanted.to_numpy(np.float32))
    assert (field.calendar.times == instants(wanted.index)).all()
    summary = FieldSummary.of(WindowedField(field, 6, 4, WindowSettings(split="0.4,0.3,0.3")))
    assert (summary.times(0, len(times)) == instants(wanted.index)).all()


@given(st.integers(2, 200),
       st.sampled_from([(1, "hour"), (7, "minute"), (1, "day"), (2, "week"), (1, "month"), (3, "month")]),
       st.sampled_from(["", "+09:00", "Europe/London", "America/Sao_Paulo"]), st.integers(0, 20_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_calendar_is_found_again_from_its_stamps(steps, interval, zone, day):
    """Of four stamps or more: the three of December to February are as well 31 days apart."""
    start = str(np.datetime64("1971-01-01") + np.timedelta64(day, "D"))
    calendar = make_calendar(start, interval, steps + 2, zone)
    assert regular_axis(calendar.times, str, None, zone)[0] == interval
    found, rule = first_step(calendar.times, interval, zone)
    again = make_calendar(found, interval, steps + 2, zone, rule)
    assert (again.times == calendar.times).all() and torch.equal(again.slots, calendar.slots)
    assert (np.diff(clock_of(calendar.times, interval, zone)).astype(int) > 0).all()


def test_a_checkpoint_of_an_earlier_version_states_no_time_zone(tmp_path):
    summary = summary_of(opened(saved(tmp_path / "a.csv", pd.date_range("2024-01-01", periods=STEPS, freq="h"))))
    state = {name: value for name, value in summary.state().items() if name not in ("time_zone", "rule")}
    assert dataclasses.asdict(FieldSummary.from_state(state))["time_zone"] == ""


def test_gmt_is_utc_and_a_range_of_hours_is_no_offset(tmp_path):
    times = pd.date_range("2023-12-20", periods=STEPS, freq="h")
    field = opened(saved(tmp_path / "a.csv", times.strftime("%Y-%m-%d %H:%M GMT")))
    assert (field.calendar.times == instants(times)).all() and field.calendar.zone == "UTC"
    days = pd.date_range("2023-12-20", periods=STEPS)
    assert "time '2023-12-20 08:00-14:00'; expected ISO 8601" in refusal(
        saved(tmp_path / "b.csv", days.strftime("%Y-%m-%d 08:00-14:00")))


@pytest.mark.parametrize("row, words", [
    ({"year": 23, "month": 12, "day": 20}, "23, 12"), ({"year": 2023, "month": 12, "day": 20, "hour": 1200}, "1200"),
    ({"year": 2023, "month": 12, "day": 20, "hour": 1, "minute": 90}, "90"), ({"year": 2023, "month": -1}, "-1"),
    ({"year": 2023, "month": 12, "day": 1.5}, "1.5"),
])
def test_parts_outside_their_range_are_refused(tmp_path, row, words):
    pd.DataFrame([row | {"a": step} for step in range(3)]).to_csv(tmp_path / "a.csv", index=False)
    assert "expected the parts of a time" in (found := refusal(tmp_path / "a.csv")) and words in found


@pytest.mark.parametrize("columns, nodes", [
    ({"HR": 0}, ("HR", "a")), ({"HR": range(STEPS)}, ("HR", "a")), ({"time": range(STEPS)}, ("time", "a")),
    ({"hour": 7, "minute": 30}, ("hour", "minute", "a")), ({"MO": 3, "TX": 4}, ("MO", "TX", "a")),
])
def test_columns_of_values_with_the_name_of_a_part_stay_nodes(tmp_path, columns, nodes):
    days = pd.date_range("2023-12-20", periods=STEPS).strftime("%Y-%m-%d")
    pd.DataFrame({"date": days, **columns, "a": np.arange(STEPS)}).to_csv(tmp_path / "a.csv", index=False)
    field = opened(tmp_path / "a.csv")
    assert field.node_names == nodes and field.calendar.times[0] == np.datetime64("2023-12-20")


@pytest.mark.parametrize("first", ["Datum", "", "time"])
def test_whole_times_go_before_their_parts(tmp_path, first):
    times = pd.date_range("2023-12-20", periods=STEPS)
    pd.DataFrame({first: times.strftime("%Y-%m-%d"), "year": times.year, "month": times.month}).to_csv(
        tmp_path / "a.csv", index=False)
    field = opened(tmp_path / "a.csv")
    assert field.node_names == ("year", "month") and (field.calendar.times == instants(times)).all()


@pytest.mark.parametrize("texts", [
    ["12/12/01", "12/12/02", "12/12/03"],  # December of 2012, or a day of 2001 to 2003
    ["01/04/2012 12:00", "01/04/2012 12:05", "03/04/2012 12:00", "03/04/2012 12:05"],  # a gap of two days or two months
])
def test_dates_that_give_several_series_are_refused(tmp_path, texts):
    assert "may be" in refusal(saved(tmp_path / "a.csv", texts))
