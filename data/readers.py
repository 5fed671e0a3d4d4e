"""Files of many kinds as one table (time, node): read, checked for what cannot be a field, never run as code."""

import codecs
import contextlib
import gzip
import importlib
import io
import re
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .calendar import CONVERT
from .memory import check_memory
from .scaling import BLOCK, LARGEST_WHOLE
from .stamps import Stamps, holds_times, read_stamps, rounded, stamp, with_time_column, zone_in

MEMORY_LIMIT = 1 << 30  # bytes as float32; a larger .npy stays on disk as a memory map
TIME_NAMES = ("time", "date", "datetime", "timestamp", "valid_time", "ds", "")  # "": an index without a name
NODE_NAMES = ("node", "name", "station", "sensor", "site", "station_name", "id", "unique_id", "item_id", "node_id",
              "sensor_id", "station_id", "site_id", "series_id", "timeseries_id")
VALUE_NAMES = ("value", "y", "target")
LATITUDE_NAMES = ("lat", "latitude", "nav_lat", "xlat", "clat")
LONGITUDE_NAMES = ("lon", "longitude", "lng", "long", "nav_lon", "xlong", "clon")
MARK = "(?:qc|qa|qf|flags?|quality|status|quality_flag)"
QUALITY = re.compile(rf"(.+)[_ .-]{MARK}|{MARK}[_ .-](.+)", re.IGNORECASE)
"""Names of columns and variables that say how good the one of the rest of the name is."""
YEAR, DATE = re.compile(r"(1[89]|20|21)\d\d"), re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([T ].*)?|\d{4}-\d{2}")
INDEX = re.compile(r"(unnamed: \d+|index|level_\d+|__index_level_\d+__)?", re.IGNORECASE)
"""Names that pandas gives an index where it writes it."""
COUNTER = re.compile(r"(s\.?)?no\.?|nr\.?|#|id|idx|seq|obs|record|row|row[_ .]?(id|no|nr|num|number|index|names?)",
                     re.IGNORECASE)
EMPTY = ("", "NA", "<NA>", "N/A", "n/a", "#NA", "#N/A", "#N/A N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null",
         "None", "1.#QNAN", "1.#IND", "-1.#QNAN", "-1.#IND")  # cells without a value: those of pandas
LOST = 0.01  # share of a change that rounding may be
SHOWN = 5  # names that a message lists before it only counts


@dataclass(frozen=True)
class Table:
    """What a file holds: values (time, node) in physical units, missing ones as NaN, and what it says of them.

    values       float32 in memory, float64 where that would lose values (`needs_float64`), or as stored in a memory map
                 where that is larger than MEMORY_LIMIT
    times        (time,) datetime64[s], in UTC where there is a time zone, or None; not yet checked to be regular
    rows         (time,) the file's line or row of each stamp, counted from 1, None where it has none
    row_word     what the file calls them
    node_names   as in the file, or None
    coordinates  (node, 2) latitude and longitude in degrees, or None
    unit         as the file states it, or ""
    grid         (rows, columns) of which the nodes are the places in row-major order, or None
    axes         latitudes of the rows and longitudes of the columns, where they are that regular, or None
    kept         places of the grid that the nodes are, where places without any value (land) were left out, or None
    zone, counts  of the stamps, see `stamps.Stamps`
    calendar     of a climate model, whose days are not those of real years, else ""
    notes        what was done with the file that its user may not expect
    """

    values: Tensor
    times: np.ndarray | None = None
    rows: np.ndarray | None = None
    row_word: str = "line"
    node_names: tuple[str, ...] | None = None
    coordinates: np.ndarray | None = None
    unit: str = ""
    grid: tuple[int, int] | None = None
    axes: tuple[np.ndarray, np.ndarray] | None = None
    kept: np.ndarray | None = None
    zone: str = ""
    counts: np.ndarray | None = None
    calendar: str = ""
    notes: tuple[str, ...] = ()

    def where(self, step: int) -> str:
        """The place of a time step in the file: its line, else its number from 0."""
        return f"time step {step}" if self.rows is None else f"{self.row_word} {self.rows[step]}"

    def at(self, places: np.ndarray, **changes) -> "Table":
        """The table of some of its nodes, in this order, with other changes."""
        names, coordinates = self.node_names, self.coordinates
        return replace(self, values=self.values[:, torch.from_numpy(places)],
                       node_names=names and tuple(names[place] for place in places),
                       coordinates=None if coordinates is None else coordinates[places], **changes)


