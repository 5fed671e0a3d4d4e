"""Tables as people have them: what is a node, what is its name, and what is said of the rest."""

import gzip

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, random_values, refusal_of

from data.fields import OwnFile, load_field
from data.readers import read_file

HOURS = pd.date_range("2024-03-30", periods=48, freq="h")
VALUES = random_values(48, 3)
WIDE = pd.DataFrame(VALUES, HOURS.rename("time"), list("abc"))
LONG = WIDE.melt(var_name="node", ignore_index=False).reset_index()


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def refusal(path) -> str:
    return refusal_of(path, read_file)


def is_wide(table, names=("a", "b", "c")) -> bool:
    np.testing.assert_array_equal(table.values, VALUES)
    np.testing.assert_array_equal(table.times, HOURS.to_numpy().astype("datetime64[s]"))
    return table.node_names == names


# What is no node

@pytest.mark.parametrize("name, numbers", [
    ("Unnamed: 0", range(48)), ("index", range(1, 49)), ("", range(48)), ("level_0", range(5, 5 + 96, 2)),
])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_numbers_of_rows_are_no_node(tmp_path, name, numbers, ending):
    frame = WIDE.reset_index()
    frame.insert(0, name, list(numbers))
    path = tmp_path / f"a.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path, index=False)
    table = read_file(path)
    assert is_wide(table) and table.notes == (f"{name or 'the first column'}: left out, an index of the table",)


def test_numbers_of_rows_are_no_node_of_a_table_without_times_either(tmp_path):
    frame = WIDE.reset_index(drop=True)
    frame.to_csv(tmp_path / "a.csv")
    table = read_file(tmp_path / "a.csv")
    assert table.node_names == ("a", "b", "c") and table.times is None and "an index" in table.notes[0]


def test_an_empty_column_that_pandas_named_is_no_node(tmp_path):
    WIDE.assign(**{"Unnamed: 4": np.nan}).to_csv(tmp_path / "a.csv")
    table = read_file(tmp_path / "a.csv")
    assert is_wide(table) and table.notes == ("Unnamed: 4: left out, an index of the table",)


def test_an_index_of_rows_that_a_filter_left_is_no_node_of_a_parquet_table(tmp_path):
    WIDE.reset_index().set_axis([*range(30), *range(35, 53)]).to_parquet(tmp_path / "a.parquet")
    table = read_file(tmp_path / "a.parquet")
    assert is_wide(table) and table.notes == ("index: left out, an index of the table",)


def test_a_column_that_only_has_the_name_of_an_index_and_one_that_counts_under_another_name_are_nodes(tmp_path):
    WIDE.assign(index=VALUES[:, 0], no=range(48)).to_csv(tmp_path / "a.csv")
    table = read_file(tmp_path / "a.csv")
    assert table.node_names == ("a", "b", "c", "index", "no") and table.notes == ()
    np.testing.assert_array_equal(table.values[:, 3], VALUES[:, 0])


def test_nodes_of_one_value_stay_and_are_noted(tmp_path):
    WIDE.assign(b=7.0, c=0).to_csv(tmp_path / "a.csv")
    field = load_field("a", ROOT, own=OwnFile(str(tmp_path / "a.csv")))
    assert field.node_names == ("a", "b", "c") and field.values[:, 1].unique().tolist() == [7]
    assert field.notes == ("2 of 3 nodes have the same value at all times: b, c; leave out columns that are no nodes",)


def test_the_keys_of_a_parquet_folder_are_no_nodes(tmp_path):
    WIDE.reset_index().assign(part=["x"] * 20 + ["y"] * 28, year=2024).to_parquet(
        tmp_path / "a.parquet", partition_cols=["part", "year"], index=False)
    table = read_file(tmp_path / "a.parquet")
    assert is_wide(table)
    assert table.notes == ("part, year: left out, an index of the table",)


def test_times_of_a_parquet_table_may_be_categories_but_a_key_beside_times_is_no_node(tmp_path):
    frame = WIDE.reset_index()
    frame.assign(time=pd.Categorical(frame["time"].astype(str))).to_parquet(tmp_path / "a.parquet", index=False)
    assert is_wide(read_file(tmp_path / "a.parquet"))
    frame.assign(date=frame["time"].dt.date.astype(str)).to_parquet(tmp_path / "b.parquet", partition_cols=["date"],
                                                                    index=False)
    assert is_wide(read_file(tmp_path / "b.parquet"))


