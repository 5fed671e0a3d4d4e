"""NetCDF and Zarr: what is missing, compared with netCDF4 and xarray; names and places of nodes after CF."""

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray
import zarr
from conftest import ROOT, random_values

from data.fields import OwnFile, load_field, match
from data.readers import read_file
from data.summary import FieldSummary
from data.windows import WindowedField

STEPS, NODES = 6, 4
HOURS = pd.date_range("2024-03-30", periods=STEPS, freq="h")
VALUES = random_values(STEPS, NODES)
COUNTS = np.arange(STEPS * NODES).reshape(STEPS, NODES) % 7


def netcdf(path, dtype, values, written=range(STEPS), file_format="NETCDF4", chunks=None, fill_value=None,
           **attributes):
    """A variable (time, node) of this type whose attributes are set before some of its steps are written."""
    with netCDF4.Dataset(path, "w", format=file_format) as file:
        file.createDimension("time", None)
        file.createDimension("node", NODES)
        time = file.createVariable("time", "f8", ("time",))
        time.units = "hours since 2024-03-30"
        time[:] = np.arange(STEPS)
        array = file.createVariable("v", dtype, ("time", "node"), fill_value=fill_value, chunksizes=chunks)
        array.set_auto_maskandscale(False)
        array.setncatts(attributes)
        for step in written:
            array[step] = np.asarray(values[step]).astype(dtype)
    return path


def by_netcdf4(path) -> np.ndarray:
    """The variable as netCDF4 reads it, NaN where that masks."""
    with netCDF4.Dataset(path) as file:
        return np.ma.filled(file["v"][:].astype(np.float64), np.nan).astype(np.float32)


# What is missing

@pytest.mark.parametrize("fill", [-999, 3, 0])
def test_with_a_fill_value_of_its_own_the_default_one_is_a_value(tmp_path, fill):
    values = COUNTS.copy()
    values[1, 1] = netCDF4.default_fillvals["i2"]
    path = netcdf(tmp_path / "a.nc", "i2", values, fill_value=fill)
    np.testing.assert_array_equal(read_file(path).values, by_netcdf4(path))
    np.testing.assert_array_equal(read_file(path).values, xarray.open_dataset(path)["v"].values)
    assert read_file(path).values[1, 1] == -32767


@pytest.mark.parametrize("attributes", [
    {"missing_value": 5}, {"_FillValue": 3}, {"missing_value": [5, 6]}, {"missing_value": 5, "_FillValue": 3},
    {"missing_value": 3, "scale_factor": 0.5, "add_offset": 10.0},
])
@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", "i1"])
@pytest.mark.filterwarnings("ignore::xarray.SerializationWarning")
def test_what_the_attributes_declare_as_missing_is_so(tmp_path, attributes, dtype):
    fill = attributes.get("_FillValue")
    typed = {name: value if name in ("scale_factor", "add_offset") else np.array(value, dtype)
             for name, value in attributes.items() if name != "_FillValue"}
    path = netcdf(tmp_path / "a.nc", dtype, COUNTS, fill_value=fill, **typed)
    table, expected = read_file(path), by_netcdf4(path)
    np.testing.assert_array_equal(table.values, expected)
    assert np.isnan(expected).any()


def test_a_variable_of_text_is_refused_as_such(tmp_path):
    stations(word=(("time", "s"), np.full((STEPS, NODES), "x"))).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match="a.nc: values of type"):
        read_file(tmp_path / "a.nc", "word")


@pytest.mark.parametrize("units", ["s", "hours", "days"])
def test_values_in_units_of_time_are_numbers(tmp_path, units):
    path = netcdf(tmp_path / "a.nc", "f4", VALUES, units=units)
    np.testing.assert_array_equal(read_file(path).values, VALUES)


def store(path, values, fill, attributes, zarr_format=2, name="v"):
    """A Zarr store whose array was written with zarr itself: fill is what its unwritten chunks hold."""
    xarray.Dataset(coords={"time": HOURS}).to_zarr(path, consolidated=False, zarr_format=zarr_format)
    group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    names = {"dimension_names": ("time", "node")} if zarr_format == 3 else {}
    array = group.create_array(name, shape=values.shape, chunks=(2, 2), dtype=values.dtype, fill_value=fill, **names)
    array.attrs.update(attributes | ({"_ARRAY_DIMENSIONS": ["time", "node"]} if zarr_format == 2 else {}))
    array[:] = values
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["i4", "u2", "f4"])
def test_a_true_zero_of_a_zarr_count_is_a_value_and_a_place_of_zeros_is_no_land(tmp_path, zarr_format, dtype):
    counts = COUNTS.astype(dtype)
    counts[:, 2] = counts[2:4] = 0
    table = read_file(store(tmp_path / "a.zarr", counts, 0, {}, zarr_format))
    np.testing.assert_array_equal(table.values, counts)
    assert table.notes == ()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["i4", "f4"])
