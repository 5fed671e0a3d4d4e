"""Covariates: what is known of every step beside the field, over the horizon too: holidays, weather forecasts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .calendar import Calendar
from .readers import read_file
from .scaling import Scaler
from .stamps import check_zone, local_times, stamp


@dataclass(frozen=True)
class Covariates:
    """Values (time, node or 1, covariate) on the time axis of a field, and beyond its end where they are known there.

    A node axis of 1: the same for all nodes. `source` is the file.
    """

    source: str
    names: tuple[str, ...]
    values: Tensor

    def scalers(self, training_steps: int) -> dict[str, Scaler]:
        """What brings each covariate to mean 0 and spread 1 in the training part."""
        parts = zip(self.names, self.values[:training_steps].unbind(-1), strict=True)
        return {name: Scaler.fit(values) for name, values in parts}


def standardize(values: Tensor, scalers: dict[str, Scaler]) -> Tensor:
    """Covariates (..., covariate), each by its scaler."""
    parts = zip(scalers.values(), values.unbind(-1), strict=True)
    return torch.stack([scaler.standardize(value) for scaler, value in parts], dim=-1)


def read_covariates(path: Path | str, calendar: Calendar, node_names: tuple[str, ...]) -> Covariates:
    """Read covariates of a field from any kind of file that a field may come in (`readers.read_file`).

    One column per covariate; or an array (time, node, covariate), whose names an .npz may hold as `covariate_names`;
    or one covariate as a column per node, in the order and with the names of the field's, where there are names.
    Raises: ValueError where a value is missing, or the file's times are not the field's.
    """
    table, nodes = read_file(path), len(node_names)
    by_node = table.grid is not None and table.grid[0] == nodes
    if not by_node and table.grid is not None:
        raise ValueError(f"--covariates {path}: {table.grid} values in each step; expected (node, covariate) of "
                         f"{nodes} nodes, or covariates alone")
    one_by_node = table.values.shape[1] == nodes and table.node_names in (None, node_names)
    if by_node:
        values = table.values.unflatten(1, table.grid)
    else:
        values = table.values.unsqueeze(2 if one_by_node else 1)
    names = None if by_node or one_by_node else table.node_names
    names = names or _stored_names(path) or tuple(f"covariate {place}" for place in range(values.shape[2]))
    if len(names) != values.shape[2]:
        raise ValueError(f"--covariates {path}: {len(names)} covariate_names for {values.shape[2]} covariates")
    if values.isnan().any():
        step, _, covariate = values.isnan().nonzero()[0].tolist()
        raise ValueError(f"--covariates {path}: {int(values.isnan().sum())} values are missing, the first in "
                         f"{table.where(step)}, {names[covariate]}; fill them: a forecast needs all of them")
    if len(values) < len(calendar.times):
        raise ValueError(f"--covariates {path}: {len(values)} steps, the field has {len(calendar.times)}; give one row "
                         "for each, and more for forecasts beyond its end")
    if table.times is not None:
        _check_times(table, calendar, path)
    return Covariates(str(path), names, values.float())


def _stored_names(path: Path | str) -> tuple[str, ...] | None:
    """The names that an .npz holds for its covariates."""
    if not str(path).lower().endswith(".npz"):
        return None
    with np.load(Path(path).expanduser(), allow_pickle=False) as archive:
        return tuple(archive["covariate_names"].tolist()) if "covariate_names" in archive else None


def _check_times(table, calendar: Calendar, path: Path | str) -> None:
    """Raises: ValueError for the first step whose time is not that of the field's step."""
    check_zone(table.zone, calendar.zone, f"--covariates {path}")
    unit = "datetime64[M]" if calendar.names == ("month",) else "datetime64[m]"
    wanted = calendar.times
    found, due = (local_times(times, calendar.zone if unit.endswith("[M]") else "").astype(unit)
                  for times in (table.times[:len(wanted)], wanted))
    wrong = np.flatnonzero(found != due)
    if len(wrong):
        step = int(wrong[0])
        found, due = (stamp(times[step], calendar.zone) for times in (table.times, wanted))
        raise ValueError(f"--covariates {path}: {table.where(step)}: time {found}, the field has {due} there; give the "
                         "same time axis")