def test_a_parquet_folder_of_a_part_per_node_is_a_long_table(tmp_path):
    LONG.to_parquet(tmp_path / "a.parquet", partition_cols=["node"], index=False)
    table = read_file(tmp_path / "a.parquet")
    assert is_wide(table) and table.notes == ()


# Where there are no names

@pytest.mark.parametrize("text", ["1,2,3\n4,5,7\n", "773869,767541\n4,5\n"])
def test_a_first_line_of_numbers_is_taken_for_names_with_a_note(tmp_path, text):
    table = read_file(written(tmp_path / "a.csv", text))
    first = text.splitlines()[0].split(",")
    assert table.node_names == tuple(first) and len(table.values) == 1
    assert table.notes == (f"line 1 ({', '.join(first)}) was taken for the names of the columns",)


@pytest.mark.parametrize("text", [
    "1,0,0\n1,2,3\n", "14,69,14\n1,2,3\n", "0.5,0.7\n1,2\n", "-3,4\n1,2\n", "1e5,2\n3,4\n",
    "2024-01-01,1,2\n2024-01-02,3,4\n", "2024-01-01T00:00,1.5,2\n2024-01-01T01:00,3,4\n",
])
def test_a_file_without_names_is_refused_by_that_cause_where_it_is_sure(tmp_path, text):
    message = refusal(written(tmp_path / "a.csv", text))
    assert "line 1: values (" in message and "where the names of the columns are expected" in message


@pytest.mark.parametrize("text, names", [
    ("time,2001,2002\n2024-01-01,1,2\n", ("2001", "2002")), (",2001,2002\n2024-01-01,1,2\n", ("2001", "2002")),
    ("Zeit,2001,2002\n2024-01-01,1,2\n", ("2001", "2002")),
])
def test_nodes_may_have_names_like_years(tmp_path, text, names):
    assert read_file(written(tmp_path / "a.csv", text)).node_names == names


# Layouts

@pytest.mark.parametrize("names", [
    ("unique_id", "ds", "y"), ("item_id", "timestamp", "target"), ("sensor_id", "date", "value"),
    ("Station", "Time", "Value"), ("station_id", "datetime", "y"), ("node", "time", "target"),
])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("ending", ["csv", "parquet", "tsv"])
def test_a_long_table_is_read_under_any_usual_names_in_any_order(tmp_path, names, order, ending):
    frame = LONG[["node", "time", "value"]].set_axis(list(names), axis=1).iloc[:, list(order)]
    frame = pd.concat([frame.iloc[[0, 48, 96]], frame.drop(index=[0, 48, 96]).sample(frac=1, random_state=0)])
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        frame.reset_index(drop=True).to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ending == "tsv" else ",")
    table = read_file(path)
    assert is_wide(table) and table.notes == ()


def test_the_numbers_of_rows_of_a_long_table_are_left_out_and_more_columns_are_refused(tmp_path):
    LONG.to_csv(tmp_path / "a.csv")
    assert is_wide(read_file(tmp_path / "a.csv"))
    LONG.assign(depth=range(144)).to_csv(tmp_path / "b.csv", index=False)
    assert "columns time, node, value, depth; a long table has three" in refusal(tmp_path / "b.csv")


def test_the_third_column_of_a_long_table_is_its_value_under_any_name_and_more_are_refused(tmp_path):
    frame = LONG.rename(columns={"node": "station", "time": "date", "value": "flow"})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.set_index(["station", "date"]).to_parquet(tmp_path / "a.parquet")
    assert is_wide(read_file(tmp_path / "a.csv")) and is_wide(read_file(tmp_path / "a.parquet"))
    frame.replace({"station": {"a": 1, "b": 2, "c": 3}}).assign(depth=VALUES.ravel()).to_csv(tmp_path / "b.csv")
    assert "times occur twice, as in a long table" in refusal(tmp_path / "b.csv")


@pytest.mark.parametrize("index", [["time", "node"], ["node", "time"]])
def test_a_parquet_table_may_have_times_and_nodes_in_its_index(tmp_path, index):
    LONG.set_index(index).to_parquet(tmp_path / "a.parquet")
    assert is_wide(read_file(tmp_path / "a.parquet"))


def test_a_parquet_table_of_columns_of_several_levels_joins_their_names(tmp_path):
    WIDE.set_axis(pd.MultiIndex.from_product([["flow"], list("abc")]), axis=1).to_parquet(tmp_path / "a.parquet")
    assert is_wide(read_file(tmp_path / "a.parquet"), ("flow a", "flow b", "flow c"))


