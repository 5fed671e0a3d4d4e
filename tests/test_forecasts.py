"""A forecast as arrays, table and dataset, and what its files hold."""

import dataclasses
import gc
import importlib.util
import itertools
import resource

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_field, random_values

from data.constants import QUANTILE_LEVELS
from data.summary import FieldSummary
from data.windows import WindowedField
from utils.output import forecasts
from utils.output.forecasts import VALUES, Forecast, check_output, write_forecasts

MEMBERS, STEPS, NODES = 8, 4, 6
LAND = dict(grid=(2, 4), kept=torch.tensor([0, 1, 3, 4, 6, 7]))


def summary(**metadata) -> FieldSummary:
    known = FieldSummary.of(WindowedField(make_field(random_values(120, NODES)), 6, STEPS))
    return dataclasses.replace(known, **metadata)


def make_forecast(windows: int = 0, first: int = 0, **metadata) -> Forecast:
    """Random members of the windows that begin at `first` and after; 0: of one window, without a window axis."""
    field, count = summary(**metadata), max(windows, 1)
    members = random_values(count, MEMBERS * STEPS * NODES, seed=first).reshape(count, MEMBERS, STEPS, NODES)
    times = np.stack([field.times(first + window, 1 + STEPS) for window in range(count)])
    arrays = members, times[:, 1:], times[:, 0]
    return Forecast(*(arrays if windows else (array[0] for array in arrays)), field, "a test")


def test_mean_and_quantiles_are_those_of_the_members():
    one, two = make_forecast(), make_forecast(windows=2)
    np.testing.assert_allclose(one.mean, one.members.mean(0))
    np.testing.assert_allclose(one.quantile(0.3), np.quantile(one.members, 0.3, axis=0), rtol=1e-6)
    np.testing.assert_allclose(one.quantile([0, 0.3, 1]), np.quantile(one.members, [0, 0.3, 1], axis=0), rtol=1e-6)
    np.testing.assert_allclose(two.quantile([0.5, 0.9])[1], np.quantile(two.members[1], [0.5, 0.9], axis=0), rtol=1e-6)
    assert two.quantile(0.5).shape == (2, STEPS, NODES) and two.mean.shape == (2, STEPS, NODES)


def test_a_level_that_is_none_is_refused():
    with pytest.raises(ValueError, match="quantile 95: a level lies between 0 and 1"):
        make_forecast().quantile(95)


@pytest.mark.parametrize("windows", [0, 3])
def test_every_value_stands_in_the_row_of_its_times_and_node(windows):
    forecast = make_forecast(windows)
    frame = forecast.to_frame().set_index(["issue_time", "valid_time", "node"])
    assert len(frame) == max(windows, 1) * STEPS * NODES and frame.index.is_unique
    for window, step, node in itertools.product(range(max(windows, 1)), range(STEPS), range(NODES)):
        at = (window,) if windows else ()
        row = frame.loc[(forecast.issued[at], forecast.times[*at, step], f"node {node}")]
        assert row["member_5"] == forecast.members[*at, 5, step, node]
        assert row["q0.05"] == forecast.quantile(0.05)[*at, step, node]
    assert list(forecast.to_frame("quantiles").columns[3:]) == [f"q{level:.2f}" for level in QUANTILE_LEVELS]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("ending", forecasts.WRITERS)
def test_a_file_holds_the_same_numbers_whatever_its_parts(ending, values, tmp_path):
    for package in forecasts.WRITERS[ending][1]:
        pytest.importorskip(package)
    whole, path = make_forecast(windows=5), tmp_path / f"forecast{ending}"
    cut = [Forecast(whole.members[part], whole.times[part], whole.issued[part], whole.field, whole.source)
           for part in (slice(0, 2), slice(2, 4), slice(4, 5))]
    write_forecasts(path, iter(cut), values)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if ending == ".npz":
        with np.load(path) as found:
            assert set(found) == {"issued", "times", "levels", "node_names", *whole.chosen(values)}
            for name, array in whole.chosen(values).items():
                assert (found[name] == array).all()
            assert (found["times"] == whole.times).all() and (found["issued"] == whole.issued).all()
            assert found["node_names"].tolist() == list(whole.field.node_names)
    elif ending == ".nc":
        import xarray

        coder = xarray.coders.CFDatetimeCoder(time_unit="s")  # in pandas 2, times of other units are not equal
        with xarray.open_dataset(path, decode_times=coder) as found:
            xarray.testing.assert_equal(found.load(), whole.to_xarray(values).load())
    else:
        frame = whole.to_frame(values)
        found = pd.read_parquet(path) if ending == ".parquet" else pd.read_csv(path, parse_dates=[0, 1])
        pd.testing.assert_frame_equal(found, frame, check_dtype=False, check_index_type=False, rtol=1e-7)


