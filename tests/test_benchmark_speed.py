"""The speed benchmark compares every recipe in each piece of work."""

import json
from dataclasses import replace

import pytest
import torch

from tests.tools.benchmark_speed import compare, main, seconds_of, variants
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


def test_every_recipe_is_compared_as_it_runs():
    configs = variants(TINY)
    assert configs.keys() == RECIPES.keys()
    assert {name: (configs[name].recipe, configs[name].sample_steps) for name in ("cost", "published", "copula")} == {
        "cost": ("cost", 10), "published": ("published", 50), "copula": ("copula", 10)}


def test_the_program_writes_what_it_compares(tmp_path, monkeypatch, capsys):
    small = {name: resolve(TrainConfig, {**SIZES, "recipe": name, "sample_steps": 2}) for name in RECIPES}
    monkeypatch.setattr("tests.tools.benchmark_speed.variants", lambda config: small)
    path = tmp_path / "speed.json"
    assert main(["--data_name", "Oracle", "--device", "cpu", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert set(written["ratio"]["forecast"]) == set(RECIPES) and "forecast" in capsys.readouterr().out