@pytest.mark.parametrize("ending", ["csv", "txt", "tsv", "data", "txt.gz"])
@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "   "])
def test_any_usual_separator_is_read_under_any_ending(tmp_path, ending, separator):
    text = WIDE.set_axis(HOURS.strftime("%Y-%m-%dT%H:%M").rename("time")).to_csv().replace(",", separator)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    assert is_wide(read_file(path))


def test_a_name_with_a_blank_is_one_name(tmp_path):
    table = read_file(written(tmp_path / "a.txt", "air temperature\n1.5\n2.5\n"))
    assert table.node_names == ("air temperature",) and table.values.tolist() == [[1.5], [2.5]]


@pytest.mark.parametrize("header, row", [(",", ","), ("", ","), (",", ""), (",,,", ",,,"), ("", ",,")])
@pytest.mark.parametrize("separator", [",", ";"])
def test_separators_at_the_end_of_lines_make_no_node(tmp_path, header, row, separator):
    top, *lines = WIDE.to_csv().splitlines()
    text = "\n".join([top + header, *(line + row for line in lines)]).replace(",", separator)
    assert is_wide(read_file(written(tmp_path / "a.csv", text)))


def test_a_column_of_values_without_a_name_is_a_node(tmp_path):
    text = "time,a,\n2024-01-01,1,\n2024-01-02,1,0.5\n"
    assert read_file(written(tmp_path / "a.csv", text)).node_names == ("a", "Unnamed: 2")


def test_lines_at_the_top_that_begin_with_a_hash_are_comments_and_lines_are_counted_with_them(tmp_path):
    top, *lines = WIDE.to_csv().splitlines()
    text = "\n".join(["# made, by us", "#", top, *lines])
    table = read_file(written(tmp_path / "a.csv", text))
    assert is_wide(table) and table.where(0) == "line 4" and table.where(10) == "line 14"
    text = text.replace(lines[11], "2024-03-30 11:00,1,x,3")
    assert "line 15, column b" in refusal(written(tmp_path / "b.csv", text))


def test_latin_1_is_read_with_a_note(tmp_path):
    text = "time,Zürich,Genève\n2024-01-01,1,2\n"
    table = read_file(written(tmp_path / "a.csv", text, "latin-1"))
    assert table.node_names == ("Zürich", "Genève") and "not in UTF-8" in table.notes[0]
    table = read_file(written(tmp_path / "b.csv", text))
    assert table.node_names == ("Zürich", "Genève") and table.notes == ()


@pytest.mark.parametrize("name", ["NA", "NaN", "null", "None", "n/a"])
def test_a_node_may_be_called_na(tmp_path, name):
    LONG.replace({"node": {"b": name}}).to_csv(tmp_path / "long.csv", index=False)
    LONG.replace({"node": {"b": name}}).to_csv(tmp_path / "numbered.csv")
    WIDE.rename(columns={"b": name}).to_csv(tmp_path / "wide.csv")
    for path in tmp_path.iterdir():
        assert is_wide(read_file(path), ("a", name, "c"))


@pytest.mark.parametrize("cell", ["", "NA", "nan", "NULL"])
def test_an_empty_or_absent_value_is_missing_beside_a_node_called_na(tmp_path, cell):
    text = f"time,node,value\n2024-01-01,NA,{cell}\n2024-01-01,b,2\n2024-01-02,b,3\n"
    table = read_file(written(tmp_path / "a.csv", text))
    np.testing.assert_array_equal(table.values, [[np.nan, 2], [np.nan, 3]])


# What stands for missing values

@pytest.mark.parametrize("value, text", [(-999, "-999"), (-9999, "-9999"), (1e20, "1e+20"), (-999.9, "-999.9")])
def test_a_number_that_programs_write_for_missing_values_is_noted_even_once(tmp_path, value, text):
    values = VALUES.copy()
    values[7, 1] = value
    pd.DataFrame(values, WIDE.index, list("abc")).to_csv(tmp_path / "a.csv")
    own = OwnFile(str(tmp_path / "a.csv"))
    note, = load_field("a", ROOT, own=own).notes
    assert note == (f"{text} occurs 1 time, beyond all other values: if it stands for a missing value, give "
                    f"--missing mask --null_value={text}")
    field = load_field("a", ROOT, own=own, missing="mask", null_value=float(text))
    assert field.notes == () and field.values.isnan().nonzero().tolist() == [[7, 1]]
