"""Files of many kinds as one table (time, node). No content of a file is ever run as code."""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from .frames import Rows, check_columns, from_frame, holds_values
from .memory import check_memory
from .netcdf import read_xarray
from .stamps import holds_times, read_stamps
from .table import (
    NODE_NAMES,
    SHOWN,
    TIME_NAMES,
    Table,
    as_tensor,
    find,
    listed,
    note_large,
    optional,
    outside_the_earth,
    repeated,
    unreadable,
)

EMPTY = ("", "NA", "<NA>", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null",
         "None", "1.#QNAN", "1.#IND", "-1.#QNAN", "-1.#IND")  # cells without a value: those of pandas


def read_file(path: Path | str, variable: str = "") -> Table:
    """The table of any supported file, by the ending of its name; `variable`: which one of NetCDF or Zarr.

    Missing values stay NaN; infinite ones are refused. No pickle is ever loaded.
    Raises: ValueError naming the file, what was found and what would work; FileNotFoundError.
    """
    path = Path(path).expanduser()
    name = path.name.lower()
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    read = next((read for ending, read in READERS.items() if name.endswith(ending)), None)
    if read is None:
        raise ValueError(f"{path}: unknown kind of file; readable are {', '.join(READERS)}")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    if path.is_file() and not name.endswith((".npy", ".nc")):
        note_large(path, 4 * path.stat().st_size)  # text and archives unfold
    check_memory(path, variable)
    if variable and read is not read_xarray:
        raise ValueError(f"{path}: --variable {variable} is for NetCDF and Zarr; this file holds one table")
    table = read(path, variable) if read is read_xarray else read(path)
    if table.node_names and (twice := repeated(table.node_names)):
        raise ValueError(f"{path}: names of nodes occur twice: {listed(twice)}")
    return in_time_order(table)


def in_time_order(table: Table) -> Table:
    """A table with rows that descend in time turned round, and a note; any other as it is."""
    stamps = table.counts if table.times is None else table.times
    if stamps is None or len(stamps) < 2 or not (stamps[1:] < stamps[:-1]).all():
        return table
    turned = {name: None if getattr(table, name) is None else getattr(table, name)[::-1]
              for name in ("times", "counts", "rows")}
    return table.with_notes("its rows descend in time: they are taken in the opposite order",
                            values=table.values.flip(0), **turned)


def read_numpy(path: Path) -> Table:
    """.npy, or .npz with the key `values` and, optionally, `node_names`, `times`, `latitude` and `longitude`."""
    extras = {}
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="c")
        if isinstance(array, np.lib.npyio.NpzFile):
            with array as archive:
                if "values" not in archive:
                    raise ValueError(f"keys {', '.join(archive) or 'none'}; expected a key `values`")
                extras = {key: archive[key] for key in ("node_names", "times", "latitude", "longitude")
                          if key in archive}
                array = np.asanyarray(archive["values"])  # zipfile gives bytes for what is no array
    except Exception as error:  # a damaged file makes NumPy and zipfile raise many kinds
        raise unreadable(path, "NumPy array (.npy or .npz)", error) from error
    values = as_tensor(array, str(path))
    for key, found in extras.items():
        expected = values.shape[key != "times"]
        if found.shape != (expected,):
            raise ValueError(f"{path}: {key} of shape {found.shape}; expected ({expected},), as in values "
                             f"{array.shape}")
    names, places = extras.get("node_names"), [extras[key] for key in ("latitude", "longitude") if key in extras]
    coordinates = np.stack(places, axis=1).astype(float) if len(places) == 2 else None
    if coordinates is not None and (wrong := outside_the_earth(coordinates)).any():
        raise ValueError(f"{path}: latitude, longitude {coordinates[wrong.argmax()].tolist()} of node "
                         f"{wrong.argmax()}; expected degrees, -90 to 90 and -180 to 360")
    table = Table(values, node_names=None if names is None else tuple(map(str, names.tolist())),
                  coordinates=coordinates,
                  grid=array.shape[1:] if array.ndim == 3 and array.shape[2] > 1 else None)
    if "times" not in extras:
        return table
    return table.with_stamps(read_stamps(pd.Series(extras["times"]), lambda step: f"{path}: {table.where(step)}"))


def read_csv(path: Path) -> Table:
    """Text separated by commas, semicolons, tabs or blanks, plain or .gz, in a layout of `from_frame`.

    Lines that begin with # are comments; text that is not UTF-8 is read as Latin-1.
    """
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        for encoding in ("utf-16" if wide else "utf-8-sig", "cp1252"):
            with contextlib.suppress(UnicodeDecodeError):
                table = _read_text(path, opened, encoding)
                break
        else:
            encoding, table = "latin-1", _read_text(path, opened, "latin-1")
        note = () if encoding.startswith("utf") else ("it is not in UTF-8: its names are taken to be in Latin-1",)
        return replace(table, notes=note + table.notes)
    except (UnicodeError, EOFError, gzip.BadGzipFile, zlib.error, pd.errors.ParserError) as error:
        raise unreadable(path, "CSV file", error) from error


