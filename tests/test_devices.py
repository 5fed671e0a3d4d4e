"""Nothing is made on, or taken from, another device than that of the networks and the data.

Everything runs on torch's `meta` device, which needs no GPU, while every single operation is watched: one that mixes
a tensor of the CPU into those of `meta` fails, as it would with a GPU. So does one that reads a value, where a GPU
would make the program wait. Scalars may come from the CPU: torch passes them along without a transfer.
"""

from types import SimpleNamespace

import pytest
import torch
from conftest import HISTORY, HORIZON, METADATA, NODES, SIZES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data.context import Context
from data.windows import Batch
from models import DENOISERS, MEAN_MODELS, build_forecaster, build_mean_model, ensemble_sampler
from models.diffusion import SAMPLERS
from models.layers import Task
from utils.config import RECIPES, PretrainConfig, TrainConfig, resolve
from utils.pipeline import validation_loss
from utils.training import checkpoint
from utils.training.reproducibility import MemberNoise, key, keyed_normal

BATCH = 2
META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuse every operation on tensors of two devices; scalars of the CPU aside."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim() or tensor.is_meta}
        if len(devices) > 1:
            raise RuntimeError(f"{function} mixes tensors of {' and '.join(sorted(devices))}")
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def one_device():
    with OneDevice():
        yield


every_recipe = pytest.mark.parametrize("recipe", RECIPES)


def make_forecaster(recipe="published", **settings):
    """A forecaster of a recipe, its statistics as they were made, but for a field of counts."""
    task = {"recipe": recipe, "history_len": HISTORY, "predict_len": HORIZON}
    small = {"diffusion_channels": 8, "diffusion_layers": 2, "diffusion_embedding": 4, "modes": 2}
    first, second = (checkpoint.settings(resolve(stage, {**task, **given})) for stage, given in (
        (PretrainConfig, {"mean_channels": 8, "mean_layers": 2}), (TrainConfig, {**small, **settings})))
    metadata = {**METADATA, "support": [-1.0, 0.5]}
    return build_forecaster(second, build_mean_model(first, metadata), metadata).to(META)


def make_batch():
    context = Context(torch.randn(BATCH, HISTORY, NODES, device=META),
                      torch.zeros(BATCH, len(SIZES), dtype=torch.int64, device=META),
                      torch.randn(BATCH, HISTORY + HORIZON, NODES, device=META))
    return Batch(context, torch.randn(BATCH, HORIZON, NODES, device=META), torch.arange(BATCH, device=META))


def loss_of(model, batch):
    return model.loss(batch.future, batch.context)


def draw_with(model, sampler, kind="random"):
    settings = dict(predict_len=HORIZON, sample_batch=4, sample_precision="float32", seed=1, nsample=3, sampler=sampler,
                    sample_steps=4, members=kind)
    return ensemble_sampler(model.eval(), settings, META)(make_batch())


@every_recipe
def test_loss_and_its_gradients_stay_on_the_device(recipe):
    model, batch = make_forecaster(recipe).train(), make_batch()
    value = loss_of(model, batch)
    value.backward()
    assert value.is_meta and value.shape == ()
    assert all(parameter.grad.is_meta for parameter in model.denoiser.parameters())


@pytest.mark.parametrize("name", MEAN_MODELS)
@pytest.mark.parametrize("objective", ["mse", "quantiles"])
def test_the_loss_of_stage_1_stays_on_the_device(name, objective):
    model, batch = MEAN_MODELS[name](Task(NODES, HISTORY, HORIZON, SIZES), objective).to(META), make_batch()
    value = loss_of(model, batch)
    value.backward()
    assert value.is_meta and all(parameter.grad.is_meta for parameter in model.parameters())


@every_recipe
def test_validation_stays_on_the_device(recipe):
    batches = SimpleNamespace(share_windows=lambda rank, count: [make_batch(), make_batch()])
    data = SimpleNamespace(predict_len=HORIZON, batches=lambda *args, **kwargs: batches)
    config = SimpleNamespace(seed=1, val_batch_size=BATCH, val_windows=0)
    assert validation_loss(make_forecaster(recipe).eval(), data, config).is_meta


@every_recipe
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_sampler_stays_on_the_device(sampler, precision, recipe):
    model = make_forecaster(recipe)
    model.denoiser.round_to(precision)
    noise = MemberNoise(1, torch.arange(BATCH, device=META), 3, (HORIZON, NODES))
    members = model.eval().sample(make_batch().context, noise, 3, "random", sampler, 4, chunk=4)
    assert members.is_meta and members.shape == (BATCH, 3, HORIZON, NODES)
    assert all(draw_with(make_forecaster(recipe), sampler, kind).is_meta for kind in ("random", "quantiles"))


def test_keyed_noise_is_made_where_its_keys_are():
    windows = torch.arange(BATCH, device=META)
    keys = key(1, windows.unsqueeze(1), torch.arange(3, device=META), 7)
    assert keys.is_meta and keys.shape == (BATCH, 3)
    assert keyed_normal(keys, (HORIZON, NODES)).is_meta
    noise = MemberNoise(1, windows, 3, (HORIZON, NODES))(2, 1, 5)
    assert noise.is_meta and noise.shape == (4, HORIZON, NODES)
    assert key(1, 2).device.type == "cpu"


# The watch itself

def add_zeros(noisy, step):
    return noisy + torch.zeros(noisy.shape)


def multiply_by_a_matrix(noisy, step):
    return noisy @ torch.eye(NODES)


def look_up_the_step(noisy, step):
    return noisy + torch.arange(50.0)[step].view(-1, 1, 1)


def shuffle_nodes(noisy, step):
    return noisy[..., torch.arange(NODES).flip(0)]


def read_a_value(noisy, step):
    return noisy if step[0] > 3 else -noisy


@pytest.mark.parametrize("mistake", [add_zeros, multiply_by_a_matrix, look_up_the_step, shuffle_nodes, read_a_value])
def test_a_denoiser_that_leaves_the_device_is_caught(mistake, monkeypatch):
    class Careless(DENOISERS["mlp"]):
        def forward(self, noisy, step, hidden):
            return super().forward(mistake(noisy, step), step, hidden)

    monkeypatch.setitem(DENOISERS, "mlp", Careless)
    model = make_forecaster(denoiser="mlp")
    for run in (lambda: loss_of(model, make_batch()), lambda: draw_with(model, "adams")):
        with pytest.raises((RuntimeError, NotImplementedError), match="mixes tensors of cpu and meta|meta tensor"):
            run()


def test_a_table_that_does_not_move_with_the_model_is_caught(monkeypatch):
    class Stays(DENOISERS["mlp"]):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self.weight = [torch.ones(NODES)]

        def encode(self, inputs, *others):
            return super().encode(inputs * self.weight[0], *others)

    monkeypatch.setitem(DENOISERS, "mlp", Stays)
    with pytest.raises(RuntimeError, match="mixes tensors of cpu and meta"):
        loss_of(make_forecaster(denoiser="mlp"), make_batch())
