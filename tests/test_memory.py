"""What would not fit into memory is refused by its size alone, whatever small file it unfolds from."""

import gzip
import io
import json
import tracemalloc
import zipfile

import netCDF4
import numpy as np
import pandas as pd
import pytest
import zarr
from conftest import random_values

from data import table
from data.readers import read_file
from data.table import free_memory

FREE = 8 << 20
STEPS = 1 << 19  # of 4 nodes: 16 MiB as numbers while they are read


def npz(path, name="values", content=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{name}.npy", "w") as file:
            file.write(content or header((STEPS, 4)) + bytes(STEPS * 32))


def header(shape) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


def netcdf(path):
    with netCDF4.Dataset(path, "w") as dataset:
        dataset.createDimension("time", STEPS)
        dataset.createDimension("node", 4)
        dataset.createVariable("sst", "f4", ("time", "node"), zlib=True)


def zarr_store(path):
    store = zarr.open_group(path, mode="w", zarr_format=2)
    store.create_array("sst", shape=(24, 4), dtype="f4").attrs["_ARRAY_DIMENSIONS"] = ["time", "node"]
    metadata = json.loads((path / "sst/.zarray").read_text())
    (path / "sst/.zarray").write_text(json.dumps(metadata | {"shape": [STEPS, 4], "chunks": [100, 4]}))


def parquet(path):
    pd.DataFrame({f"node {node}": np.zeros(STEPS, "f4") for node in range(4)}).to_parquet(path)


BOMBS = {
    "unfolds.npz": npz,
    "another.npz": lambda path: npz(path, "times"),
    "text.csv.gz": lambda path: path.write_bytes(gzip.compress(b"time,a\n" + b"0" * (16 << 20))),
    "line.csv.gz": lambda path: path.write_bytes(gzip.compress(b"," * (16 << 20))),
    "table.parquet": parquet,
    "field.nc": netcdf,
    "shape.zarr": zarr_store,
}


@pytest.fixture
def little_memory(monkeypatch):
    """Only so much is free; what is allocated meanwhile is counted."""
    monkeypatch.setattr(table, "free_memory", lambda: FREE)


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_unfolds_beyond_memory_is_refused_before_anything_is_allocated(name, tmp_path, little_memory):
    path = tmp_path / name
    BOMBS[name](path)
    if path.is_file() and not name.endswith(".npy"):
        assert path.stat().st_size < FREE / 10
    import pyarrow.parquet  # noqa: F401 (before what is allocated is counted)
    import xarray  # noqa: F401
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"^{path}: reading it takes .* GiB of memory or more, 0.0 GiB are free"):
            read_file(path)
        assert tracemalloc.get_traced_memory()[1] < FREE
    finally:
        tracemalloc.stop()


def test_a_file_that_fits_is_read_and_so_is_a_large_array_that_stays_on_disk(tmp_path, little_memory):
    np.savez_compressed(tmp_path / "a.npz", values=random_values(1000, 4))
    assert read_file(tmp_path / "a.npz").values.shape == (1000, 4)
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        pd.DataFrame(random_values(100, 3)).rename(columns="n{}".format).to_csv(file, index=False)
    assert read_file(tmp_path / "a.csv.gz").values.shape == (100, 3)
    np.save(tmp_path / "large.npy", np.zeros((STEPS, 4)))  # stays on disk
    read_file(tmp_path / "large.npy")


def test_what_is_free_is_what_the_system_says():
    assert 1 << 20 < free_memory() < 1 << 50
