"""The benchmark of scale measures both stages on a file that it makes, and leaves nothing behind."""

import json

import numpy as np
import pytest

from tests.tools import benchmark_scale
from tests.tools.benchmark_scale import COSTS, exponents, main, table, write_field


def test_a_field_is_written_in_blocks_as_the_same_values(tmp_path, monkeypatch):
    write_field(tmp_path / "one.npy", 100, 7)
    monkeypatch.setattr(benchmark_scale, "BLOCK", 70)
    write_field(tmp_path / "two.npy", 100, 7)
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    assert one.shape == (100, 1, 7) and one.dtype == np.float32 and np.isfinite(one).all()
    assert np.array_equal(one, two)


def test_growth_is_a_power_of_the_nodes():
    rows = [{"nodes": nodes, **dict.fromkeys(COSTS, 1e-3 * nodes), "forecast": nodes**2.0, "time_steps": 10}
            for nodes in (100, 1000)]
    assert exponents(rows) == pytest.approx({**dict.fromkeys(COSTS, 1.0), "forecast": 2.0})
    assert table(rows, 4, 50).count("| 1000 |") == 1 and "train_1 1.00" in table(rows, 4, 50)


def test_a_tiny_field_goes_through_both_stages_and_the_files_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    assert main(["--nodes", "5", "--steps", "300", "--batch_size", "2", "--nsample", "4", "--json", str(out / "a.json"),
                 "--table", str(out / "a.md")]) == 0
    row, = json.loads((out / "a.json").read_text())["rows"]
    assert row["nodes"] == 5 and all(row[name] > 0 for name in COSTS)
    assert (out / "a.md").read_text().startswith("| nodes |")
    assert not list(tmp_path.rglob("scale.npy"))
