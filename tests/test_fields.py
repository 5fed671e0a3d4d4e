"""A file is a field, whole and checked, or it is refused in one line that names it; no code in it ever runs."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import Payload, random_values, refusal_of, with_gaps

from data.fields import load_field
from data.readers import read_file
from data.synthetic import OracleSettings

VALUES = random_values(40, 6)


def saved(path, array, **options):
    np.save(path, array, **options)
    return path


def refusal(path, load=read_file) -> str:
    return refusal_of(path, load)


# What is accepted

@pytest.mark.parametrize("shape", [(40, 6), (40, 2, 3), (40, 6, 1)])
def test_space_is_flattened_in_row_major_order(tmp_path, shape):
    table = read_file(saved(tmp_path / "a.npy", VALUES.reshape(shape)))
    assert table.values.dtype == torch.float32 and table.node_names is None
    assert torch.equal(table.values, torch.from_numpy(VALUES))
    assert table.grid == ((2, 3) if shape == (40, 2, 3) else None)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float16",
                                   "float64", "longdouble", ">f4", ">f8", ">i2"])
def test_real_numbers_of_any_width_and_byte_order_become_float32(tmp_path, dtype):
    array = VALUES.astype(dtype)
    values = read_file(saved(tmp_path / "a.npy", array)).values
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values, array.astype(np.float32))


@pytest.mark.parametrize("shape", [(40, 6), (40, 2, 3)])
def test_fortran_order_changes_nothing(tmp_path, shape):
    array = np.asfortranarray(VALUES.reshape(shape))
    assert not array.flags.c_contiguous
    values = read_file(saved(tmp_path / "a.npy", array)).values
    assert torch.equal(values, torch.from_numpy(VALUES))


def test_a_read_only_file_behind_a_link_and_a_path_with_spaces_works_and_is_not_written(tmp_path):
    folder = tmp_path / "my dätä"
    folder.mkdir()
    path = saved(folder / "a.npy", VALUES)
    path.chmod(0o444)
    (tmp_path / "link").symlink_to(folder)
    values = read_file(tmp_path / "link" / "a.npy").values
    values.zero_()
    np.testing.assert_array_equal(np.load(path), VALUES)


def test_an_archive_brings_its_node_names(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", values=VALUES.astype(np.uint8), node_names=list("abcdef"))
    table = read_file(tmp_path / "a.npz")
    assert table.node_names == tuple("abcdef")
    assert torch.equal(table.values, torch.from_numpy(VALUES.astype(np.uint8)).float())


def test_one_node_and_one_step_are_a_field(tmp_path):
    assert read_file(saved(tmp_path / "a.npy", np.ones((1, 1)))).values.shape == (1, 1)


def test_a_dataset_is_loaded_with_its_calendar_and_names(registered):
    folder = registered(VALUES.reshape(40, 2, 3), interval=(30, "minute"), start=("2010-09-20",))
    field = load_field("Tiny", folder)
    assert field.calendar.sizes == (48, 7) and field.segments == ((0, 40),)
    assert field.node_names == tuple(f"node {node}" for node in range(6))
    assert str(field.calendar.times[-1]) == "2010-09-20T19:30"


def test_the_two_files_of_a_pair_follow_each_other_with_calendars_of_their_own(registered):
    folder = registered(VALUES, files=("values.npy", "second.npy"), interval=(1, "month"),
                        start=("1990-03-01", "1940-01-01"), validation_steps=10)
    np.save(folder / "second.npy", VALUES[:25] + 1)
    field = load_field("Tiny", folder)
    assert field.segments == ((0, 40), (40, 65)) and len(field.values) == len(field.calendar.times) == 65
    assert torch.equal(field.values[40:], torch.from_numpy(VALUES[:25] + 1))
    assert field.calendar.slots[[0, 40], 0].tolist() == [2, 0]


def test_the_oracle_has_the_nodes_and_steps_asked_for(tmp_path):
    field = load_field("Oracle", tmp_path, oracle=OracleSettings(3, 50))
    assert field.values.shape == (50, 3) and field.values.isfinite().all()


# What is refused

def test_a_missing_file_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="BikeDC.npy.*scripts.get_data"):
        load_field("BikeDC", tmp_path)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert "empty" in refusal(tmp_path / name)


@pytest.mark.parametrize("keep", [3, 40, 60, 128, 500, -1])
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_a_truncated_array_is_refused(tmp_path, ending, keep):
    path = tmp_path / f"a.{ending}"
    np.save(path, VALUES) if ending == "npy" else np.savez(path, values=VALUES)
    path.write_bytes(path.read_bytes()[:keep])
    assert f"not a readable .{ending} file" in refusal(path)


def test_an_npz_with_flipped_bits_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", values=VALUES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[400] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    assert "not a readable .npz file" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("text", ["1,2,3\n4,5,6\n", "<!DOCTYPE html><html>404</html>", "version https://git-lfs"])
def test_text_renamed_npy_is_refused(tmp_path, text):
    (tmp_path / "a.npy").write_text(text)
    assert "not a readable .npy file" in refusal(tmp_path / "a.npy")


def test_an_archive_without_values_says_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", data=VALUES, other=VALUES)
    assert "keys data, other; expected a key `values`" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("layout", ["npy", "npz", "npz names", "pickle"])
def test_python_objects_are_refused_and_their_code_never_runs(tmp_path, layout):
    mark = tmp_path / "ran"
    objects = np.array([[Payload(mark)]], dtype=object)
    path = tmp_path / ("a.npz" if "npz" in layout else "a.npy")
    if layout == "npy":
        np.save(path, objects, allow_pickle=True)
    elif layout == "pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        buffer = io.BytesIO()
        np.save(buffer, objects, allow_pickle=True)
        plain = io.BytesIO()
        np.save(plain, VALUES)
        parts = {"values.npy": plain, "node_names.npy": buffer} if "names" in layout else {"values.npy": buffer}
        with zipfile.ZipFile(path, "w") as archive:
            for name, part in parts.items():
                archive.writestr(name, part.getvalue())
    assert "Python objects" in refusal(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # the payload was live


@pytest.mark.parametrize("shape", [(), (40,), (4, 2, 3, 5), (0, 6), (40, 0), (40, 2, 0)])
def test_an_array_that_is_no_field_is_refused_with_its_shape_and_the_accepted_ones(tmp_path, shape):
    message = refusal(saved(tmp_path / "a.npy", np.zeros(shape, np.float32)))
    assert f"shape {shape}" in message and "(time, node), (time, height, width)" in message


@pytest.mark.parametrize("shape", [(40, 6), (40, 2, 3)])
def test_a_wrong_number_of_nodes_is_refused_with_both_numbers(registered, shape):
    folder = registered(VALUES.reshape(shape), num_nodes=560)
    message = refusal(folder / "values.npy", lambda _: load_field("Tiny", folder))
    assert "shape (40, 6)" in message and "has 6 nodes; expected 560" in message


@pytest.mark.parametrize("array", [
    np.full((4, 2), "1.5"), VALUES.astype(complex), VALUES > 20, VALUES.astype("datetime64[s]"),
    np.zeros((4, 2), dtype=[("a", "f4")]), np.full((4, 2), b"1"),
], ids=lambda array: str(array.dtype))
def test_values_that_are_no_real_numbers_are_refused_with_their_type(tmp_path, array):
    message = refusal(saved(tmp_path / "a.npy", array))
    assert f"values of type {array.dtype}; expected integers or real numbers" in message


@pytest.mark.parametrize("bad, shown, dtype", [
    *((bad, f"{bad}", dtype) for bad in (np.inf, -np.inf) for dtype in ("float16", "float32", "float64", ">f4")),
    (1e300, "1e+300", "float64"),
])
def test_a_value_that_is_not_finite_is_refused_with_its_place(tmp_path, bad, shown, dtype):
    array = np.ones((3000, 2, 3), dtype)
    array[2500, 1, 1] = array[2501, 0, 0] = bad
    message = refusal(saved(tmp_path / "a.npy", array))
    assert f"value {shown} at time step 2500, node 4; expected finite numbers" in message


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_missing_values_are_refused_with_their_number_or_kept_and_counted(registered, dtype):
    array = np.ones((3000, 2, 3), dtype)
    array[2500, 1, 1] = array[2501, 0, 0] = np.nan
    folder = registered(array)
    message = refusal(folder / "values.npy", lambda _: load_field("Tiny", folder))
    assert "2 of 18000 values are missing (nan), the first at time step 2500, node 4; expected finite" in message
    assert "--missing mask" in message and "without any value" not in message
    field = load_field("Tiny", folder, missing="mask")
    np.testing.assert_array_equal(field.values, array.reshape(3000, 6))
    assert field.masked and field.missing_share == 2 / 18000
    whole = registered(random_values(50, 4))
    assert load_field("Tiny", whole, missing="mask").masked  # later values may be missing
    assert not load_field("Tiny", whole).masked


def test_nodes_without_any_value_are_named(registered):
    array = random_values(2000, 9)
    array[:, [2, 7]] = array[5, 1] = np.nan
    folder = registered(array)
    message = refusal(folder / "values.npy", lambda _: load_field("Tiny", folder))
    assert "4001 of 18000" in message and "nodes without any value: 2, 7; expected" in message


@pytest.mark.parametrize("dtype", ["float32", "int16", "float64"])
def test_a_null_value_means_missing(registered, dtype):
    values = np.arange(200).reshape(50, 4).astype(dtype) % 7
    field = load_field("Tiny", registered(values), missing="mask", null_value=0)
    np.testing.assert_array_equal(field.values.isnan(), values == 0)
    np.testing.assert_array_equal(field.values[~field.values.isnan()], values[values != 0])
    assert field.missing_share == (values == 0).mean()


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_infinity_is_refused_even_where_values_may_be_missing(registered, bad):
    values = with_gaps(random_values(50, 4))
    values[30, 2] = bad
    with pytest.raises(ValueError, match=f"{bad} at time step 30, node 2"):
        load_field("Tiny", registered(values), missing="mask")
