"""A field as one tensor (time, node) with its calendar, read and checked."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .calendar import Calendar, Interval, first_step, make_calendar, missing_rows, parse_interval, regular_axis
from .nodes import numbered, read_graph, read_node_table
from .readers import ending_of, read_file
from .registry import DATASETS, DatasetSpec, get_spec, locate
from .scaling import BLOCK, as_real, by_node
from .stamps import PLAIN, check_zone, offsets, parse_time, read_stamps, stamp
from .synthetic import OracleSettings, make_oracle
from .table import Table, listed

CODES = [-2147483648, -2147483647, -99999, -32768, -32767, -9999.9, -9999, -999.9, -999.25, -999, 9999, 99999, 999999,
         1e20, 1e30, 1e34, 1e35, 1e36, 9.969209968386869e36]
"""Numbers that programs write for a missing value."""
FAR_CODES = [-200, -99.9, -99, 0, 99.99, 999, 999.9, 9999.9, 32767]
"""Such numbers that may also be values: they are noted where they are far from all others."""
FAR = 1.0  # that distance, as a share of the range of the others
MOST_VARIABLES = 8  # columns of a grid that may be variables of nodes


@dataclass(frozen=True)
class OwnFile:
    """A file of the user's, and the flags of the same names, for what the file does not state."""

    data_path: str
    freq: str = ""
    start: str = ""
    variable: str = ""
    node_table: str = ""
    graph: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Field:
    """Values (time, node) in physical units, NaN where one is missing, with their calendar. See also `table.Table`."""

    name: str
    spec: DatasetSpec
    values: Tensor
    calendar: Calendar
    segments: tuple[tuple[int, int], ...]  # half-open ranges of continuous steps, two for a pair of files
    node_names: tuple[str, ...]
    coordinates: np.ndarray | None = None
    graph: Tensor | None = None  # (node, node), the weights of edges
    grid: tuple[int, int] | None = None
    axes: tuple[np.ndarray, np.ndarray] | None = None
    kept: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    missing_share: float = 0.0
    masked: bool = False  # whether values may be missing: later ones, where none of these is

    def with_notes(self, *notes: str) -> "Field":
        return replace(self, notes=(*self.notes, *notes))


def load_field(name: str, data_dir: Path | str, own: OwnFile | None = None, missing: str = "error",
               null_value: float | None = None, oracle: OracleSettings | None = None, like=None) -> Field:
    """Read the dataset `name` of the registry, or generate it when it is synthetic, or read a file of the user's.

    missing: "error" refuses missing values, "keep" keeps them as NaN, "mask" also inserts rows that the file lacks;
    `null_value` is a missing value too. like: a `summary.FieldSummary`; then the field must be the same one, and has
    its nodes in that order.
    Raises: ValueError for values that cannot be a field, FileNotFoundError for a missing file; both say what to do.
    """
    if own:
        spec, table = open_own_file(name, own, missing == "mask", like)
        sources, tables, graph = (own.data_path,), [table], own.graph
    else:
        spec, sources = get_spec(name), locate(name, data_dir)
        tables = [read_file(path) for path in sources]
        if spec.synthetic:  # its square is laid out as a degree by a degree at the equator
            oracle_field = make_oracle(oracle or OracleSettings())
            tables = [Table(oracle_field.values, coordinates=oracle_field.positions.numpy())]
        if like:
            tables = [match(table, like, str(source)) for source, table in zip(sources or (name,), tables, strict=True)]
        graph = Path(data_dir, spec.graph) if spec.graph and Path(data_dir, spec.graph).is_file() else None
    for source, table, start in zip(sources, tables, spec.start, strict=False):  # a synthetic field has no source
        if not own and table.times is not None and (found := stamp(table.times[0])) != stamp(np.datetime64(start)):
            raise ValueError(f"{source}: the first time stamp is {found}; expected {start}, as of {name}")
        if table.values.shape[1] != spec.num_nodes:
            raise ValueError(f"{source}: shape {tuple(table.values.shape)} (time, node) has {table.values.shape[1]} "
                             f"nodes; expected {spec.num_nodes}, those of {name}")
        if missing == "error":
            check_missing(table, str(source))
    calendars = [make_calendar(start, spec.interval, len(table.values), spec.time_zone, spec.rule)
                 for start, table in zip(spec.start, tables, strict=True)]
    ends = np.cumsum([len(table.values) for table in tables]).tolist()
    calendar = replace(calendars[0], slots=torch.cat([calendar.slots for calendar in calendars]),
                       times=np.concatenate([calendar.times for calendar in calendars]))
    values = tables[0].values if len(tables) == 1 else torch.cat([table.values for table in tables])
    values, missing_share = (values, 0.0) if missing == "error" else mark_missing(values, null_value)
    first = tables[0]
    names = first.node_names or numbered(first.values.shape[1])
    return Field(
        name, spec, values, calendar, tuple(zip([0, *ends[:-1]], ends, strict=True)), names, first.coordinates,
        read_graph(graph, names) if graph else None, spec.grid or first.grid, first.axes, first.kept,
        (first.notes if like else notes_on(first, values)) if own else (), missing_share,
        missing == "mask" or missing_share > 0,
    )


