"""The same field in any kind of file is the same table; what is wrong in a file is named with its row."""

import gzip
import importlib
import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
import zarr
from conftest import ROOT, SHARED, Payload, needs_real_data, random_values, refusal_of
from hypothesis import given, settings
from hypothesis import strategies as st

from data import table as table_module
from data.constants import ANY_VALUE
from data.fields import OwnFile, load_field, match
from data.nodes import numbered, read_graph, read_node_table
from data.readers import READERS, read_file
from data.summary import FieldSummary
from data.windows import WindowedField, WindowSettings

VALUES = random_values(48, 4)
SERIES = VALUES[:, 0].astype(np.float64)
HOURS = pd.date_range("2024-03-30", periods=48, freq="h")
NAMES = ("north", "Ünion, east", "3", "4.5 km")


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path, call=read_file, **options) -> str:
    return refusal_of(path, call, **options)


def frame(values=VALUES, times=HOURS, names=NAMES):
    return pd.DataFrame(values, index=pd.Index(times, name="time"), columns=list(names))


def dataset(values, name="sst", **attributes) -> xarray.Dataset:
    """A grid of 3 latitudes and 4 longitudes, monthly from the middle of January 1950."""
    times = pd.date_range("1950-01-01", periods=len(values), freq="MS") + pd.Timedelta(days=14)
    return xarray.Dataset(
        {name: (("time", "lat", "lon"), values, attributes)},
        {"time": times, "lat": [-5.0, 0.0, 5.0], "lon": [190.0, 200.0, 210.0, 220.0]},
    )


def grid_with_land(steps=24):
    """Values (time, 3, 4) whose places 5 and 11 have none at any time."""
    values = random_values(steps, 12).reshape(steps, 3, 4)
    values[:, 1, 1] = values[:, 2, 3] = np.nan
    return values


# Every kind of file

def as_wide_csv(path):
    frame().to_csv(path / "a.csv")


def as_semicolons(path):
    frame().to_csv(path / "a.csv", sep=";")


def as_offsets(path):
    local = HOURS.tz_localize("UTC").tz_convert("Europe/Berlin")  # summer time begins within these days
    frame(times=local).to_csv(path / "a.csv")


def as_gz(path):
    frame().to_csv(path / "a.csv.gz")


def as_unnamed_index(path):
    frame().rename_axis(None).to_csv(path / "A.CSV")


def as_blank_end(path):
    (path / "a.csv").write_text(frame().to_csv() + "\n\r\n\n")


def as_mark_of_bytes(path):
    (path / "a.csv").write_text("\ufeff" + frame().to_csv(), encoding="utf-8")


def as_long_csv(path):
    frame().melt(var_name="node", ignore_index=False).to_csv(path / "a.csv")


def as_mixed_long_csv(path):
    long = frame().melt(var_name="Node", value_name="Value", ignore_index=False).reset_index(names="Timestamp")
    rest = long.sample(frac=1, random_state=0)
    pd.concat([long.drop_duplicates("Node"), rest]).drop_duplicates().to_csv(path / "a.csv", index=False)


def as_parquet(path):
    frame().to_parquet(path / "a.parquet")


def as_long_parquet(path):
    frame().melt(var_name="node", ignore_index=False).reset_index().to_parquet(path / "a.parquet", index=False)


def as_npz(path):
    np.savez(path / "a.npz", values=VALUES, times=HOURS.to_numpy(), node_names=NAMES)


def stations() -> xarray.Dataset:
    return xarray.Dataset({"rain": (("time", "station"), VALUES)}, {"time": HOURS, "station": list(NAMES)})


def as_netcdf(path):
    stations().to_netcdf(path / "a.nc")


def as_turned_netcdf(path):
    stations().expand_dims(level=[10]).transpose("level", "station", "time").to_netcdf(path / "a.nc")


def as_zarr(path):
    stations().to_zarr(path / "a.zarr", consolidated=False, zarr_format=2)


@pytest.mark.parametrize("write", [
    as_wide_csv, as_semicolons, as_offsets, as_gz, as_unnamed_index, as_blank_end, as_mark_of_bytes, as_long_csv,
    as_mixed_long_csv, as_parquet, as_long_parquet, as_npz, as_netcdf, as_turned_netcdf, as_zarr,
])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of zarr, about names that are no ASCII
def test_a_field_is_the_same_table_in_any_kind_of_file(tmp_path, write):
    write(tmp_path)
    table = read_file(next(tmp_path.iterdir()))
    assert torch.equal(table.values, torch.from_numpy(VALUES))
    assert (table.times == HOURS.to_numpy()).all() and table.times.dtype == "datetime64[s]"
    assert table.node_names == NAMES


def test_a_csv_without_a_time_column_has_no_stamps(tmp_path):
    table = read_file(written(tmp_path / "a.csv", "a,b\n1,2\n3,4\n"))
    assert table.times is None and table.node_names == ("a", "b") and table.values.tolist() == [[1, 2], [3, 4]]


def test_a_first_column_of_times_is_the_time_whatever_its_name(tmp_path):
    table = read_file(written(tmp_path / "a.csv", "Zeit, a, b\n2024-01-01T06:00, 1, 2\n"))
    assert str(table.times[0]) == "2024-01-01T06:00:00" and table.node_names == ("a", "b")
    frame().reset_index(names="when").to_parquet(tmp_path / "a.parquet", index=False)
    assert len(read_file(tmp_path / "a.parquet").times) == 48


def test_edges_of_a_file_without_names_may_be_positions(tmp_path):
    edges = written(tmp_path / "g.csv", "from,to\n0,2\nnode 1,node 0\n")
    assert read_graph(edges, numbered(3)).nonzero().tolist() == [[0, 2], [1, 0]]
    assert "unknown nodes 0" in refusal(edges, lambda path: read_graph(path, ("node 1", "node 0", "x")))


