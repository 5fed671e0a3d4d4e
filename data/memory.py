"""Memory that reading a file takes, estimated before it is read: archives unfold, headers may name any shape."""

import contextlib
import gzip
import json
import os
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

NUMBER = 8  # bytes of a number while it is read
BLOCK = 1 << 20
LARGEST_RATIO = 1032  # to which deflate can compress


def check_memory(path: Path, variable: str = "") -> None:
    """Refuse, before anything is allocated, a file whose content would not fit into memory.

    variable: the one of NetCDF or Zarr that is read, else any. Its reader refuses a damaged file.
    Raises: ValueError with both sizes.
    """
    free = free_memory()
    try:
        needed = next((size for size in _unfolding(path, variable) if size > free), 0)
    except Exception:  # a damaged file makes the libraries raise many kinds
        return
    if needed:
        raise ValueError(f"{path}: reading it takes {needed / 2**30:.1f} GiB of memory or more, {free / 2**30:.1f} GiB "
                         "are free; give a part of it, or the field as .npy in float32, which stays on disk")


def free_memory() -> int:
    """Bytes that a program can still allocate: of the system, and below the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def _unfolding(path: Path, variable: str) -> Iterator[int]:
    """Lower bounds of the bytes that reading a file takes, each higher than the one before."""
    name = path.name.lower().rstrip("/")
    if name.endswith(".npy"):
        with path.open("rb") as file:
            shape, kind = _header(file)
        if kind.byteorder == ">":  # else it stays on disk as a memory map
            yield NUMBER * prod(shape)
    elif name.endswith(".npz"):
        yield from _of_archive(path)
    elif name.endswith(".gz") and path.stat().st_size * LARGEST_RATIO > free_memory():
        with gzip.open(path) as file:
            size = 0
            while block := file.read(BLOCK):
                yield (size := size + len(block))
    elif name.endswith(".parquet"):
        from pyarrow import parquet  # an extra, and slow to import
        metadata = parquet.read_metadata(path)
        yield NUMBER * metadata.num_rows * metadata.num_columns
        yield sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    elif name.endswith(".zarr"):
        for file in (*path.rglob(".zarray"), *path.rglob("zarr.json")):
            header = json.loads(file.read_text())
            if file.parent.name == variable or not variable or len(header.get("shape", ())) == 1:
                grid = header.get("chunk_grid", {}).get("configuration", {})
                chunk = header.get("chunks", grid.get("chunk_shape", ()))
                yield NUMBER * max(prod(header.get("shape", ())), prod(chunk))
    elif name.endswith(".nc"):
        import netCDF4  # an extra
        with netCDF4.Dataset(path) as dataset:
            for found in dataset.variables.values():
                if found.name == variable or not variable or found.ndim == 1:
                    yield NUMBER * prod(found.shape)
    elif path.is_file():
        yield path.stat().st_size


def _of_archive(path: Path) -> Iterator[int]:
    """The same for an .npz: its unfolded size, the arrays of its headers, and the dense form of a sparse matrix."""
    with zipfile.ZipFile(path) as archive:
        yield sum(entry.file_size for entry in archive.infolist())
        for entry in archive.infolist():
            with contextlib.suppress(ValueError), archive.open(entry) as file:  # a member that is no array is not read
                shape, kind = _header(file)
                yield kind.itemsize * prod(shape)
        if {"indptr.npy", "shape.npy"} <= set(archive.namelist()):
            with archive.open("shape.npy") as file:
                yield NUMBER * prod(np.lib.format.read_array(file, allow_pickle=False).tolist())


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type in the header of an .npy file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    return shape, kind