def test_a_dataset_says_all_that_the_cf_conventions_ask():
    """Files of every kind of space here pass the CF 1.10 suite of the IOOS compliance checker; this keeps them so."""
    pytest.importorskip("xarray")
    found = make_forecast(windows=2, name="Ocean", unit="deg C", cf_unit="degC").to_xarray()
    assert found.attrs["Conventions"] == "CF-1.10" and {"history", "source", "title"} <= set(found.attrs)
    assert found.members.dims == ("forecast_reference_time", "realization", "horizon", "node")
    assert found.quantiles.dims == ("forecast_reference_time", "quantile", "horizon", "node")
    assert found.members.attrs == {"long_name": "members of the forecast of Ocean (deg C)", "units": "degC"}
    for name, variable in found.variables.items():
        assert "long_name" in variable.attrs and ("units" in variable.attrs or variable.dtype.kind in "MU"), name
    for name in ("forecast_reference_time", "time", "realization"):
        assert found[name].attrs["standard_name"] == name
    assert found.time.dims == ("forecast_reference_time", "horizon")


def test_land_is_put_back_as_missing_values_on_the_grid():
    pytest.importorskip("xarray")
    axes = torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    forecast = make_forecast(**LAND, axes=axes)
    found = forecast.to_xarray()
    assert found.members.dims[-2:] == ("lat", "lon") and found.lat.values.tolist() == [10, 20]
    assert found.lat.attrs["units"] == "degrees_north" and found.lon.attrs["standard_name"] == "longitude"
    flat = found.members[0].values.reshape(MEMBERS, STEPS, 8)
    assert np.isnan(flat[..., [2, 5]]).all() and (flat[..., LAND["kept"]] == forecast.members).all()
    assert np.isnan(found.quantiles[0].values).sum() == 2 * STEPS * len(QUANTILE_LEVELS)


def test_nodes_keep_their_coordinates():
    pytest.importorskip("xarray")
    places = torch.arange(12.0).reshape(6, 2)
    scattered = make_forecast(coordinates=places).to_xarray()
    assert scattered.lon.dims == ("node",) and (scattered.lon.values == places[:, 1].numpy()).all()
    assert scattered["node_name"].values[2] == "node 2"
    bent = make_forecast(**LAND, coordinates=places).to_xarray()  # a grid whose rows are no parallels
    assert bent.lat.dims == ("row", "column") and bent.lat.values[1, 2] == places[4, 0] and np.isnan(bent.lat[0, 2])


def test_nothing_is_left_of_a_file_whose_forecasts_end_in_an_error(tmp_path):
    def interrupted():
        yield make_forecast(windows=2)
        raise KeyboardInterrupt

    for ending in forecasts.WRITERS:
        if all(importlib.util.find_spec(package) for package in forecasts.WRITERS[ending][1]):
            with pytest.raises(KeyboardInterrupt):
                write_forecasts(tmp_path / f"forecast{ending}", interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parts", [1, 40])
@pytest.mark.parametrize("ending", forecasts.WRITERS)
def test_a_disk_that_is_full_is_an_error_that_names_the_file_and_leaves_nothing(ending, parts, tmp_path, capfd):
    for package in forecasts.WRITERS[ending][1]:
        pytest.importorskip(package)
    whole, path = [make_forecast(windows=5)] * parts, tmp_path / f"forecast{ending}"
    write_forecasts(path, iter(whole))
    size = path.stat().st_size
    path.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 // 3, limits[1]))
        with pytest.raises(OSError) as caught:
            write_forecasts(path, iter(whole))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path) and list(tmp_path.iterdir()) == []
    gc.collect()
    assert "Exception ignored" not in capfd.readouterr().err


def test_an_older_file_stays_whole_until_the_new_one_is(tmp_path):
    path = tmp_path / "forecast.csv"
    path.write_text("old")

    def parts():
        yield make_forecast(windows=2)
        assert path.read_text() == "old"

    write_forecasts(path, parts())
    assert path.read_text().startswith("issue_time,")


def test_names_of_nodes_are_no_formulas_in_a_csv_and_stay_as_they_are_elsewhere(tmp_path):
    names = ("=cmd|' /C calc'!A0", "+1", "-1", "@sum(a)", "\tx", "plain")
    forecast = make_forecast(node_names=names)
    write_forecasts(tmp_path / "forecast.csv", iter([forecast]))
    write_forecasts(tmp_path / "forecast.npz", iter([forecast]))
    cells = pd.read_csv(tmp_path / "forecast.csv").node
    assert cells[:NODES].tolist() == [f"'{name}" for name in names[:-1]] + ["plain"]
    with np.load(tmp_path / "forecast.npz") as found:
        assert found["node_names"].tolist() == list(names)
    assert forecast.to_frame().node[:NODES].tolist() == list(names)


def test_what_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="xlsx: the ending says the format; choose one of .npz, .csv, .parquet, .nc"):
        check_output(tmp_path / "forecast.xlsx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ending, package in ((".nc", "xarray"), (".parquet", "pyarrow")):
        with pytest.raises(ValueError, match=f"the package {package} is missing: pip install {package}"):
            check_output(tmp_path / f"forecast{ending}")
    check_output(tmp_path / "forecast.npz")
