"""Tables of columns as (time, node): which column holds times, nodes or values, and which is no node."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from .stamps import PLAUSIBLE_YEARS, Stamps, holds_times, read_stamps, stamp
from .table import INDEX, Table, as_tensor, check_finite, find, listed, repeated

Where = Callable[[int], str]
PARTS = {"mo": "month", "dy": "day", "hr": "hour", "min": "minute", **{
    name: name for name in ("year", "month", "day", "hour", "minute", "second")}}
"""Names of columns that hold a part of the time, and that part; a full name goes before a short one."""
LARGEST_PARTS = {"month": 12, "day": 31, "hour": 24, "minute": 59, "second": 60}
CLOCK = r"\d{1,2}[:.]\d\d([:.]\d\d)?( ?[AaPp][Mm])?"  # a time of day
MOSTLY = 0.5  # share of rows with the time of another one, from which on a table is a long one
MONTHS = {"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}


def from_frame(frame: pd.DataFrame, source: str, where: Where, notes: tuple[str, ...] = ()) -> Table:
    """A table of columns as (time, node); where(row): the place of a row in the file `source`.

    wide: a time column and one column of values per node; the time column has a name of times or is the first one,
          if that holds times; it may be absent, or in parts: date and time, or year, month, day, hour, minute, second
    long: three columns: time, node, value; the rows in any order, absent pairs are missing values
    An index that pandas or R wrote is left out, with a note.
    Raises: ValueError naming the first bad row.
    """
    timeless = find(frame.select_dtypes(exclude="category").columns, "time") is None
    index = [name for name, column in frame.items() if _is_index(column, timeless)]
    if 0 < len(index) < len(frame.columns):
        frame = frame.drop(columns=index)
        notes += (f"{listed([name or 'the first column' for name in index])}: left out, an index of the table",)
    frame = _with_one_time(frame, source, where)
    columns = list(frame.columns)
    time = find(columns, "time")
    if time is None and columns and ("" in columns or holds_times(frame.iloc[:, 0])):
        time = "" if "" in columns else columns[0]
    if time is None:
        time = find(columns, "time", "year")
    if frame.empty or len(frame.columns) == (time is not None):
        raise ValueError(f"{source}: {len(frame)} rows of columns {listed(columns)}; expected a time "
                         "column and one column per node, or the columns time, node, value")
    node, value = find(columns, "node"), find(columns, "value")
    stamps = None if time is None else read_stamps(frame[time], lambda row: f"{source}: {where(row)}")
    repeats = 0.0 if time is None else pd.Series(stamps.times).duplicated().mean()
    if None not in (time, node) and value is None and len(columns) == 3 and (repeats or frame[node].nunique() == 1):
        value, = {*columns} - {time, node}  # a row per time and node: the third column holds the values
    if None not in (time, node, value):
        if len(columns) > 3:
            raise ValueError(f"{source}: columns {listed(columns)}; a long table has three: time, node, value")
        table = _from_long(frame[node], numbers(frame[value], source, where), stamps, source, where)
        if not repeats:
            notes += (f"column {node} is taken for the name of the node",)
    else:
        nodes = [column for column in columns if column != time]
        if repeats and {"quarter", "week"} & {name.lower() for name in nodes}:
            raise ValueError(f"{source}: columns {listed(columns)}: times occur twice; write year and quarter or week "
                             "in one column of times, as 2005Q1 or 2005-W01")
        if repeats >= MOSTLY or repeats and node is not None:
            raise ValueError(f"{source}: columns {listed(columns)}: times occur twice, as in a long table, which "
                             "has three: time, node, value; rename its columns so, and leave others out")
        if {name.lower() for name in nodes} >= MONTHS:
            raise ValueError(f"{source}: a column for each month; expected one column of times, as in pandas: "
                             f"frame.melt({time!r}, var_name='month'), then the columns year, month and value")
        values = np.stack([numbers(frame[name], source, where) for name in nodes], axis=1)
        table = Table(as_tensor(values, source), where=where, node_names=tuple(nodes)).with_stamps(stamps)
    return replace(table, notes=notes + table.notes)


def from_data_frame(frame: pd.DataFrame, source: str, wanted: Sequence[str]) -> Table:
    """A table of the columns of a frame; times from its index, if any. Columns 0, 1, 2, ... are named only if `wanted`.

    Raises: ValueError for what is no number.
    """
    if frame.index.nlevels > 1:
        raise ValueError(f"{source}: an index of {frame.index.nlevels} levels; expected the times alone, and a column "
                         "for each node")
    index, where = pd.Series(frame.index), "row {}".format
    stamps = read_stamps(index, lambda row: f"{source}: {where(row)}") if holds_times(index) else None
    columns = [numbers(frame.iloc[:, place].rename(str(name)), source, where)
               for place, name in enumerate(frame.columns)]
    names = tuple(map(str, frame.columns))
    numbered = frame.columns.equals(pd.RangeIndex(len(names))) and {*names} != {*wanted}
    return Table(
        torch.from_numpy(np.stack(columns, axis=1)) if columns else torch.zeros(len(frame), 0), where=where,
        node_names=None if numbered else names,
    ).with_stamps(stamps)


def check_columns(names: list[str], source: str) -> None:
    """Raises: ValueError for no names, repeated names, and what is no name: values, control characters."""
    if not names:
        raise ValueError(f"{source}: blank; expected the names of the columns")
    if any(unicodedata.category(character) == "Cc" for name in names for character in name):
        raise ValueError(f"{source}: not a readable table: control characters in the names of its columns")
    twice = repeated(filter(None, names))
    dated = re.fullmatch(r"\d{4}-\d\d.*", names[0]) is not None  # the first column of a header may have no name
    values = pd.to_numeric(pd.Series([name for name in names[dated:] if name], dtype=str), errors="coerce")
    if names[0] and len(values) and values.notna().all() and (twice or not all(name.isdigit() for name in names)):
        raise ValueError(f"{source}: values ({listed(names)}) where the names of the columns are expected")
    if twice:
        raise ValueError(f"{source}: columns named twice: {listed(twice)}")


def numbers(column: pd.Series, source: str, where: Where) -> np.ndarray:
    """A column as real numbers, NaN where it is empty. Raises: ValueError naming the first row of something else."""
    if column.dtype.kind in "bMmc":
        raise ValueError(f"{source}: column {column.name} is of type {column.dtype}; expected numbers")
    parsed = column if column.dtype.kind in "iuf" else pd.to_numeric(column, errors="coerce")
    wrong = (parsed.isna() & column.notna()).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        found = str(column.iloc[row])
        hint = ("; write 1234.5, not 1.234,5 or 1,234.5" if "," in found and any(map(str.isdigit, found)) else
                "; a missing value is an empty cell" if not wrong.all() else
                "; a column of times that is not the first is called time" if holds_times(column) else
                "; a long table has three columns: time, node, value; one with a row for each series must be "
                "transposed: frame.T")
        raise ValueError(f"{source}: {where(row)}, column {column.name}: {found!r} is not a number{hint}")
    values = parsed.to_numpy(dtype=np.float64, na_value=np.nan)
    check_finite(values[:, None], source, lambda row, _: f"{where(row)}, column {column.name}")
    return values


def _with_one_time(frame: pd.DataFrame, source: str, where: Where) -> pd.DataFrame:
    """The frame with a column `time` in place of its parts, if it has such and no column of whole times.

    Parts are `date` and `time`, a time of day; `date`, which repeats, and `hour`; year, month and others of PARTS.
    """
    named = {name.lower(): name for name in frame.columns}
    parts = {part: named[name] for name, part in PARTS.items() if name in named}
    clock = named.get("time") or parts.get("hour")
    if "date" in named and clock and "minute" not in parts:
        parts = {"date": named["date"], "clock": clock}
        date, text = (frame[name].astype(str).str.strip() for name in parts.values())
        text = text if "time" in named else text + ":00"
        repeats = "time" in named or date.duplicated().any()
        if not (repeats and text.str.fullmatch(CLOCK).all()) or date.str.contains(":").any():
            return frame
        times = date + " " + text.str.replace(".", ":", regex=False)
    elif {"year", "month"} <= parts.keys() and ("month" in named or frame[named["year"]].duplicated().any()):
        if find(frame.columns, "time", "") is not None or holds_times(frame.iloc[:, 0]):
            return frame
        found = pd.DataFrame({part: pd.to_numeric(frame[name], errors="coerce").astype("float64")
                              for part, name in parts.items()})
        times = pd.to_datetime(found if "day" in parts else found.assign(day=1), errors="coerce")
        possible = found["year"].isin(PLAUSIBLE_YEARS) & (found % 1 == 0).all(axis=1) & (found >= 0).all(axis=1)
        for part, largest in LARGEST_PARTS.items():
            possible &= found.get(part, 1) <= largest
        if (wrong := (times.isna() | ~possible).to_numpy()).any():
            row = int(wrong.argmax())
            raise ValueError(f"{source}: {where(row)}: {listed(list(parts.values()))}: "
                             f"{listed(frame[[*parts.values()]].iloc[row].tolist())}; expected the parts of a time, "
                             "years of four digits")
    else:
        return frame
    frame = frame.drop(columns=[*parts.values()])
    frame.insert(0, "time", times)
    return frame


def _is_index(column: pd.Series, timeless: bool) -> bool:
    """Whether a column is an index that pandas wrote, or the key of a Parquet folder; timeless: no other one holds
    times, so that a key of that name does, or years without a name."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return find([column.name], "node") is None and not (timeless and find([column.name], "time") is not None)
    if not INDEX.fullmatch(column.name) or column.dtype.kind in "mMb":
        return False
    values = pd.to_numeric(column.dropna(), errors="coerce")
    return bool((values % 1 == 0).all() and values.is_unique
                and not (timeless and not column.name and values.isin(PLAUSIBLE_YEARS).all()))