@pytest.mark.parametrize("attributes, missing", [
    ({"missing_value": 3}, 3), ({"missing_value": 5, "scale_factor": 0.5}, 5),
])
def test_what_cf_attributes_of_a_zarr_store_declare_is_missing(tmp_path, zarr_format, dtype, attributes, missing):
    counts = COUNTS.astype(dtype)
    table = read_file(store(tmp_path / "a.zarr", counts, 0, attributes, zarr_format))
    expected = np.where(counts == missing, np.nan, counts * attributes.get("scale_factor", 1))
    np.testing.assert_array_equal(table.values, expected)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("encoding", [{}, {"dtype": "i2", "_FillValue": -999, "scale_factor": 0.5},
                                      {"dtype": "f4", "_FillValue": 1e20}, {"dtype": "u1", "_FillValue": 255}])
def test_a_zarr_store_that_xarray_wrote_is_as_xarray_reads_it(tmp_path, zarr_format, encoding):
    values = COUNTS.astype(float)
    values[1, 1] = values[4, 2] = np.nan
    xarray.Dataset({"v": (("time", "node"), values)}, {"time": HOURS}).to_zarr(
        tmp_path / "a.zarr", consolidated=False, zarr_format=zarr_format, encoding={"v": encoding})
    table = read_file(tmp_path / "a.zarr")
    np.testing.assert_array_equal(table.values, values)
    np.testing.assert_array_equal(
        table.values, xarray.open_dataset(tmp_path / "a.zarr", engine="zarr", consolidated=False)["v"].values)


# Names of nodes

NAMES = ("Zürich", "Genève", "NA", "Bern")


def stations(**variables) -> xarray.Dataset:
    return xarray.Dataset({"rain": (("time", "s"), VALUES), **variables}, {"time": HOURS})


@pytest.mark.parametrize("variables", [
    {"station_name": ("s", list(NAMES))}, {"id": ("s", list(NAMES), {"cf_role": "timeseries_id"})},
    {"s": ("s", list(NAMES))}, {"label": ("s", list(NAMES))},
    {"country": ("s", ["a", "b", "c", "d"]), "x": ("s", list(NAMES), {"cf_role": "timeseries_id"})},
    {"country": ("s", ["CH"] * 4), "station_name": ("s", list(NAMES))},
    {"s": ("s", [4, 3, 2, 1]), "name": ("s", list(NAMES))},
])
@pytest.mark.parametrize("kind", ["NETCDF4", "NETCDF3_CLASSIC"])
def test_names_of_stations_are_those_that_cf_says(tmp_path, variables, kind):
    stations(**variables).to_netcdf(tmp_path / "a.nc", format=kind)  # text of a classic file is an array of characters
    assert read_file(tmp_path / "a.nc").node_names == NAMES


def test_padded_characters_in_latin_1_of_another_program_are_names(tmp_path):
    path = netcdf(tmp_path / "a.nc", "f4", VALUES)
    with netCDF4.Dataset(path, "a") as file:
        file.createDimension("width", 8)
        names = file.createVariable("station_name", "S1", ("node", "width"))
        names[...] = np.array([list(name.ljust(8)) for name in ("Bern", "Basel", "Chur", "NA")], "S1")
    assert read_file(path).node_names == ("Bern", "Basel", "Chur", "NA")


@pytest.mark.parametrize("variables, names", [
    ({"s": ("s", [7, 5, 3, 1])}, ("7", "5", "3", "1")), ({"station_id": ("s", [7, 5, 3, 1])}, ("7", "5", "3", "1")),
    ({"country": ("s", ["CH"] * 4)}, None), ({}, None), ({"wmo": ("s", [7, 5, 3, 1], {"cf_role": "timeseries_id"})},
                                                       ("7", "5", "3", "1")),
])
def test_numbers_are_names_where_there_is_no_text_that_tells_places_apart(tmp_path, variables, names):
    stations(**variables).to_netcdf(tmp_path / "a.nc")
    assert read_file(tmp_path / "a.nc").node_names == names