def read_file(path: Path | str, variable: str = "") -> Table:
    """Read the values of any supported file, by the ending of its name; `variable`: which one of NetCDF or Zarr.

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
        say_if_large(path, 4 * path.stat().st_size)  # text and archives unfold
    check_memory(path, variable)
    if variable and read is not read_xarray:
        raise ValueError(f"{path}: --variable {variable} is for NetCDF and Zarr; this file holds one table")
    table = read(path, variable) if read is read_xarray else read(path)
    if table.node_names and (twice := repeated(table.node_names)):
        raise ValueError(f"{path}: names of nodes come twice: {listed(twice)}")
    return in_time_order(table)


def in_time_order(table: Table) -> Table:
    """A table whose rows descend in time with them ascending, and a note; any other as it is."""
    stamps = table.counts if table.times is None else table.times
    if stamps is None or len(stamps) < 2 or not (stamps[1:] < stamps[:-1]).all():
        return table
    turned = {name: None if getattr(table, name) is None else getattr(table, name)[::-1]
              for name in ("times", "counts", "rows")}
    return replace(table, values=table.values.flip(0), **turned,
                   notes=(*table.notes, "its rows descend in time: they are taken in the opposite order"))


def say_if_large(path: Path, needed: int) -> None:
    """Say, before it is read, that a file will take much memory."""
    if needed > MEMORY_LIMIT:
        print(f"note: {path}: reading it may take {needed / 2**30:.1f} GiB of memory; a field in .npy stays on disk",
              file=sys.stderr)


def as_tensor(array: np.ndarray, source: str) -> Tensor:
    """An array (time, ...) as a tensor (time, node): in float32, in float64 where that would lose values, or as stored
    where it would not fit into memory.

    Accepted: real numbers, (T,V), (T,H,W) or (T,V,1), at least one step and one node; space in row-major order.
    NaN, a missing value, is kept; what is infinite, or is so as float32, as which all is computed, is refused.
    Raises: ValueError that begins with `source`.
    """
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{source}: values of type {array.dtype}; expected integers or real numbers")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{source}: shape {array.shape}; expected (time, node), (time, height, width) or "
                         "(time, node, 1), none of them empty")
    values = array.reshape(len(array), -1)
    check_finite(values, source, lambda step, node: f"time step {step}, node {node}")
    if array.nbytes // array.itemsize * 4 <= MEMORY_LIMIT or array.dtype.byteorder == ">":
        values = np.ascontiguousarray(values, dtype=np.float64 if needs_float64(values) else np.float32)
    return torch.from_numpy(values)


def needs_float64(values: np.ndarray) -> bool:
    """Whether float32 would lose something of values (time, node): a whole number would become another one, or at half
    of the steps at which a node changes the rounding is more than LOST of the change."""
    if values.dtype.itemsize < 4 or values.dtype == np.float32:
        return False
    changes, lost = (np.zeros(values.shape[1], dtype=np.int64) for _ in range(2))
    for first in range(0, len(values), BLOCK):
        block = values[first:first + BLOCK + 1].astype(np.float64)
        size = np.abs(block)
        rounding = np.abs(block - block.astype(np.float32))
        if ((rounding > 0) & (size > LARGEST_WHOLE) & (size < 2.0**53) & (block == np.round(block))).any():
            return True
        change = np.abs(np.diff(block, axis=0))
        changes += (change > 0).sum(0)
        lost += ((change > 0) & (rounding[1:] > LOST * change)).sum(0)
    return bool((lost > changes / 2).any())


def check_finite(values: np.ndarray, source: str, place: Callable[[int, int], str]) -> None:
    """Refuse infinite values (time, node), and those that are so as float32; place(step, node) says where one is.

    Raises: ValueError.
    """
    for first in range(0, len(values), BLOCK) if values.dtype.kind == "f" else ():
        wrong = np.abs(values[first:first + BLOCK]) > np.finfo(np.float32).max
        if wrong.any():
            step, node = np.argwhere(wrong)[0]
            raise ValueError(f"{source}: value {values[first + step, node]} at {place(first + step, node)}; expected "
                             "finite numbers")


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
                array = np.asanyarray(archive["values"])  # what is no array comes as bytes
    except Exception as error:  # whatever a damaged file makes NumPy or zipfile raise, the user made one mistake
        detail = "it holds Python objects, which are never loaded" if "allow_pickle" in str(error) else error
        raise ValueError(f"{path}: not a readable NumPy array (.npy or .npz): {detail}") from error
    values = as_tensor(array, str(path))
    for key, expected in (("node_names", values.shape[1]), ("times", len(values)), ("latitude", values.shape[1]),
                          ("longitude", values.shape[1])):
        if key in extras and extras[key].shape != (expected,):
            raise ValueError(f"{path}: {key} of shape {extras[key].shape}; expected ({expected},), as in values "
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
    stamps = read_stamps(pd.Series(extras["times"]), str(path), table.where)
    return replace(table, **stamps_of(stamps))


def stamps_of(stamps: Stamps | None, notes: tuple[str, ...] = ()) -> dict:
    """What a table says of its stamps; notes: that come before theirs."""
    return {**vars(stamps), "notes": notes + stamps.notes} if stamps else {"notes": notes}


def read_csv(path: Path) -> Table:
    """Text separated by commas, semicolons, tabs or blanks, plain or .gz; see `from_frame` for the two layouts.

    Lines that begin with # are comments; what is not UTF-8 is read as Latin-1.
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
        raise ValueError(f"{path}: not a readable CSV file: {' '.join(str(error).split())}") from error


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
        if first and _holds_values(header):  # names in a comment, as numpy.savetxt writes them
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
        time, node = (find(names, known) for known in (TIME_NAMES, NODE_NAMES))
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
    last = len(frame) - int(blank[::-1].cummin().sum())  # blank lines at the end say nothing
    return from_frame(frame.iloc[:last], str(path), rows[:last], "line", notes)


