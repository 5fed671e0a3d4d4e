"""The networks: what reaches what, in which shapes, and what training and rounding do to them."""

import itertools
import math

import pytest
import torch

from data.windows import Extras
from models import DENOISERS, MEAN_MODELS
from models.denoiser import MLPDenoiser
from models.layers import Dropout, ExtraInputs, IdentityEmbedding, ResidualBlock, StepEmbedding, TokenMixer
from models.quantiles import LEVELS, pinball
from models.stid import STID, QuantileSTID

HISTORY, HORIZON, NODES = 5, 3, 4
CYCLES = (12,), (24, 7), (4, 7, 12)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(7)


def windows(batch=2, nodes=NODES, sizes=(24, 7)):
    calendar = torch.stack([torch.randint(size, (batch,)) for size in sizes], dim=1)
    return torch.randn(batch, HISTORY, nodes), calendar


def usual(batch=2, nodes=NODES):
    """A climatology of history and horizon."""
    return torch.randn(batch, HISTORY + HORIZON, nodes)


def make_stid(nodes=NODES, sizes=(24, 7), network=STID, **settings):
    """Stage 1, the published one unless `settings` say otherwise."""
    settings = {"channels": 8, "layers": 2, "climatology": False, "tokens": 0, **settings}
    return network(nodes, HISTORY, HORIZON, sizes, **settings).eval()


def make_full_stid(network=STID, **settings):
    """Stage 1 with everything that it can see, and tokens that already carry something."""
    model = make_stid(network=network, **{"climatology": True, "tokens": 3, **settings})
    for module in model.modules():
        if isinstance(module, TokenMixer):
            torch.nn.init.normal_(module.out.weight, std=0.3)
    return model


def make_denoiser(nodes=NODES, sizes=(24, 7), **settings):
    settings = {"channels": 16, "layers": 2, "embedding": 8, **settings}
    return MLPDenoiser(nodes, HISTORY, HORIZON, sizes, **settings).eval()


def denoise(model, history, calendar, noisy, endpoint, step):
    return model(noisy, step, model.condition(model.encode(history, calendar), endpoint))


def denoiser_inputs(batch=2, nodes=NODES, sizes=(24, 7)):
    """History, calendar, noisy residual, endpoint, step."""
    return (*windows(batch, nodes, sizes), torch.randn(batch, HORIZON, nodes), torch.randn(batch, HORIZON, nodes),
            torch.randint(50, (batch,)))


def both(nodes=NODES, sizes=(24, 7), batch=2):
    """Mean model and denoiser as functions of (history, calendar), the other inputs held fixed."""
    stid, denoiser, climatology = make_stid(nodes, sizes), make_denoiser(nodes, sizes), usual(batch, nodes)
    noisy, endpoint, step = denoiser_inputs(batch, nodes, sizes)[2:]

    def predict(history, calendar):
        return denoise(denoiser, history, calendar, noisy, endpoint, step)

    return (stid, lambda history, calendar: stid(history, calendar, climatology)), (denoiser, predict)


# Shapes

@pytest.mark.parametrize("sizes", CYCLES)
@pytest.mark.parametrize("nodes, batch", [(1, 1), (1, 3), (NODES, 1), (NODES, 3)])
def test_forecasts_have_batch_horizon_and_node_axes_for_one_to_three_cycles(sizes, nodes, batch):
    history, calendar = windows(batch, nodes, sizes)
    for _, predict in both(nodes, sizes, batch):
        assert predict(history, calendar).shape == (batch, HORIZON, nodes)


def test_the_registered_networks_share_one_constructor():
    for network in (*MEAN_MODELS.values(), *DENOISERS.values()):
        network(NODES, HISTORY, HORIZON, (24, 7), channels=8, layers=1, dropout=0.1)


# What reaches what