def _from_long(node: pd.Series, value: np.ndarray, stamps: Stamps, source: str, where: Where) -> Table:
    """Pairs (time, node) as a table: steps in the order of time, nodes in the order of their first row."""
    if node.isna().any():
        raise ValueError(f"{source}: {where(int(node.isna().to_numpy().argmax()))}: no node is named")
    steps, first, step = np.unique(stamps.times, return_index=True, return_inverse=True)
    place, names = pd.factorize(node.astype(str))
    pair = step * len(names) + place
    twice = pd.Series(pair).duplicated().to_numpy()
    if twice.any():
        row = int(twice.argmax())
        raise ValueError(f"{source}: {where(row)}: time {stamp(stamps.times[row], stamps.zone)} of node "
                         f"{names[place[row]]} occurs twice, first in {where(int((pair == pair[row]).argmax()))}")
    values = np.full((len(steps), len(names)), np.nan)
    values[step, place] = value
    table = Table(as_tensor(values, source), where=lambda step: where(first[step]),
                  node_names=tuple(names)).with_stamps(replace(stamps, times=steps))
    if (absent := values.size - len(pair)) and (value % 1 == 0).all():
        table = table.with_notes(f"{absent} of {values.size} pairs of time and node have no row and are missing; if "
                                 "they are counts of zero, write rows with 0")
    return table
