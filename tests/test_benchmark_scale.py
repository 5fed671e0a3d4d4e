"""The benchmark of scale measures both stages on a file that it makes, and leaves nothing behind."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.tools import benchmark_scale
from tests.tools.benchmark_scale import COSTS, PeakMemory, exponent, main, measure, report, table, write_field
from utils.config import TrainConfig

TINY = dataclasses.replace(TrainConfig(), batch_size=2, nsample=4)


@pytest.fixture(autouse=True, scope="module")
def threads():
    """As many threads after these tests as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_field_is_written_in_blocks_as_the_same_values_and_needs_space(tmp_path, monkeypatch):
    write_field(tmp_path / "one.npy", 100, 7)
    monkeypatch.setattr(benchmark_scale, "BLOCK", 70)
    write_field(tmp_path / "two.npy", 100, 7)
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    assert one.shape == (100, 1, 7) and one.dtype == np.float32 and np.isfinite(one).all()
    assert np.array_equal(one, two)
    with pytest.raises(ValueError, match="--folder .* GB are free, the field takes 400000.0 GB"):
        write_field(tmp_path / "three.npy", 10**7, 10**7)
    assert not (tmp_path / "three.npy").exists()


def test_the_peak_of_memory_is_seen():
    with PeakMemory() as none:
        pass
    with PeakMemory() as some:
        values = np.ones(30_000_000)
        some._done.wait(0.1)
    assert some.bytes - none.bytes > 0.9 * values.nbytes


def test_a_cost_that_grows_as_a_power_of_the_nodes_is_linear_or_not():
    rows = [{"nodes": nodes, **dict.fromkeys(COSTS, 1e-3 * nodes), "peak_mb": 1.0, "peak_resident_set_mb": 3,
             "time_steps": 10} for nodes in (1000, 100)]
    linear = report(rows, 4, 50)
    assert linear["linear"] and linear["rows"][0]["nodes"] == 100
    for row in rows:
        row["forecast"] = row["nodes"] ** 2
    assert exponent(linear["rows"], "forecast") == pytest.approx(2) and not report(rows, 4, 50)["linear"]
    rows[0] |= {"forecast": 1.0, "peak_mb": 20.0}
    assert report(rows, 4, 50)["exponent_of_the_largest_two"]["peak_mb"] == pytest.approx(1.301, rel=1e-3)
    assert not report(rows, 4, 50)["linear"]
    assert table(linear).count("| 1000 |") == 1 and "power of the nodes: stage 1, training 1.00" in table(linear)


@pytest.mark.parametrize("denoiser", ["mlp", "graph"])
def test_a_tiny_field_goes_through_both_stages_and_is_removed(tmp_path, denoiser):
    row = measure(5, 300, dataclasses.replace(TINY, denoiser=denoiser), 1, tmp_path)
    assert row["denoiser"] == denoiser
    assert list(tmp_path.iterdir()) == []
    assert all(row[name] > 0 for name in (*COSTS, "open_s", "validation_1", "validation_2", "calibration_s", "scores"))
    assert row["peak_resident_set_mb"] > 0 and row["peak_mb"] > 0


def test_every_number_of_nodes_has_a_process_of_its_own_and_the_files_are_written(tmp_path, monkeypatch, capsys):
    asked = []

    def stand_in(nodes, given, folder):
        asked.append((nodes, given["steps"]))
        return {"nodes": nodes, **dict.fromkeys(COSTS, float(nodes)), "peak_mb": 1.0, "time_steps": 9,
                "peak_resident_set_mb": 3}

    monkeypatch.setattr(benchmark_scale, "measure_elsewhere", stand_in)
    assert main(["--nodes", "3", "5", "--steps", "9", "--json", str(tmp_path / "a.json"), "--table",
                 str(tmp_path / "a.md")]) == 0
    assert asked == [(3, 9), (5, 9)] and json.loads((tmp_path / "a.json").read_text())["linear"]
    assert (tmp_path / "a.md").read_text().startswith("| nodes |")
    with pytest.raises(ValueError, match="--folder .*: no such folder"):
        main(["--folder", str(tmp_path / "missing")])