def mark_missing(values: Tensor, null_value: float | None = None) -> tuple[Tensor, float]:
    """Values with NaN for each `null_value`, which loads a memory map into memory, and the share of NaN."""
    if null_value is not None:
        values = as_real(values)
        values = values.masked_fill(values == null_value, math.nan)
    count = sum(int(block.isnan().sum()) for block in values.split(BLOCK))
    return values, count / values.numel()


def open_own_file(name: str, own: OwnFile, gaps: bool, like=None) -> tuple[DatasetSpec, Table]:
    """The card of a file of the user's, and its table; gaps: rows that it lacks are inserted; like: as `load_field`."""
    path = Path(own.data_path)
    if name in DATASETS and not like:
        raise ValueError(f"--data_path {path}: {name} is a dataset of the registry; choose another --data_name for the "
                         "file")
    table = read_file(path, own.variable)
    rows, columns = table.grid or (0, 0)
    if ending_of(path) in (".npy", ".npz") and 0 < columns <= MOST_VARIABLES:
        table = table.with_notes(f"its arrays are taken for a grid of {rows} rows and {columns} columns; if they are "
                                 f"{columns} variables of {rows} nodes, choose one of them: --variable 0")
    wanted = like.interval if like else parse_interval(own.freq) if own.freq else None
    if like and own.unit and table.unit not in ("", like.unit, like.cf_unit):
        table = table.with_notes(f"its unit is {table.unit}; it is taken as {own.unit}, as --unit says", unit="")
    table = match(table, like, str(path)) if like else table.without_land()
    times = table.times
    if like and times is None:
        times = like.times(like.step_at(own.start, "--start") if own.start else like.first_step, 1)
        if not own.start:
            table = table.with_notes(f"it has no times: its first step is taken as {like.as_text(times)[0]}, as of the "
                                     "data of the run; --start says another one")
    elif times is None:
        if wanted is None or not own.start:
            raise ValueError(f"{path}: the file has no time stamps; give --freq (as 5min, 1h, 1d, 1w, 1M) and --start "
                             "(as 2013-01-01T00:00); all its columns are then nodes")
        times = np.array([parse_time(own.start, "--start", "UTC")])
        table = replace(table, zone=read_stamps(pd.Series([own.start]), str).zone)
    elif not like:
        table, wanted = on_regular_axis(table, path, wanted, gaps)
        times = table.times
    start, found = first_step(times, wanted, table.zone)
    rule = like.rule if like else found
    if rule is None:
        rule = PLAIN
        table = table.with_notes(f"its monthly times ({stamp(times[0], table.zone)}, ...) follow no known rule: "
                                 "outputs have the first of each month")
    if own.start and table.times is not None and parse_time(own.start, "--start", table.zone) != table.times[0]:
        raise ValueError(f"--start {own.start}: the first time stamp of {path} is "
                         f"{stamp(table.times[0], table.zone)}; leave the flag out")
    if own.node_table:
        names, coordinates = read_node_table(own.node_table, table.node_names, table.values.shape[1])
        table = replace(table, node_names=names, coordinates=coordinates)
    unit = own.unit or table.unit
    return DatasetSpec(
        domain="own data", place="see the file", unit=unit or "unit not stated", cf_unit=unit or "1",
        num_nodes=table.values.shape[1], interval=wanted, start=(start,), time_zone=table.zone, rule=rule,
        source=str(path), grid=table.grid if table.kept is None else None, nonnegative=None,
    ), table


