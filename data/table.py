"""What every reader makes of a file: one table (time, node), its values checked for what cannot be a field."""

import contextlib
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .scaling import BLOCK, LARGEST_WHOLE
from .stamps import Stamps

MEMORY_LIMIT = 1 << 30  # bytes as float32; a larger .npy stays on disk as a memory map
NAMES = {
    "time": ("time", "date", "datetime", "timestamp", "valid_time", "ds"),
    "node": ("node", "name", "station", "sensor", "site", "station_name", "id", "unique_id", "item_id", "node_id",
             "sensor_id", "station_id", "site_id", "series_id", "timeseries_id"),
    "value": ("value", "y", "target"),
    "latitude": ("lat", "latitude", "nav_lat", "xlat", "clat"),
    "longitude": ("lon", "longitude", "lng", "long", "nav_lon", "xlong", "clon"),
}
"""Accepted names of columns and dimensions, by what they hold."""
INDEX = re.compile(r"(unnamed: \d+|index|level_\d+|__index_level_\d+__|rownames)?", re.IGNORECASE)
"""Names that pandas or R gives an index where it writes it."""
LOST = 0.01  # share of a change that rounding may be
SHOWN = 5  # names that a message lists; of more it gives the number


@dataclass(frozen=True)
class Table:
    """Content of a file: values (time, node) in physical units, NaN where one is missing, and what it states of them.

    Values are float32 in memory, float64 where float32 would lose information (`needs_float64`), or as stored in a
    memory map where that is larger than MEMORY_LIMIT.
    """

    values: Tensor
    times: np.ndarray | None = None  # (time,) datetime64[s], UTC where there is a time zone; perhaps not regular
    where: Callable[[int], str] = "time step {}".format  # place of a time step in the file: its line or row, from 1
    node_names: tuple[str, ...] | None = None
    coordinates: np.ndarray | None = None  # (node, 2) latitude and longitude in degrees
    unit: str = ""
    grid: tuple[int, int] | None = None  # (rows, columns) of which the nodes are the places in row-major order
    axes: tuple[np.ndarray, np.ndarray] | None = None  # latitudes of the rows, longitudes of the columns, if so regular
    kept: np.ndarray | None = None  # places of the grid that the nodes are, where those without any value are left out
    zone: str = ""  # of the stamps, see `stamps.Stamps`
    notes: tuple[str, ...] = ()  # what was changed or left out, for the user

    def with_notes(self, *notes: str, **changes) -> "Table":
        """The table with more notes, and other changes."""
        return replace(self, notes=(*self.notes, *notes), **changes)

    def with_stamps(self, stamps: Stamps | None) -> "Table":
        """The table with the stamps of its file, if any, and their notes."""
        if stamps is None:
            return self
        return self.with_notes(*stamps.notes, times=stamps.times, zone=stamps.zone)

    def at(self, places: np.ndarray) -> "Table":
        """The table of some of its nodes, in this order."""
        names, coordinates, kept = self.node_names, self.coordinates, places if self.kept is None else self.kept[places]
        return replace(self, values=self.values[:, torch.from_numpy(places)],
                       node_names=names and tuple(names[place] for place in places),
                       coordinates=None if coordinates is None else coordinates[places], kept=self.grid and kept)

    def node_differences(self, names: Sequence[str]) -> str:
        """How the nodes differ from these names, in any order or, without names, in this one; else ""."""
        if self.node_names is not None:
            return name_differences(self.node_names, names)
        count = self.values.shape[1]
        return "" if count == len(names) else f"{count} nodes (wanted {len(names)})"

    def in_order(self, names: Sequence[str]) -> "Table":
        """The table of the nodes of these names in their order, where `node_differences` finds none."""
        table = self
        if self.node_names is not None and self.node_names != tuple(names):
            place = {name: place for place, name in enumerate(self.node_names)}
            table = self.at(np.array([place[name] for name in names]))
        return replace(table, node_names=tuple(names))

    def without_land(self, wanted: np.ndarray | bool = False) -> "Table":
        """The table of those places of its grid that have a value at any time, or are `wanted`; of no grid: itself."""
        if self.grid is None:
            return self
        empty = torch.stack([block.isnan().all(0) for block in self.values.split(BLOCK)]).all(0)
        kept = np.flatnonzero(~empty.numpy() | wanted)
        return self.at(kept) if 0 < len(kept) < len(empty) else self


