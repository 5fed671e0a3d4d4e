"""Files of many kinds as one table (time, node). No content of a file is ever run as code."""

import csv
import functools
import gzip
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from .frames import check_columns, from_frame
from .netcdf import read_xarray
from .stamps import PLAUSIBLE_YEARS, read_stamps
from .table import Table, as_tensor, check_memory, find, listed, optional, outside_the_earth, reading, repeated

MOST_ROUND = 0.5  # share of numbers with decimals whose third one is 0, below which they may be thousands
EXTRAS = "node_names", "times", "latitude", "longitude"  # keys that an .npz may have beside the values


def ending_of(path: Path | str) -> str | None:
    """The ending of a file's name that is one of READERS, None for an unknown kind."""
    return next(filter(str(path).rstrip("/").lower().endswith, READERS), None)


def read_file(path: Path | str, variable: str = "") -> Table:
    """The table of any supported file, by the ending of its name.

    variable: which one of NetCDF or Zarr, or its place from 0 on the last axis of an array (time, node, variable).

    Raises: ValueError naming the file, what was found and what would work; FileNotFoundError. No pickle is ever loaded.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    if (ending := ending_of(path)) is None:
        raise ValueError(f"{path}: unknown kind of file; readable are {', '.join(READERS)}; pandas converts others, as "
                         "pandas.read_excel(FILE).to_csv('FILE.csv', index=False)")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    read = READERS[ending]
    if variable and read not in (read_xarray, read_numpy):
        raise ValueError(f"{path}: --variable {variable} is for NetCDF, Zarr and arrays (time, node, variable); this "
                         "file holds one table")
    with reading(path, f"{ending} file"):
        table = read(path, variable) if variable else read(path)
    if table.node_names and (twice := repeated(table.node_names)):
        raise ValueError(f"{path}: names of nodes occur twice: {listed(twice)}")
    times = table.times
    if times is not None and len(times) > 1 and (times[1:] < times[:-1]).all():
        return table.with_notes("its rows descend in time: they are taken in the opposite order",
                                values=table.values.flip(0), times=times[::-1],
                                where=lambda step: table.where(len(times) - 1 - step))
    return table


def read_numpy(path: Path, variable: str = "") -> Table:
    """.npy, or .npz with the key `values`, or one of any name, and optionally EXTRAS; variable: see `read_file`."""
    extras = {}
    array = np.load(path, allow_pickle=False, mmap_mode="c")
    if isinstance(array, np.lib.npyio.NpzFile):
        with array as archive:
            check_memory(path, sum(entry.file_size for entry in archive.zip.infolist()))
            keys = [key for key in archive if key not in EXTRAS]
            if "values" not in keys and len(keys) != 1:
                raise ValueError(f"keys {', '.join(archive) or 'none'}; expected a key `values`")
            extras = {key: archive[key] for key in EXTRAS if key in archive}
            array = np.asanyarray(archive["values" if "values" in keys else keys[0]])  # zipfile gives bytes for others
    if variable:
        if array.ndim != 3 or variable not in map(str, range(array.shape[2])):
            raise ValueError(f"{path}: --variable {variable}: shape {array.shape}; expected a place from 0 on the last "
                             "axis of (time, node, variable)")
        array = array[..., int(variable)]
    values = as_tensor(array, str(path))
    for key, found in extras.items():
        expected = values.shape[key != "times"]
        if found.shape != (expected,):
            raise ValueError(f"{path}: {key} of shape {found.shape}; expected ({expected},)")
    table = Table(values, grid=array.shape[1:] if array.ndim == 3 and array.shape[2] > 1 else None)
    if "node_names" in extras:
        table = replace(table, node_names=tuple(extras["node_names"].astype(str).tolist()))
    if {"latitude", "longitude"} <= extras.keys():
        places = np.stack([extras["latitude"], extras["longitude"]], axis=1).astype(float)
        if (wrong := outside_the_earth(places)).any():
            raise ValueError(f"{path}: latitude, longitude {places[wrong.argmax()].tolist()} of node {wrong.argmax()}; "
                             "expected degrees, -90 to 90 and -180 to 360")
        table = replace(table, coordinates=places)
    if "times" not in extras:
        return table
    return table.with_stamps(read_stamps(pd.Series(extras["times"]), lambda step: f"{path}: {table.where(step)}"))


def read_csv(path: Path) -> Table:
    """Text separated by commas, semicolons, tabs or blanks, plain or .gz, in a layout of `from_frame`.

    Lines at its top that begin with # are comments; text that is not UTF-8 is read as Latin-1.
    """
    opened, size = open, path.stat().st_size
    if path.name.lower().endswith(".gz"):
        opened = gzip.open
        with gzip.open(path) as file:
            size = sum(map(len, iter(lambda: file.read(1 << 20), b"")))
    check_memory(path, 2 * size)
    try:
        return _read_text(path, opened, "utf-8-sig")
    except UnicodeDecodeError:
        table = _read_text(path, opened, "latin-1")
        return table.with_notes("it is not in UTF-8: its names are taken to be in Latin-1")


def _read_text(path: Path, opened: Callable, encoding: str) -> Table:
    with opened(path, "rt", encoding=encoding, newline="") as file:
        found = ((number, line) for number, line in enumerate(file) if not line.startswith("#"))
        found = list(itertools.islice(found, 5)) or [(0, "")]
    top, lines, notes = found[0][0], [line for _, line in found], ()
    separator, widths = max(",;\t", key=lines[0].count), {len(line.split()) for line in lines if line.strip()}
    if separator not in lines[0] and len(widths) == 1 and widths != {1}:
        separator = r"\s+"  # blanks, where there is no other and all lines have as many cells
    cells = (line.split() if separator == r"\s+" else next(csv.reader([line.strip("\r\n")], delimiter=separator), [])
             for line in [*lines, ""][:2])
    header, row = ([cell.strip() for cell in line] for line in cells)
    check_columns(header, f"{path}: line {top + 1}")
    if all(name.isdigit() for name in header):
        notes = (f"line {top + 1} ({listed(header)}) was taken for the names of the columns",)
    if not any(row[len(header):]):  # lines that end with separators
        header += row[len(header):]
    names = [name or f"Unnamed: {place}" * (place > 0) for place, name in enumerate(header)]
    time, node = find(names, "time", ""), find(names, "node")
    nodes = {} if None in (time, node) else {node: " {}".format}  # with a blank: a node may be called NA
    text = {name: str for name in names
            if name not in nodes and (not name or find([name], "time") or find([name], "node"))}
    read = functools.partial(
        pd.read_csv, path, names=names, header=None, sep=separator, dtype=text, converters=nodes, skiprows=top + 1,
        encoding=encoding, skip_blank_lines=False, skipinitialspace=True, low_memory=False)
    above = "; remove lines above that of the names, or begin them with #"
    try:
        frame = read()
    except pd.errors.ParserError as error:  # a later line has more cells
        raise ValueError(f"{error}{above}") from error
    commas = separator == ";" and _has_decimal_commas(frame.drop(columns=[*text, *nodes]))
    if commas:
        frame, notes = read(decimal=","), (*notes, "its commas are decimal ones")
        for name, column in frame.drop(columns=[*text, *nodes]).select_dtypes(exclude="number").items():
            if (points := column.astype(str).str.fullmatch(r" *[+-]?\d+\.\d+ *").to_numpy(bool)).any():
                row = int(points.argmax())
                raise ValueError(f"{path}: line {row + top + 2}, column {name}: {column.iloc[row]!r} in a file with "
                                 "decimal commas; write 1234,5 without points")
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path}: line {top + 2} holds more cells than the {len(header)} columns that line {top + 1} "
                         f"names{above}")
    for name in nodes:
        frame[name] = frame[name].str.strip().replace("", np.nan)
    blank = int(frame.isna().all(axis=1)[::-1].cummin().sum())  # lines at the end
    frame = frame.iloc[:len(frame) - blank]
    if blank and time is None:
        notes += (f"lines without any value at its end are left out: {blank}",)
    if not commas and _perhaps_thousands(frame):
        notes += ("its numbers are whole or have three decimals, as 1.001: they are read as decimals; write 1001 where "
                  "the point separates thousands",)
    return from_frame(frame, str(path), lambda row: f"line {row + top + 2}", notes)


def _has_decimal_commas(frame: pd.DataFrame) -> bool:
    """Whether cells are numbers as 2,6, and not all of them as 1,001, where the comma may separate thousands."""
    columns = [column for _, column in frame.select_dtypes(exclude="number").items()]
    cells = pd.concat(columns).dropna().astype(str).str.strip() if columns else pd.Series(dtype=str)
    cells = cells[cells.str.fullmatch(r"[+-]?\d+,\d+")]
    return not cells.str.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}").all()


def _perhaps_thousands(frame: pd.DataFrame) -> bool:
    """Whether numbers of a column are below 1000, and whole or with three decimals, the last one mostly not 0: a tenth
    of each at least.

    Cells as 512 and 1.322, where the point may separate thousands, have such numbers.
    """
    return any(map(_perhaps_of_thousands, frame.select_dtypes("number").to_numpy(float).T))


def _perhaps_of_thousands(values: np.ndarray) -> bool:
    values = values[np.isfinite(values)]
    if not len(values):
        return False
    two, three = (np.abs(values * size - np.round(values * size)) < 1e-6 for size in (100, 1000))
    whole = values % 1 == 0
    return bool((np.abs(values) < 1000).all() and three.all() and 0.1 < whole.mean() < 0.9
                and two[~whole].mean() < MOST_ROUND)


def read_parquet(path: Path) -> Table:
    """A Parquet table in a layout of `from_frame`; the columns of times and nodes may be in its index."""
    optional("pyarrow", path)
    if path.is_file():
        content = optional("pyarrow.parquet", path).read_metadata(path)
        check_memory(path, 8 * content.num_rows * content.num_columns)
    frame = pd.read_parquet(path, engine="pyarrow")
    index = frame.index
    if index.name or not index.equals(pd.RangeIndex(len(frame))):  # else only the numbers of the rows
        years = index.name is None and index.dtype.kind in "iu" and index.isin(PLAUSIBLE_YEARS).all()
        frame = frame.reset_index(names="" if years else None)
    frame.columns = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in frame]
    check_columns(list(frame.columns), str(path))
    return from_frame(frame, str(path), lambda row: f"row {row + 1}")


READERS = {".npy": read_numpy, ".npz": read_numpy, ".csv": read_csv, ".csv.gz": read_csv, ".parquet": read_parquet,
           **dict.fromkeys((".nc", ".zarr"), read_xarray),
           **dict.fromkeys((".txt", ".txt.gz", ".tsv", ".tsv.gz", ".data", ".data.gz"), read_csv)}
"""How a file is read, by the ending of its name."""