def test_names_that_come_twice_are_refused_and_places_too_close_for_a_name_have_none(tmp_path):
    np.savez(tmp_path / "a.npz", values=VALUES, node_names=["a", "b", "a", "c"])
    assert "names of nodes occur twice: a" in refusal(tmp_path / "a.npz")
    source = dataset(random_values(24, 12).reshape(24, 3, 4))
    source.assign_coords(lon=100 + np.arange(4) / 1e5).to_netcdf(tmp_path / "a.nc")
    table = read_file(tmp_path / "a.nc")
    assert table.node_names is None and table.coordinates.shape == (12, 2)


@pytest.mark.parametrize("text, values", [
    ("time,a,b\n2024-01-01,1,\n2024-01-02,NA,4\n", [[1, np.nan], [np.nan, 4]]),
    ("time,node,value\n2024-01-01,a,1\n2024-01-02,b,4\n2024-01-02,a,\n", [[1, np.nan], [np.nan, 4]]),
], ids=["wide", "long"])
def test_empty_cells_and_absent_pairs_are_missing_values(tmp_path, text, values):
    np.testing.assert_array_equal(read_file(written(tmp_path / "a.csv", text)).values, values)


@given(st.lists(st.lists(st.floats(-2.0**100, 2.0**100, width=32), min_size=2, max_size=2), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_numbers_come_out_of_a_csv_as_they_went_in(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    array = np.array(rows, np.float32)
    pd.DataFrame(array, columns=["a", "b"]).to_csv(path, index=False)
    np.testing.assert_array_equal(read_file(path).values.float(), array)  # more digits may stand there than it holds


@pytest.mark.parametrize("values, kept", [
    (1e9 + np.arange(713.0), True), (np.array([20_000_000, 20_000_001] * 9), True), (1e5 + SERIES / 1e3, True),
    (np.array([20_000_000, 20_000_002] * 9), False), (280 + SERIES / 10, False), (1e20 * SERIES, False),
])
def test_values_that_float32_would_lose_are_kept_in_float64(tmp_path, values, kept):
    np.save(tmp_path / "a.npy", values[:, None])
    pd.DataFrame({"x": values}, pd.date_range("2024-01-01", periods=len(values), name="time")).to_csv(
        tmp_path / "a.csv")
    for name in ("a.npy", "a.csv"):
        found = read_file(tmp_path / name).values
        assert found.dtype == (torch.float64 if kept else torch.float32)
        assert len(found.unique()) == len(np.unique(values)) or not kept


# NetCDF and Zarr

@pytest.mark.parametrize("layout", ["netcdf", "netcdf3", "turned", "zarr"])
def test_land_is_left_out_of_a_grid_and_can_be_put_back(tmp_path, layout):
    values, path = grid_with_land(), tmp_path / ("a.zarr" if layout == "zarr" else "a.nc")
    source = dataset(values, units="degC")
    if layout == "zarr":
        source.to_zarr(path, consolidated=False)
    else:
        source = source.transpose("lon", "lat", "time") if layout == "turned" else source
        source.to_netcdf(path, format="NETCDF3_CLASSIC" if layout == "netcdf3" else None)
    table = read_file(path).without_land()
    assert table.unit == "degC" and table.grid == (3, 4)
    assert table.kept.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    put_back = np.full((24, 12), np.nan, np.float32)
    put_back[:, table.kept] = table.values
    np.testing.assert_array_equal(put_back.reshape(values.shape), values)
    assert table.coordinates[[0, 5]].tolist() == [[-5, 190], [0, 210]] and table.node_names[5] == "lat 0 lon 210"
    assert [axis.tolist() for axis in table.axes] == [[-5, 0, 5], [190, 200, 210, 220]]


def test_packed_integers_are_unpacked_and_their_fill_value_is_missing(tmp_path):
    values = np.array([[1.5, np.nan], [2.5, 3.0]])
    xarray.Dataset({"t": (("time", "x"), values)}, {"time": HOURS[:2]}).to_netcdf(
        tmp_path / "a.nc", encoding={"t": {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -999}})
    np.testing.assert_array_equal(read_file(tmp_path / "a.nc").values, values)


def test_a_curved_grid_has_places_but_no_axes_and_stations_bring_theirs(tmp_path):
    curved = xarray.Dataset({"t": (("time", "y", "x"), random_values(3, 6).reshape(3, 2, 3))}, {
        "time": HOURS[:3], "lat": (("y", "x"), [[1.0, 2, 3], [1.1, 2.1, 3.1]]), "lon": (("y", "x"), [[5.0] * 3] * 2)})
    curved.to_netcdf(tmp_path / "a.nc")
    table = read_file(tmp_path / "a.nc")
    assert table.axes is None and table.grid == (2, 3) and table.coordinates[4].tolist() == [2.1, 5]
    places = {"lat": ("station", [1.0, 2, 3, 4]), "lon": ("station", [5.0, 6, 7, 8])}
    stations().assign_coords(places).to_netcdf(tmp_path / "b.nc")
    table = read_file(tmp_path / "b.nc")
    assert table.coordinates.tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]] and table.grid is None


def test_months_of_a_climate_models_calendar_are_read_by_their_digits(tmp_path):
    times = xarray.date_range("0850-01-16", periods=24, freq="MS", calendar="noleap", use_cftime=True)
    xarray.Dataset({"t": (("time", "x"), random_values(24, 2))}, {"time": times}).to_netcdf(tmp_path / "a.nc")
    assert str(read_file(tmp_path / "a.nc").times[1]) == "0850-03-01T00:00:00"
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.nc")))
    assert field.spec.interval == (1, "month") and field.calendar.slots[:2, 0].tolist() == [1, 2]


def test_one_of_several_variables_is_chosen_by_name(tmp_path):
    both = dataset(grid_with_land()).assign(other=lambda each: each.sst * 2, scalar=3.0)
    both.to_netcdf(tmp_path / "a.nc")
    assert "2 variables have a time axis (sst, other); choose one with --variable" in refusal(tmp_path / "a.nc")
    assert "there is no variable SST; there are sst, other, scalar" in refusal(tmp_path / "a.nc", variable="SST")
    assert "('lat',)" not in refusal(tmp_path / "a.nc", variable="scalar")
    other, sst = (read_file(tmp_path / "a.nc", name).without_land().values for name in ("other", "sst"))
    assert torch.equal(other, 2 * sst)


def test_a_variable_of_too_many_dimensions_is_refused_with_their_sizes(tmp_path):
    dataset(grid_with_land()).expand_dims(level=[1, 2]).to_netcdf(tmp_path / "a.nc")
    assert "(level: 2, time: 24, lat: 3, lon: 4); expected time and one or two" in refusal(tmp_path / "a.nc")


def test_variables_without_time_or_with_numbers_for_times_are_refused(tmp_path):
    xarray.Dataset({"t": (("x",), np.ones(3))}).to_netcdf(tmp_path / "a.nc")
    assert "no variable has a time axis; there are t ('x',)" in refusal(tmp_path / "a.nc")
    xarray.Dataset({"t": (("time", "x"), np.ones((3, 2)))}, {"time": [0, 1, 2]}).to_netcdf(tmp_path / "b.nc")
    assert "the file has no time stamps; give --freq" in refusal(
        tmp_path / "b.nc", lambda path: load_field("b", ROOT, OwnFile(str(path))))


# What is refused: files

@pytest.mark.parametrize("name", ["year", None])
def test_years_in_the_index_of_a_parquet_table_are_times(tmp_path, name):
    years = pd.RangeIndex(1970, 2010, name=name)
    pd.DataFrame({"x": random_values(40, 1)[:, 0]}, years).to_parquet(tmp_path / "a.parquet")
    table = read_file(tmp_path / "a.parquet")
    assert table.node_names == ("x",) and table.times[[0, -1]].astype("datetime64[Y]").astype(str).tolist() == [
        "1970", "2009"]


def test_numbers_of_rows_in_the_index_of_a_parquet_table_are_no_node(tmp_path):
    for index in (None, pd.RangeIndex(5, 53)):
        pd.DataFrame({"x": SERIES, "y": SERIES}, index).to_parquet(tmp_path / "a.parquet")
        assert read_file(tmp_path / "a.parquet").node_names == ("x", "y")


def test_last_lines_without_a_value_are_left_out_with_a_note(tmp_path):
    table = read_file(written(tmp_path / "a.csv", "x,y\n1,2\n3,4\n,\n,\n"))
    assert len(table.values) == 2 and table.notes == ("lines without any value at its end are left out: 2",)
    assert read_file(written(tmp_path / "b.csv", "time,x\n2020-01-01,2\n2020-01-02,4\n,\n")).notes == ()


@pytest.mark.parametrize("change, message", [
    (lambda values: values.transpose(0, 2, 1), r"a grid of 4 rows and 3 columns \(wanted 3 and 4\)"),
    (lambda values: values[:, ::-1, ::-1], "values at other places of the grid"),
    (lambda values: values + 1, None),
])
def test_a_newer_grid_without_names_has_the_shape_and_the_land_of_the_run(tmp_path, change, message):
    def file(name, values):
        xarray.Dataset({"v": (("time", "y", "x"), values)}, {"time": HOURS[:24]}).to_netcdf(tmp_path / name)
        return tmp_path / name

    own = OwnFile(str(file("a.nc", grid_with_land())))
    field = FieldSummary.of(WindowedField(load_field("Sea", "", own), 3, 2))
    newer = read_file(file("b.nc", change(grid_with_land())))
    if message:
        with pytest.raises(ValueError, match=f"b.nc: another field .*: {message}"):
            match(newer, field, "b.nc")
    else:
        assert torch.equal(match(newer, field, "b.nc").values, newer.without_land().values)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.nc"])
def test_an_empty_file_of_any_kind_is_refused(tmp_path, name):
    """faults 2"""
    (tmp_path / name).touch()
    assert "the file is empty" in refusal(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    """faults 1"""
    with pytest.raises(FileNotFoundError, match="nowhere/a.csv: there is no such file"):
        read_file("nowhere/a.csv")


@pytest.mark.parametrize("ending, write", [(".csv.gz", as_gz), (".parquet", as_parquet), (".nc", as_netcdf)])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.97])
def test_a_truncated_file_of_any_kind_is_refused(tmp_path, ending, write, keep):
    """faults 3"""
    write(tmp_path)
    path = tmp_path / f"a{ending}"
    content = path.read_bytes()
    path.write_bytes(content[:int(keep * len(content))])
    assert f"not a readable {ending} file" in refusal(path)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.nc", "a.npy", "a.npz"])
