"""The benchmark: every row is made from its stages, scored once, and sees the lags that it names."""

import shutil

import numpy as np
import pytest

from scripts.paper import benchmark
from utils.config import PRESETS, CommonConfig
from utils.training.checkpoint import read_json

TINY = ("--channels 8 --layers 1 --embedding 8 --epochs 1 --networks 1 --batch_size 64 --val_windows 8 --nsample 4 "
        "--sample_steps 2 --device cpu").split()


@pytest.fixture
def run(registered, tmp_path, monkeypatch):
    """Scores rows of the benchmark for seed 0 on a small field with small networks; gives the scores by row."""
    days = np.random.default_rng(0).normal(size=(10, 24, 4)).astype(np.float32)
    monkeypatch.setenv("COST_DATA_DIR", str(registered(20 + days.reshape(240, 4))))
    monkeypatch.setitem(PRESETS["cost"], "Tiny", {CommonConfig: {"lags": "none"}})  # as the datasets of the tables
    stage = benchmark.Task.stage
    monkeypatch.setattr(benchmark.Task, "stage", lambda self, kind, program, extra: stage(
        self, kind, program, [*extra, *TINY]))

    def score(*methods):
        assert benchmark.main(["--data_names", "Tiny", "--methods", ",".join(methods), "--seeds", "0", "--history_len",
                               "6", "--predict_len", "4", "--save_dir", str(tmp_path / "save")]) == 0
        return {path.stem: read_json(path) for path in (tmp_path / "save/benchmark/test/Tiny_6_4").glob("*.json")}
    score.folder = tmp_path / "save"
    return score


def test_every_row_is_scored_on_every_test_window(run):
    names = set(benchmark.METHODS)
    found = run(*names)
    assert set(found) == {f"{name}_0" for name in names}
    assert len({scores["windows"] for scores in found.values()}) == 1
    assert all(found[f"{name}_0"]["method"] == name and np.isfinite(found[f"{name}_0"]["CRPS"]) for name in names)
    assert all(found[f"{name}_0"]["ensemble"] == method.members for name, method in benchmark.METHODS.items())
    assert {name for name, method in benchmark.METHODS.items() if method.members == "quantiles"} == {
        name for name in names if name.endswith("_smooth")}
    assert {read_json(path)["config"]["lags"] for path in run.folder.glob("*/*/config.json")} == {"none"}


def test_a_row_that_was_scored_is_not_scored_again(run, capsys):
    first = run("persistence")
    capsys.readouterr()
    assert run("persistence") == first and capsys.readouterr().out == ""


def test_without_names_the_rows_of_the_tables_are_scored(run, monkeypatch):
    scored = []
    monkeypatch.setattr(benchmark, "score", lambda name, task: scored.append(name) or (
        dict.fromkeys(benchmark.SHOWN, 0.0), {"window": [0]}))
    run()
    assert scored == [name for name, method in benchmark.METHODS.items() if not method.only]


def test_a_file_of_ones_own_is_scored_as_a_dataset_of_the_registry(tmp_path):
    file = tmp_path / "mine.csv"
    rows = "\n".join(f"2024-{month:02}-01,{month},{month * 2 % 7}" for month in range(1, 13))
    rows += "\n" + "\n".join(f"{year}-{month:02}-01,{month + year % 5},{month * 3 % 7}" for year in range(2025, 2029)
                             for month in range(1, 13))
    file.write_text(f"time,a,b\n{rows}\n")
    benchmark.main(["--data_path", str(file), "--methods", "persistence,ridge", "--seeds", "0", "--history_len", "6",
                    "--predict_len", "3", "--save_dir", str(tmp_path / "save")])
    folder = tmp_path / "save/benchmark/test/mine_6_3"
    found = {path.stem: read_json(path) for path in folder.glob("*.json")}
    assert sorted(found) == ["persistence_0", "ridge_0"]
    assert all(each["data_name"] == "mine" and each["windows"] == 11 for each in found.values())
    assert found["ridge_0"]["CRPS"] != found["persistence_0"]["CRPS"]
    again = ["--methods", "persistence", "--seeds", "0", "--history_len", "6", "--predict_len", "3", "--save_dir",
             str(tmp_path / "save"), "--data_path"]
    (tmp_path / "same").mkdir()
    shutil.copy(file, tmp_path / "same")
    assert benchmark.main([*again, str(tmp_path / "same/mine.csv")]) == 0
    with pytest.raises(ValueError, match="persistence_0.json was scored with own_file missing None .wanted mask.; ch"):
        benchmark.main([*again, str(file), "--missing", "mask"])
    file.write_text(file.read_text().replace(",1,2\n", ",1,3\n"))
    with pytest.raises(ValueError, match="persistence_0.json was scored with own_file data_path [0-9a-f]{64} .wanted"):
        benchmark.main([*again, str(file)])


def test_seeds_that_are_no_numbers_are_named(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--seeds", "0,x"])
    assert "--seeds: 0,x: expected whole numbers, as 0,1,2" in capsys.readouterr().err
