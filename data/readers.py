"""Files of many kinds as one table (time, node): read, checked for what cannot be a field, never run as code."""

import csv
import gzip
import importlib
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .calendar import CONVERT
from .scaling import BLOCK
from .stamps import PARTS, Stamps, holds_times, local_times, read_stamps, rounded, stamp, with_time_column, zone_in

MEMORY_LIMIT = 1 << 30  # bytes as float32; a larger .npy stays on disk as a memory map
TIME_NAMES = ("time", "date", "datetime", "timestamp", "valid_time", "")  # "": an index without a name
NODE_NAMES, VALUE_NAMES = ("node", "name", "station", "sensor", "id"), ("value",)
LATITUDE_NAMES = ("lat", "latitude", "nav_lat", "y")
LONGITUDE_NAMES = ("lon", "longitude", "nav_lon", "x")
SHOWN = 5  # names that a message lists before it only counts


@dataclass(frozen=True)
class Table:
    """What a file holds: values (time, node) in physical units, missing ones as NaN, and what it says of them.

    values       float32 in memory, or as stored in a memory map where that is larger than MEMORY_LIMIT
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
    notes        what the user should be told
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
    """An array (time, ...) as a tensor (time, node): float32, or as stored where that would not fit into memory.

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
        values = np.ascontiguousarray(values, dtype=np.float32)
    return torch.from_numpy(values)


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
    table = Table(values, node_names=None if names is None else tuple(map(str, names.tolist())),
                  coordinates=np.stack(places, axis=1).astype(float) if len(places) == 2 else None,
                  grid=array.shape[1:] if array.ndim == 3 and array.shape[2] > 1 else None)
    if "times" not in extras:
        return table
    stamps = read_stamps(pd.Series(extras["times"]), str(path), table.where)
    return replace(table, **stamps_of(stamps))


def stamps_of(stamps: Stamps | None) -> dict:
    """What a table says of its stamps."""
    return vars(stamps) if stamps else {}


def read_csv(path: Path) -> Table:
    """Comma, semicolon or tab separated text, plain or .gz; see `from_frame` for the two layouts."""
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            separator = max(",;\t", key=first.count)
            header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
            check_columns(header, f"{path}: line 1")
            text = dict.fromkeys((name for name in header if name.lower() in TIME_NAMES + NODE_NAMES), str)
            file.seek(0)
            frame = pd.read_csv(file, names=header, header=0, sep=separator, dtype=text, skip_blank_lines=False,
                                skipinitialspace=True, low_memory=False)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: not a readable CSV file: {' '.join(str(error).split())}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError(f"{path}: line 2 holds more cells than the {len(header)} columns that line 1 names")
    blank = frame.isna().all(axis=1)
    frame = frame.iloc[:len(frame) - int(blank[::-1].cummin().sum())]  # blank lines at the end say nothing
    return from_frame(frame, str(path), first_row=2, row_word="line")


def read_parquet(path: Path) -> Table:
    """A Parquet table of one of the layouts of `from_frame`; its time column may be its index."""
    arrow = optional("pyarrow", path)
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.rename_axis(index=frame.index.name or "time").reset_index()
    frame = frame.rename(columns=str)
    check_columns(list(frame.columns), str(path))
    return from_frame(frame, str(path), first_row=1, row_word="row")


def check_columns(names: list[str], source: str) -> None:
    """Raises: ValueError for no names, names that come twice, or numbers where names belong."""
    if not names:
        raise ValueError(f"{source}: blank; expected the names of the columns")
    if twice := repeated(names):
        raise ValueError(f"{source}: columns named twice: {listed(twice)}")
    if any("." in name and name.replace(".", "", 1).lstrip("+-").isdigit() for name in names):
        raise ValueError(f"{source}: values ({listed(names)}) where the names of the columns are expected")