def as_tensor(array: np.ndarray, source: str) -> Tensor:
    """An array of real numbers (T,V), (T,H,W) or (T,V,1) as a tensor (time, node), stored as `Table` says.

    Raises: ValueError that begins with `source`, also for a value that is infinite in float32. NaN is kept.
    """
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{source}: values of type {array.dtype}; expected integers or real numbers")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{source}: shape {array.shape}; expected (time, node), (time, height, width) or "
                         "(time, node, 1), none of them empty")
    values = array.reshape(len(array), -1)
    check_finite(values, source, lambda step, node: f"time step {step}, node {node}")
    if 4 * array.size <= MEMORY_LIMIT or array.dtype.byteorder == ">":
        values = np.ascontiguousarray(values, dtype=np.float64 if needs_float64(values) else np.float32)
    return torch.from_numpy(values)


def needs_float64(values: np.ndarray) -> bool:
    """Whether in float32 a whole number would become another one, or at half of the steps at which a node changes the
    rounding would be more than LOST of the change. values: (time, node)."""
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
    """Raises: ValueError where values (time, node) are infinite in float32; place(step, node) says where one is."""
    for first in range(0, len(values), BLOCK) if values.dtype.kind == "f" else ():
        wrong = np.abs(values[first:first + BLOCK]) > np.finfo(np.float32).max
        if wrong.any():
            step, node = np.argwhere(wrong)[0]
            raise ValueError(f"{source}: value {values[first + step, node]} at {place(first + step, node)}; expected "
                             "finite numbers")


def outside_the_earth(coordinates: np.ndarray) -> np.ndarray:
    """Which places (node, 2) have no latitude from -90 to 90, or no longitude from -180 to 360 degrees."""
    return ~((np.abs(coordinates[:, 0]) <= 90) & (-180 <= coordinates[:, 1]) & (coordinates[:, 1] <= 360))


def check_memory(path: Path, needed: int) -> None:
    """Print a note where a file takes more than MEMORY_LIMIT bytes. Raises: ValueError for more than are free."""
    if needed > (free := free_memory()):
        raise ValueError(f"{path}: reading it takes {needed / 2**30:.1f} GiB of memory or more, {free / 2**30:.1f} GiB "
                         "are free; give a part of it, or the field as .npy in float32, which stays on disk")
    if needed > MEMORY_LIMIT:
        print(f"note: {path}: reading it may take {needed / 2**30:.1f} GiB of memory; a field in .npy stays on disk",
              file=sys.stderr)


def free_memory() -> int:
    """Bytes that a program can still allocate: of the system, and below the limit of a container."""
    try:
        free = int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    except OSError:  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/sys/fs/cgroup")
        used = int(re.search(r"anon (\d+)", (group / "memory.stat").read_text())[1])  # not what caches hold
        return min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def optional(package: str, path: Path):
    """Import a package that only some kinds of files need. Raises: ValueError that names it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs the package {package}: pip install -r requirements-extras.txt"
                         ) from error


@contextlib.contextmanager
def reading(path: Path | str, kind: str):
    """Errors of a damaged file, of which libraries raise many kinds, as a ValueError in one line that names it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or str(error).startswith(f"{path}:"):
            raise
        pickled = "allow_pickle" in str(error)
        detail = "it holds Python objects, which are never loaded" if pickled else " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable {kind}: {detail}") from error


def find(names: Iterable[str], kind: str, *others: str) -> str | None:
    """The first of `names` that is one of `NAMES[kind]`, or of the others, in any case of letters."""
    return next((name for name in names if str(name).lower() in (*NAMES[kind], *others)), None)


def repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def name_differences(found: Iterable[str], names: Iterable[str]) -> str:
    """How the names of nodes that were found differ from these, whatever their order; "" where they are the same."""
    if twice := repeated(found):
        return f"nodes named twice: {listed(twice)}"
    unknown, missing = ([name for name in one if name not in others]
                        for one, others in ((found, set(names)), (names, set(found))))
    if not missing:
        return f"nodes unknown to it: {listed(unknown)}" if unknown else ""
    return f"nodes {listed(unknown)} (wanted {listed(missing)})" if unknown else f"nodes missing: {listed(missing)}"


def listed(names: list) -> str:
    """Names as text, the first few of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(map(str, names[:SHOWN])) or "none") + more