def test_bytes_of_another_kind_are_refused(tmp_path, name):
    """faults 4"""
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    assert re.search("not a readable|expected a time column", refusal(tmp_path / name))  # pandas 3, pandas 2


def test_an_unknown_kind_of_file_is_refused_with_the_known_ones(tmp_path):
    message = refusal(written(tmp_path / "a.pkl", "x"))
    assert "readable are .npy, .npz, .csv, .csv.gz, .parquet, .nc, .zarr" in message


@pytest.mark.filterwarnings("ignore")
def test_a_zarr_store_that_would_unpickle_is_refused_and_its_code_never_runs(tmp_path):
    """faults 5"""
    path, mark = tmp_path / "a.zarr", tmp_path / "ran"
    stations().drop_vars("station").to_zarr(path, consolidated=False, zarr_format=2)
    names = zarr.open_group(path, zarr_format=2).create_array(
        "station", shape=(4,), chunks=(4,), dtype="float64", compressors=None, filters=None)
    names.attrs["_ARRAY_DIMENSIONS"] = ["station"]
    settings_file = path / "station" / ".zarray"
    described = json.loads(settings_file.read_text())
    described.update(dtype="|O", filters=[{"id": "pickle", "protocol": 4}], fill_value=None)
    settings_file.write_text(json.dumps(described))
    (path / "station" / "0").write_bytes(pickle.dumps(Payload(mark)))
    assert "Python objects" in refusal(path)
    assert not mark.exists()
    pickle.loads((path / "station" / "0").read_bytes())
    assert mark.exists()  # the payload was live


