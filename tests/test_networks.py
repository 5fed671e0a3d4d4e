"""The networks: what reaches what, in which shapes, and what training and rounding do to them."""

import dataclasses
import functools
import inspect
import itertools
import math

import pytest
import torch

from data.constants import QUANTILE_LEVELS
from data.context import Context
from models import MEAN_MODELS, build_mean_model
from models.backbones import STID, ITransformer
from models.build import DENOISERS
from models.denoiser import MLPDenoiser
from models.layers import Dropout, ExtraInputs, IdentityEmbedding, ResidualBlock, StepEmbedding, Task, TokenMixer
from models.mean import OBJECTIVES, CorrectedMean
from models.quantiles import pinball
from utils.config import NETWORK, WITHOUT_EFFECT, PretrainConfig
from utils.training import checkpoint

HISTORY, HORIZON, NODES = 5, 3, 4
CYCLES = (12,), (24, 7), (4, 7, 12)
OURS = "stid", "itransformer", "dlinear"
every_backbone = pytest.mark.parametrize("backbone", MEAN_MODELS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def make_task(nodes=NODES, sizes=(24, 7), **metadata):
    return Task(nodes, HISTORY, HORIZON, sizes, **metadata)


def windows(batch=2, nodes=NODES, sizes=(24, 7), **parts):
    """A context of random values."""
    calendar = torch.stack([torch.randint(size, (batch,)) for size in sizes], dim=1)
    return Context(torch.randn(batch, HISTORY, nodes), calendar, torch.randn(batch, HISTORY + HORIZON, nodes), **parts)


def with_parts(context, **parts):
    return dataclasses.replace(context, **parts)


def make_stid(nodes=NODES, sizes=(24, 7), objective="mse", metadata=(), **settings):
    """Stage 1, the published one unless `settings` say otherwise."""
    settings = {"channels": 8, "layers": 2, "climatology": False, "tokens": 0, **settings}
    return STID(make_task(nodes, sizes, **dict(metadata)), objective, **settings).eval()


def make_backbone(name, objective="mse", sizes=(24, 7), dropout=0.15, **metadata):
    """A small network of stage 1 by its name, nothing in it at rest."""
    settings = {"stid": dict(channels=8, layers=2, tokens=3, dropout=dropout),
                "itransformer": dict(channels=8, layers=2, heads=4, dropout=dropout)}.get(name, {})
    model = MEAN_MODELS[name](make_task(NODES, sizes, **dict(metadata)), objective, **settings)
    for module in model.modules():
        if isinstance(module, TokenMixer):
            torch.nn.init.normal_(module.out.weight, std=0.3)
        if isinstance(module, ExtraInputs) and module.gaps is not None:
            torch.nn.init.normal_(module.gaps.weight, std=0.3)
    return model.eval()


def make_denoiser(nodes=NODES, sizes=(24, 7), network=MLPDenoiser, metadata=(), **settings):
    settings = {"channels": 16, "layers": 2, "embedding": 8, "endpoint": True, **settings}
    return network(make_task(nodes, sizes, **dict(metadata)), HISTORY, **settings).eval()


def denoise(model, context, noisy, endpoint, step):
    hidden = model.encode(context.history, context.calendar, context.missing, context.features)
    return model(noisy, step, model.condition(hidden, endpoint))


def denoiser_inputs(batch=2, nodes=NODES, sizes=(24, 7)):
    """Context, noisy residual, endpoint, step."""
    return (windows(batch, nodes, sizes), torch.randn(batch, HORIZON, nodes), torch.randn(batch, HORIZON, nodes),
            torch.randint(50, (batch,)))


def both(nodes=NODES, sizes=(24, 7), batch=2):
    """Mean model and denoiser as functions of a context, the other inputs held fixed."""
    stid, denoiser = make_stid(nodes, sizes), make_denoiser(nodes, sizes)
    noisy, endpoint, step = denoiser_inputs(batch, nodes, sizes)[1:]
    return (stid, stid), (denoiser, lambda context: denoise(denoiser, context, noisy, endpoint, step))


# Shapes

@pytest.mark.parametrize("sizes", CYCLES)
@pytest.mark.parametrize("nodes, batch", [(1, 1), (1, 3), (NODES, 1), (NODES, 3)])
def test_forecasts_have_batch_horizon_and_node_axes_for_one_to_three_cycles(sizes, nodes, batch):
    context = windows(batch, nodes, sizes)
    for _, predict in both(nodes, sizes, batch):
        assert predict(context).shape == (batch, HORIZON, nodes)


def test_the_registered_denoisers_share_one_constructor():
    for network in DENOISERS.values():
        network(make_task(), HISTORY, channels=8, layers=1, embedding=4, dropout=0.1, endpoint=False)


# What reaches what

def test_axes_are_never_mixed_up_a_node_is_treated_by_its_own_history_and_identity_alone():
    """Nodes and windows reordered, identities with them: the forecast is reordered, and nothing else changes."""
    node, window = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    stid, denoiser = make_stid(), make_denoiser()
    context, noisy, endpoint, step = denoiser_inputs(3)
    before = stid(context), denoise(denoiser, context, noisy, endpoint, step)
    for model in (stid, denoiser):
        model.identity.node.data = model.identity.node.data[node]
    pick = lambda values: values[window][..., node]  # noqa: E731
    moved = Context(pick(context.history), context.calendar[window], pick(context.climatology))
    after = stid(moved), denoise(denoiser, moved, pick(noisy), pick(endpoint), step[window])
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(pick(first), second)


def test_every_history_step_matters_to_every_forecast_step_of_its_node():
    for _, predict in both():
        context = windows()
        history = context.history.requires_grad_()
        forecast = predict(context)
        for step, node in itertools.product(range(HORIZON), range(NODES)):
            gradient, = torch.autograd.grad(forecast[1, step, node], history, retain_graph=True)
            assert (gradient[1, :, node] != 0).all()
            gradient[1, :, node] = 0
            assert (gradient == 0).all()


def test_nodes_with_the_same_history_get_different_forecasts():
    context = windows()
    context = with_parts(context, history=context.history[..., :1].expand(-1, -1, NODES))
    same = torch.zeros(2, HORIZON, NODES)
    for forecast in (make_stid()(context), denoise(make_denoiser(), context, same, same, torch.tensor([3]))):
        for one, other in itertools.combinations(range(NODES), 2):
            assert (forecast[..., one] - forecast[..., other]).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", CYCLES)
def test_every_slot_of_every_calendar_cycle_gives_a_forecast_of_its_own(sizes):
    """The authors' release read row 0 whatever the time."""
    for cycle, size in enumerate(sizes):
        calendar = torch.tensor([[other // 2 for other in sizes]]).repeat(size, 1)
        calendar[:, cycle] = torch.arange(size)
        one = windows(1, NODES, sizes)
        context = Context(one.history.expand(size, -1, -1), calendar, one.climatology.expand(size, -1, -1))
        denoiser = make_denoiser(sizes=sizes)
        same = torch.zeros(size, HORIZON, NODES)
        for forecast in (make_stid(sizes=sizes)(context),
                         denoise(denoiser, context, same, same, torch.tensor([3]))):
            distance = torch.cdist(forecast.flatten(1), forecast.flatten(1))
            assert distance[~torch.eye(size, dtype=torch.bool)].min() > 1e-3


@pytest.mark.parametrize("sizes", CYCLES)
def test_gradients_reach_exactly_the_calendar_slots_of_the_batch(sizes):
    calendar = torch.tensor([[size - 1 for size in sizes], [1] * len(sizes), [size - 1 for size in sizes]])
    context = with_parts(windows(3, NODES, sizes), calendar=calendar)
    for model, predict in both(NODES, sizes, 3):
        predict(context).square().sum().backward()
        for table, size in zip(model.identity.slots, sizes, strict=True):
            assert table.weight.shape[0] == size
            assert table.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1, size - 1]
        assert (model.identity.node.grad.abs().sum(1) > 0).all()


def test_identity_is_the_vector_of_the_node_followed_by_one_per_cycle():
    for calendar_size in (0, 2):
        embedding = IdentityEmbedding(make_task(3), 5, calendar_size)
        found = embedding(torch.tensor([[23, 0], [4, 6]]))
        assert found.shape == (2, 3, embedding.width) and embedding.width == 5 + 2 * (calendar_size or 5)
        for window, (hour, day) in enumerate([(23, 0), (4, 6)]):
            for node in range(3):
                wanted = [embedding.node[node], embedding.slots[0].weight[hour], embedding.slots[1].weight[day]]
                assert torch.equal(found[window, node], torch.cat(wanted))


def test_every_parameter_is_trained():
    context, noisy, endpoint, step = denoiser_inputs()
    stid, denoiser = make_stid(), make_denoiser()
    stid(context).square().sum().backward()
    denoise(denoiser, context, noisy, endpoint, step).square().sum().backward()
    for model in (stid, denoiser):
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Stage 1: STID

def test_without_climatology_and_tokens_stid_is_the_published_network():
    """Whose forecast does not depend on the climatology, whatever that is; one node does not see the others."""
    context = windows()
    model = make_stid()
    assert not any(isinstance(module, TokenMixer) for module in model.modules()) and model.initial is None
    nowhere = with_parts(context, climatology=torch.full_like(context.climatology, math.nan))
    assert torch.equal(model(context), model(nowhere))
    hidden = torch.cat([model.embed(context.history.mT), model.identity(context.calendar)], dim=-1)
    assert torch.equal(model(context), model.project(model.blocks(hidden)).mT)
    assert model.embed.in_features == HISTORY and len(model.blocks) == 2


def test_the_published_network_of_sst_has_8_blocks_of_width_160_and_447308_weights():
    """The release's: embedding 64, node 64, month 32; 500 nodes, 12 + 12 months."""
    settings = dict(channels=64, calendar_channels=32, layers=8, climatology=False, tokens=0)
    model = STID(Task(500, 12, 12, (12,)), "mse", **settings)
    assert sum(weight.numel() for weight in model.parameters()) == 447_308
    assert [block.expand.weight.shape for block in model.blocks] == [(160, 160)] * 8


def test_stid_with_tokens_treats_nodes_by_history_climatology_and_identity_alone():
    context, node = windows(3), torch.tensor([2, 0, 3, 1])
    model = make_backbone("stid")
    before = model(context)
    model.identity.node.data = model.identity.node.data[node]
    moved = with_parts(context, history=context.history[..., node], climatology=context.climatology[..., node])
    torch.testing.assert_close(model(moved), before[..., node])


def test_the_quantile_loss_is_least_at_the_quantiles_of_the_data():
    """A network of constants, fitted: its outputs become the quantiles of a skewed law."""
    model = make_stid(1, objective="quantiles", layers=0)
    future = torch.distributions.Exponential(1.0).sample((4000, HORIZON, 1))
    context = Context(torch.zeros(1000, HISTORY, 1), torch.zeros(1000, 2, dtype=torch.long), torch.zeros(1000, 8, 1))
    optimizer = torch.optim.Adam([model.project.bias], lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 300 else 0.005
        optimizer.zero_grad()
        model.loss(future[:1000], context).backward()
        optimizer.step()
    found = model.predict(context)[0, :, :, 0]
    wanted = future[:1000, :, 0].quantile(torch.tensor(QUANTILE_LEVELS), dim=0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.06)


# Stage 1: every network

@every_backbone
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("sizes", CYCLES)
def test_a_mean_model_gives_its_outputs_and_their_mean_for_one_to_three_cycles(backbone, objective, sizes):
    model, context = make_backbone(backbone, objective, sizes), windows(3, sizes=sizes)
    predicted = model.predict(context)
    assert predicted.shape == (3, len(QUANTILE_LEVELS) if objective == "quantiles" else 1, HORIZON, NODES)
    torch.testing.assert_close(model(context), predicted.mean(1))


@every_backbone
def test_losses_are_the_squared_the_absolute_and_twice_the_pinball_error(backbone):
    future, context = torch.randn(3, HORIZON, NODES), windows(3)
    errors = {"mse": lambda predicted: (predicted[:, 0] - future).square(),
              "mae": lambda predicted: (predicted[:, 0] - future).abs(), "quantiles": lambda q: pinball(q, future)}
    for objective, error in errors.items():
        model = make_backbone(backbone, objective)
        torch.testing.assert_close(model.loss(future, context), error(model.predict(context)).mean())


@pytest.mark.parametrize("backbone", OURS)
@pytest.mark.parametrize("objective", ["mse", "quantiles"])
def test_every_step_of_the_climatology_matters(backbone, objective):
    """DLinear takes the climatology of the horizon as it is, step by step."""
    context = windows()
    model, climatology = make_backbone(backbone, objective), context.climatology.requires_grad_()
    forecast = model(context)
    for step in range(HORIZON):
        gradient, = torch.autograd.grad(forecast[1, step, 2], climatology, retain_graph=True)
        seen = gradient[1, :, 2] != 0
        if backbone == "dlinear":
            assert seen[:HISTORY].all() and seen[HISTORY:].nonzero().tolist() == [[step]]
        else:
            assert seen.all()
        assert (gradient[0] == 0).all()


@pytest.mark.parametrize("backbone", OURS)
def test_a_network_whose_outputs_are_zero_forecasts_a_mixture_of_the_last_value_and_the_climatology(backbone):
    context, model = windows(), make_backbone(backbone)
    for name, weight in model.named_parameters():
        if name.startswith(("project", "trend_map", "remainder_map")):
            torch.nn.init.zeros_(weight)
    last, climatology = context.history[:, -1:], context.future_climatology
    torch.testing.assert_close(model(context), (last + climatology) / 2)
    model.initial.share.data = torch.tensor([100.0, -100.0, 0.0])
    forecast = model(context)
    torch.testing.assert_close(forecast[:, 0], context.history[:, -1])
    torch.testing.assert_close(forecast[:, 1], climatology[:, 1])


@every_backbone
@pytest.mark.parametrize("objective", ["mse", "quantiles"])
def test_every_parameter_of_a_mean_model_is_trained(backbone, objective):
    model, observed = make_backbone(backbone, objective, masked=True, covariates=2, lags=1), masked_windows(16).observed
    context = windows(16, observed=observed, covariates=torch.randn(16, HISTORY + HORIZON, 1, 2),
                      lags=torch.randn(16, HISTORY + HORIZON, NODES, 1))
    model.loss(torch.randn(16, HORIZON, NODES), context).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("backbone", ["stid", "itransformer"])
def test_with_tokens_or_attention_nodes_see_each_other_and_windows_do_not(backbone):
    context, model = windows(3), make_backbone(backbone)
    before = model(context)
    history = context.history.clone()
    history[1, :, 2] += 1
    moved = (model(with_parts(context, history=history)) - before).abs().amax(1)
    assert (moved[1] > 1e-5).all() and (moved[[0, 2]] == 0).all()


def test_dlinear_maps_the_moving_average_of_a_history_and_what_is_left_of_it():
    """The average over three steps of five, the ends repeated, and the same map for every node."""
    model, context = make_backbone("dlinear"), windows()
    model.half = 1
    anomaly = context.history - context.climatology[:, :HISTORY]
    padded = torch.cat([anomaly[:, :1], anomaly, anomaly[:, -1:]], dim=1)
    trend = torch.stack([padded[:, step:step + 3].mean(1) for step in range(HISTORY)], dim=1)
    change = (torch.einsum("ph,bhv->bpv", model.trend_map.weight, trend) + model.trend_map.bias.view(1, -1, 1)
              + torch.einsum("ph,bhv->bpv", model.remainder_map.weight, anomaly - trend)
              + model.remainder_map.bias.view(1, -1, 1))
    torch.testing.assert_close(model(context), change + model.initial(context))


@pytest.mark.parametrize("history_len, half", [(1, 0), (2, 0), (3, 1), (5, 2), (25, 12), (60, 12)])
def test_the_moving_average_of_dlinear_fits_into_the_history(history_len, half):
    model = MEAN_MODELS["dlinear"](Task(2, history_len, 3, (24,)), "mse")
    context = Context(torch.randn(2, history_len, 2), torch.zeros(2, 1, dtype=torch.long),
                      torch.randn(2, history_len + 3, 2))
    assert model.half == half and model(context).shape == (2, 3, 2)


@pytest.mark.parametrize("backbone", OURS)
def test_flags_of_a_network_that_a_backbone_does_not_take_are_those_without_effect(backbone):
    """The constructor takes a flag by its name without `mean_`, see `build_mean_model`."""
    flags = {item.name for item in dataclasses.fields(PretrainConfig) if item.metadata["group"] == NETWORK}
    taken = inspect.signature(MEAN_MODELS[backbone]).parameters.keys()
    unread = {name for name in flags if name.removeprefix("mean_") not in taken}
    unread -= {"mean_model", "networks", "linear_modes"}
    assert unread == set(WITHOUT_EFFECT["mean_model"].get(backbone, ()))


# Several networks

@every_backbone
def test_an_ensemble_is_the_average_of_its_networks_whose_quantiles_are_sorted(backbone):
    context = windows(3)
    model = CorrectedMean(make_task(), [make_backbone(backbone, "quantiles") for _ in range(3)]).eval()
    own = [network.predict(context) for network in model.networks]
    assert (own[0].diff(dim=1) < 0).any(), "an untrained network has its outputs in any order"
    found = [each.sort(1).values for each in own]
    assert (found[0] - found[1]).abs().max() > 0, "they start from different weights"
    torch.testing.assert_close(model.predict(context), (found[0] + found[1] + found[2]) / 3)
    assert (model.predict(context).diff(dim=1) >= 0).all()
    torch.testing.assert_close(model(context), model.predict(context).mean(1))


@every_backbone
def test_the_networks_of_an_ensemble_are_trained_on_their_own_losses_and_judged_together(backbone):
    future, context = torch.randn(3, HORIZON, NODES), windows(3)
    model = CorrectedMean(make_task(), [make_backbone(backbone, "quantiles", dropout=0.0) for _ in range(3)])
    own = [network.loss(future, context) for network in model.networks]
    torch.testing.assert_close(model.eval().loss(future, context), pinball(model.predict(context), future).mean())
    torch.testing.assert_close(model.train().loss(future, context), sum(own) / 3)
    assert model.eval().loss(future, context) < sum(own) / 3, "the loss is convex"


@every_backbone
def test_a_built_mean_model_is_an_average_whose_corrections_change_nothing_until_calibrated(backbone):
    settings = checkpoint.settings(PretrainConfig(history_len=HISTORY, predict_len=HORIZON, mean_model=backbone,
                                                  mean_channels=8, mean_layers=2))
    metadata = {"num_nodes": NODES, "calendar_sizes": [24, 7], "masked": False, "covariates": {}, "lag_steps": []}
    for objective in OBJECTIVES:
        model = build_mean_model({**settings, "objective": objective}, metadata).eval()
        context, alone = windows(), CorrectedMean(make_task(), [*model.networks]).eval()
        assert len(model.networks) == 3 and model.objective == objective
        assert None not in (model.modes, model.recalibration, model.base)
        torch.testing.assert_close(model.predict(context), alone.predict(context), rtol=0, atol=1e-5)
        assert torch.equal(model.loss(torch.zeros(2, HORIZON, NODES), context),
                           alone.loss(torch.zeros(2, HORIZON, NODES), context))
    plain = build_mean_model({**settings, "linear_modes": 0, "base": "none", "recalibrate": False, "networks": 1},
                             metadata)
    assert plain.modes is plain.recalibration is plain.base is None and len(plain.networks) == 1


def test_weights_of_earlier_versions_are_loaded():
    """There each correction was a module around an inner one."""
    one, other = (CorrectedMean(make_task(), [make_backbone("stid", "mse")], modes=2, recalibrate=True, base=True)
                  for _ in range(2))
    nested = {"networks": "inner.inner.inner.", "modes": "inner.inner.", "recalibration": "inner.", "spread": "inner."}
    weights = {nested.get(name.split(".")[0], "") + name: value for name, value in one.state_dict().items()}
    other.load_state_dict(weights)
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in other.state_dict().items())


# Tokens

def test_a_token_mixer_starts_as_the_identity():
    hidden = torch.randn(2, 7, 6)
    assert torch.equal(TokenMixer(6, 3)(hidden), hidden)


def trained_mixer(width=6, tokens=3):
    mixer = TokenMixer(width, tokens)
    torch.nn.init.normal_(mixer.out.weight)
    torch.nn.init.normal_(mixer.out.bias)
    return mixer


def test_permuting_the_nodes_permutes_the_output_of_a_token_mixer():
    mixer, hidden, order = trained_mixer(), torch.randn(2, 7, 6), torch.randperm(7)
    mixed = mixer(hidden)
    assert not torch.allclose(mixed, hidden)
    torch.testing.assert_close(mixer(hidden[:, order]), mixed[:, order])


def test_a_token_mixer_carries_every_node_to_every_other_and_no_window_to_another():
    mixer, hidden = trained_mixer(), torch.randn(2, 7, 6, requires_grad=True)
    gradient, = torch.autograd.grad(mixer(hidden)[1, 3].sum(), hidden)
    assert (gradient[1].abs().amax(1) > 0).all() and (gradient[0] == 0).all()


def test_a_token_mixer_reads_a_weighted_mean_of_the_nodes_and_writes_a_mixture_of_the_tokens():
    mixer, hidden = trained_mixer(), torch.randn(1, 7, 6)
    read = torch.exp(mixer.read(hidden[0]))
    tokens = (read / read.sum(0)).T @ mixer.value(hidden[0])
    tokens = tokens + mixer.mlp(tokens)
    write = torch.exp(mixer.write(hidden[0]))
    wanted = hidden[0] + mixer.out(write / write.sum(1, keepdim=True) @ tokens)
    torch.testing.assert_close(mixer(hidden)[0], wanted)


# Denoiser

def test_a_denoiser_without_endpoint_has_no_weights_for_one():
    model, (context, noisy, _, step) = make_denoiser(endpoint=False), denoiser_inputs()
    assert not [name for name, _ in model.named_parameters() if "endpoint" in name]
    assert model(noisy, step, model.encode(context.history, context.calendar, None, None)).shape == noisy.shape


def test_every_input_of_the_denoiser_matters():
    inputs, other = denoiser_inputs(), denoiser_inputs()
    context = inputs[0]
    changes = {
        "history": (with_parts(context, history=other[0].history), *inputs[1:]),
        "calendar": (with_parts(context, calendar=(context.calendar + 3) % torch.tensor([24, 7])), *inputs[1:]),
        "noisy": (context, other[1], *inputs[2:]), "endpoint": (*inputs[:2], other[2], inputs[3]),
        "step": (*inputs[:3], (inputs[3] + 10) % 50),
    }
    model = make_denoiser()
    before = denoise(model, *inputs)
    for name, changed in changes.items():
        assert (denoise(model, *changed) - before).abs().amax((1, 2)).min() > 1e-3, name


def joined(model, context, noisy, endpoint, step, row, node):
    """The same output of one window and node by one first layer on [inputs, endpoint, noisy], added up by hand."""
    channels = model.embed_inputs.out_features
    hidden = torch.zeros(model.project.in_features, dtype=torch.float64)
    hidden[:channels] = model.embed_inputs.weight @ context.history[row, :, node] + model.embed_inputs.bias
    hidden[channels:] = model.identity(context.calendar)[row, node]
    for part in (model.embed_endpoint.weight @ endpoint[row, :, node], model.embed_noisy.weight @ noisy[row, :, node],
                 model.embed_step(step)[row]):
        hidden[:len(part)] += part
    for block in model.blocks:
        inner = torch.clamp(block.expand.weight @ hidden + block.expand.bias, min=0)
        hidden = hidden + block.contract.weight @ inner + block.contract.bias
    return model.project.weight @ hidden + model.project.bias


@pytest.mark.parametrize("name", ["mlp", "stid"])
def test_denoiser_in_parts_is_one_network_fed_with_everything(name):
    """One first layer on [history, endpoint, noisy, 1], then identity, step, blocks and projection."""
    model = make_denoiser(network=DENOISERS[name]).double()
    context, noisy, endpoint, step = denoiser_inputs(3)
    context = Context(context.history.double(), context.calendar, context.climatology.double())
    noisy, endpoint = noisy.double(), endpoint.double()
    found = denoise(model, context, noisy, endpoint, step)
    for row, node in itertools.product(range(3), range(NODES)):
        wanted = joined(model, context, noisy, endpoint, step, row, node)
        torch.testing.assert_close(found[row, :, node], wanted, rtol=0, atol=1e-10)


def test_one_context_and_one_step_serve_all_members():
    model = make_denoiser()
    context, noisy, endpoint, _ = denoiser_inputs(6)
    one = Context(context.history[:1], context.calendar[:1], context.climatology[:1])
    many = Context(one.history.expand(6, -1, -1), one.calendar.expand(6, -1), one.climatology.expand(6, -1, -1))
    shared = denoise(model, one, noisy, endpoint, torch.tensor([9]))
    assert shared.shape == (6, HORIZON, NODES)
    torch.testing.assert_close(shared, denoise(model, many, noisy, endpoint, torch.full((6,), 9)))
    for member in range(6):
        alone = denoise(model, one, noisy[member:member + 1], endpoint[member:member + 1], torch.tensor([9]))
        torch.testing.assert_close(shared[member:member + 1], alone)


@pytest.mark.parametrize("name", ["mlp", "stid"])
def test_every_diffusion_step_gives_an_output_of_its_own(name):
    model = make_denoiser(network=DENOISERS[name])
    context, noisy, endpoint, _ = denoiser_inputs(1)
    noisy, endpoint = (values.expand(50, -1, -1) for values in (noisy, endpoint))
    output = denoise(model, context, noisy, endpoint, torch.arange(50)).flatten(1)
    assert torch.cdist(output, output)[~torch.eye(50, dtype=torch.bool)].min() > 1e-3


@pytest.mark.parametrize("highest", [1e-4, 1e4])
def test_step_embedding_is_sines_and_cosines_of_frequencies_from_one_to_the_highest(highest):
    embedding = StepEmbedding(width=6, size=8, highest=highest)
    embedding.project = torch.nn.Identity()
    found = embedding(torch.tensor([0, 3]))
    angles = [3 * highest ** (index / 3) for index in range(4)]
    assert found[0].tolist() == [0] * 4 + [1] * 4
    assert found[1].tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=5e-3)


def test_rounding_to_bfloat16_changes_the_predicted_noise_by_at_most_two_per_cent():
    """Root mean square of the difference, as a share of the output's: at full depth, one rounding after another."""
    model = make_denoiser(channels=64, layers=8, embedding=16)
    inputs = denoiser_inputs(16)
    with torch.no_grad():
        full = denoise(model, *inputs)
        model.round_to(torch.bfloat16)
        rounded = denoise(model, *inputs)
    error = (rounded.float() - full).square().mean().sqrt() / full.square().mean().sqrt()
    assert 0 < error < 0.02
    assert rounded.dtype == torch.bfloat16, "the blocks did not run in bfloat16"
    kept = {parameter.dtype for name, parameter in model.named_parameters()
            if not name.startswith(("blocks", "proj", "embed_noisy"))}
    assert kept == {torch.float32}, "what makes the context was rounded"


# The denoiser of the release

def published_denoiser():
    """That of MobileNJ: 560 nodes, 12 + 12 hours, with the settings of the recipe."""
    return DENOISERS["stid"](Task(560, 12, 12, (24, 7)), 12, channels=128, layers=8, embedding=32, endpoint=True)


def test_the_published_denoiser_has_the_weights_of_the_release_but_for_those_without_effect():
    """Not 12 steps of an endpoint of the history (12 * 128), nor 12 outputs of the history (12 * (224 + 1))."""
    weights = sum(weight.numel() for weight in published_denoiser().parameters())
    assert weights == 886_520 - 4_236 == 886_520 - 12 * 128 - 12 * 225


def test_the_step_code_of_the_release_has_rising_frequencies_and_one_layer_more():
    model = published_denoiser()
    code, frequencies = model.embed_step[0], model.embed_step[0].frequencies
    assert len(frequencies) == 64 and frequencies[[0, 63]].tolist() == pytest.approx([1, 1e4], rel=1e-5)
    torch.testing.assert_close(frequencies, 10 ** (4 * torch.arange(64) / 63), rtol=1e-5, atol=0)
    layers = [module for part in (code.project, model.embed_step[1:]) for module in part]
    assert [type(layer).__name__ for layer in layers] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert all(layer.weight.shape == (128, 128) for layer in layers[::2])


def test_sample_endpoint_and_step_enter_the_leading_128_channels_alone():
    """With blocks that add nothing, identity is what the last layer sees in the other 96."""
    model, seen = published_denoiser().eval(), []
    model.blocks = torch.nn.Identity()
    model.project.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    calendar = torch.tensor([[3, 2]])
    for step in (0, 49):
        context = Context(torch.randn(1, 12, 560), calendar, torch.randn(1, 24, 560))
        denoise(model, context, torch.randn(1, 12, 560), torch.randn(1, 12, 560), torch.tensor([step]))
    one, other = seen
    assert torch.equal(one[..., 128:], model.identity(calendar)) and torch.equal(one[..., 128:], other[..., 128:])
    assert ((one - other)[..., :128].abs().amax((0, 1)) > 0).all()


def test_the_first_layer_of_the_release_is_initialised_as_one_of_48_inputs():
    model = published_denoiser()
    for weight in (model.embed_inputs.weight, model.embed_endpoint.weight, model.embed_noisy.weight):
        assert 0.95 * 48**-0.5 < weight.abs().max() <= 48**-0.5
        assert float(weight.detach().std()) == pytest.approx(48**-0.5 / 3**0.5, rel=0.05)


# Layers

def test_residual_block_adds_two_linear_layers_around_a_relu():
    block = ResidualBlock(6, dropout=0.5).eval()
    hidden = torch.randn(2, 3, 6)
    kept = hidden.clone()
    inner = torch.clamp(torch.nn.functional.linear(hidden, block.expand.weight, block.expand.bias), min=0)
    wanted = hidden + torch.nn.functional.linear(inner, block.contract.weight, block.contract.bias)
    torch.testing.assert_close(block(hidden), wanted)
    assert torch.equal(hidden, kept)


def test_gradients_of_a_block_in_training_are_those_of_finite_differences():
    block = ResidualBlock(5, dropout=0.3).double().train()

    def forward(hidden):
        torch.manual_seed(3)
        return block(hidden)

    assert torch.autograd.gradcheck(forward, torch.randn(4, 5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("make", [make_stid, make_denoiser, functools.partial(make_backbone, "stid"),
                                  functools.partial(make_backbone, "itransformer")])
def test_dropout_acts_in_training_and_not_in_evaluation(make):
    model, inputs = make(dropout=0.3), denoiser_inputs()
    run = (lambda: denoise(model, *inputs)) if make is make_denoiser else (lambda: model(inputs[0]))
    before = run()
    assert torch.equal(run(), before)
    model.train()
    noisy = run()
    assert not torch.allclose(noisy, before) and not torch.allclose(run(), noisy)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_expectation(share):
    dropout, values = Dropout(share).train(), torch.full((400, 500), 3.0)
    kept = dropout(values)
    bound = 5 * math.sqrt(share * (1 - share) / values.numel())
    assert float((kept == 0).float().mean()) == pytest.approx(share, abs=bound)
    assert float(kept.mean()) == pytest.approx(3, abs=3 * bound / (1 - share) + 1e-4)
    torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], 3 / (1 - share)), rtol=2e-4, atol=0)
    assert (values == 3).all()


def test_dropped_values_are_independent_of_their_neighbours():
    """One random number decides about four values: their four decisions must not hang together."""
    dropped = (Dropout(0.3).train()(torch.ones(100_000, 8)) == 0).double()
    correlation = torch.corrcoef(dropped.T)
    assert (correlation - torch.eye(8)).abs().max() < 5 / math.sqrt(100_000)
    assert (dropped.mean(0) - 0.3).abs().max() < 5 * math.sqrt(0.21 / 100_000)
    rows = torch.corrcoef(torch.stack([dropped[1:].flatten(), dropped[:-1].flatten()]))
    assert abs(rows[0, 1]) < 5 / math.sqrt(dropped.numel())


def test_dropout_gradient_passes_where_the_value_passed():
    values = torch.randn(7, 9, 3, requires_grad=True)
    kept = Dropout(0.4).train()(values)
    kept.sum().backward()
    mask = (kept != 0).float() / (1 - 0.4)
    torch.testing.assert_close(values.grad, mask, rtol=1e-4, atol=0)
    torch.testing.assert_close(kept, values * values.grad)


def test_dropout_follows_from_the_seed_alone():
    dropout, values = Dropout(0.5).train(), torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(values), dropout(values)
    torch.manual_seed(1)
    assert torch.equal(dropout(values), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (5, 1), (2, 3, 7), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_takes_any_shape_and_keeps_the_type(shape, dtype):
    kept = Dropout(0.5).train()(torch.ones(shape, dtype=dtype))
    assert kept.shape == shape and kept.dtype == dtype
    assert set(kept.flatten().tolist()) <= {0.0, 2.0}


def test_dropout_is_the_identity_in_evaluation_and_at_share_zero():
    values = torch.randn(100)
    before = torch.get_rng_state()
    assert Dropout(0.5).eval()(values) is values
    assert Dropout(0.0).train()(values) is values
    assert torch.equal(torch.get_rng_state(), before)


# Missing values

def masked_windows(batch=3):
    context = windows(batch, observed=torch.rand(batch, HISTORY, NODES) < 0.7,
                      target_mask=torch.rand(batch, HORIZON, NODES) < 0.7)
    history = context.history.where(context.observed, context.climatology[:, :HISTORY])
    return with_parts(context, history=history)


@every_backbone
@pytest.mark.parametrize("objective", ["mse", "quantiles"])
def test_a_history_without_gaps_gives_the_forecast_of_a_network_that_knows_none(backbone, objective):
    torch.manual_seed(1)
    plain = MEAN_MODELS[backbone](make_task(), objective).eval()
    torch.manual_seed(1)
    masked = MEAN_MODELS[backbone](make_task(masked=True), objective).eval()
    added, = set(masked.state_dict()) - set(plain.state_dict())
    assert added == "extra.gaps.weight" and masked.extra.gaps.weight.abs().max() == 0
    masked.load_state_dict({**plain.state_dict(), added: torch.randn_like(masked.extra.gaps.weight)})
    context = windows(3)
    full = with_parts(context, observed=torch.ones(3, HISTORY, NODES, dtype=torch.bool))
    assert torch.equal(masked(full), plain(context))


def test_gaps_change_no_other_initial_weight_of_stid():
    weights = []
    for masked in (False, True):
        torch.manual_seed(1)
        weights.append(make_stid(climatology=True, tokens=3, metadata={"masked": masked}).state_dict())
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


@every_backbone
@pytest.mark.parametrize("objective", ["mse", "quantiles"])
def test_the_forecast_depends_on_which_of_the_history_is_missing_and_on_nothing_of_the_future(backbone, objective):
    model, context = make_backbone(backbone, objective, masked=True), masked_windows()
    forecast, observed = model(context), context.observed.clone()
    assert torch.equal(model(with_parts(context, target_mask=~context.target_mask)), forecast)
    observed[1, 2, 3] = ~observed[1, 2, 3]
    moved = (model(with_parts(context, observed=observed)) - forecast).abs().amax((1, 2))
    assert moved[1] > 1e-4 and (moved[[0, 2]] == 0).all()


@every_backbone
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_missing_target_changes_no_loss_of_stage_1_and_no_gradient(backbone, objective):
    model, context = make_backbone(backbone, objective, masked=True), masked_windows()
    future, scored, found = torch.randn(3, HORIZON, NODES), context.target_mask, []
    for value in (0.0, 1e9):
        model.zero_grad()
        loss = model.loss(future.where(scored, value), context)
        loss.backward()
        found.append([loss.detach()] + [weight.grad.clone() for weight in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert model.loss(future, with_parts(context, target_mask=torch.zeros_like(scored))) == 0


def test_losses_count_what_is_observed_and_average_by_windows():
    context, future = masked_windows(), torch.randn(3, HORIZON, NODES)
    scored = context.target_mask
    for objective in ("mse", "quantiles"):
        model = make_backbone("stid", objective, masked=True)
        predicted = model.predict(context)
        errors = pinball(predicted, future) if objective == "quantiles" else (predicted - future[:, None]).square()
        torch.testing.assert_close(model.loss(future, context), errors.transpose(0, 1)[:, scored].sum()
                                   / scored.numel() / errors.shape[1])


@every_backbone
def test_a_network_that_was_trained_without_gaps_refuses_them(backbone):
    with pytest.raises(ValueError, match="train with --missing mask"):
        make_backbone(backbone)(masked_windows())


# Covariates and lags

@every_backbone
@pytest.mark.parametrize("metadata", [{"covariates": 2}, {"lags": 2}, {"covariates": 2, "lags": 2}])
def test_every_feature_of_history_and_horizon_reaches_the_forecast(backbone, metadata):
    steps, model = (3, HISTORY + HORIZON), make_backbone(backbone, **metadata)
    parts = {name: torch.randn(*steps, NODES if name == "lags" else 1, count, requires_grad=True)
             for name, count in metadata.items()}
    context = windows(3, **parts)
    forecast = model(context)
    assert forecast.shape == (3, HORIZON, NODES)
    gradients = torch.autograd.grad(forecast[1].square().sum(), list(parts.values()))
    for name, gradient in zip(parts, gradients, strict=True):
        assert (gradient[1].abs().amax(1) > 0).all() and (gradient[[0, 2]] == 0).all(), name


@every_backbone
def test_a_network_refuses_features_that_it_was_not_made_for_and_misses_those_that_it_was(backbone):
    covariates = torch.randn(2, HISTORY + HORIZON, 1, 2)
    for model, context in ((make_backbone(backbone), windows(covariates=covariates)),
                           (make_backbone(backbone, covariates=2), windows())):
        with pytest.raises(ValueError, match="needs the covariates that it was trained with"):
            model(context)


def test_dropout_can_be_compiled_for_batches_of_several_sizes():
    """aot_eager traces as the default compiler does, and generates no code: seconds instead of half a minute."""
    dropout = Dropout(0.3).train()
    compiled = torch.compile(dropout, backend="aot_eager")
    for batch in (15, 4, 1):
        values = torch.randn(batch, 4, 16)
        torch.manual_seed(batch)
        expected = dropout(values)
        torch.manual_seed(batch)
        assert torch.equal(compiled(values), expected)


def test_an_itransformer_without_layers_is_a_network_too():
    model = ITransformer(make_task(), "mse", channels=8, layers=0)
    context = Context(torch.zeros(2, HISTORY, NODES), torch.zeros(2, 2, dtype=torch.long),
                      torch.zeros(2, HISTORY + HORIZON, NODES))
    assert model.predict(context).shape == (2, 1, HORIZON, NODES)