def _read_text(path: Path, opened: Callable, encoding: str) -> Table:
    with opened(path, "rt", encoding=encoding, newline="") as file:
        lines, skipped = [], []
        for number, line in enumerate(file):
            if line.startswith("#"):
                skipped.append(number)
            elif len(lines) < SHOWN:
                lines.append((number, line))
        if not lines:
            raise ValueError(f"{path}: blank; expected the names of the columns")
        (first, line), below = lines[0], [line for _, line in lines[1:]]
        separator, notes = _separator([line, *below]), ()
        header, row = _cells(line, separator), _cells(below[0], separator) if below else []
        if first and holds_values(header):  # names in a comment, as numpy.savetxt writes them
            file.seek(0)
            above = _cells([line for line, _ in zip(file, range(first), strict=False)][-1].strip("# "), separator)
            if len(above) == len(header):
                header, row, first = above, header, first - 1
        skipped = sorted({*skipped, first})
        check_columns(header, f"{path}: line {first + 1}", row)
        if all(name.isdigit() for name in header):
            notes = (f"line {first + 1} ({listed(header)}) was taken for the names of the columns",)
        if not any(row[len(header):]):  # lines that end with separators
            header += row[len(header):]
        names = [name or f"Unnamed: {place}" * (place > 0) for place, name in enumerate(header)]
        time, node = (find(names, accepted) for accepted in (TIME_NAMES, NODE_NAMES))
        text = dict.fromkeys((name for name in names if name.lower() in TIME_NAMES + NODE_NAMES), str)
        empty = dict.fromkeys(names, EMPTY)
        if None not in (time, node):
            empty[node] = ("",)  # a node may be called NA
        file.seek(0)
        frame = pd.read_csv(file, names=names, header=None, sep=separator, dtype=text, skiprows=skipped,
                            keep_default_na=False, na_values=empty, skip_blank_lines=False, skipinitialspace=True,
                            low_memory=False)
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path}: line {first + 2} holds more cells than the {len(header)} columns that line "
                         f"{first + 1} names")
    if node is not None:
        frame[node] = frame[node].str.strip()
    rows = np.setdiff1d(np.arange(len(frame) + len(skipped)), skipped)[:len(frame)] + 1
    unnamed = [name for name, cell in zip(names, header, strict=True) if name and not cell]
    if filled := [name for name in unnamed if frame[name].notna().any()]:
        raise ValueError(f"{path}: line {first + 1}: column {names.index(filled[0]) + 1} has values but no name")
    frame = frame.drop(columns=unnamed)
    blank = frame.isna().all(axis=1)
    last = len(frame) - int(blank[::-1].cummin().sum())  # without blank lines at the end
    return from_frame(frame.iloc[:last], Rows(str(path), rows[:last], "line"), notes)


def _separator(lines: list[str]) -> str:
    """The separator of the first lines of a file: blanks, where there is no other and all have as many cells."""
    separator = max(",;\t", key=lines[0].count)
    cells = {len(line.split()) for line in lines if line.strip()}
    return r"\s+" if separator not in lines[0] and len(cells) == 1 and cells != {1} else separator


def _cells(line: str, separator: str) -> list[str]:
    """The cells of one line, without blanks around them."""
    if not line.strip():
        return []
    cells = pd.read_csv(io.StringIO(line), sep=separator, header=None, dtype=str, keep_default_na=False,
                        skipinitialspace=True)
    return [str(cell).strip() for cell in cells.iloc[0]]


def read_parquet(path: Path) -> Table:
    """A Parquet table in a layout of `from_frame`; the columns of times and nodes may be in its index."""
    arrow = optional("pyarrow", path)
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, "Parquet file", error) from error
    levels = [] if isinstance(frame.index, pd.RangeIndex) else [
        frame.index.get_level_values(level).to_series(index=range(len(frame))) for level in range(frame.index.nlevels)]
    unnamed = ["node" if len(levels) > 1 and not holds_times(level) else "" if level.dtype.kind in "iu" else "time"
               for level in levels]
    columns = [level.name or name for level, name in zip(levels, unnamed, strict=True)] + list(frame.columns)
    columns = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in columns]
    frame = pd.concat([*levels, frame.reset_index(drop=True)], axis=1).set_axis(columns, axis=1)
    check_columns(columns, str(path), frame.iloc[0].astype(str).tolist() if len(frame) else ())
    return from_frame(frame, Rows(str(path), np.arange(1, len(frame) + 1), "row"))


READERS = {".npy": read_numpy, ".npz": read_numpy, ".csv": read_csv, ".csv.gz": read_csv, ".parquet": read_parquet,
           ".nc": read_xarray, ".zarr": read_xarray,
           **dict.fromkeys((".txt", ".txt.gz", ".tsv", ".tsv.gz", ".data", ".data.gz"), read_csv)}
"""How a file is read, by the ending of its name."""
