"""An ensemble forecast in physical units, as arrays, table or dataset, and the files that hold it."""

import contextlib
import errno
import importlib.util
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data.constants import QUANTILE_LEVELS
from data.stamps import offsets, zone_of
from utils.scores.metrics import member_quantiles, sort_members
from utils.training.checkpoint import csv_text, write_atomically

VALUES = ("both", "members", "quantiles")
ISSUED, HORIZON, MEMBER, LEVEL = "forecast_reference_time", "horizon", "realization", "quantile"
OFFSET = "utc_offset"
COORDINATES = {
    ISSUED: {"standard_name": ISSUED, "long_name": "time of the last observation", "axis": "T"},
    "time": {"standard_name": "time", "long_name": "time that is forecast"},
    HORIZON: {"long_name": "steps after the last observation", "units": "1"},
    MEMBER: {"standard_name": MEMBER, "long_name": "member of the ensemble", "units": "1"},
    LEVEL: {"long_name": "level of the quantile", "units": "1"},
    OFFSET: {"long_name": "local time less UTC, of the time that is forecast", "units": "minute"},
    "node_name": {"long_name": "name of the node"},
    "lat": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
}
"""Attributes of the coordinates of a dataset, after the CF conventions."""


@dataclass(frozen=True)
class Forecast:
    """Members of a forecast; of several windows, every array has a window axis before its others.

    Shapes: members (member, F, node); times (F,), which are forecast; issued (), the time of the last observation: in
    UTC where the data have a time zone. Units: physical. `field` says what is forecast
    (`data.summary.FieldSummary`), `source` how.
    """

    members: np.ndarray
    times: np.ndarray
    issued: np.ndarray
    field: Any
    source: str

    def __repr__(self) -> str:
        windows, members, steps, nodes = self._windows.shape
        several = f"{windows} windows of " if self.members.ndim > 3 else ""
        first, last = self.field.as_text(np.array([self.times.min(), self.times.max()]))
        return (f"Forecast of {self.field.name}: {several}{members} members, {steps} steps, {nodes} nodes, "
                f"{self.field.unit}\n{first} to {last}; {self.source}")

    @property
    def mean(self) -> np.ndarray:
        """Mean of the members: (F, node)."""
        return self.members.mean(-3)

    def quantile(self, level: float | Sequence[float]) -> np.ndarray:
        """Quantile of the members, linear between the sorted ones as in the scores: (F, node), or (level, F, node)."""
        levels = np.atleast_1d(level)
        if not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"quantile {level}: a level lies between 0 and 1")
        found = member_quantiles(sort_members(torch.from_numpy(self._windows)), levels.tolist()).numpy()
        return found.reshape(*self.members.shape[:-3], *np.shape(level), *self.members.shape[-2:])

    def to_frame(self, values: str = "both") -> pd.DataFrame:
        """A long table: one row per window, step and node, with members, quantiles, or both (`values`)."""
        windows, _, steps, nodes = self._windows.shape
        columns = {
            "issue_time": self._zoned(np.repeat(self.issued.reshape(-1), steps * nodes)),
            "valid_time": self._zoned(np.repeat(self.times.reshape(-1), nodes)),
            "node": list(self.field.node_names) * (windows * steps),
        }
        names = {"quantiles": [f"q{level:.2f}" for level in QUANTILE_LEVELS],
                 "members": [f"member_{member}" for member in range(self.members.shape[-3])]}
        for kind, array in self.chosen(values).items():
            columns |= {name: array[:, place].reshape(-1) for place, name in enumerate(names[kind])}
        return pd.DataFrame(columns)

    def to_xarray(self, values: str = "both"):
        """An `xarray.Dataset` after the CF conventions, laid out as docs/forecasting.md says."""
        require("xarray")
        import xarray

        field = self.field
        space, places = space_of(field)
        issued, steps = self.issued.reshape(-1).astype("datetime64[s]"), self.times.shape[-1]
        coordinates = {
            ISSUED: (ISSUED, issued), "time": ((ISSUED, HORIZON), self.times.reshape(-1, steps).astype(issued.dtype)),
            HORIZON: (HORIZON, np.arange(1, steps + 1)), **places,
        }
        variables = {}
        for kind, array in self.chosen(values).items():
            axis, labels = (LEVEL, QUANTILE_LEVELS) if kind == "quantiles" else (MEMBER, range(array.shape[1]))
            coordinates[axis] = axis, np.array(labels)
            variables[kind] = (ISSUED, axis, HORIZON, *space), in_space(field, array), {
                "long_name": f"{kind} of the forecast of {field.name} ({field.unit})", "units": field.cf_unit}
        zone = {"time_zone": field.time_zone} if field.time_zone else {}
        if zone:
            coordinates[OFFSET] = coordinates["time"][0], offsets(coordinates["time"][1], field.time_zone)
        coordinates = {name: (axes, array, COORDINATES[name] | (zone if name in (ISSUED, "time") else {}))
                       for name, (axes, array) in coordinates.items()}
        return xarray.Dataset(variables, coordinates, {
            "Conventions": "CF-1.10", "title": f"Ensemble forecast of {field.name}", "source": self.source,
            "history": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} drawn",
        })

    def chosen(self, values: str) -> dict[str, np.ndarray]:
        """The arrays of one of VALUES, each (window, member or level, F, node). Raises: ValueError for another."""
        if values not in VALUES:
            raise ValueError(f"values {values!r}: choose one of {', '.join(VALUES)}")
        chosen = {} if values == "quantiles" else {"members": self._windows}
        if values != "members":
            chosen["quantiles"] = self.quantile(QUANTILE_LEVELS).reshape(
                -1, len(QUANTILE_LEVELS), *self.members.shape[-2:])
        return chosen

    def _zoned(self, times: np.ndarray) -> pd.DatetimeIndex:
        """Times (time,) with the time zone of the data, where they have one."""
        index, zone = pd.DatetimeIndex(times.astype("datetime64[s]")), self.field.time_zone
        return index.tz_localize("UTC").tz_convert(zone_of(zone)) if zone else index

    @property
    def _windows(self) -> np.ndarray:
        """The members with a window axis in any case."""
        return self.members.reshape(-1, *self.members.shape[-3:])


