"""Whether a table holds the field that a run was trained on: its nodes by name, its interval, times and unit."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from .calendar import regular_interval
from .nodes import match_nodes
from .readers import Table, holds_times, listed, numbers, read_stamps, repeated


def match(table: Table, field, source: str) -> Table:
    """The table with its nodes in the order of a field, a `summary.FieldSummary`.

    Every way to data of a trained run leads through here: its own file, a newer one, arrays of a Python program.
    Raises: ValueError where the table is of another field: what differs, or the first time that is no step of it.
    """
    places = match_nodes(table, field.node_names, None if field.coordinates is None else np.asarray(field.coordinates))
    differing = []
    if places is None or table.values.shape[1] != field.num_nodes:
        differing.append(node_differences(table, field.node_names) or "nodes at other latitudes and longitudes")
    if differing:
        raise ValueError(f"{source}: another field than the run was trained on: {'; '.join(differing)}")
    if table.times is not None:
        regular_interval(table.times, lambda step: f"{source}: {table.where(step)}", field.interval)
        try:
            field.step_at(table.times[0])
        except ValueError as error:
            raise ValueError(f"{source}: {table.where(0)}: {error}") from error
    return placed(table, places, field.node_names)


def node_differences(table: Table, names: Sequence[str]) -> str:
    """How the nodes of a table differ from those of these names, whatever their order; "" where they are the same."""
    found, count = table.node_names, table.values.shape[1]
    if found is None:
        return f"{count} nodes (wanted {len(names)})" if count != len(names) else ""
    if twice := repeated(found):
        return f"nodes named twice: {listed(twice)}"
    unknown, missing = ([name for name in one if name not in set(other)] for one, other in ((found, names),
                                                                                           (names, found)))
    if unknown and missing:
        return f"nodes {listed(unknown)} (wanted {listed(missing)})"
    return (f"nodes unknown to it: {listed(unknown)}" if unknown else "") or (
        f"nodes missing: {listed(missing)}" if missing else "")


def in_order(table: Table, names: Sequence[str]) -> Table:
    """A table of the nodes of these names in their order; one without names has that order."""
    return placed(table, match_nodes(table, tuple(names), None), names)


def placed(table: Table, places: np.ndarray, names: Sequence[str]) -> Table:
    """A table whose nodes of these names are found at `places` (node,), in the order of the names."""
    if (places != np.arange(len(names))).any():
        on_grid = places if table.kept is None else table.kept[places]
        table = table.at(places, kept=None if table.grid is None else on_grid)
    return replace(table, node_names=tuple(names))


def from_data_frame(frame: pd.DataFrame, source: str) -> Table:
    """A table of the columns of a frame; its index gives the times where it holds such, its columns the names.

    The running numbers that pandas gives to columns without names are no names.
    Raises: ValueError for what is no number, or no time.
    """
    def where(row: int) -> str:
        return f"row {row}"

    index = frame.index.to_timestamp() if isinstance(frame.index, pd.PeriodIndex) else frame.index
    stamps = pd.Series(index)
    dated = len(stamps) and holds_times(stamps)
    columns = [numbers(frame.iloc[:, place].rename(str(name)), source, where)
               for place, name in enumerate(frame.columns)]
    return Table(
        torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)) if columns else torch.zeros(len(frame), 0),
        read_stamps(stamps, source, where) if dated else None, rows=np.arange(len(frame)), row_word="row",
        node_names=None if isinstance(frame.columns, pd.RangeIndex) else tuple(map(str, frame.columns)),
    )