def from_frame(frame: pd.DataFrame, source: str, first_row: int, row_word: str) -> Table:
    """A table of columns as (time, node).

    wide: a time column and one column of values per node; the time column is known by its name (see TIME_NAMES) or
          is the first one, if that holds times; it may be absent
    long: three columns: time, node, value; the rows in any order, absent pairs are missing values
    Raises: ValueError naming the first bad row.
    """
    def where(row: int) -> str:
        return f"{row_word} {first_row + row}"

    named = find([name for name in frame.columns if name], TIME_NAMES)
    if named and "" in frame.columns and (frame[""].astype(str) == pd.RangeIndex(len(frame)).astype(str)).all():
        frame = frame.drop(columns="")  # the numbers of the rows, as pandas writes them
    time = find(list(frame.columns), TIME_NAMES)
    if time is None and holds_times(frame.iloc[:, 0]):
        time = frame.columns[0]
    whole, frame = frame, with_time_column(frame, time, source, where)
    time = "time" if frame is not whole else time
    columns = list(frame.columns)
    node, value = (find(columns, names) for names in (NODE_NAMES, VALUE_NAMES))
    if frame.empty or len(columns) == (time is not None):
        raise ValueError(f"{source}: {len(frame)} rows of columns {listed(list(whole.columns))}; expected a time "
                         "column and one column per node, or the columns time, node, value")
    stamps = None if time is None else read_stamps(frame[time], source, where)
    rows = np.arange(first_row, first_row + len(frame))
    if stamps and (repeating := parts_of(stamps, frame.drop(columns=time))):
        frame = frame.drop(columns=repeating)
        note = f"columns {listed(repeating)} repeat the time: they are no nodes"
        stamps = replace(stamps, notes=(*stamps.notes, note))
        columns = list(frame.columns)
    if None not in (time, node, value):
        if len(columns) > 3:
            raise ValueError(f"{source}: columns {listed(columns)}; a long table has three: time, node, value")
        return _from_long(frame[node], numbers(frame[value], source, where), stamps, rows, row_word, source, where)
    nodes = [column for column in columns if column != time]
    values = np.stack([numbers(frame[name], source, where) for name in nodes], axis=1)
    return Table(as_tensor(values, source), rows=rows, row_word=row_word, node_names=tuple(nodes), **stamps_of(stamps))


def parts_of(stamps: Stamps, frame: pd.DataFrame) -> list[str]:
    """The columns year, month, day, ... of a table that hold nothing but that part of its stamps (time,)."""
    if stamps.times is None:
        return []
    local = pd.Series(local_times(stamps.times, stamps.zone)).dt
    return [name for name in frame.columns if str(name).lower() in PARTS
            and (pd.to_numeric(frame[name], errors="coerce").to_numpy() == getattr(local, str(name).lower())).all()]


def _from_long(node: pd.Series, value: np.ndarray, stamps: Stamps, rows: np.ndarray, row_word: str, source: str,
               where: Callable[[int], str]) -> Table:
    """Pairs (time, node) as a table: steps in the order of time, nodes in the order of their first row."""
    if node.isna().any():
        raise ValueError(f"{source}: {where(int(node.isna().to_numpy().argmax()))}: no node is named")
    times = stamps.counts if stamps.times is None else stamps.times
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
    """One variable (time, place) or (time, latitude, longitude) of NetCDF or Zarr; land is left out of a grid.

    Dimensions of one entry are dropped. Coordinates named as in LATITUDE_NAMES and LONGITUDE_NAMES give the places.
    """
    xarray = optional("xarray", path)
    engine = "zarr" if path.name.lower().rstrip("/").endswith(".zarr") else "netcdf4"
    optional("zarr" if engine == "zarr" else "netCDF4", path)
    if engine == "zarr":
        _refuse_code(path)
    options = {"consolidated": False} if engine == "zarr" else {}
    try:
        with xarray.open_dataset(path, engine=engine, **options) as dataset:
            return _from_variable(_choose_variable(dataset, variable, path), path)
    except Exception as error:  # whatever a damaged file makes the libraries raise, the user made one mistake
        if str(error).startswith(f"{path}:"):
            raise
        kind = "Zarr" if engine == "zarr" else "NetCDF"
        raise ValueError(f"{path}: not a readable {kind} file: {' '.join(str(error).split())}") from error


def _refuse_code(path: Path) -> None:
    """Refuse a Zarr store that would unpickle: its metadata name the codec.

    Raises: ValueError.
    """
    for file in (*path.rglob(".z*"), *path.rglob("zarr.json")):
        if file.is_file() and "pickle" in file.read_text(errors="replace"):
            raise ValueError(f"{path}: it holds Python objects ({file.name} names pickle), which are never loaded")