def _separator(lines: list[str]) -> str:
    """What separates the cells of the first lines of a file: blanks, where nothing else does and all are alike."""
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


def _holds_values(cells: list[str]) -> bool:
    """Whether a line holds numbers, a date before them aside; the first column of a header may have no name."""
    numeric = cells[bool(cells and DATE.fullmatch(cells[0])):]
    found = pd.Series([cell for cell in numeric if cell], dtype=str)
    return len(found) > 0 and cells[0] != "" and bool(pd.to_numeric(found, errors="coerce").notna().all())


def read_parquet(path: Path) -> Table:
    """A Parquet table of one of the layouts of `from_frame`; the columns of times and nodes may be in its index."""
    arrow = optional("pyarrow", path)
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error
    levels = [] if isinstance(frame.index, pd.RangeIndex) else [
        frame.index.get_level_values(level).to_series(index=range(len(frame))) for level in range(frame.index.nlevels)]
    unnamed = ["node" if len(levels) > 1 and not holds_times(level) else "" if level.dtype.kind in "iu" else "time"
               for level in levels]
    columns = [level.name or name for level, name in zip(levels, unnamed, strict=True)] + list(frame.columns)
    columns = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in columns]
    frame = pd.concat([*levels, frame.reset_index(drop=True)], axis=1).set_axis(columns, axis=1)
    check_columns(columns, str(path), frame.iloc[0].astype(str).tolist() if len(frame) else ())
    return from_frame(frame, str(path), np.arange(1, len(frame) + 1), "row")


