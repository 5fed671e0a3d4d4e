"""Covariates: inputs that are known for every step, also over the horizon, such as holidays and weather forecasts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .calendar import Calendar, clock_of, clock_text, step_size
from .readers import read_file
from .scaling import Scaler, as_real
from .stamps import check_zone, stamp
from .table import Table


@dataclass(frozen=True)
class Covariates:
    """Values (time, node or 1, covariate) on the time axis of a field, and beyond its end; `source` is the file."""

    source: str
    names: tuple[str, ...]
    values: Tensor
    notes: tuple[str, ...] = ()


def standardize(values: Tensor, scalers: dict[str, Scaler]) -> Tensor:
    """Covariates (..., covariate), each by its scaler."""
    return torch.stack([scaler.standardize(values[..., place]) for place, scaler in enumerate(scalers.values())], -1)


def read_covariates(path: Path | str, calendar: Calendar, node_names: tuple[str, ...], first: int = 0) -> Covariates:
    """Covariates of a field, from any kind of file that a field may have (`readers.read_file`).

    One column per covariate; or an array (time, node, covariate), whose names an .npz may hold as `covariate_names`;
    or one covariate as a column per node. A file with times may begin before the field. first: in a file without times,
    the row of the field's first step.
    Raises: ValueError where a value or a node is missing, or a time is not that of the field's step.
    """
    flag, table = f"--covariates {path}", read_file(path).without_land()
    values, names = _arranged(table, node_names, flag)
    notes = list(table.notes)
    if table.node_names is table.grid is None and values.shape[1] > 1:
        notes.append("its columns are taken for the nodes: one covariate with a value for each; covariates of the "
                     "whole field need names")
    if table.times is None:
        notes.append(f"it has no times: {table.where(first)} is taken as {calendar.ends[0]}, where the field begins")
    if str(path).lower().endswith(".npz"):
        with np.load(Path(path).expanduser(), allow_pickle=False) as archive:
            names = tuple(archive["covariate_names"].tolist()) if "covariate_names" in archive else names
    names = names or tuple(f"covariate {place}" for place in range(values.shape[2]))
    if len(names) != values.shape[2]:
        raise ValueError(f"{flag}: {len(names)} covariate_names for {values.shape[2]} covariates")
    if values.isnan().any():
        step, _, covariate = values.isnan().nonzero()[0].tolist()
        raise ValueError(f"{flag}: {int(values.isnan().sum())} values are missing, the first in {table.where(step)}, "
                         f"{names[covariate]}; fill them: a forecast needs all of them")
    if table.times is not None:
        check_zone(table.zone, calendar.zone, flag)
        clock, found = (clock_of(times, calendar.interval, calendar.zone) for times in (calendar.times, table.times))
        size = step_size(calendar.interval)
        first = max(int((clock[0] - found[0]) // size), 0)
        due = clock[0] + size * (np.arange(len(found)) - first)
    elif first < 0:
        raise ValueError(f"{flag}: the file has no times; it begins with the data of the run, {-first} steps after "
                         "this field: give covariates with times, or those that begin with the field")
    if table.times is not None and (found != due).any():
        step, zone = int((found != due).argmax()), calendar.zone
        beyond = ", beyond its end" * (step >= first + len(calendar.times))
        raise ValueError(f"{flag}: {table.where(step)}: time {stamp(table.times[step], zone)}, the field has "
                         f"{clock_text(due[step], calendar.interval, zone)} there{beyond}; give the same time axis")
    if len(values) < first + len(calendar.times):
        raise ValueError(f"{flag}: {max(len(values) - first, 0)} steps, the field has {len(calendar.times)}; give one "
                         "row for each, and more for forecasts beyond its end")
    return Covariates(str(path), names, as_real(values[first:]), tuple(notes))


def _arranged(table: Table, node_names: tuple[str, ...], flag: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Values (time, node or 1, covariate) of a file in one of the layouts, and the names of its columns, if any."""
    nodes = len(node_names)
    if {name.lower() for name in table.node_names or ()} & {name.lower() for name in node_names}:
        if differing := table.node_differences(node_names):
            raise ValueError(f"{flag}: {differing}; give one column for each node of the field, or, for covariates of "
                             "the whole field, other names than those of its nodes")
        return table.in_order(node_names).values.unsqueeze(2), None
    if table.grid is not None:
        if table.grid[0] != nodes or table.kept is not None:
            raise ValueError(f"{flag}: {table.grid} values in each step; expected (node, covariate) of {nodes} nodes, "
                             "or covariates alone")
        return table.values.unflatten(1, table.grid), None
    if table.node_names is None and table.values.shape[1] == nodes:
        return table.values.unsqueeze(2), None
    return table.values.unsqueeze(1), table.node_names