def _choose_variable(dataset, variable: str, path: Path):
    """The variable asked for, else the only one that can be a field.

    Raises: ValueError with those that there are.
    """
    fields = [name for name, array in dataset.data_vars.items()
              if array.dtype.kind in "iuf" and _time_dimension(array) and not {"bnds", "nv"} & set(array.dims)]
    if variable and variable not in dataset.data_vars:
        raise ValueError(f"{path}: there is no variable {variable}; there are {listed(list(dataset.data_vars))}")
    if not variable and len(fields) != 1:
        raise ValueError(f"{path}: {len(fields)} variables have a time axis ({listed(fields)}); choose one with "
                         f"--variable" if fields else f"{path}: no variable has a time axis; there are "
                         f"{listed([f'{name} {array.dims}' for name, array in dataset.data_vars.items()])}")
    return dataset[variable or fields[0]]


def _time_dimension(array) -> str | None:
    """The dimension whose coordinate holds times, else the one that is named so."""
    times = [name for name in array.dims if name in array.coords
             and (array.coords[name].dtype.kind == "M" or hasattr(array.coords[name].values.flat[0], "calendar"))]
    return times[0] if times else find(list(array.dims), (*TIME_NAMES, "year"))


def _from_variable(array, path: Path) -> Table:
    time = _time_dimension(array)
    if time is None:
        raise ValueError(f"{path}: variable {array.name} has dimensions {array.dims}; one must be the time")
    array = array.squeeze([name for name, size in array.sizes.items() if size == 1 and name != time])
    space = [name for name in array.dims if name != time]
    if len(space) > 2:
        sizes = ", ".join(f"{name}: {size}" for name, size in array.sizes.items())
        raise ValueError(f"{path}: variable {array.name} has dimensions ({sizes}); expected time and one or two of "
                         "space: select the others beforehand")
    if len(space) == 2 and find([space[0]], LONGITUDE_NAMES) and find([space[1]], LATITUDE_NAMES):
        space = space[::-1]
    array = array.transpose(time, *space)
    say_if_large(path, 4 * array.size)
    values = as_tensor(array.values.reshape(len(array), -1), str(path))
    grid = tuple(array.sizes[name] for name in space) if len(space) == 2 else None
    latitude, longitude = (_places(array, names, space) for names in (LATITUDE_NAMES, LONGITUDE_NAMES))
    table = Table(values, unit=str(array.attrs.get("units", "")), grid=grid, **_times(array, time, path))
    if latitude is not None and longitude is not None:
        coordinates = np.stack([latitude.ravel(), longitude.ravel()], axis=1)
        rectangular = grid and (latitude == latitude[:, :1]).all() and (longitude == longitude[:1]).all()
        table = replace(table, coordinates=coordinates, axes=(latitude[:, 0], longitude[0]) if rectangular else None)
    names = None
    if grid and table.coordinates is not None:
        names = tuple(f"lat {latitude:g} lon {longitude:g}" for latitude, longitude in table.coordinates)
        names = None if repeated(names) else names  # places closer than six digits tell
    elif space and space[0] in array.coords and not grid:
        names = tuple(map(str, array.coords[space[0]].values.tolist()))
    table = replace(table, node_names=names)
    return without_land(table) if grid else table


def _places(array, names: tuple[str, ...], space: list[str]) -> np.ndarray | None:
    """Latitudes or longitudes on all places of `space`, or None where there are none."""
    name = find([str(name) for name in array.coords], names)
    if name is None or not space or not set(array.coords[name].dims) <= set(space):
        return None
    shape = [(dimension, array.sizes[dimension]) for dimension in space]
    missing = {dimension: size for dimension, size in shape if dimension not in array.coords[name].dims}
    return array.coords[name].variable.set_dims({**missing, **dict(array.coords[name].sizes)}).transpose(
        *space).values.astype(float)


def _times(array, time: str, path: Path) -> dict:
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


def without_land(table: Table) -> Table:
    """A grid without the places that have no value at any time, which `kept` and `grid` can put back."""
    kept = np.flatnonzero(~torch.stack([block.isnan().all(0) for block in table.values.split(BLOCK)]).all(0).numpy())
    if len(kept) in (0, table.values.shape[1]):
        return table

    def chosen(array):
        return None if array is None else array[kept]

    names = table.node_names and tuple(table.node_names[place] for place in kept)
    return replace(table, values=table.values[:, torch.from_numpy(kept)], kept=kept, node_names=names,
                   coordinates=chosen(table.coordinates))


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
           ".nc": read_xarray, ".zarr": read_xarray}
"""How a file is read, by the ending of its name."""