def test_axes_are_never_mixed_up_a_node_is_treated_by_its_own_history_and_identity_alone():
    """Nodes and windows reordered, identities with them: the forecast is reordered, and nothing else changes."""
    history, calendar = windows(3)
    node, window = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 0])
    stid, denoiser = make_stid(), make_denoiser()
    noisy, endpoint, step = denoiser_inputs(3)[2:]
    before = stid(history, calendar, usual(3)), denoise(denoiser, history, calendar, noisy, endpoint, step)
    for model in (stid, denoiser):
        model.identity.node.data = model.identity.node.data[node]
    pick = lambda values: values[window][..., node]  # noqa: E731
    after = stid(pick(history), calendar[window], usual(3)), denoise(
        denoiser, pick(history), calendar[window], pick(noisy), pick(endpoint), step[window])
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(pick(first), second)


def test_every_history_step_matters_to_every_forecast_step_of_its_node():
    calendar = windows()[1]
    for _, predict in both():
        history = windows()[0].requires_grad_()
        forecast = predict(history, calendar)
        for step, node in itertools.product(range(HORIZON), range(NODES)):
            gradient, = torch.autograd.grad(forecast[1, step, node], history, retain_graph=True)
            assert (gradient[1, :, node] != 0).all()
            gradient[1, :, node] = 0
            assert (gradient == 0).all()


def test_nodes_with_the_same_history_get_different_forecasts():
    history, calendar = windows()
    history = history[..., :1].expand(-1, -1, NODES)
    stid, denoiser = make_stid(), make_denoiser()
    same = torch.zeros(2, HORIZON, NODES)
    for forecast in (stid(history, calendar, usual()),
                     denoise(denoiser, history, calendar, same, same, torch.tensor([3]))):
        for one, other in itertools.combinations(range(NODES), 2):
            assert (forecast[..., one] - forecast[..., other]).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", CYCLES)
