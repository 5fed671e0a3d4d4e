"""A field as one tensor (time, node) with its calendar: read, checked, never silently changed."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .calendar import Calendar, make_calendar
from .registry import DatasetSpec, get_spec, locate
from .scaling import BLOCK
from .synthetic import make_oracle

MEMORY_LIMIT = 1 << 30  # bytes as float32; a larger array stays on disk as a memory map


@dataclass(frozen=True)
class Field:
    """Values (time, node) in physical units, float32 in memory or as stored in a memory map, with their calendar.

    `segments` are the half-open ranges of time steps that are continuous: one, or two for a dataset that trains
    on one field and is evaluated on another. No window crosses from one to the next.
    A missing value is NaN; `missing_share` of all values are.
    """

    name: str
    spec: DatasetSpec
    values: Tensor
    calendar: Calendar
    segments: tuple[tuple[int, int], ...]
    node_names: tuple[str, ...]
    missing_share: float = 0.0

    @property
    def masked(self) -> bool:
        return self.missing_share > 0


def load_field(name: str, data_dir: Path, oracle_nodes: int = 32, oracle_steps: int = 4000, missing: str = "error",
               null_value: float | None = None) -> Field:
    """Read the dataset `name` of the registry, or generate it when it is synthetic.

    missing: NaN is refused ("error") or stays ("mask"), as do then all values equal to `null_value`.
    Raises: ValueError for values that cannot be a field, FileNotFoundError for a missing file; both say what to do.
    """
    spec = get_spec(name)
    if spec.synthetic:
        parts, names = [make_oracle(oracle_nodes, oracle_steps).values], None
    else:
        parts, names = zip(*(read_array(path, spec.num_nodes, missing) for path in locate(name, data_dir)),
                           strict=True)
        names = names[0]
    calendars = [
        make_calendar(start, spec.interval, len(part)) for start, part in zip(spec.start, parts, strict=True)
    ]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    calendar = Calendar(
        torch.cat([calendar.slots for calendar in calendars]), calendars[0].sizes, calendars[0].names,
        np.concatenate([calendar.times for calendar in calendars]),
    )
    values = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
    values, missing_share = mark_missing(values, null_value) if missing == "mask" else (values, 0.0)
    names = names or tuple(f"node {node}" for node in range(values.shape[1]))
    return Field(name, spec, values, calendar, tuple(zip([0, *ends[:-1]], ends, strict=True)), names, missing_share)


def mark_missing(values: Tensor, null_value: float | None = None) -> tuple[Tensor, float]:
    """Values with NaN for each `null_value`, which brings a memory map into memory, and the share of NaN."""
    if null_value is not None:
        values = values.float()
        values = values.masked_fill(values == null_value, math.nan)
    count = sum(int(block.isnan().sum()) for block in values.split(BLOCK))
    return values, count / values.numel()


def read_array(path: Path, num_nodes: int | None = None,
               missing: str = "error") -> tuple[Tensor, tuple[str, ...] | None]:
    """Read (time, ...) values from .npy or .npz (key `values`, optional `node_names`) as a tensor (time, node).

    Spatial axes are flattened in row-major order. No pickle is ever run.
    Raises: ValueError naming the file, what was found and what is expected.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; expected a NumPy array (.npy or .npz)")
    names = None
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="c")
        if isinstance(array, np.lib.npyio.NpzFile):
            with array as archive:
                if "values" not in archive:
                    raise ValueError(f"keys {', '.join(archive) or 'none'}; expected a key `values`")
                names = tuple(archive["node_names"].tolist()) if "node_names" in archive else None
                array = archive["values"]
    except Exception as error:  # whatever a damaged file makes NumPy or zipfile raise, the user made one mistake
        detail = "it holds Python objects, which are never loaded" if "allow_pickle" in str(error) else error
        raise ValueError(f"{path}: not a readable NumPy array (.npy or .npz): {detail}") from error
    values = check_array(array, str(path), num_nodes, missing)
    if array.nbytes // array.itemsize * 4 <= MEMORY_LIMIT or array.dtype.byteorder == ">":
        values = np.ascontiguousarray(values, dtype=np.float32)
    return torch.from_numpy(values), names


def check_array(array: np.ndarray, source: str, num_nodes: int | None = None, missing: str = "error",
                rows: int = BLOCK) -> np.ndarray:
    """Check that an array is a field, and flatten its space: (time, ...) -> (time, node).

    Accepted: real numbers, finite (or NaN where `missing` is "mask"), (T,V), (T,H,W) or (T,V,1), at least one step
    and one node.
    Raises: ValueError that begins with `source`.
    """
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{source}: values of type {array.dtype}; expected integers or real numbers")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{source}: shape {array.shape}; expected (time, node), (time, height, width) or "
                         "(time, node, 1), none of them empty")
    values = array.reshape(len(array), -1)
    if num_nodes is not None and values.shape[1] != num_nodes:
        raise ValueError(f"{source}: shape {array.shape} has {values.shape[1]} nodes; expected {num_nodes}")
    for first in range(0, len(values), rows) if array.dtype.kind == "f" else ():
        block = values[first:first + rows]
        good = np.abs(block) <= np.finfo(np.float32).max  # as which all is computed
        if missing == "mask":
            good |= np.isnan(block)
        if not good.all():
            step, node = np.argwhere(~good)[0]
            count = np.isnan(values).sum()
            hint = f"; {count} of {values.size} values are NaN: --missing mask leaves them out" if count else ""
            raise ValueError(f"{source}: value {block[step, node]} at time step {first + step}, "
                             f"node {node}; expected finite numbers{hint}")
    return values