def match(table: Table, field, source: str) -> Table:
    """The table with the nodes of a field in its order, on its regular time axis; field: a `summary.FieldSummary`.

    Used for the file of the run, a newer one, and tables of a Python program. Where values of the field may be missing,
    rows that the table lacks are inserted as gaps.
    Raises: ValueError where the table is of another field: what differs, or the first time that is no step of it.
    """
    wanted = False  # places without a value are gaps of the field, else they are left out as land
    if field.masked and table.node_names is not None:
        wanted = np.isin(table.node_names, field.node_names)
    elif field.masked and table.grid == field.grid:
        wanted = field.kept is None or np.isin(range(table.values.shape[1]), field.kept)
    table = table.without_land(wanted)
    differing = [table.node_differences(field.node_names)]
    if not any(differing) and table.node_names is None and table.coordinates is not None and (
            field.coordinates is not None and not np.allclose(table.coordinates, field.coordinates, atol=1e-3)):
        differing.append("nodes at other latitudes and longitudes, or in another order, without names")
    if table.node_names is None and table.grid and field.grid:
        if tuple(table.grid) != tuple(field.grid):
            differing.append("a grid of {} rows and {} columns (wanted {} and {})".format(*table.grid, *field.grid))
        elif not np.array_equal(table.kept, field.kept):
            differing.append("values at other places of the grid")
    if table.unit and table.unit not in (field.unit, field.cf_unit):
        differing.append(f"unit {table.unit} (wanted {field.unit})")
    if any(differing):
        raise ValueError(f"{source}: another field than the run was trained on: {'; '.join(filter(None, differing))}")
    if table.grid and table.node_names is None and table.coordinates is None and field.coordinates is not None:
        table = table.with_notes("it has no latitude and longitude: its places are taken in the order of the run")
    if table.times is not None:
        check_zone(table.zone, field.time_zone, source)
        clocks = ()
        if field.time_zone[:1] in {"+", "-"} and table.zone != "UTC" and (
                offsets(table.times, table.zone) != offsets(table.times, field.time_zone)).any():
            clocks = (f"its offset from UTC ({table.zone}) is not that of the run ({field.time_zone}): times of day "
                      "are those of the run; to follow a clock that is changed, train with a file of both offsets",)
        first = table.where(0)
        table, _ = on_regular_axis(replace(table, zone=field.time_zone), source, field.interval, field.masked)
        try:
            field.step_at(table.times[0])
        except ValueError as error:
            raise ValueError(f"{source}: {first}: {error}" + "".join(f" ({note})" for note in clocks)) from error
        table = table.with_notes(*clocks)
    return replace(table, zone=field.time_zone).in_order(field.node_names)