# Places

LAT, LON = np.array([46.0, 46.5, 47.0]), np.array([7.0, 8.0])
GRID = random_values(STEPS, 6).reshape(STEPS, 3, 2)


def grid(**coordinates) -> xarray.Dataset:
    return xarray.Dataset({"t": (("time", "y", "x"), GRID), **coordinates}, {"time": HOURS})


METRES = {"y": ("y", [5.0, 3.0, 1.0], {"units": "m", "standard_name": "projection_y_coordinate"}),
          "x": ("x", [1.0, 3.0], {"units": "m", "standard_name": "projection_x_coordinate"})}
CURVED = {"lat": (("y", "x"), LAT[:, None] + [0, 0.1]), "lon": (("y", "x"), LON + np.zeros((3, 1)))}
NORTH, EAST = {"units": "degrees_north"}, {"units": "degrees_east"}


@pytest.mark.parametrize("coordinates, first", [
    (METRES, None), ({"y": [0, 1, 2], "x": [0, 1]}, None), ({"y": [0.1, 0.2, 0.3], "x": [0.1, 0.2]}, None),
    ({"y": ("y", LAT, {"units": "m"}), "x": ("x", LON, {"units": "m"})}, None),
    ({"lat": ("y", LAT * 1e5), "lon": ("x", LON * 1e5)}, None),
    ({"lat": ("y", LAT, {"units": "km"}), "lon": ("x", LON, {"units": "km"})}, None),
    ({"lat": ("y", LAT, {"units": "degrees", "standard_name": "grid_latitude"}),
      "lon": ("x", LON, {"units": "degrees", "standard_name": "grid_longitude"})}, None),
    ({"y": ("y", LAT, {"units": "rad", "standard_name": "projection_y_coordinate"}),
      "x": ("x", LON, {"units": "rad", "standard_name": "projection_x_coordinate"})}, None),
    (METRES | CURVED, [46, 7]), ({"lat": ("y", [0, 1, 2]), "lon": ("x", [0, 1]), "nav_lat": CURVED["lat"],
                                  "nav_lon": CURVED["lon"]}, [46, 7]),
    ({"lat": ("y", LAT), "lon": ("x", LON)}, [46, 7]), ({"y": ("y", LAT, NORTH), "x": ("x", LON, EAST)}, [46, 7]),
    ({"y": ("y", LAT, {"standard_name": "latitude"}), "x": ("x", LON, {"standard_name": "longitude"})}, [46, 7]),
    ({"phi": ("y", LAT, NORTH), "lam": ("x", LON, EAST)}, [46, 7]),
])
def test_only_degrees_are_places(tmp_path, coordinates, first):
    grid(**coordinates).to_netcdf(tmp_path / "a.nc")
    table = read_file(tmp_path / "a.nc")
    np.testing.assert_array_equal(table.values.reshape(GRID.shape), GRID)
    if first is None:
        assert table.coordinates is None and table.axes is None
    else:
        assert table.coordinates[0] == pytest.approx(first) and table.coordinates[-1, 1] == pytest.approx(8)


def test_what_is_called_latitude_but_is_none_is_noted(tmp_path):
    grid(lat=("y", LAT * 1e5), lon=("x", LON * 1e5)).to_netcdf(tmp_path / "a.nc")
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.nc")))
    assert "not degrees from -90 to 90" in field.notes[0]