def check_columns(names: list[str], source: str, below: Sequence[str] = ()) -> None:
    """Raises: ValueError for no names, names that come twice, and what is no name: values, dates, control characters.

    below: the cells of the row below the names.
    """
    if not names:
        raise ValueError(f"{source}: blank; expected the names of the columns")
    if any(unicodedata.category(character) == "Cc" for name in names for character in name):
        raise ValueError(f"{source}: not a readable table: control characters in the names of its columns")
    twice = repeated(filter(None, names))
    if _holds_values(names) and (twice or not all(name.isdigit() for name in names)):
        raise ValueError(f"{source}: values ({listed(names)}) where the names of the columns are expected")
    if twice:
        raise ValueError(f"{source}: columns named twice: {listed(twice)}")
    dates = [name for name in names[1:] if YEAR.fullmatch(name) or DATE.fullmatch(name)]
    if 2 * len(dates) > max(2, len(names)) and not names[0].isdigit() and find(names[:1], TIME_NAMES[:-1]) is None and (
            not below or not DATE.fullmatch(below[0])):
        raise ValueError(f"{source}: dates ({listed(dates)}) where the names of the nodes are expected, so places are "
                         "in rows; write a row per time and a column per node (frame.T in pandas)")


def from_frame(frame: pd.DataFrame, source: str, rows: np.ndarray, row_word: str, notes: tuple[str, ...] = ()) -> Table:
    """A table of columns as (time, node); rows: where each row stands in the file.

    wide: a time column and one column of values per node; the time column is known by its name (see TIME_NAMES) or
          is the first one, if that holds times; it may be absent
    long: three columns: time, node, value; the rows in any order, absent pairs are missing values
    Columns that are certainly no nodes are left out with a note, see `_foreign`.
    Raises: ValueError naming the first bad row.
    """
    def where(row: int) -> str:
        return f"{row_word} {rows[row]}"

    foreign = _foreign(frame)
    frame = frame.drop(columns=list(foreign))
    for what in dict.fromkeys(foreign.values()):
        these = [name or "the first column" for name in foreign if foreign[name] == what]
        notes += (f"{listed(these)}: left out, {what}",)
    columns = list(frame.columns)
    time = find(columns, TIME_NAMES[:-1])
    if time is None and columns and ("" in columns or holds_times(frame.iloc[:, 0])):
        time = "" if "" in columns else columns[0]
    whole, frame = frame, with_time_column(frame, time, source, where)
    time, columns = "time" if frame is not whole else time, list(frame.columns)
    node, value = (find(columns, names) for names in (NODE_NAMES, VALUE_NAMES))
    if frame.empty or len(columns) == (time is not None):
        raise ValueError(f"{source}: {len(frame)} rows of columns {listed(list(whole.columns))}; expected a time "
                         "column and one column per node, or the columns time, node, value")
    stamps = None if time is None else read_stamps(frame[time], source, where)
    repeated_times = None not in (time, node) and bool(pd.Series(stamps.axis).duplicated().any())
    if value is None and repeated_times and len(columns) == 3 and find([time], TIME_NAMES):
        value, = {*columns} - {time, node}  # a row per time and node: the third column holds the values
    if None not in (time, node, value):
        if len(columns) > 3:
            raise ValueError(f"{source}: columns {listed(columns)}; a long table has three: time, node, value")
        table = _from_long(frame[node], numbers(frame[value], source, where), stamps, rows, row_word, source, where)
        return replace(table, notes=notes + table.notes)
    nodes = [column for column in columns if column != time]
    values = np.stack([numbers(frame[name], source, where) for name in nodes], axis=1)
    if repeated_times:
        raise ValueError(f"{source}: columns {listed(columns)}: times come twice, as in a long table, which has three: "
                         "time, node, value")
    return Table(as_tensor(values, source), rows=rows, row_word=row_word, node_names=tuple(nodes),
                 **stamps_of(stamps, notes))


