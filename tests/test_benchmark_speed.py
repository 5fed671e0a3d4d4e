"""Facts of the speed benchmark: its keys, its arithmetic, and that it needs no data."""

import json
from dataclasses import replace

import pytest
import torch

from models import DENOISERS
from tests.tools.benchmark_speed import (
    FORECASTS,
    benchmark,
    compare,
    count_gflop,
    main,
    open_or_generate,
    table,
    table_of_comparison,
    training_step,
    variants,
)
from utils.config import RECIPES, PretrainConfig, TrainConfig, resolve

CPU = torch.device("cpu")
SIZES = dict(data_name="Oracle", oracle_nodes=5, oracle_steps=300, batch_size=4, channels=16, layers=2, embedding=8,
             nsample=3)
TINY = resolve(TrainConfig, SIZES)
FORECAST_KEYS = {f"{sampler}-{steps}/{name}" for sampler, steps in FORECASTS for name in ("fp32", "bf16")}


def tiny(recipe):
    """The stage 2 of a recipe, as small as TINY."""
    return resolve(TrainConfig, {**SIZES, "recipe": recipe})


@pytest.fixture(scope="module")
def results():
    return {recipe: benchmark(tiny(recipe), CPU, budget=0.1) for recipe in RECIPES}


@pytest.fixture
def result(results):
    return results["cost"]


def mean_multiplications(config, nodes=5, cycles=2, outputs=19):
    """By hand: of each network history and climatology, residual blocks, tokens between them and outputs; then the
    modes, of which the histories, 3 steps of them times 3 waves of the day, and those waves are seen."""
    mean = resolve(PretrainConfig, {"recipe": config.recipe})
    history, horizon, width = config.history_len, config.predict_len, mean.channels * (2 + cycles)
    if config.recipe == "published":
        return nodes * (history * mean.channels + 2 * mean.layers * width**2 + width * horizon)
    mixer = nodes * 4 * width * mean.tokens + 4 * mean.tokens * width**2
    network = nodes * ((2 * history + horizon) * mean.channels + 2 * mean.layers * width**2
                       + width * horizon * outputs) + (mean.layers - 1) * mixer
    modes = nodes * ((history + 2 * horizon) * nodes + (1 + 6 + 2 * (history + 3 * 6)) * horizon)
    return mean.networks * network + modes


def forecast_gflop(config, steps, nodes=5, cycles=2):
    """By hand: stage 1 and the inputs once, an endpoint and the way back from white noise once a member, the rest at
    every step; two modes for five nodes, where the noise has any."""
    history, horizon, members = config.history_len, config.predict_len, config.nsample
    width, modes = config.channels + config.embedding * (1 + cycles), 0 if config.recipe == "published" else nodes // 2
    coordinates = nodes + modes
    inputs = {"cost": history + 2 * horizon, "published": history, "copula": history}[config.recipe]
    window = coordinates * inputs * config.channels + inputs * nodes * modes
    member = coordinates * horizon**2 + 2 * horizon * nodes * modes
    joined, step_code = width, (64 + width) * width
    if config.recipe == "published":
        joined, step_code = config.channels, 2 * 128**2 + 128 * config.channels
        member = nodes * horizon * joined
    if config.recipe == "copula":
        window += members * 19 * horizon * nodes
    step = coordinates * members * (horizon * joined + 2 * config.layers * width**2 + width * horizon) + step_code
    return 2e-9 * (mean_multiplications(config) + window + members * member + steps * step)


@pytest.mark.parametrize("recipe", RECIPES)
def test_forecast_arithmetic_is_that_of_the_formula(results, recipe):
    assert results[recipe]["recipe"] == recipe
    for key, gflop in results[recipe]["gflop_per_forecast"].items():
        steps = int(key.split("/")[0].split("-")[1])
        assert gflop == pytest.approx(forecast_gflop(tiny(recipe), steps), rel=1e-9)


