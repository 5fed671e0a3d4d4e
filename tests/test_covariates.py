"""Covariates: read on the field's own time axis, seen by both stages, and worth what they say."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from conftest import ON_ANY_STAGE_1, make_field, random_values

import main_pretrain
import main_train
from data.calendar import make_calendar
from data.covariates import Covariates, read_covariates
from data.windows import WindowedField
from models import load_forecaster
from models.layers import ExtraInputs, Task
from utils.config import RECIPES
from utils.training.checkpoint import load_checkpoint, read_json

STEPS, NODES, HISTORY, HORIZON = 60, 4, 6, 4
CALENDAR = make_calendar("2020-01-06", (1, "hour"), STEPS)
NAMES = tuple(f"node {node}" for node in range(NODES))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def table(steps=STEPS, start="2020-01-06"):
    """Two covariates of every hour with their time."""
    times = np.datetime64(start, "m") + np.arange(steps) * np.timedelta64(60, "m")
    return pd.DataFrame({"time": times.astype(str), "holiday": np.arange(steps) % 7 == 0,
                         "rain": np.linspace(0, 3, steps)}).astype({"holiday": int})


def saved(path, frame):
    frame.to_csv(path, index=False)
    return path


# Reading

def test_a_column_for_each_covariate_holds_for_all_nodes(tmp_path):
    found = read_covariates(saved(tmp_path / "beside.csv", table()), CALENDAR, NAMES)
    assert found.names == ("holiday", "rain") and found.values.shape == (STEPS, 1, 2)
    np.testing.assert_allclose(found.values[:, 0], table()[["holiday", "rain"]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["npy", "npz", "one by node", "one by node, named"])
def test_covariates_of_every_node_keep_their_node(tmp_path, kind):
    values = np.random.default_rng(0).normal(size=(STEPS, NODES, 2)).astype(np.float32)
    names, path = ("covariate 0", "covariate 1"), tmp_path / "beside.npy"
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        names, path = ("wind", "sun"), tmp_path / "beside.npz"
        np.savez(path, values=values, covariate_names=np.array(names))
    else:
        names, values = names[:1], values[..., :1]
        np.save(path, values[..., 0])
        if "named" in kind:
            path = saved(tmp_path / "beside.csv", pd.DataFrame(values[..., 0], columns=NAMES))
    found = read_covariates(path, CALENDAR, NAMES)
    assert found.names == names
    np.testing.assert_allclose(found.values, values, rtol=1e-6)


def test_what_is_taken_from_a_file_without_names_or_times_is_noted(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((STEPS, NODES)))
    by_node, begin = read_covariates(tmp_path / "a.npy", CALENDAR, NAMES).notes
    assert by_node.startswith("its columns are taken for the nodes: one covariate with a value for each")
    assert begin == "it has no times: time step 0 is taken as 2020-01-06T00:00, where the field begins"
    assert read_covariates(saved(tmp_path / "b.csv", table()), CALENDAR, NAMES).notes == ()


def test_names_of_nodes_in_another_case_are_refused(tmp_path):
    frame = pd.DataFrame(np.ones((STEPS, NODES)), columns=[name.upper() for name in NAMES])
    with pytest.raises(ValueError, match="nodes NODE 0, .*; give one column for each node of the field"):
        read_covariates(saved(tmp_path / "a.csv", frame), CALENDAR, NAMES)


@pytest.mark.parametrize("frame, words", [
    (table(start="2020-01-07"), "line 2: time 2020-01-07T00:00, the field has 2020-01-06T00:00 there"),
    (table(STEPS - 1), "59 steps, the field has 60; give one row for each, and more"),
    (table().assign(rain=[*range(58), None, 3]), "1 values are missing, the first in line 60, rain; fill them"),
    (table().drop(index=30), "line 32: time 2020-01-07T07:00, the field has 2020-01-07T06:00 there"),
    (table(start="2020-01-07").iloc[:36], "line 2: time 2020-01-07T00:00, the field has 2020-01-06T00:00 there"),
    (pd.concat([table().drop(index=30), table(61).tail(1)]), "line 32: time 2020-01-07T07:00, the field has"),
])
def test_a_file_that_does_not_fit_the_field_is_refused_with_its_first_bad_row(tmp_path, frame, words):
    with pytest.raises(ValueError, match="--covariates") as caught:
        read_covariates(saved(tmp_path / "beside.csv", frame), CALENDAR, NAMES)
    assert words in str(caught.value)


def test_an_array_of_other_nodes_and_a_wrong_number_of_names_are_refused(tmp_path):
    np.save(tmp_path / "beside.npy", np.zeros((STEPS, NODES + 1, 2), np.float32))
    with pytest.raises(ValueError, match=r"\(5, 2\) values in each step; expected \(node, covariate\) of 4 nodes"):
        read_covariates(tmp_path / "beside.npy", CALENDAR, NAMES)
    np.savez(tmp_path / "beside.npz", values=np.zeros((STEPS, NODES, 2)), covariate_names=np.array(["a", "b", "c"]))
    with pytest.raises(ValueError, match="3 covariate_names for 2 covariates"):
        read_covariates(tmp_path / "beside.npz", CALENDAR, NAMES)


@pytest.mark.parametrize("land", [False, True])
def test_a_gridded_covariate_of_the_fields_own_grid_has_a_value_for_each_node(tmp_path, land):
    values = np.random.default_rng(0).normal(size=(STEPS, 2, 3))
    if land:
        values[:, 0, 1] = np.nan
    xarray.Dataset({"sun": (("time", "lat", "lon"), values)}, {
        "time": CALENDAR.times, "lat": [0.0, 1.0], "lon": [5.0, 6.0, 7.0]}).to_netcdf(tmp_path / "sun.nc")
    names = tuple(f"lat {lat} lon {lon}" for lat in (0, 1) for lon in (5, 6, 7) if not (land and (lat, lon) == (0, 6)))
    found = read_covariates(tmp_path / "sun.nc", CALENDAR, names)
    sea = ~np.isnan(values[0].ravel())
    np.testing.assert_allclose(found.values[:, :, 0], values.reshape(STEPS, 6)[:, sea], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\(2, 3\) values in each step; expected \(node, covariate\)"):
        read_covariates(tmp_path / "sun.nc", CALENDAR, ("p", "q") if land else ("p", "q", "r"))


def test_rows_beyond_the_end_of_the_field_are_the_horizon_of_later_forecasts(tmp_path):
    assert len(read_covariates(saved(tmp_path / "beside.csv", table(STEPS + 12)), CALENDAR, NAMES).values) == STEPS + 12


# Windows

def with_covariates(values, covariates):
    field = make_field(values)
    return WindowedField(field, HISTORY, HORIZON, covariates=Covariates("x.csv", ("a", "b"), covariates))


def test_a_batch_holds_the_covariates_of_its_history_and_horizon_standardized_by_their_training_part():
    covariates = torch.randn(120, 1, 2) * 5 + 3
    data = with_covariates(random_values(120, 5), covariates)
    training = covariates[:len(data.training)].double()
    wanted = (covariates - training.mean((0, 1))) / training.std((0, 1), correction=0)
    batch = data.batch(torch.tensor([3, 90]))
    for row, start in enumerate((3, 90)):
        torch.testing.assert_close(batch.context.covariates[row], wanted[start:start + 10].float(), rtol=0, atol=1e-5)
    assert batch.context.lags is None and batch.target_mask is None
    assert data.metadata()["covariates"] == {"a": pytest.approx(float(training[..., 0].mean())),
                                          "b": pytest.approx(float(training[..., 1].mean()))}


def test_covariates_after_the_training_part_do_not_reach_their_scale():
    covariates = torch.randn(120, 1, 2)
    altered = torch.cat([covariates[:76], covariates[76:] * 9])
    one, other = (with_covariates(random_values(120, 5), each) for each in (covariates, altered))
    assert one.metadata() == other.metadata()
    assert torch.equal(*(each.batch(torch.tensor([3])).context.covariates for each in (one, other)))


# Networks

@pytest.mark.parametrize("nodes", [1, NODES])
def test_every_step_of_every_covariate_reaches_a_network(nodes):
    layer = ExtraInputs(Task(NODES, HISTORY, HORIZON, (24,), covariates=2), 8)
    covariates = torch.randn(3, HISTORY + HORIZON, nodes, 2, requires_grad=True)
    hidden = layer(torch.zeros(3, NODES, 8), None, covariates)
    gradient, = torch.autograd.grad(hidden[1, 0, 5], covariates)
    assert hidden.shape == (3, NODES, 8) and (gradient[1, :, 0] != 0).all()
    gradient[1, :, 0] = 0
    assert (gradient == 0).all()


# Both stages

@pytest.fixture
def project(registered, tmp_path):
    """Runs a stage on a field that white noise drives; the covariate is that noise, of this step."""
    rng = np.random.default_rng(0)
    shocks = rng.normal(size=300).astype(np.float32)
    values = 20 + 5 * shocks[:, None] + 0.5 * rng.normal(size=(300, 4)).astype(np.float32)
    folder, beside = registered(values), tmp_path / "beside.csv"
    pd.DataFrame({"shock": shocks}).to_csv(beside, index=False)

    def run(stage, *extra, name="run"):
        arguments = ["--data_name", "Tiny", "--data_dir", str(folder), "--save_dir", str(tmp_path / name),
                     "--history_len", "6", "--predict_len", "4", "--device", "cpu", "--channels", "16", "--networks",
                     "1", "--layers", "1", "--batch_size", "32", *extra]
        return stage.main(arguments), tmp_path / name
    return run, ["--covariates", str(beside)]


def test_a_covariate_that_tells_the_future_lowers_the_error_to_a_fraction(project):
    run, covariates = project
    error = []
    for name, extra in (("without", []), ("with", covariates)):
        _, folder = run(main_pretrain, "--epochs", "12", "--lr", "1e-2", "--ema", "0", *extra, name=name)
        error.append(read_json(folder / "mean/Tiny_6_4/metrics.json")["MAE"])
    assert error[1] < 0.4 * error[0], error


def test_both_stages_of_every_recipe_take_covariates_and_keep_their_names(project):
    run, covariates = project
    _, folder = run(main_pretrain, "--epochs", "1", "--lags", "none", *covariates)
    for recipe in RECIPES:
        run(main_train, "--epochs", "1", "--recipe", recipe, "--run_name", recipe, "--mean_run",
            str(folder / "mean/Tiny_6_4"), *ON_ANY_STAGE_1, "--nsample", "4", "--sample_steps", "2", "--test_windows",
            "8", "--lags", "none", *covariates)
        place, = (folder / "diffusion").glob(f"*_{recipe}")
        content = load_checkpoint(place / "model.pt")
        assert list(content["data"]["covariates"]) == ["shock"]
        assert content["weights"]["denoiser.extra.table.weight"].shape == (16, 10)
        networks = [module for module in load_forecaster(place).model.modules() if isinstance(module, ExtraInputs)]
        assert len(networks) == 1 + 1 and all(network.table is not None for network in networks)


def test_stage_2_refuses_a_stage_1_model_of_other_covariates(project):
    run, covariates = project
    for given, wanted, words in ((covariates, [], "covariates shock [-0-9.]+ .wanted None."),
                                 ([], covariates, "covariates shock None .wanted [-0-9.]+.*--covariates /")):
        run(main_pretrain, "--epochs", "1", *given, name=f"with{len(given)}")
        with pytest.raises(ValueError, match=words):
            run(main_train, *wanted, name=f"with{len(given)}")