def _foreign(frame: pd.DataFrame) -> dict[str, str]:
    """The columns of a table that are certainly no nodes, each with what it is."""
    columns, found = list(frame.columns), {}
    time, node, value = (find(columns, known) for known in (TIME_NAMES[:-1], NODE_NAMES, VALUE_NAMES))
    long = None not in (time, node) and (value is not None or bool(frame[time].duplicated().any()))
    for name, column in frame.items():
        match, kind = QUALITY.fullmatch(name), column.dtype.kind
        if not (long and name == node) and _counts(column, years=time is None):
            found[name] = "it numbers the rows"
        elif INDEX.fullmatch(name) and column.isna().all():
            found[name] = "empty"
        elif long and name in (time, node, value) or kind in "mM" or find([name], TIME_NAMES):
            continue
        elif isinstance(column.dtype, pd.CategoricalDtype):
            found[name] = "a category, as the folders of a Parquet table are"
        elif match and (long or kind in "Ob") and {*match.groups()} & {*columns}:
            found[name] = "a quality flag"
        elif len(column) > 1 and (column == column.iloc[0]).all() and (
                long and value or name == node or kind == "O" and not str(column.iloc[0])[:1].isdigit()):
            found[name] = "the same in every row"
    return found if {*columns} - {*found} - {time} else {}  # else it is all that there is


def _counts(column: pd.Series, years: bool) -> bool:
    """Whether a column counts rows: whole numbers, each one more than the one before, under a name that says so.

    Under a name that pandas gives an index, also numbers that come once each, or most of which are one more.
    years: those without a name may be years.
    """
    index, name = INDEX.fullmatch(column.name), column.name
    if column.dtype.kind in "mMb" or not (index or COUNTER.fullmatch(name)):
        return False
    values = pd.to_numeric(column, errors="coerce")
    if values.isna().any() or (values % 1 != 0).any() or years and not name and values.between(1500, 2200).all():
        return False
    up = values.diff().iloc[1:] == 1
    return bool(up.all() or index and (values.is_unique or up.mean() > 0.5))


def _from_long(node: pd.Series, value: np.ndarray, stamps: Stamps, rows: np.ndarray, row_word: str, source: str,
               where: Callable[[int], str]) -> Table:
    """Pairs (time, node) as a table: steps in the order of time, nodes in the order of their first row."""
    if node.isna().any():
        raise ValueError(f"{source}: {where(int(node.isna().to_numpy().argmax()))}: no node is named")
    times = stamps.axis
    steps, first, step = np.unique(times, return_index=True, return_inverse=True)
    place, names = pd.factorize(node.astype(str))
    pair = step * len(names) + place
    twice = pd.Series(pair).duplicated().to_numpy()
    if twice.any():
        row = int(twice.argmax())
        time = times[row] if stamps.times is None else stamp(times[row], stamps.zone)
        raise ValueError(f"{source}: {where(row)}: time {time} of node {names[place[row]]} comes twice, "
                         f"first in {where(int((pair == pair[row]).argmax()))}")
    values = np.full((len(steps), len(names)), np.nan)
    values[step, place] = value
    found = replace(stamps, **{"counts" if stamps.times is None else "times": steps})
    return Table(as_tensor(values, source), rows=rows[first], row_word=row_word, node_names=tuple(names),
                 **stamps_of(found))