def test_linear_layers_are_counted_forward_and_backward():
    layer = torch.nn.Linear(8, 16)
    values = torch.randn(4, 8, requires_grad=True)
    assert count_gflop(lambda: layer(values).sum().backward()) == pytest.approx(3 * 2e-9 * 4 * 8 * 16)


def test_every_time_has_its_share_of_the_peak(result):
    assert set(result["gemm_gflops"]) == {"fp32", "bf16"}
    for name in ("forecast_s", "gflop_per_forecast", "forecast_share_of_peak"):
        assert set(result[name]) == FORECAST_KEYS
    shares = [result["train_share_of_peak"], result["train_bf16_share_of_peak"],
              *result["forecast_share_of_peak"].values()]
    assert all(0 < share < 1.2 for share in shares)
    times = [result[name] for name in ("train_step_s", "train_step_bf16_s", "mean_train_step_s", "peak_rss_mb")]
    assert all(value > 0 for value in [*times, *result["forecast_s"].values()])
    assert "forecast, dpm2m-10/bf16" in table(result)


def test_a_training_step_is_the_median_of_several_timed_epochs():
    data, values = open_or_generate(TINY, CPU)
    assert values == "dataset"
    model = torch.nn.Linear(12, 12)
    calls = []

    def loss(batch):
        calls.append(len(batch.start))
        return model(batch.context.history.transpose(1, 2)).square().mean()

    assert training_step(model, loss, data, TINY, budget=0.0) > 0
    assert calls == [TINY.batch_size] * 8  # an epoch of four steps to warm up, one that is timed


def test_an_absent_array_is_replaced_by_values_of_its_shape(tmp_path):
    for name, shape in (("MobileNJ", (504, 560)), ("SST", (1980 + 1022, 500))):
        data, values = open_or_generate(replace(TrainConfig(), data_name=name, data_dir=str(tmp_path)), CPU)
        assert values == "generated" and data.field.values.shape == shape
    assert not list(tmp_path.iterdir())


def test_the_program_writes_its_numbers_and_says_that_values_are_generated(tmp_path, monkeypatch, capsys):
    def quick(config, device):
        return benchmark(replace(config, channels=8, layers=1, nsample=2, batch_size=2), device, budget=0.01)

    monkeypatch.setattr("tests.tools.benchmark_speed.benchmark", quick)
    path = tmp_path / "speed.json"
    assert main(["--data_name", "SolarPower", "--data_dir", str(tmp_path), "--device", "cpu", "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert {"train_step_s", "forecast_s", "gflop_per_forecast", "gemm_gflops", "peak_rss_mb"} <= set(written)
    assert written["values"] == "generated" and written["nodes"] == 11
    assert "generated values" in capsys.readouterr().out


def test_every_denoiser_is_compared_with_the_first_in_every_piece_of_work():
    result = compare(variants(replace(TINY, nsample=2), "denoisers"), CPU, rounds=1)
    for what, ratios in result["ratio"].items():
        assert set(ratios) == set(DENOISERS) and ratios["mlp"] == 1 and all(ratio > 0 for ratio in ratios.values())
        assert result["seconds"][what]["graph"] == pytest.approx(ratios["graph"] * result["seconds"][what]["mlp"])
    assert "forecast, bf16" in table_of_comparison(result)


def test_every_recipe_is_compared_as_it_runs(tmp_path):
    configs = variants(replace(TINY, data_dir=str(tmp_path)), "recipes")
    assert {name: (config.recipe, config.sample_steps) for name, config in configs.items()} == {
        "cost": ("cost", 10), "published": ("published", 50), "copula": ("copula", 10)}
    small = {name: replace(config, **SIZES, sample_steps=2) for name, config in configs.items()}
    result = compare(small, CPU, rounds=1)
    assert set(result["ratio"]["forecast, fp32"]) == set(RECIPES) and "forecast, bf16" not in result["ratio"]
