"""The cards of the datasets are whole, and the files behind them are found or missed in clear words."""

from datetime import date
from math import prod
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED

from data.registry import DATASETS, DEFAULT_DATA_DIR, data_dir_from, get_spec, locate, sha256_of

PUBLISHED = [(name, file, index) for name, spec in DATASETS.items() if not (spec.embedded or spec.synthetic)
             for index, file in enumerate(spec.files)]


@pytest.mark.parametrize("name", DATASETS)
def test_a_card_agrees_with_itself(name):
    spec = DATASETS[name]
    assert len(spec.files) == len(spec.shape) and len(spec.start) == max(1, len(spec.files))
    assert all(prod(shape[1:]) == spec.num_nodes for shape in spec.shape)
    assert spec.grid is None or prod(spec.grid) == spec.num_nodes
    assert spec.interval[0] >= 1 and spec.interval[1] in ("minute", "hour", "day", "month")
    assert all(date.fromisoformat(day) for day in spec.start)
    assert (len(spec.files) == 2) == (spec.validation_steps is not None)
    assert set(spec.sha256) <= {*spec.files, spec.graph}
    assert all(len(digest) == 64 for digest in spec.sha256.values())
    assert set(spec.archive) <= set(spec.files) and set(spec.git_blob) <= {*spec.files, *spec.archive.values()}
    assert all(len(blob) == 40 for blob in spec.git_blob.values())
    assert spec.source and spec.licence and bool(spec.files) != spec.synthetic


@pytest.mark.parametrize("name, weekday", [
    ("MobileNJ", "Tuesday"), ("MobileSH", "Friday"), ("CrowdBJ", "Monday"), ("CrowdBM", "Tuesday"),
    ("TaxiBJ", "Saturday"), ("BikeDC", "Monday"), ("Los_Speed", "Thursday"), ("Oracle", "Monday"),
])
def test_a_series_starts_on_the_published_day_of_the_week(name, weekday):
    assert date.fromisoformat(get_spec(name).start[0]).strftime("%A") == weekday


@pytest.mark.parametrize("name, file, index", PUBLISHED)
def test_the_published_arrays_are_what_their_cards_say(name, file, index):
    if not (SHARED / file).is_file():
        pytest.skip(f"{file} is not at hand")
    spec, array = get_spec(name), np.load(SHARED / file, mmap_mode="r", allow_pickle=False)
    assert array.shape == spec.shape[index] and sha256_of(SHARED / file) == spec.sha256[file]
    assert not spec.nonnegative or array.min() >= 0


def test_mobile_sh_is_said_to_be_very_likely_as_long_as_the_file_of_the_same_blob():
    spec = get_spec("MobileSH")
    assert spec.shape == ((672, 32, 28),) and "very likely 672 hours" in spec.source


@pytest.mark.parametrize("wrong, meant", [
    ("sst", "SST"), ("LosSpeed", "Los_Speed"), ("mobileny", "MobileNJ"),
])
def test_an_unknown_name_is_answered_with_near_matches_and_the_list(wrong, meant):
    with pytest.raises(ValueError, match=f"did you mean .*{meant}.* NYCFlights, Oracle"):
        get_spec(wrong)


def test_a_name_far_from_all_is_answered_with_the_list_alone():
    with pytest.raises(ValueError, match="TaxiBJ") as caught:
        get_spec("zzzzzz")
    assert "did you mean" not in str(caught.value)


def test_the_flag_beats_the_environment_which_beats_the_default(monkeypatch):
    monkeypatch.setenv("COST_DATA_DIR", "/env")
    assert data_dir_from("/flag") == Path("/flag") and data_dir_from(None) == Path("/env")
    monkeypatch.delenv("COST_DATA_DIR")
    assert data_dir_from(None) == DEFAULT_DATA_DIR and data_dir_from("~/x") == Path.home() / "x"


def test_a_missing_file_names_path_dataset_and_both_ways_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        locate("BikeDC", tmp_path)
    message = str(caught.value)
    assert str(tmp_path / "Urban/BikeDC.npy") in message and f'--data_dir "{tmp_path}"' in message
    assert "scripts.get_data" in message and "--from DIR" in message and "--download BikeDC" in message


def test_half_a_pair_is_missing(tmp_path):
    (tmp_path / "Climate").mkdir()
    (tmp_path / "Climate/SST.npy").touch()
    with pytest.raises(FileNotFoundError, match="SST_ERA5.npy"):
        locate("SST", tmp_path)
    (tmp_path / "Climate/SST_ERA5.npy").touch()
    assert [path.name for path in locate("SST", tmp_path)] == ["SST.npy", "SST_ERA5.npy"]


def test_private_data_is_said_to_be_private_and_its_layout_is_given(tmp_path):
    layout = "not public.*Energy/SolarPower.npy.*11 columns, GHI first"
    with pytest.raises(FileNotFoundError, match=layout) as caught:
        locate("SolarPower", tmp_path)
    assert "--download" not in str(caught.value)


def test_a_private_file_at_hand_is_found_below_a_path_with_spaces(tmp_path):
    file = tmp_path / "my dätä" / "Energy/SolarPower.npy"
    file.parent.mkdir(parents=True)
    file.touch()
    assert locate("SolarPower", tmp_path / "my dätä") == (file,)


def test_a_synthetic_dataset_has_no_files(tmp_path):
    assert locate("Oracle", tmp_path) == ()


def test_the_embedded_dataset_is_found_whatever_the_data_folder(tmp_path):
    assert locate("NYCFlights", tmp_path) == (DEFAULT_DATA_DIR / "NYCFlights.npz",)
    (tmp_path / "NYCFlights.npz").touch()
    assert locate("NYCFlights", tmp_path) == (tmp_path / "NYCFlights.npz",)


def test_the_embedded_dataset_is_the_one_of_its_card():
    path, = locate("NYCFlights", DEFAULT_DATA_DIR)
    assert sha256_of(path) == get_spec("NYCFlights").sha256["NYCFlights.npz"]
    assert path.stat().st_size < 400_000
    with np.load(path, allow_pickle=False) as file:
        values, names, airports = file["values"], file["node_names"], file["airport_names"]
        latitude, longitude = file["latitude"], file["longitude"]
    assert values.shape == get_spec("NYCFlights").shape[0] and values.dtype == np.uint8
    assert int(values.sum(dtype=np.int64)) == 323_729 and values.sum(0, dtype=np.int64).min() >= 365
    assert list(names) == sorted(set(names)) and names.shape == airports.shape == (75,)
    assert all(airports) and "SJU" in names
    assert 17 < latitude.min() and latitude.max() < 62
    assert -160 < longitude.min() and longitude.max() < -64


def test_no_flight_is_scheduled_in_the_hours_that_the_clock_skips_or_repeats():
    with np.load(DEFAULT_DATA_DIR / "NYCFlights.npz", allow_pickle=False) as file:
        by_hour = file["values"].reshape(365, 24, 75).sum((0, 2), dtype=np.int64)
    assert (by_hour[:5] == 0).all() and (by_hour[5:] > 0).all()
