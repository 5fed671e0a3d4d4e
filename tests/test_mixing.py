"""Denoisers that mix nodes: new ones equal the one that does not, the right nodes are mixed, at a linear cost."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import random_values, with_gaps

from data.windows import WindowedField
from main_pretrain import main as pretrain
from main_train import main as train
from models import DENOISERS, build_forecaster, build_mean_model, ensemble_sampler, load_forecaster
from models.layers import Mixer, Task
from utils.config import RECIPES, PretrainConfig, TrainConfig, resolve
from utils.pipeline import neighbours_of
from utils.training import checkpoint

NODES, HISTORY, HORIZON, SIZES = 6, 5, 3, (24, 7)
RING = torch.tensor([[(node - 1) % NODES, (node + 1) % NODES] for node in range(NODES)])
MIXING = [name for name, network in DENOISERS.items() if network.mixing]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def make_denoiser(name, coordinates=NODES, nearest=RING, trained=True, **settings):
    """A denoiser; `trained`: its mixers say something, as after some steps."""
    torch.manual_seed(1)
    network = DENOISERS[name]
    mixing = {option: value for option, value in {"tokens": 3, "nearest": nearest}.items() if option in network.mixing}
    model = network(Task(coordinates, HISTORY, HORIZON, SIZES), HISTORY, channels=8, layers=2, embedding=4, **mixing,
                    **settings)
    if trained:
        for mixer in (module for module in model.modules() if isinstance(module, Mixer)):
            torch.nn.init.normal_(mixer.out.weight, std=0.3)
    return model.eval()


def inputs(coordinates=NODES, batch=2):
    """Noisy sample, step, history and calendar."""
    calendar = torch.stack([torch.randint(size, (batch,)) for size in SIZES], dim=1)
    return (torch.randn(batch, HORIZON, coordinates), torch.randint(50, (batch,)),
            torch.randn(batch, HISTORY, coordinates), calendar)


def denoise(model, noisy, step, history, calendar):
    return model(noisy, step, model.encode(history, calendar, None, None))


def heard(mixer, nearest, coordinates=NODES):
    """Which coordinates (row) move with which (column): (coordinate, coordinate) of bools."""
    hidden = torch.randn(1, coordinates, 5)
    moved = torch.autograd.functional.jacobian(lambda hidden: mixer(hidden, nearest).sum((0, 2)), hidden)
    return moved[:, 0].abs().sum(-1) > 0


@pytest.mark.parametrize("name", MIXING)
def test_a_new_one_is_the_denoiser_without_mixing_to_the_bit(name):
    given = inputs()
    assert torch.equal(denoise(make_denoiser(name, trained=False), *given), denoise(make_denoiser("mlp"), *given))
    assert not torch.allclose(denoise(make_denoiser(name), *given), denoise(make_denoiser("mlp"), *given), atol=1e-3)


def test_every_coordinate_hears_every_other_through_tokens():
    mixer = Mixer(5, 3, None)
    assert torch.equal(heard(mixer, None), torch.eye(NODES, dtype=torch.bool))
    torch.nn.init.normal_(mixer.out.weight)
    assert heard(mixer, None).all()


def test_a_node_hears_its_neighbours_by_their_weights_and_none_further_away():
    mixer, values = Mixer(5, 3, RING), torch.zeros(1, NODES + 2, 32)  # two modes, which are nobody's neighbours
    values[0, 3], values[0, NODES:] = 1, 9
    torch.nn.init.normal_(mixer.weight)
    sums = mixer._from_nearest(values, RING)
    expected = torch.zeros(1, NODES, 32)
    expected[0, 2], expected[0, 4] = mixer.weight[2, 1].detach(), mixer.weight[4, 0].detach()
    torch.testing.assert_close(sums, expected)


@pytest.mark.parametrize("name", MIXING)
def test_nodes_in_another_order_are_denoised_in_that_order(name):
    order = torch.tensor([2, 5, 0, 3, 1, 4])
    place = order.argsort()
    noisy, step, history, calendar = inputs()
    one, other = make_denoiser(name), make_denoiser(name, nearest=place[RING[order]])
    other.identity.node.data = one.identity.node.data[order]
    for mixer, before in zip(other.mixers, one.mixers, strict=True):
        if mixer.weight is not None:
            mixer.weight.data = torch.randn(NODES, 2)
            before.weight.data = mixer.weight.data[place]
    torch.testing.assert_close(denoise(one, noisy, step, history, calendar)[..., order],
                               denoise(other, noisy[..., order], step, history[..., order], calendar))


@pytest.mark.parametrize("name", MIXING)
def test_members_and_windows_do_not_hear_each_other(name):
    model, given = make_denoiser(name), inputs(batch=3)
    alone = torch.cat([denoise(model, *(part[row:row + 1] for part in given)) for row in range(3)])
    torch.testing.assert_close(denoise(model, *given), alone)


@pytest.mark.parametrize("name", MIXING)
def test_memory_of_a_training_step_grows_with_the_nodes_and_not_their_square(name):
    def saved_bytes(loss) -> int:
        """Bytes that the forward pass `loss()` keeps for the backward pass."""
        kept = {}

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss()
        return sum(kept.values())

    def kept(nodes):
        nearest = torch.randint(nodes, (nodes, 8))
        model, given = make_denoiser(name, nodes + 16, nearest).train(), inputs(nodes + 16, 1)
        return saved_bytes(lambda: denoise(model, *given).sum())

    few, many = kept(1_000), kept(20_000)
    assert many < 20.5 * few and many < 20_000 * 4_000  # a single number for each pair of nodes: 1.6 GB


# As a part of the program

def make_forecaster(data, name, recipe):
    """A forecaster of a field of five nodes on a line, whose mixers change something."""
    shared = dict(recipe=recipe, history_len=6, predict_len=4)
    mean_settings = checkpoint.settings(resolve(PretrainConfig, shared))
    config = resolve(TrainConfig, dict(**shared, denoiser=name, neighbours=2, diffusion_channels=8, diffusion_layers=2,
                                       diffusion_embedding=4, nsample=4, sampler="ddim", sample_steps=10))
    settings = checkpoint.settings(config)
    model = build_forecaster(settings, build_mean_model(mean_settings, data.metadata()), data.metadata(),
                             neighbours_of(data, config))
    model.fit_statistics(data.batches("train", 32), data.calibration(32), data.fluctuation_scale)
    for mixer in model.denoiser.mixers:
        torch.nn.init.normal_(mixer.out.weight, std=0.3)
    torch.nn.init.normal_(model.denoiser.project.weight, std=0.3)
    return model.eval(), settings


@pytest.fixture
def data(field):
    return WindowedField(dataclasses.replace(field, grid=(1, 5)), 6, 4)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", MIXING)
def test_in_every_recipe_all_weights_learn_and_members_follow_from_their_keys(data, name, recipe):
    model, settings = make_forecaster(data, name, recipe)
    batch = next(iter(data.batches("train", 8)))
    model.train()
    model.loss(batch.future, batch.context, precision=torch.autocast("cpu", torch.bfloat16)).backward()
    assert not [key for key, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    model.eval()
    one, other = (ensemble_sampler(model, {**settings, "sample_batch": size}, torch.device("cpu"))(batch)
                  for size in (3, 32))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    half = ensemble_sampler(model, {**settings, "sample_precision": "bfloat16"}, torch.device("cpu"))(batch)
    assert (half - one).abs().mean() < 0.1 * one.std()
    assert all(weight.dtype == torch.float32 for weight in model.denoiser.mixers.parameters())


def test_neighbours_are_the_nearest_of_the_field_without_the_node_itself(data):
    model, _ = make_forecaster(data, "graph", "cost")
    assert [set(row) for row in model.denoiser.nearest.tolist()[1:4]] == [{0, 2}, {1, 3}, {2, 4}]


def test_a_field_without_places_is_refused_with_the_ways_out(field):
    config = dataclasses.replace(TrainConfig(), denoiser="graph")
    with pytest.raises(ValueError, match="of its nodes: choose --denoiser tokens"):
        neighbours_of(WindowedField(field, 6, 4), config)
    with pytest.raises(ValueError, match="give --graph or --node_table to both stages, or choose --denoiser tokens"):
        neighbours_of(WindowedField(field, 6, 4), dataclasses.replace(config, data_path="own.csv"))
    assert neighbours_of(WindowedField(field, 6, 4), dataclasses.replace(config, denoiser="tokens")) is None


def test_a_run_takes_its_neighbours_along_and_forecasts_without_the_graph(tmp_path):
    values, graph = with_gaps(random_values(200, 5)), tmp_path / "edges.csv"
    np.save(tmp_path / "mine.npy", values)
    graph.write_text("from,to\n0,4\n4,2\n")
    flags = ["--data_path", str(tmp_path / "mine.npy"), "--graph", str(graph), "--freq", "1h", "--start", "2024-01-01",
             "--missing", "mask", "--epochs", "1", "--channels", "8", "--layers", "2", "--networks", "1",
             "--save_dir", str(tmp_path)]
    assert pretrain(flags) == 0
    assert train([*flags, "--eps_model", "graph", "--neighbours", "2", "--nsample", "4", "--test_windows", "4"]) == 0
    graph.unlink()
    forecaster = load_forecaster(tmp_path / "diffusion/mine_12_12")
    assert forecaster.model.denoiser.nearest.tolist() == [[4, 2], [1, 1], [4, 0], [3, 3], [0, 2]]
    assert np.isfinite(forecaster.forecast(values[:12], "2024-01-01").members).all()