def test_the_places_of_an_archive_are_checked(tmp_path):
    np.savez(tmp_path / "a.npz", values=VALUES, latitude=[1, 2, 3, 400], longitude=[1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"a.npz: latitude, longitude \[400.0, 4.0\] of node 3; expected degrees"):
        read_file(tmp_path / "a.npz")


# A newer file

def test_a_newer_file_is_matched_by_names(tmp_path):
    both = stations(station_name=("s", list(NAMES)))
    both.to_netcdf(tmp_path / "a.nc")
    both.isel(s=[2, 0, 3, 1]).to_netcdf(tmp_path / "b.nc")
    run, table = read_file(tmp_path / "a.nc"), read_file(tmp_path / "b.nc")
    assert table.node_differences(run.node_names) == ""
    np.testing.assert_array_equal(table.in_order(run.node_names).values, run.values)


def test_a_place_without_a_value_in_a_newer_grid_is_a_gap_where_values_may_be_missing(tmp_path):
    """A cloud over one of the places; the first one is land in both files."""
    values = np.arange(120.0).reshape(20, 2, 3) % 7
    values[:, 0, 0] = np.nan
    hours = pd.date_range("2020-01-06", periods=20, freq="h")
    whole = xarray.Dataset({"sst": (("time", "lat", "lon"), values)},
                           {"time": hours, "lat": [1.0, 2], "lon": [5.0, 6, 7]})
    whole.to_netcdf(tmp_path / "a.nc")
    clouded = whole.copy(deep=True)
    clouded.sst[:, 1, 1] = np.nan
    clouded.to_netcdf(tmp_path / "b.nc")
    own = OwnFile(str(tmp_path / "a.nc"))
    for missing in ("mask", "error"):
        field = FieldSummary.of(WindowedField(load_field("Sea", "", own, missing), 3, 2))
        table = read_file(tmp_path / "b.nc")
        if missing == "error":
            with pytest.raises(ValueError, match="b.nc: another field .*: nodes missing: lat 2 lon 6"):
                match(table, field, "b.nc")
        else:
            found = match(table, field, "b.nc")
            assert found.node_names == field.node_names
            np.testing.assert_array_equal(found.values, clouded.sst.values.reshape(20, 6)[:, 1:])
            np.testing.assert_array_equal(found.kept, field.kept)
            np.testing.assert_allclose(found.coordinates, field.coordinates)


def test_a_gap_at_a_place_of_a_newer_grid_of_turned_rows_stays_at_its_place(tmp_path):
    whole = xarray.Dataset({"sst": (("time", "lat", "lon"), np.arange(120.0).reshape(20, 2, 3))}, {
        "time": pd.date_range("2020-01-06", periods=20, freq="h"), "lat": [1.0, 2], "lon": [5.0, 6, 7]})
    whole.to_netcdf(tmp_path / "a.nc")
    field = FieldSummary.of(WindowedField(load_field("Sea", "", OwnFile(str(tmp_path / "a.nc")), "mask"), 3, 2))
    whole.sst[:, 0, 0] = np.nan
    whole.isel(lat=[1, 0]).to_netcdf(tmp_path / "b.nc")
    found = match(read_file(tmp_path / "b.nc"), field, "b.nc")
    np.testing.assert_array_equal(found.values, whole.sst.values.reshape(20, 6))
    assert found.kept.tolist() == [3, 4, 5, 0, 1, 2]


# Times

def test_months_since_a_date_are_months(tmp_path):
    values = random_values(STEPS, NODES)
    times = ("T", np.arange(STEPS) + 240.5, {"units": "months since 1960-01-01", "calendar": "360"})
    xarray.Dataset({"v": (("T", "node"), values)}, {"T": times}).to_netcdf(tmp_path / "a.nc")
    table = read_file(tmp_path / "a.nc")
    assert (table.times == pd.date_range("1980-01-01", periods=STEPS, freq="MS").to_numpy()).all()
    assert (table.values.numpy() == values).all()


def test_times_along_a_dimension_without_times_of_its_own_are_its_stamps(tmp_path):
    xarray.Dataset({"T2": (("Time", "node"), VALUES)}, {"XTIME": ("Time", HOURS)}).to_netcdf(tmp_path / "a.nc")
    assert (read_file(tmp_path / "a.nc").times == HOURS.to_numpy()).all()
    two = {"valid": ("Time", HOURS), "reference": ("Time", HOURS - pd.Timedelta("3h"))}  # neither is the one
    xarray.Dataset({"T2": (("Time", "node"), VALUES)}, two).to_netcdf(tmp_path / "b.nc")
    assert read_file(tmp_path / "b.nc").times is None


def test_times_that_are_plain_numbers_leave_the_flags_to_say_when(tmp_path):
    xarray.Dataset({"v": (("time", "node"), VALUES)}, {"time": np.arange(STEPS) / 24}).to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match="the file has no time stamps; give --freq .* and --start"):
        load_field("a", ROOT, OwnFile(str(tmp_path / "a.nc")))
    field = load_field("a", ROOT, OwnFile(str(tmp_path / "a.nc"), "1h", "2024-03-30"))
    assert (field.calendar.times == HOURS.to_numpy()).all()


def test_years_as_numbers_are_still_times(tmp_path):
    years = np.arange(1950, 1950 + STEPS)
    xarray.Dataset({"v": (("year", "node"), VALUES)}, {"year": years}).to_netcdf(tmp_path / "a.nc")
    assert str(read_file(tmp_path / "a.nc").times[0]) == "1950-01-01T00:00:00"
