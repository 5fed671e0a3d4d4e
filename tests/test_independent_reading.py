"""Random files that are accepted hold the values and names that pandas, xarray and netCDF4 read in them.

FUZZ_EXAMPLES files of each kind are tried, few if it is not set.
"""

import os
from io import StringIO

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.readers import read_file

FEW = 12
fuzzed = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES") or FEW), deadline=None, derandomize=True,
                  database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
letters = st.characters(codec="utf-8", categories=("L", "N"), include_characters=" _-/()°")
names = st.one_of(st.sampled_from(["NA", "nan", "12", "1e5x", "a,b", "x;y", "Unnamed: 7", "node 0", "lat", "y", "a#b",
                                   "2001", "flow_qc", "quality", "hour", "index", "no", "value", "#1", '"q"']),
                  st.text(letters, min_size=1, max_size=8).map(str.strip).filter(bool))
numbers = st.one_of(st.integers(-9, 9).map(float), st.floats(-1e6, 1e6, width=32), st.sampled_from([-999.0, 1e20, 0.0]),
                    st.just(np.nan))


@st.composite
def fields(draw, most_names=5):
    """A table (time, node) of hours, with names that are all different."""
    columns = draw(st.lists(names, min_size=1, max_size=most_names, unique_by=str.lower))
    steps = draw(st.integers(2, 8))
    values = draw(st.lists(st.lists(numbers, min_size=len(columns), max_size=len(columns)), min_size=steps,
                           max_size=steps))
    start = pd.Timestamp("2020-01-01") + pd.Timedelta(hours=draw(st.integers(0, 50_000)))
    hours = pd.date_range(start, periods=steps, freq="h", name="time")
    return pd.DataFrame(np.array(values, np.float32), hours, columns)


def as_long(frame) -> pd.DataFrame:
    """Columns node, time, value."""
    return frame.rename_axis("node", axis=1).unstack().rename("value").reset_index()


def agrees(table, expected: pd.DataFrame) -> None:
    """Fail unless a table has the times, values and names of a frame, but for columns that a note leaves out."""
    left_out = {name for name in expected.columns if any(
        note.endswith("an index of the table") and name in note for note in table.notes)} - {*table.node_names}
    expected = expected.drop(columns=list(left_out))
    assert list(table.node_names) == list(expected.columns)
    np.testing.assert_array_equal(table.times, expected.index.to_numpy().astype("datetime64[s]"))
    np.testing.assert_array_equal(table.values.numpy(), expected.to_numpy(np.float32))


@fuzzed
@given(frame=fields(), separator=st.sampled_from(",;\t"), comment=st.booleans(), trailing=st.booleans(),
       counter=st.booleans(), latin=st.booleans(), long=st.booleans(), shuffle=st.randoms(use_true_random=False))
def test_a_csv_is_what_pandas_reads(tmp_path, frame, separator, comment, trailing, counter, latin, long, shuffle):
    keys, stored = ("time", "node", "value"), frame.reset_index()
    if long:
        keys = shuffle.choice([keys, ("ds", "unique_id", "y"), ("timestamp", "item_id", "target")])
        stored = as_long(frame).rename(columns=dict(zip(("time", "node", "value"), keys, strict=True)))
        stored = stored[shuffle.sample(keys, 3)]
    text = stored.to_csv(sep=separator, index=counter)
    if trailing:
        text = text.replace("\n", f"{separator}\n")
    encoding = "latin-1" if latin and text.encode("latin-1", "ignore").decode("latin-1") == text else "utf-8"
    path = tmp_path / "a.csv"
    path.write_bytes((("# a comment, or two\n" * comment) + text).encode(encoding))
    table = read_file(path)
    expected = pd.read_csv(StringIO(text), sep=separator, keep_default_na=False,
                           na_values={name: [""] for name in stored.columns if name not in keys[:2]})
    expected = expected[[name for name in stored.columns]]
    if long:
        expected = expected.astype({keys[1]: str}).pivot(index=keys[0], columns=keys[1], values=keys[2])
        expected = expected[[str(name) for name in stored[keys[1]].unique()]]
    else:
        expected = expected.set_index("time")
    agrees(table, expected.set_axis(pd.to_datetime(expected.index)))


@fuzzed
@given(frame=fields(), layout=st.sampled_from(["index", "column", "long", "levels", "filtered"]),
       dtype=st.sampled_from(["float32", "float64", "Float64"]))
def test_a_parquet_table_is_what_pandas_reads(tmp_path, frame, layout, dtype):
    path, frame = tmp_path / "a.parquet", frame.astype(dtype)
    long = as_long(frame).set_index(["time", "node"])
    {"index": frame, "column": frame.reset_index(), "long": long.reset_index(), "levels": long,
     "filtered": frame.reset_index().set_axis([*range(0, 2 * len(frame), 2)])}[layout].to_parquet(path)
    table, expected = read_file(path), pd.read_parquet(path)
    if layout in ("long", "levels"):
        series = expected.reset_index().set_index(["time", "node"])["value"]
        expected = series.unstack()[list(dict.fromkeys(series.index.get_level_values("node")))]
    elif layout != "index":
        expected = expected.set_index("time")
    agrees(table, expected.astype("float64"))


@fuzzed
@given(frame=fields(), dtype=st.sampled_from(["i1", "u1", "i2", "i4", "f4", "f8"]), fill=st.sampled_from([None, -7, 3]),
       attributes=st.fixed_dictionaries({}, optional={
           "missing_value": st.integers(0, 9),
           "scale_factor": st.sampled_from([0.5, 2.0]), "add_offset": st.sampled_from([0.0, 10.0])}),
       name=st.sampled_from(["station_name", "node", "id"]), turned=st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_a_netcdf_file_is_what_netcdf4_and_xarray_read(tmp_path, frame, dtype, fill, attributes, name, turned):
    path, steps, nodes = tmp_path / "a.nc", *frame.shape
    if fill == -7 and dtype == "u1":
        fill = 7
    values = np.nan_to_num(frame.to_numpy(), nan=3.0).clip(-100, 100)
    values = np.abs(values) if dtype == "u1" else values
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None)
        file.createDimension("node", nodes)
        time = file.createVariable("time", "i4", ("time",))
        time.units = f"hours since {frame.index[0]}"
        time[:] = np.arange(steps)
        labels = file.createVariable(name, str, ("node",))
        labels[:] = np.array(frame.columns, object)
        array = file.createVariable("v", dtype, ("node", "time") if turned else ("time", "node"), fill_value=fill)
        array.set_auto_maskandscale(False)
        array.setncatts({key: np.array(value, "f8" if key in ("scale_factor", "add_offset") else dtype)
                         for key, value in attributes.items()})
        for step in range(steps):
            array[(slice(None), step) if turned else (step, slice(None))] = values[step].astype(dtype)
    with netCDF4.Dataset(path) as file:
        masked = file["v"][:]
        expected = np.ma.filled(masked.astype(np.float64), np.nan)
    with xarray.open_dataset(path) as dataset:
        decoded = dataset["v"].transpose("time", "node").values.astype(np.float64)
        assert list(dataset[name].values) == list(frame.columns)
    table, expected = read_file(path), expected.T if turned else expected
    agrees(table, pd.DataFrame(expected, frame.index, frame.columns))
    present = ~np.isnan(expected)
    kept = [list(frame.columns).index(node) for node in table.node_names]
    np.testing.assert_array_equal(table.values.numpy()[present[:, kept]],
                                  decoded[:, kept][present[:, kept]].astype(np.float32))