def numbers(column: pd.Series, source: str, where: Callable[[int], str]) -> np.ndarray:
    """A column as real numbers, NaN where it is empty.

    Raises: ValueError naming the first row that holds something else, or no finite number.
    """
    if column.dtype.kind in "iuf":
        parsed = column
    elif column.dtype.kind in "bMmc":
        raise ValueError(f"{source}: column {column.name} is of type {column.dtype}; expected numbers")
    else:
        parsed = pd.to_numeric(column, errors="coerce")
        wrong = (parsed.isna() & column.notna()).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            found = str(column.iloc[row])
            hint = ("; write 1234.5, not 1.234,5 or 1,234.5" if "," in found and any(map(str.isdigit, found)) else
                    "; a long table has three columns: time, node, value" if wrong.all() else "")
            raise ValueError(f"{source}: {where(row)}, column {column.name}: {found!r} is not a number{hint}")
    values = parsed.to_numpy(dtype=np.float64, na_value=np.nan)
    check_finite(values[:, None], source, lambda row, _: f"{where(row)}, column {column.name}")
    return values


def read_xarray(path: Path, variable: str) -> Table:
    """A variable of NetCDF or Zarr, see `netcdf.read_xarray`."""
    from . import netcdf  # only here: it builds on this module
    return netcdf.read_xarray(path, variable)


def coordinate_times(array, time: str, path: Path) -> dict:
    """What a table says of the stamps of a variable; those of a climate model's calendar by their digits."""
    if time not in array.coords:
        return {}
    stamps = array.coords[time].values
    if stamps.dtype.kind == "M":
        offset = re.search(r":\d\d(?::[\d.]+)? *([+-]\d\d(?::?\d\d)?)$", str(array.coords[time].encoding.get("units")))
        return {"times": rounded(stamps), "zone": zone_in(f"2000-01-01T00:00{offset[1]}") if offset else ""}
    if not hasattr(stamps.flat[0], "calendar"):
        found = Stamps(None)
        if stamps.dtype.kind != "f":
            found = read_stamps(pd.Series(stamps), str(path), lambda step: f"{time} {step}")
        if found.times is None:
            raise ValueError(f"{path}: coordinate {time} holds {stamps.flat[0]!r}, not times; expected units as in "
                             "'days since 2000-01-01', or no such coordinate, and --freq and --start")
        return vars(found)
    calendar = {"365_day": "noleap"}.get(stamps.flat[0].calendar, stamps.flat[0].calendar)
    try:
        half = timedelta(microseconds=500_000)  # digits are cut, so this rounds
        times = np.array([(each + half).isoformat()[:19] for each in stamps], dtype="datetime64[s]")
    except ValueError as error:
        raise ValueError(f"{path}: calendar {calendar} has days that no real year has; {CONVERT}") from error
    if "gregorian" in calendar or calendar == "standard":
        return {"times": times}
    return {"times": times, "calendar": calendar,
            "notes": (f"its times are of the calendar {calendar}; their digits are taken as dates",)}


def outside_the_earth(coordinates: np.ndarray) -> np.ndarray:
    """Which places (node, 2) have no latitude from -90 to 90, or no longitude from -180 to 360 degrees."""
    return ~((np.abs(coordinates[:, 0]) <= 90) & (-180 <= coordinates[:, 1]) & (coordinates[:, 1] <= 360))


def optional(package: str, path: Path):
    """Import a package that only some kinds of files need.

    Raises: ValueError that names it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs the package {package}: pip install -r requirements-extras.txt"
                         ) from error


def find(names: list[str], known: tuple[str, ...]) -> str | None:
    """The first of `names` that is a known one, in any case of letters."""
    return next((name for name in names if str(name).lower() in known), None)


def repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def listed(names: list[str]) -> str:
    """Names as text, the first few of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(map(str, names[:SHOWN])) or "none") + more


READERS = {".npy": read_numpy, ".npz": read_numpy, ".csv": read_csv, ".csv.gz": read_csv, ".parquet": read_parquet,
           ".nc": read_xarray, ".zarr": read_xarray,
           **dict.fromkeys((".txt", ".txt.gz", ".tsv", ".tsv.gz", ".data", ".data.gz"), read_csv)}
"""How a file is read, by the ending of its name."""