def space_of(field) -> tuple[tuple[str, ...], dict]:
    """The axes of a field's nodes in a dataset, and their coordinates: rows and columns of a grid, or nodes."""
    if not field.grid:
        axes, coordinates = ("node",), {"node_name": ("node", np.array(field.node_names))}
    elif field.axes:
        lat, lon = map(np.asarray, field.axes)
        return ("lat", "lon"), {"lat": ("lat", lat), "lon": ("lon", lon)}
    else:
        axes, coordinates = ("row", "column"), {}
    if field.coordinates is not None:
        lat, lon = (in_space(field, values) for values in np.asarray(field.coordinates).T)
        coordinates |= {"lat": (axes, lat), "lon": (axes, lon)}
    return axes, coordinates


def in_space(field, values: np.ndarray) -> np.ndarray:
    """Values (..., node), of a grid as images (..., row, column) with NaN where a place has no node."""
    if not field.grid:
        return values
    if field.kept is not None:
        nodes, values = values, np.full((*values.shape[:-1], math.prod(field.grid)), np.nan, values.dtype)
        values[..., np.asarray(field.kept)] = nodes
    return values.reshape(*values.shape[:-1], *field.grid)


def write_forecasts(path: Path, parts: Iterable[Forecast], values: str = "both") -> None:
    """Write forecasts of windows, one part in memory after the other, as the ending of `path` says: whole or not."""
    write_atomically(path, lambda file: WRITERS[path.suffix][0](file, parts, values))


def check_output(path: Path) -> None:
    """Raises: ValueError, before the work, for an unknown ending or a missing package."""
    if path.suffix not in WRITERS:
        raise ValueError(f"--output {path}: the ending says the format; choose one of {', '.join(WRITERS)}")
    require(*WRITERS[path.suffix][1])


def require(*packages: str) -> None:
    """Raises: ValueError that names the first of the packages that is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"the package {package} is missing: pip install {package} (or all optional packages: "
                             "pip install -r requirements-extras.txt)")


def _write_csv(file, parts: Iterable[Forecast], values: str) -> None:
    for number, part in enumerate(parts):
        frame = part.to_frame(values)
        for name, times in (("issue_time", part.issued), ("valid_time", part.times)):
            frame[name] = np.repeat(part.field.as_text(times.reshape(-1)), len(frame) // times.size)
        file.write(csv_text(frame, header=number == 0).encode())


def _write_parquet(file, parts: Iterable[Forecast], values: str) -> None:
    import pyarrow
    from pyarrow import parquet

    tables = (pyarrow.Table.from_pandas(part.to_frame(values), preserve_index=False) for part in parts)
    first = next(tables)
    with parquet.ParquetWriter(file, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


def _write_npz(file, parts: Iterable[Forecast], values: str) -> None:
    """Unlike the other formats it holds all windows in memory: an archive takes one array after the other."""
    grown = {}
    for part in parts:
        arrays = {"issued": part.issued.reshape(-1), "times": part.times.reshape(-1, part.times.shape[-1])}
        if part.field.time_zone:
            arrays |= {f"{name}_{OFFSET}": offsets(times, part.field.time_zone) for name, times in arrays.items()}
        for name, array in {**arrays, **part.chosen(values)}.items():
            grown.setdefault(name, []).append(array)
    zone = {"time_zone": np.array(part.field.time_zone)} if part.field.time_zone else {}
    np.savez(file, **{name: np.concatenate(arrays) for name, arrays in grown.items()}, **zone,
             levels=np.array(QUANTILE_LEVELS), node_names=np.array(part.field.node_names))


def _write_netcdf(file, parts: Iterable[Forecast], values: str) -> None:
    import netCDF4

    parts, path = iter(parts), file.name
    part = next(parts)
    unit, _ = np.datetime_data(part.times.dtype)
    first = part.to_xarray(values)
    encoding = {name: {"_FillValue": first[name].dtype.type("nan") if name in first.data_vars else None}
                for name in first.variables}
    for name in (ISSUED, "time"):
        encoding[name] |= {"units": f"{'minutes' if unit == 'm' else 'seconds'} since 1970-01-01 00:00:00",
                           "dtype": "int64"}
    with _errors_of_the_system():  # the first part, and with it the layout
        first.to_netcdf(path, engine="netcdf4", encoding=encoding, unlimited_dims=[ISSUED])
    for part in parts:
        added = part.to_xarray(values).variables
        with _errors_of_the_system(), netCDF4.Dataset(path, "a") as dataset:
            written = len(dataset.dimensions[ISSUED])
            for name, variable in added.items():
                if ISSUED in variable.dims:
                    array = variable.to_numpy()
                    array = array.astype(f"datetime64[{unit}]").astype(int) if array.dtype.kind == "M" else array
                    dataset[name][written:written + len(array)] = array


@contextlib.contextmanager
def _errors_of_the_system():
    """Turns an error of the NetCDF library in writing into an OSError, as every other format raises."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.EIO, f"could not be written, as where the disk is full ({error})") from error


WRITERS = {".npz": (_write_npz, ()), ".csv": (_write_csv, ()), ".parquet": (_write_parquet, ("pyarrow",)),
           ".nc": (_write_netcdf, ("xarray", "netCDF4"))}
"""By the ending of a file: what writes it, and the optional packages that this needs."""
