"""The speed benchmark compares every recipe in each piece of work."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_values

from tests.tools.benchmark_speed import compare, main, seconds_of
from utils.config import RECIPES, TrainConfig, resolve

SIZES = dict(data_name="Oracle", oracle_nodes=5, oracle_steps=300, batch_size=4, diffusion_channels=16,
             diffusion_layers=2, diffusion_embedding=8, nsample=2)
TINY = resolve(TrainConfig, SIZES)


def test_seconds_are_those_of_the_processor():
    assert seconds_of(lambda: sum(range(300_000))) > 1e-4 > seconds_of(lambda: None)


def test_every_configuration_is_compared_with_the_first_in_every_piece_of_work():
    result = compare({"one": TINY, "other": replace(TINY, denoiser="stid")}, torch.device("cpu"), rounds=1)
    assert set(result["ratio"]) == {"training step", "forecast"}
    for what, ratios in result["ratio"].items():
        assert set(ratios) == {"one", "other"} and ratios["one"] == 1 and all(ratio > 0 for ratio in ratios.values())
        assert result["seconds"][what]["other"] == pytest.approx(ratios["other"] * result["seconds"][what]["one"])


def test_the_program_compares_recipes_as_they_run_and_writes_the_result(tmp_path, monkeypatch, capsys):
    seen = {}

    def small(configs, device, rounds):
        seen.update(configs)
        return compare({name: replace(config, **SIZES, sample_steps=2) for name, config in configs.items()}, device, 1)

    monkeypatch.setattr("tests.tools.benchmark_speed.compare", small)
    path = tmp_path / "speed.json"
    assert main(["--data_name", "Oracle", "--device", "cpu", "--json", str(path)]) == 0
    assert {name: (config.recipe, config.sample_steps) for name, config in seen.items()} == {
        "cost": ("cost", 10), "published": ("published", 50), "copula": ("copula", 10)}
    written = json.loads(path.read_text())
    assert set(written["ratio"]["forecast"]) == set(RECIPES) and "forecast" in capsys.readouterr().out
    assert 50 < written["peak_memory_mb"] < 50_000


def test_a_file_of_ones_own_is_measured_with_the_recipes_that_are_named(tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.npy"
    np.save(path, random_values(200, 3))
    monkeypatch.setattr("tests.tools.benchmark_speed.ROUNDS", 1)
    own = ["--data_path", str(path), "--freq", "1h", "--start", "2024-01-01"]
    assert main([*own, "--recipes", "cost", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data_name"], found["nodes"], [*found["seconds"]["forecast"]]) == ("own", 3, ["cost"])
    with pytest.raises(ValueError, match="^--recipes cots: choose from cost, published, copula$"):
        main(["--recipes", "cots"])