def test_every_slot_of_every_calendar_cycle_gives_a_forecast_of_its_own(sizes):
    """The authors' release read row 0 whatever the time."""
    for cycle, size in enumerate(sizes):
        calendar = torch.tensor([[other // 2 for other in sizes]]).repeat(size, 1)
        calendar[:, cycle] = torch.arange(size)
        history = windows(1, NODES, sizes)[0].expand(size, -1, -1)
        denoiser = make_denoiser(sizes=sizes)
        same = torch.zeros(size, HORIZON, NODES)
        for forecast in (make_stid(sizes=sizes)(history, calendar, usual(size)),
                         denoise(denoiser, history, calendar, same, same, torch.tensor([3]))):
            distance = torch.cdist(forecast.flatten(1), forecast.flatten(1))
            assert distance[~torch.eye(size, dtype=torch.bool)].min() > 1e-3


@pytest.mark.parametrize("sizes", CYCLES)
def test_gradients_reach_exactly_the_calendar_slots_of_the_batch(sizes):
    calendar = torch.tensor([[size - 1 for size in sizes], [1] * len(sizes), [size - 1 for size in sizes]])
    history = windows(3, NODES, sizes)[0]
    for model, predict in both(NODES, sizes, 3):
        predict(history, calendar).square().sum().backward()
        for table, size in zip(model.identity.slots, sizes, strict=True):
            assert table.weight.shape[0] == size
            assert table.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1, size - 1]
        assert (model.identity.node.grad.abs().sum(1) > 0).all()


def test_identity_is_the_vector_of_the_node_followed_by_one_per_cycle():
    embedding = IdentityEmbedding(3, (24, 7), 5)
    found = embedding(torch.tensor([[23, 0], [4, 6]]))
    assert found.shape == (2, 3, embedding.width) and embedding.width == 15
    for window, (hour, day) in enumerate([(23, 0), (4, 6)]):
        for node in range(3):
            wanted = torch.cat([embedding.node[node], embedding.slots[0].weight[hour], embedding.slots[1].weight[day]])
            assert torch.equal(found[window, node], wanted)


def test_every_parameter_is_trained():
    history, calendar, noisy, endpoint, step = denoiser_inputs()
    stid, denoiser = make_stid(), make_denoiser()
    stid(history, calendar, usual()).square().sum().backward()
    denoise(denoiser, history, calendar, noisy, endpoint, step).square().sum().backward()
    for model in (stid, denoiser):
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Stage 1

def test_without_climatology_and_tokens_stid_is_the_published_network():
    """Whose forecast does not depend on the climatology, whatever that is; one node does not see the others."""
    history, calendar = windows()
    model = make_stid()
    assert not any(isinstance(module, TokenMixer) for module in model.modules()) and model.persistence is None
    assert torch.equal(model(history, calendar, usual()), model(history, calendar, torch.full_like(usual(), math.nan)))
    hidden = torch.cat([model.embed(history.mT), model.identity(calendar)], dim=-1)
    wanted = model.project(model.blocks(hidden)).mT
    assert torch.equal(model(history, calendar, usual()), wanted)
    assert model.embed.in_features == HISTORY and len(model.blocks) == 2


@pytest.mark.parametrize("network", [STID, QuantileSTID])
def test_with_climatology_every_step_of_it_matters(network):
    history, calendar = windows()
    model, climatology = make_stid(network=network, climatology=True), usual().requires_grad_()
    forecast = model(history, calendar, climatology)
    for step in range(HORIZON):
        gradient, = torch.autograd.grad(forecast[1, step, 2], climatology, retain_graph=True)
        assert (gradient[1, :, 2] != 0).all()
        gradient[1, :, 2] = 0
        assert (gradient == 0).all()


def test_with_climatology_a_network_that_says_nothing_forecasts_a_mixture_of_the_last_value_and_the_usual():
    history, calendar = windows()
    climatology, model = usual(), make_full_stid()
    torch.nn.init.zeros_(model.project.weight)
    torch.nn.init.zeros_(model.project.bias)
    torch.testing.assert_close(model(history, calendar, climatology),
                               (history[:, -1:] + climatology[:, -HORIZON:]) / 2)
    model.persistence.data = torch.tensor([100.0, -100.0, 0.0])
    forecast = model(history, calendar, climatology)
    torch.testing.assert_close(forecast[:, 0], history[:, -1])
    torch.testing.assert_close(forecast[:, 1], climatology[:, -2])


@pytest.mark.parametrize("network", [STID, QuantileSTID])
def test_every_parameter_of_the_full_stage_1_is_trained(network):
    history, calendar = windows(16)
    model = make_full_stid(network)
    model.loss(torch.randn(16, HORIZON, NODES), history, calendar, usual(16)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_with_tokens_nodes_learn_from_each_other_and_windows_do_not():
    history, calendar = windows(3)
    model, climatology = make_full_stid(), usual(3)
    known = model(history, calendar, climatology)
    history[1, :, 2] += 1
    moved = (model(history, calendar, climatology) - known).abs().amax(1)
    assert (moved[1] > 1e-5).all() and (moved[[0, 2]] == 0).all()


def test_stage_1_with_tokens_treats_nodes_by_history_climatology_and_identity_alone():
    history, calendar = windows(3)
    node = torch.tensor([2, 0, 3, 1])
    model, climatology = make_full_stid(), usual(3)
    known = model(history, calendar, climatology)
    model.identity.node.data = model.identity.node.data[node]
    torch.testing.assert_close(model(history[..., node], calendar, climatology[..., node]), known[..., node])


@pytest.mark.parametrize("settings", [{}, {"climatology": False, "tokens": 0}])
def test_conditional_quantiles_rise_with_their_level_and_their_mean_is_the_forecast(settings):
    inputs = *windows(3), usual(3)
    model = make_full_stid(QuantileSTID, **settings)
    quantiles = model.quantiles(*inputs)
    assert quantiles.shape == (3, len(LEVELS), HORIZON, NODES)
    assert (quantiles.diff(dim=1) >= 0).all()
    outlook = model.networks[0].outlook(*inputs)
    assert (outlook.diff(dim=1) < 0).any(), "an untrained network has its outputs in any order"
    torch.testing.assert_close(model(*inputs), quantiles.mean(1))


def test_stage_1_losses_are_the_squared_error_and_twice_the_pinball_loss():
    future, inputs = torch.randn(3, HORIZON, NODES), (*windows(3), usual(3))
    mean, quantile = make_full_stid(), make_full_stid(QuantileSTID)
    torch.testing.assert_close(mean.loss(future, *inputs), (mean(*inputs) - future).square().mean())
    torch.testing.assert_close(quantile.loss(future, *inputs), pinball(quantile.quantiles(*inputs), future).mean())
    own = [pinball(network.outlook(*inputs), future).mean() for network in quantile.networks]
    for network in quantile.networks:
        network.apply(lambda module: setattr(module, "dropped", 0))  # training without chance
    torch.testing.assert_close(quantile.train().loss(future, *inputs), sum(own) / 3)


def test_quantiles_are_those_of_the_networks_on_average():
    inputs = *windows(3), usual(3)
    model = make_full_stid(QuantileSTID)
    found = [network.outlook(*inputs).sort(1).values for network in model.networks]
    assert len(found) == 3 and (found[0] - found[1]).abs().min() > 0, "they start from different weights"
    torch.testing.assert_close(model.trained_quantiles(*inputs), (found[0] + found[1] + found[2]) / 3)
    torch.testing.assert_close(model.quantiles(*inputs), model.trained_quantiles(*inputs), rtol=0, atol=1e-5)


def test_the_quantile_loss_is_least_at_the_quantiles_of_the_data():
    """A network of constants, fitted: its outputs become the quantiles of a skewed law."""
    model = make_stid(1, network=QuantileSTID, layers=0, networks=1)
    future = torch.distributions.Exponential(1.0).sample((4000, HORIZON, 1))
    inputs = torch.zeros(4000, HISTORY, 1), torch.zeros(4000, 2, dtype=torch.long), torch.zeros(4000, 8, 1)
    optimizer = torch.optim.Adam([model.networks[0].project.bias], lr=0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 if step < 300 else 0.005
        optimizer.zero_grad()
        model.loss(future[:1000], *(each[:1000] for each in inputs)).backward()
        optimizer.step()
    found = model.quantiles(*(each[:1] for each in inputs))[0, :, :, 0]
    wanted = future[:1000, :, 0].quantile(torch.tensor(LEVELS), dim=0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.06)


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
    model, (history, calendar, noisy, _, step) = make_denoiser(endpoint=False), denoiser_inputs()
    assert not [name for name, _ in model.named_parameters() if "endpoint" in name]
    assert model(noisy, step, model.encode(history, calendar)).shape == noisy.shape


def test_every_input_of_the_denoiser_matters():
    inputs, other = denoiser_inputs(), denoiser_inputs()
    model = make_denoiser()
    known = denoise(model, *inputs)
    for index in range(5):
        changed = list(inputs)
        changed[index] = other[index] if index != 4 else (inputs[4] + 10) % 50
        assert (denoise(model, *changed) - known).abs().amax((1, 2)).min() > 1e-3, index


def test_denoiser_in_parts_is_one_network_fed_with_everything():
    """One first layer on [history, endpoint, noisy, 1], then identity, step, blocks and projection."""
    model = make_denoiser().double()
    history, calendar, noisy, endpoint, step = (
        value.double() if value.is_floating_point() else value for value in denoiser_inputs(3))
    width, channels = model.project.in_features, model.embed_history.out_features
    weight = torch.zeros(width, HISTORY + 2 * HORIZON, dtype=torch.float64)
    weight[:channels, :HISTORY] = model.embed_history.weight
    weight[:, HISTORY:] = torch.cat([model.embed_endpoint.weight, model.embed_noisy.weight], dim=1)
    wanted = torch.empty(3, HORIZON, NODES, dtype=torch.float64)
    for window, node in itertools.product(range(3), range(NODES)):
        hidden = weight @ torch.cat([values[window, :, node] for values in (history, endpoint, noisy)])
        hidden[:channels] += model.embed_history.bias
        hidden[channels:] += model.identity(calendar)[window, node]
        hidden = hidden + model.embed_step(step)[window]
        for block in model.blocks:
            inner = torch.clamp(block.expand.weight @ hidden + block.expand.bias, min=0)
            hidden = hidden + block.contract.weight @ inner + block.contract.bias
        wanted[window, :, node] = model.project.weight @ hidden + model.project.bias
    torch.testing.assert_close(denoise(model, history, calendar, noisy, endpoint, step), wanted, rtol=0, atol=1e-12)


def test_one_context_and_one_step_serve_all_members():
    model = make_denoiser()
    history, calendar, noisy, endpoint, _ = denoiser_inputs(6)
    history, calendar = history[:1], calendar[:1]
    shared = denoise(model, history, calendar, noisy, endpoint, torch.tensor([9]))
    repeated = denoise(model, history.expand(6, -1, -1), calendar.expand(6, -1), noisy, endpoint, torch.full((6,), 9))
    assert shared.shape == (6, HORIZON, NODES)
    torch.testing.assert_close(shared, repeated)
    for member in range(6):
        alone = denoise(model, history, calendar, noisy[member:member + 1], endpoint[member:member + 1],
                        torch.tensor([9]))
        torch.testing.assert_close(shared[member:member + 1], alone)


def test_every_diffusion_step_gives_an_output_of_its_own():
    model = make_denoiser()
    history, calendar, noisy, endpoint, _ = denoiser_inputs(1)
    everything = (values.expand(50, *values.shape[1:]) for values in (history, calendar, noisy, endpoint))
    output = denoise(model, *everything, torch.arange(50)).flatten(1)
    assert torch.cdist(output, output)[~torch.eye(50, dtype=torch.bool)].min() > 1e-3


def test_step_embedding_is_sines_and_cosines_of_wavelengths_from_one_to_ten_thousand():
    embedding = StepEmbedding(width=6, size=8)
    embedding.project = torch.nn.Identity()
    found = embedding(torch.tensor([0, 49]))
    angles = [49 * 10 ** (-4 * index / 3) for index in range(4)]
    assert found[0].tolist() == [0] * 4 + [1] * 4
    assert found[1].tolist() == pytest.approx([*map(math.sin, angles), *map(math.cos, angles)], abs=1e-5)


def test_rounding_to_bfloat16_changes_the_predicted_noise_by_at_most_two_per_cent():
    """Root mean square of the difference, as a share of the output's: at full depth, one rounding after another."""
    model = make_denoiser(channels=64, layers=8, embedding=16)
    history, calendar, noisy, endpoint, step = denoiser_inputs(16)
    with torch.no_grad():
        full = denoise(model, history, calendar, noisy, endpoint, step)
        model.round_to(torch.bfloat16)
        rounded = denoise(model, history, calendar, noisy, endpoint, step)
    error = (rounded.float() - full).square().mean().sqrt() / full.square().mean().sqrt()
    assert 0 < error < 0.02
    assert rounded.dtype == torch.bfloat16, "the blocks did not run in bfloat16"
    kept = {parameter.dtype for name, parameter in model.named_parameters()
            if not name.startswith(("blocks", "proj", "embed_noisy"))}
    assert kept == {torch.float32}, "what makes the context was rounded"


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


@pytest.mark.parametrize("network", [make_stid, make_full_stid, make_denoiser])
def test_dropout_acts_in_training_and_not_in_evaluation(network):
    model = network(dropout=0.3)
    inputs, climatology = denoiser_inputs(), usual()
    run = (lambda: denoise(model, *inputs)) if network is make_denoiser else (lambda: model(*inputs[:2], climatology))
    known = run()
    assert torch.equal(run(), known)
    model.train()
    noisy = run()
    assert not torch.allclose(noisy, known) and not torch.allclose(run(), noisy)


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
    observed = torch.rand(batch, HISTORY + HORIZON, NODES) < 0.7
    history, calendar = windows(batch)
    return history.where(observed[:, :HISTORY], 0.0), calendar, usual(batch), Extras(observed)


def one_network(kind):
    """Settings of a stage 1 that consists of one network."""
    return {"networks": 1} if kind is QuantileSTID else {}


def weights_of_gaps(model):
    return [module.gaps.weight for module in model.modules() if isinstance(module, ExtraInputs)]


@pytest.mark.parametrize("network", [STID, QuantileSTID])
def test_a_history_without_gaps_gives_the_forecast_of_a_network_that_knows_none(network):
    torch.manual_seed(1)
    plain = make_stid(network=network, climatology=True, tokens=3, **one_network(network))
    torch.manual_seed(1)
    masked = make_stid(network=network, climatology=True, tokens=3, masked=True, **one_network(network))
    known = *windows(3), usual(3)
    full = Extras(torch.ones(3, HISTORY + HORIZON, NODES, dtype=torch.bool))
    for name, value in plain.state_dict().items():
        assert torch.equal(masked.state_dict()[name], value), name
    gaps, = weights_of_gaps(masked)
    torch.nn.init.normal_(gaps)
    assert torch.equal(masked(*known, full), plain(*known))
    added, = set(masked.state_dict()) - set(plain.state_dict())
    assert added.endswith("extra.gaps.weight")


@pytest.mark.parametrize("network", [STID, QuantileSTID])
def test_the_forecast_depends_on_which_of_the_history_is_missing_and_on_nothing_of_the_future(network):
    model = make_full_stid(network, masked=True)
    *known, extras = masked_windows()
    for gaps in weights_of_gaps(model):
        assert gaps.abs().max() == 0
        torch.nn.init.normal_(gaps)
    forecast, observed = model(*known, extras), extras.observed.clone()
    observed[:, HISTORY:] = ~observed[:, HISTORY:]
    assert torch.equal(model(*known, Extras(observed)), forecast)
    assert torch.equal(model(*known, Extras(observed[:, :HISTORY])), forecast)
    observed[1, 2, 3] = ~observed[1, 2, 3]
    moved = (model(*known, Extras(observed)) - forecast).abs().amax((1, 2))
    assert moved[1] > 1e-4 and (moved[[0, 2]] == 0).all()


@pytest.mark.parametrize("network", [STID, QuantileSTID])
def test_a_missing_target_changes_no_loss_of_stage_1_and_no_gradient(network):
    model, known, future = make_full_stid(network, masked=True), masked_windows(), torch.randn(3, HORIZON, NODES)
    scored, found = known[-1].observed[:, HISTORY:], []
    for value in (0.0, 1e9):
        model.zero_grad()
        loss = model.loss(future.where(scored, value), *known)
        loss.backward()
        found.append([loss.detach()] + [weight.grad.clone() for weight in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    nothing = Extras(torch.zeros_like(known[-1].observed))
    assert model.loss(future, *known[:3], nothing) == 0


def test_losses_count_what_is_observed_and_average_by_windows():
    model, known, future = make_full_stid(masked=True), masked_windows(), torch.randn(3, HORIZON, NODES)
    scored = known[-1].observed[:, HISTORY:]
    torch.testing.assert_close(model.loss(future, *known), (model(*known) - future)[scored].square().sum()
                               / scored.numel())
    model = make_full_stid(QuantileSTID, masked=True)
    pinballs = pinball(model.quantiles(*known), future).transpose(0, 1)[:, scored]
    torch.testing.assert_close(model.loss(future, *known), pinballs.sum() / scored.numel() / len(pinballs))


def test_a_network_that_was_trained_without_gaps_refuses_them():
    *known, extras = masked_windows()
    with pytest.raises(ValueError, match="train with --missing mask"):
        make_full_stid()(*known, extras)


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