@pytest.mark.parametrize("package, name, write", [
    ("pyarrow", "a.parquet", as_parquet), ("xarray", "a.nc", as_netcdf), ("netCDF4", "a.nc", as_netcdf),
    ("zarr", "a.zarr", as_zarr),
])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_an_optional_package_the_message_names_it(tmp_path, monkeypatch, package, name, write):
    write(tmp_path)
    load = importlib.import_module

    def without(wanted):
        if wanted == package:
            raise ImportError(wanted)
        return load(wanted)

    monkeypatch.setattr(importlib, "import_module", without)
    message = refusal(tmp_path / name)
    assert f"needs the package {package}: pip install -r requirements-extras.txt" in message
    assert package in (ROOT / "requirements-extras.txt").read_text()


def test_the_tests_run_on_every_optional_package():
    for line in (ROOT / "requirements-extras.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            package = line.split(">=")[0]
            assert line.split("#")[0].strip() in (ROOT / "requirements-dev.txt").read_text()
            assert f"\n{package.lower()}==" in (ROOT / "requirements-dev-lock.txt").read_text()


def test_a_large_file_says_its_memory_first(tmp_path, monkeypatch, capsys):
    """faults 19"""
    as_netcdf(tmp_path)
    as_wide_csv(tmp_path)
    read_file(tmp_path / "a.nc")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(table_module, "MEMORY_LIMIT", 4 * VALUES.size - 1)
    for name in ("a.nc", "a.csv"):
        read_file(tmp_path / name)
        assert f"{name}: reading it may take" in capsys.readouterr().err


# What is refused: rows

@pytest.mark.parametrize("text, words", [
    ("time,a\n2024-01-01,1\n2024-01-02,x1\n", "line 3, column a: 'x1' is not a number"),
    ('time,a\n2024-01-01,1\n2024-01-02,"3,5"\n', "line 3, column a: '3,5' is not a number; write 1234.5"),
    ("stamp,place,flow\n2024-01-01,a,1\n2024-01-01,b,2\n2024-01-01,c,2\n",
     "columns stamp, place, flow: times occur twice, as in a long table, which has three: time, node, value; rename"),
    ("Page,2024-01-01,2024-01-02\nhome,1,2\n", "one with a row for each series must be transposed: frame.T"),
    ("time,a\n2024-01-01,?\n2024-01-02,2\n", "'?' is not a number; a missing value is an empty cell"),
    ("time,a\n-,degC\n2024-01-02,2\n", "remove a line of units or types"),
    ("Year,Jan,Feb,Mar,Apr,May,Jun,Jul,Aug,Sep,Oct,Nov,Dec\n"
     + "".join(f"{year}{',1' * 12}\n" for year in range(2020, 2026)),
     "a column for each month; expected one column of times"),
    ("latitude,longitude\n52.5,13.4\ntime,a,b\n2024-01-01,1,2\n", "remove lines above that of the names"),
    ("time,a\n2024-01-01,1\n\n2024-01-02,3\n", "line 3: no time; expected ISO 8601"),
    ("time,a\n2024-01-01,1\n31.1.2024,2\n", "line 3: time '31.1.2024'; expected ISO 8601, as 2013-01-31T18:00"),
    ("time,a\n2024-01-01,1\n2024-02-30,2\n", "line 3: time '2024-02-30'"),
    ("time,a\n2024-01-01,1\n2024-01-02,-inf\n", "value -inf at line 3, column a; expected finite"),
    ("time,a\n2024-01-01,1e300\n", "value 1e+300 at line 2, column a"),
    ("time,a\n2024-01-01,1\n2024-01-02,2,3\n", "line 3, saw 3"),
    ("time,a\n2024-01-01,1,2\n", "line 2 holds more cells than the 2 columns"),
    ("time,a\n2024-01-01,True\n", "column a is of type bool; expected numbers"),
    ("time,a,b,a\n2024-01-01,1,2,3\n", "line 1: columns named twice: a"),
    ("1.5,2.5\n1,2\n", "line 1: values (1.5, 2.5) where the names of the columns are expected"),
    ("time,a\n", "0 rows of columns time, a"), ("time\n2024-01-01\n", "1 rows of columns time; expected"),
    ("\ntime,a\n2024-01-01,1\n", "line 1: blank"),
    ("time,node,value\n2024-01-01,a,1\n2024-01-01,b,1\n2024-01-01,a,2\n",
     "line 4: time 2024-01-01T00:00 of node a occurs twice, first in line 2"),
    ("time,node,value\n2024-01-01,a,1\n2024-01-02,,2\n", "line 3: no node is named"),
    ("time,node,value,lat\n2024-01-01,a,1,2\n", "a long table has three: time, node, value"),
    ("year,quarter,sales\n" + "".join(f"{2005 + k // 4},{1 + k % 4},{k}\n" for k in range(20)),
     "times occur twice; write year and quarter or week in one column"),
])
def test_the_first_bad_row_of_a_csv_is_named_by_its_line(tmp_path, text, words):
    """faults 7, 10"""
    assert words in refusal(written(tmp_path / "a.csv", text))


def test_the_line_counts_in_a_compressed_and_in_a_long_file_too(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("time,a\n2024-01-01,1\n2024-01-02,x\n")
    assert "line 3, column a" in refusal(tmp_path / "a.csv.gz")
    frame(VALUES[:3], HOURS[[0, 1, 4]]).melt(var_name="node", ignore_index=False).to_csv(tmp_path / "long.csv")
    with pytest.raises(ValueError, match="long.csv: line 4: time 2024-03-30T04:00, expected 2024-03-30T02:00"):
        load_field("long", ROOT, own=OwnFile(str(tmp_path / "long.csv")))


@pytest.mark.parametrize("broken, words", [
    ([0, 1, 2, 2], "line 5: time 2024-03-30T02:00, expected 2024-03-30T03:00 .*it occurs twice"),
    ([0, 1, 3, 2], "line 4: time 2024-03-30T03:00, expected 2024-03-30T02:00 .*1 missing"),
    ([1, 0, 2, 3], "line 3: time 2024-03-30T00:00, .*must ascend"),
])
def test_irregular_stamps_of_a_file_are_refused_with_its_first_bad_line(tmp_path, broken, words):
    """faults 18"""
    frame(VALUES[:4], HOURS[broken]).to_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=f"a.csv: {words}"):
        load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.csv")))


@pytest.mark.parametrize("flags, words", [
    ({"freq": "30min"}, "line 3: .*30 minutes after .*as --freq or the run says.: steps of the file are 1 hour"),
    ({"start": "2024-03-29"}, "--start 2024-03-29: the first time stamp of .*a.csv is 2024-03-30T00:00"),
    ({"start": "yesterday"}, "--start yesterday: expected a time in ISO 8601"),
    ({"freq": "often"}, "--freq often: expected a number and a unit"),
])
def test_flags_that_contradict_the_stamps_are_refused(tmp_path, flags, words):
    """faults 17"""
    as_wide_csv(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.csv"), **flags))
    agreed = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.csv"), freq="60min", start="2024-03-30"))
    assert agreed.spec.interval == (1, "hour")


@pytest.mark.parametrize("flags", [{}, {"freq": "1h"}, {"start": "2024-01-01"}])
def test_a_file_without_stamps_needs_interval_and_start(tmp_path, flags):
    np.save(tmp_path / "a.npy", VALUES)
    with pytest.raises(ValueError, match="a.npy: the file has no time stamps; give --freq .* and --start"):
        load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.npy"), **flags))


# From the file to windows

def test_a_file_without_stamps_has_the_calendar_of_its_flags(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    own = OwnFile(str(tmp_path / "a.npy"), freq="5min", start="2024-03-30T06:00", unit="mph")
    field = load_field("a", ROOT, own=own)
    assert str(field.calendar.times[1]) == "2024-03-30T06:05" and field.calendar.slots[1].tolist() == [73, 5]
    assert field.spec.unit == "mph" and field.node_names[3] == "node 3" and field.notes == ()


def test_stamps_that_share_odd_seconds_are_regular(tmp_path):
    frame(times=HOURS + pd.Timedelta(seconds=30)).to_csv(tmp_path / "a.csv")
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.csv")))
    assert str(field.calendar.times[1]) == "2024-03-30T01:00:30" and field.calendar.slots[1].tolist() == [1, 5]


def test_a_csv_made_from_a_dataset_gives_the_same_windows_as_the_dataset(tmp_path, registered):
    values = random_values(100, 3).round().clip(0)
    registered(values, start=("2020-01-06",), nonnegative=True)
    values[3, 1] = 0
    folder = registered(values, start=("2020-01-06",), nonnegative=True)
    frame(values, pd.date_range("2020-01-06", periods=100, freq="h"), "abc").to_csv(tmp_path / "mine.csv")
    registered_data = WindowedField(load_field("Tiny", folder), 6, 4)
    mine = WindowedField(load_field("mine", folder, OwnFile(str(tmp_path / "mine.csv"))), 6, 4)
    assert mine.metadata() == registered_data.metadata() and mine.field.node_names == ("a", "b", "c")
    for one, other in zip(registered_data.batches("test", 8), mine.batches("test", 8), strict=True):
        assert torch.equal(one.future, other.future) and torch.equal(one.context.climatology, other.context.climatology)


def test_the_name_of_a_dataset_is_not_taken_by_a_file(tmp_path):
    np.save(tmp_path / "SST.npy", VALUES)
    with pytest.raises(ValueError, match="SST is a dataset of the registry; choose another --data_name"):
        load_field("SST", ROOT, own=OwnFile(str(tmp_path / "SST.npy"), "1h", "2024-01-01"))


def test_an_array_leaves_out_land_and_a_newer_one_may_have_a_gap_at_a_place(tmp_path):
    values = grid_with_land(100)
    np.save(tmp_path / "a.npy", values)
    own = OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01")
    field = load_field("Sea", "", own)
    assert field.grid == (3, 4) and field.kept.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert "2 of 12 places of the grid have no value at any time (land) and are left out" in field.notes
    masked = FieldSummary.of(WindowedField(load_field("Sea", "", own, "mask"), 3, 2))
    newer = values[50:].copy()
    newer[:, 0, 1] = np.nan
    np.save(tmp_path / "b.npy", newer)
    found = match(read_file(tmp_path / "b.npy"), masked, "b.npy")
    np.testing.assert_array_equal(found.values, newer.reshape(50, 12)[:, field.kept])
    assert found.node_names == masked.node_names
    with pytest.raises(ValueError, match="values at other places of the grid"):
        match(read_file(tmp_path / "b.npy"), FieldSummary.of(WindowedField(field, 3, 2)), "b.npy")


def test_more_nodes_than_steps_and_land_are_noted(tmp_path):
    """faults 6"""
    np.save(tmp_path / "a.npy", VALUES.T)
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01"))
    assert field.notes == ("48 nodes but only 4 time steps: the first axis must be the time",)
    dataset(grid_with_land()).to_netcdf(tmp_path / "a.nc")
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.nc")))
    assert field.notes == ("2 of 12 places of the grid have no value at any time (land) and are left out",)
    assert field.grid == (3, 4) and field.spec.grid is None and len(field.kept) == field.values.shape[1] == 10


def test_missing_values_are_refused_with_the_line_and_the_node_of_the_first(tmp_path):
    """faults 9, 11"""
    values = VALUES.copy()
    values[5, 1] = values[7, 0] = values[:, 2] = np.nan
    frame(values).to_csv(tmp_path / "a.csv")
    own = OwnFile(str(tmp_path / "a.csv"))
    with pytest.raises(ValueError, match="50 of 192 values are missing .nan., the first at line 2, node 3; nodes "
                                         "without any value: 3; .*--missing mask"):
        load_field("a", ROOT, own=own)
    assert int(load_field("a", ROOT, own=own, missing="mask").values.isnan().sum()) == 50


@pytest.mark.parametrize("values, support, nonnegative", [
    (VALUES - VALUES.min(), "auto", True), (VALUES + 300, "auto", False), (VALUES - 20, "auto", False),
    (VALUES + 300, "nonnegative", True), (VALUES - VALUES.min(), "any", False),
])
def test_the_support_is_that_of_the_flag_or_of_the_training_part(tmp_path, values, support, nonnegative):
    np.save(tmp_path / "a.npy", values)
    own = OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01")
    data = WindowedField(load_field("a", ROOT, own), 6, 4, WindowSettings(support=support))
    expected = data.training.min() == 0 if support == "auto" else nonnegative
    assert data.field.spec.nonnegative is bool(expected) and (data.support == ANY_VALUE) is not bool(expected)


@pytest.mark.parametrize("support, share, later, bounded", [
    ("auto", 0.5, 0, True), ("auto", 0.2, 0, False), ("auto", 0.5, 1, False), ("auto", 1.0, 0, False),
    ("any", 0.5, 0, False), ("nonnegative", 0.5, 0, True),
])
def test_no_forecast_is_above_the_largest_value_of_a_node_that_mostly_has_it(tmp_path, support, share, later, bounded):
    values = np.random.default_rng(0).normal(300, 2, (100, 3)).astype("f4")
    values[::round(1 / share), 1] = 310.5
    values[-1, 1] = 310.5 + later
    np.save(tmp_path / "a.npy", values)
    field = load_field("a", ROOT, OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01"))
    data = WindowedField(field, 6, 4, WindowSettings(scaling="auto", support=support))
    assert any("1 of 3 nodes (node 1) mostly have their largest value" in note for note in data.field.notes) is bounded
    found = data.scaler.physical(torch.full((2, 3), 50.0))
    assert found[:, 1].eq(310.5).all().item() is bounded and found[:, [0, 2]].gt(311).all()
    restored = FieldSummary.from_state(FieldSummary.of(data).state()).scaler
    assert torch.equal(restored.physical(torch.full((2, 3), 50.0)), found)


def test_values_below_zero_contradict_a_nonnegative_support(tmp_path):
    np.save(tmp_path / "a.npy", VALUES - 20)
    with pytest.raises(ValueError, match="--support nonnegative: a has values down to -"):
        WindowedField(load_field("a", ROOT, OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01")), 6, 4,
                      WindowSettings(support="nonnegative"))


def test_a_field_that_is_negative_after_a_training_part_from_zero_on_is_not_nonnegative_and_says_so(tmp_path):
    for later, told in ((0, False), (-50, True)):
        values = (VALUES - VALUES.min()).copy()
        values[0, 0], values[40:] = 0, values[40:] + later
        np.save(tmp_path / "a.npy", values)
        data = WindowedField(load_field("a", ROOT, OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01")), 6, 4)
        assert data.training.min() == 0 and (data.metadata()["support"] is None) is told
        assert any("smallest training value is 0, but later" in note for note in data.field.notes) is told


# Places and graphs

def test_a_node_table_gives_places_in_the_order_of_the_data(tmp_path):
    path = written(tmp_path / "n.csv", "Name,Lat,Lon,height\nb,50,8,1\na,-33.5,151,2\n")
    names, places = read_node_table(path, ("a", "b"), 2)
    assert names == ("a", "b") and places.tolist() == [[-33.5, 151], [50, 8]]
    assert read_node_table(path, None, 2)[0] == ("b", "a")


@pytest.mark.parametrize("text, words", [
    ("name,lat,lon\na,1,2\nc,1,2\nc,1,2\n", "nodes named twice: c, unlike the data"),
    ("name,lat\na,1\n", "columns name, lat; expected name, lat, lon"),
    ("name,lat,lon\na,1,2\nb,91,2\n", "line 3: lat 91, lon 2; expected degrees"),
    ("name,lat,lon\na,1,2\nb,,2\n", "line 3: lat nan"), ("name,lat,lon\na,1,east\nb,1,2\n", "line 2: lat 1, lon east"),
    ("", "not a readable CSV"),
])
def test_a_node_table_that_does_not_fit_the_nodes_is_refused(tmp_path, text, words):
    path = written(tmp_path / "n.csv", text)
    assert words in refusal(path, lambda path: read_node_table(path, ("a", "b"), 2))


def test_rows_without_names_in_the_data_must_be_as_many_as_its_nodes(tmp_path):
    path = written(tmp_path / "n.csv", "name,lat,lon\na,1,2\n")
    assert "1 rows; the data has 3 nodes" in refusal(path, lambda path: read_node_table(path, None, 3))


MATRIX = np.array([[1, 0.5, 0], [0, 1, 0.25], [0, 0, 1]], np.float32)


def test_a_graph_is_the_same_in_any_kind_of_file(tmp_path):
    np.save(tmp_path / "a.npy", MATRIX.astype(">f8"))
    np.savetxt(tmp_path / "d.csv", MATRIX, delimiter=",")
    written(tmp_path / "f.csv", "From,to,weight\na,a,1\na,b,0.5\nb,b,1\nb,c,0.25\nc,c,1\n")
    for path in tmp_path.iterdir():
        assert torch.equal(read_graph(path, tuple("abc")), torch.from_numpy(MATRIX)), path
    path = written(tmp_path / "g.csv", "from,to\na,b\n")
    assert read_graph(path, tuple("abc")).sum() == 1 == read_graph(path, tuple("abc"))[0, 1]


@pytest.mark.parametrize("text, words", [
    ("from,to,weight\na,b,1\na,x,1\ny,a,1\n", "unknown nodes y, x; the data has a, b, c"),
    ("from,to,weight\na,b,1\na,b,2\n", "line 3: the edge a to b occurs twice"),
    ("from,to,weight\na,b,one\n", "line 2: 'one' is not a number"),
    ("1,0\n0,1\n", "a graph of shape (2, 2), type float64; expected real numbers, (3, 3)"),
    ("1,0,0\n0,1,0\n0,x,0\n", "line 3: 'x' is not a number"), ("", "not a readable CSV"),
])
def test_a_graph_that_does_not_fit_the_nodes_is_refused(tmp_path, text, words):
    assert words in refusal(written(tmp_path / "g.csv", text), lambda path: read_graph(path, tuple("abc")))


def test_a_graph_of_objects_or_a_pickle_is_refused_and_its_code_never_runs(tmp_path):
    """faults 5"""
    mark = tmp_path / "ran"
    np.save(tmp_path / "a.npy", np.array([[Payload(mark)]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", data=np.array([Payload(mark)], dtype=object), indices=[0], indptr=[0, 1], shape=[1, 1],
             format=b"csr")
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(Payload(mark)))
    for name in ("a.npy", "b.npz", "c.pkl"):
        assert "never loaded" in refusal(tmp_path / name, lambda path: read_graph(path, ("a",)))
    assert not mark.exists()


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.where(MATRIX == 0.25, np.inf, MATRIX))
    assert "weight inf from b to c" in refusal(tmp_path / "a.npy", lambda path: read_graph(path, tuple("abc")))


def test_places_and_graph_stand_in_the_field(tmp_path):
    frame(names="abcd").to_csv(tmp_path / "a.csv")
    table = written(tmp_path / "n.csv", "name,lat,lon\nd,4,1\na,1,1\nb,2,1\nc,3,1\n")
    edges = written(tmp_path / "g.csv", "from,to\nd,a\n")
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.csv"), node_table=str(table), graph=str(edges)))
    assert field.coordinates[:, 0].tolist() == [1, 2, 3, 4] and field.graph[3, 0] == 1 == field.graph.sum()


@needs_real_data
def test_a_dataset_brings_its_graph_where_the_file_is_there():
    if (SHARED / "Urban/Los_Speed_adj.csv").is_file():
        graph = load_field("Los_Speed", SHARED).graph
        assert graph.shape == (207, 207) and (graph.diagonal() == 1).all()
    assert load_field("MobileNJ", SHARED).graph is None


def test_a_file_that_does_not_fit_in_memory_is_not_called_damaged(tmp_path, monkeypatch):
    def too_large(path):
        raise MemoryError("cannot allocate")

    np.save(tmp_path / "field.npy", np.zeros((3, 2)))
    monkeypatch.setitem(READERS, ".npy", too_large)
    with pytest.raises(MemoryError, match="cannot allocate"):
        read_file(tmp_path / "field.npy")


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_points_that_may_separate_thousands_are_noted(tmp_path, separator):
    """1.234 is one thousand in some countries; measurements have other decimals too."""
    whole = np.random.default_rng(0).integers(900, 1100, (40, 2))
    texts = {"counts": [[f"{value:,}".replace(",", ".") for value in row] for row in whole],
             "lengths": (whole / 1000).tolist()}
    for name, rows in texts.items():
        lines = [separator.join((f"2024-01-{1 + day:02}", str(a), str(b))) for day, (a, b) in enumerate(rows[:31])]
        (tmp_path / f"{name}.csv").write_text("\n".join([separator.join(("time", "a", "b")), *lines]))
        assert any("three decimals" in note for note in read_file(tmp_path / f"{name}.csv").notes) == (name == "counts")


def test_whole_numbers_beside_a_column_of_three_decimals_are_no_thousands(tmp_path):
    (tmp_path / "a.csv").write_text("time,holiday,wind\n" + "".join(
        f"2024-01-{day:02},{day % 2},{1 + day / 37:.3f}\n" for day in range(1, 31)))
    assert read_file(tmp_path / "a.csv").notes == ()


def test_an_npz_with_one_array_of_any_name_holds_the_values_and_variable_chooses_from_its_last_axis(tmp_path):
    values = np.arange(48 * 40 * 3, dtype=np.float32).reshape(48, 40, 3)
    np.savez(tmp_path / "traffic.npz", data=values)
    np.save(tmp_path / "traffic.npy", values)
    for name in ("traffic.npz", "traffic.npy"):
        for place in range(3):
            table = read_file(tmp_path / name, str(place))
            assert table.grid is None and (table.values.numpy() == values[..., place]).all()
        assert read_file(tmp_path / name).grid == (40, 3)
        for wrong in ("3", "-1", "flow"):
            with pytest.raises(ValueError, match=rf"{name}: --variable {wrong}: shape \(48, 40, 3\); expected a place"):
                read_file(tmp_path / name, wrong)
    np.save(tmp_path / "plain.npy", values[..., 0])
    with pytest.raises(ValueError, match="--variable 0: shape"):
        read_file(tmp_path / "plain.npy", "0")


def test_a_long_and_narrow_grid_has_a_note_that_names_variable(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((48, 40, 3)))
    own = OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01")
    notes = " ".join(load_field("a", tmp_path, own).notes)
    assert "grid of 40 rows and 3 columns" in notes and "--variable 0" in notes
    assert "grid" not in " ".join(load_field("a", tmp_path, replace(own, variable="2")).notes)


@pytest.mark.parametrize("cells, expected", [(["2,6", "-1", "0,25"], [2.6, -1, 0.25]), (["2.6", "-1", "0.25"], None)])
def test_semicolons_allow_decimal_commas(tmp_path, cells, expected):
    (tmp_path / "a.csv").write_text("time;a\n" + "".join(
        f"2024-01-0{day};{cell}\n" for day, cell in enumerate(cells, 1)))
    table = read_file(tmp_path / "a.csv")
    assert table.values.flatten().tolist() == pytest.approx([2.6, -1, 0.25])
    assert (table.notes == ("its commas are decimal ones",)) == (expected is not None)


def test_commas_that_may_separate_thousands_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("time;a\n2024-01-01;1,001\n2024-01-02;999\n")
    with pytest.raises(ValueError, match="line 2, column a: '1,001' is not a number; write 1234.5"):
        read_file(tmp_path / "a.csv")


@pytest.mark.parametrize("text", ["stamp,sensor,flow\n2024-01-01,a,1\n2024-01-01,b,2\n2024-01-02,a,3\n2024-01-02,b,4\n",
                                  "id,time,speed\n7,2024-01-01,1\n7,2024-01-02,3\n"])
def test_three_columns_of_times_nodes_and_values_are_a_long_table_by_any_names(tmp_path, text):
    table = read_file(written(tmp_path / "a.csv", text))
    assert table.node_names in (("a", "b"), ("7",)) and table.values[:, 0].tolist() == [1, 3]
    assert (table.notes == ("column id is taken for the name of the node",)) == (table.node_names == ("7",))


def test_absent_pairs_of_whole_numbers_are_noted(tmp_path):
    text = "time,node,value\n2024-01-01,a,1\n2024-01-01,b,2\n2024-01-02,a,3\n"
    note, = read_file(written(tmp_path / "a.csv", text)).notes
    assert note.startswith("1 of 4 pairs of time and node have no row and are missing; if they are counts of zero")
    assert read_file(written(tmp_path / "b.csv", text.replace("3", "3.5"))).notes == ()


@pytest.mark.parametrize("later", [7.0, 9.0])
def test_a_node_that_is_constant_in_training_and_not_later_is_noted(tmp_path, later):
    values = np.concatenate([random_values(100, 2), np.full((100, 1), 7.0)], axis=1)
    values[80:, 2] = later
    np.save(tmp_path / "a.npy", values)
    field = load_field("a", tmp_path, OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01"))
    notes = " ".join(WindowedField(field, 6, 6, WindowSettings(scaling="node")).field.notes)
    assert ("1 of 3 nodes (node 2) have one value in the training part and others later" in notes) == (later != 7)


def test_a_newer_grid_without_latitude_and_longitude_is_taken_in_the_order_of_the_run_with_a_note(tmp_path):
    values = random_values(60, 12).reshape(60, 3, 4)
    places = {"lat": [52.0, 51.0, 50.0], "lon": [5.0, 6.0, 7.0, 8.0]}
    times = pd.date_range("2024-01-01", periods=60, freq="h")
    array = xarray.DataArray(values, {"time": times, **places}, ("time", "lat", "lon"), name="t2m")
    array.lat.attrs["units"], array.lon.attrs["units"] = "degrees_north", "degrees_east"
    array.to_dataset().to_netcdf(tmp_path / "a.nc")
    array.drop_vars(["lat", "lon"]).to_dataset().to_netcdf(tmp_path / "newer.nc")
    summary = FieldSummary.of(WindowedField(load_field("a", tmp_path, OwnFile(str(tmp_path / "a.nc"))), 6, 6))
    for name, notes in (("a.nc", 0), ("newer.nc", 1)):
        table = match(read_file(tmp_path / name), summary, name)
        assert len(table.notes) == notes and (table.values.numpy() == values.reshape(60, 12).astype(np.float32)).all()


def test_rows_in_no_order_are_refused_with_the_word_sort(tmp_path):
    times = pd.date_range("2024-01-01", periods=60, freq="h").to_numpy()
    frame = pd.DataFrame({"time": np.random.default_rng(0).permutation(times), "a": range(60)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match="stamps must ascend: sort the rows"):
        load_field("a", tmp_path, OwnFile(str(tmp_path / "a.csv")))


@pytest.mark.parametrize("cell, place", [("51.234", "line 2, column a"), ("2.5", "line 2, column a")])
def test_points_beside_decimal_commas_are_refused(tmp_path, cell, place):
    (tmp_path / "a.csv").write_text(f"time;a;b\n2024-01-01;{cell};2,5\n2024-01-02;{cell};2,6\n")
    with pytest.raises(ValueError, match=f"{place}: '{cell}' in a file with decimal commas"):
        read_file(tmp_path / "a.csv")


def test_three_decimals_after_a_leading_zero_are_no_thousands(tmp_path):
    (tmp_path / "a.csv").write_text("time;a\n2024-01-01;0,633\n2024-01-02;0,250\n")
    assert read_file(tmp_path / "a.csv").values.flatten().tolist() == pytest.approx([0.633, 0.25])


def test_the_noted_code_masks_what_it_names_in_float64(tmp_path):
    values = 1e9 + np.random.default_rng(0).random((60, 1))
    values[7] = 9.969209968386869e36
    np.save(tmp_path / "a.npy", values)
    own = OwnFile(str(tmp_path / "a.npy"), "1h", "2024-01-01")
    code = re.search(r"--null_value=(\S+)", " ".join(load_field("a", ROOT, own).notes))[1]
    assert load_field("a", ROOT, own, "mask", float(code)).missing_share == pytest.approx(1 / 60)


def test_a_damaged_file_is_named_by_the_ending_that_is_read(tmp_path):
    (tmp_path / "daily.v2.npy").write_text("no array")
    assert "daily.v2.npy: not a readable .npy file" in refusal(tmp_path / "daily.v2.npy")
