"""Whether a table holds the field that a run was trained on: nodes, interval, times and unit."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .calendar import Interval, clock_of, first_step, make_calendar, missing_rows, regular_interval, step_size
from .scaling import as_real
from .stamps import PLAIN, check_zone
from .table import Table, name_differences


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
    differing = [node_differences(table, field.node_names)]
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
        first = table.where(0)
        table, _ = on_regular_axis(replace(table, zone=field.time_zone), source, field.interval, field.masked)
        try:
            field.step_at(table.times[0])
        except ValueError as error:
            raise ValueError(f"{source}: {first}: {error}") from error
    return in_order(replace(table, zone=field.time_zone), field.node_names)


def node_differences(table: Table, names: Sequence[str]) -> str:
    """How the nodes of a table differ from these names, in any order or, without names, in this one; else ""."""
    found, count = table.node_names, table.values.shape[1]
    if found is None:
        return "" if count == len(names) else f"{count} nodes (wanted {len(names)})"
    return name_differences(found, names)


def in_order(table: Table, names: Sequence[str]) -> Table:
    """A table of the nodes of these names in their order, where `node_differences` finds none."""
    if table.node_names is not None and table.node_names != tuple(names):
        place = {name: place for place, name in enumerate(table.node_names)}
        table = table.at(np.array([place[name] for name in names]))
    return replace(table, node_names=tuple(names))


def on_regular_axis(table: Table, source: Path | str, wanted: Interval | None, gaps: bool) -> tuple[Table, Interval]:
    """A table with its stamps checked, and their interval: `wanted`, else that of the file.

    gaps: missing rows are inserted without values, and noted; else they are refused.
    Raises: ValueError for the first wrong stamp.
    """
    interval = regular_interval(table.times, lambda step: f"{source}: {table.where(step)}", wanted, table.zone, gaps)
    clock = clock_of(table.times, interval, table.zone)
    steps = ((clock - clock[0]) // step_size(interval)).astype(int)
    count = int(steps[-1]) + 1
    if count == len(steps):
        return table, interval
    start, rule = first_step(table.times, interval, table.zone)
    times = make_calendar(start, interval, count, table.zone, rule or PLAIN).times.astype("datetime64[s]")
    note = f"{missing_rows(table.times, interval, table.zone)}: inserted as gaps"
    given = as_real(table.values)
    values = given.new_full((count, given.shape[1]), math.nan)
    values[torch.from_numpy(steps)] = given
    times[steps] = table.times
    return table.with_notes(note, values=values, times=times, where=Table.where), interval