def on_regular_axis(table: Table, source: Path | str, wanted: Interval | None, gaps: bool) -> tuple[Table, Interval]:
    """A table with its stamps checked, and their interval: `wanted`, else that of the file.

    gaps: missing rows are inserted without values, and noted; else they are refused.
    Raises: ValueError for the first wrong stamp.
    """
    def where(step: int) -> str:
        return f"{source}: {table.where(step)}"

    interval, steps = regular_axis(table.times, where, wanted, table.zone, gaps)
    count = int(steps[-1]) + 1
    if count == len(steps):
        return table, interval
    start, rule = first_step(table.times, interval, table.zone)
    times = make_calendar(start, interval, count, table.zone, rule or PLAIN).times.astype("datetime64[s]")
    note = f"{missing_rows(table.times, interval, table.zone)}: inserted as gaps"
    given = as_real(table.values)
    values = given.new_full((count, given.shape[1]), math.nan)
    times[steps], values[torch.from_numpy(steps)] = table.times, given
    return table.with_notes(note, values=values, times=times, where=Table.where), interval


def notes_on(table: Table, values: Tensor) -> tuple[str, ...]:
    """Notes on a file of the user's that may contain mistakes; values: those of the table, missing ones masked."""
    steps, nodes = table.values.shape
    names, notes = table.node_names or numbered(nodes), list(table.notes)
    if table.kept is not None:
        left_out = math.prod(table.grid) - len(table.kept)
        notes.append(f"{left_out} of {math.prod(table.grid)} places of the grid have no value at any time (land) and "
                     "are left out")
    if nodes > steps:
        notes.append(f"{nodes} nodes but only {steps} time steps: the first axis must be the time")
    for value, count in codes_for_missing(values).items():
        notes.append(f"{value} occurs {count} time{'s' * (count > 1)}, beyond all other values: if it stands for a "
                     f"missing value, give --missing mask --null_value={value}")
    low, high = (by_node(values, end).numpy() for end in (torch.amin, torch.amax))
    if (constant := [names[node] for node in np.flatnonzero(low == high)]) and steps > 1:
        notes.append(f"{len(constant)} of {nodes} nodes have the same value at all times: {listed(constant)}; leave "
                     "out columns that are no nodes")
    return tuple(notes)


def codes_for_missing(values: Tensor) -> dict[str, int]:
    """Those of CODES and FAR_CODES beyond all other values of a node, as text, with the number of occurrences."""
    numbers = sorted(CODES + FAR_CODES)
    codes = torch.tensor(numbers, dtype=torch.float32)
    counts = torch.zeros(len(codes), values.shape[1], dtype=torch.long)
    low, high = (torch.full(values.shape[1:], end) for end in (math.inf, -math.inf))
    for block in values.split(BLOCK):
        block = block.float()
        code = torch.isin(block, codes)
        place = torch.searchsorted(codes, block[code]), code.nonzero()[:, 1]
        counts.index_put_(place, torch.ones(()).long(), accumulate=True)
        others = block.masked_fill(code, math.nan)
        low = low.minimum(others.nan_to_num(math.inf).amin(0))
        high = high.maximum(others.nan_to_num(-math.inf).amax(0))
    codes = codes.unsqueeze(1)
    may_be_values = torch.isin(codes, torch.tensor(FAR_CODES))
    margin = torch.where(may_be_values, FAR * (high - low), 0.0)
    beyond = ((codes < low - margin) | (codes > high + margin)) & ~(may_be_values & (low >= high))
    found = zip(numbers, (counts * beyond).sum(1).tolist(), strict=True)
    return {str(number): count for number, count in found if count}


def check_missing(table: Table, source: str) -> None:
    """Raises: ValueError that counts missing values, and names the first one and the nodes without any value."""
    missing = torch.cat([block.isnan() for block in table.values.split(BLOCK)])
    if not missing.any():
        return
    names = table.node_names or range(table.values.shape[1])
    step, node = divmod(int(missing.byte().argmax()), missing.shape[1])
    empty = [names[node] for node in missing.all(0).nonzero().flatten().tolist()]
    without = f"; nodes without any value: {listed(empty)}" if empty else ""
    raise ValueError(f"{source}: {int(missing.sum())} of {missing.numel()} values are missing (nan), the first at "
                     f"{table.where(step)}, node {names[node]}{without}; expected finite numbers. Fill them, or leave "
                     "them out of training and scores by --missing mask")
