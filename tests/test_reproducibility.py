"""Every draw follows from what it is for: same key, same noise; another key, independent noise."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from utils.training.reproducibility import MemberNoise, key, keyed_normal, seed_step

WINDOWS = torch.tensor([5, 900, 31, 7])


def signed(number: int) -> int:
    """The low 64 bits of a number, as a signed integer."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def splitmix(bits: int) -> int:
    """SplitMix64's output function in Python integers, after Steele et al. 2014."""
    mask = (1 << 64) - 1
    bits &= mask
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & mask
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & mask
    return bits ^ (bits >> 31)


# Keys

@pytest.mark.parametrize("parts", [(0,), (1, 2), (2**62, -1), (7, 0, 0), (-(2**63), 2**63 - 1)])
def test_a_key_is_splitmix_folded_over_its_parts(parts):
    golden, folded = 0x9E3779B97F4A7C15, 0
    for part in parts:
        folded = splitmix(folded + golden + splitmix(part + golden))
    assert int(key(*parts)) == signed(folded)


def test_the_order_and_number_of_the_parts_count():
    keys = [int(key(*parts)) for parts in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2), (3,), (1,), (1, 1)]]
    assert len(set(keys)) == len(keys)


def test_tensors_broadcast_to_the_keys_of_their_elements():
    keys = key(3, WINDOWS.unsqueeze(1), torch.arange(6))
    assert keys.shape == (4, 6) and keys.dtype == torch.int64
    assert int(keys[1, 4]) == int(key(3, 900, 4))


def test_a_million_keys_do_not_collide():
    keys = key(0, torch.arange(1000).unsqueeze(1), torch.arange(1000)).flatten()
    assert len(keys.unique()) == 1_000_000


@pytest.mark.parametrize("bit", [0, 1, 17, 40, 63])
def test_one_bit_of_a_part_flips_half_of_the_key(bit):
    parts = torch.arange(2000)
    changed = key(parts) ^ key(parts ^ signed(1 << bit))
    flips = [float(((changed >> place) & 1).float().mean()) for place in range(64)]
    assert max(abs(share - 0.5) for share in flips) < 0.06  # 5 standard errors


# Normal numbers

@pytest.fixture(scope="module")
def normal():
    """200,000 values: 2000 keys of 100 values."""
    return keyed_normal(key(1, torch.arange(2000)), (4, 25)).reshape(2000, 100)


def test_the_values_are_standard_normal(normal):
    values = normal.flatten().double()
    assert values.dtype == torch.float64 and len(values) == 200_000
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        sample = values**power
        error = float(sample.std()) / math.sqrt(len(values))
        assert abs(float(sample.mean()) - moment) < 4 * error
    assert 4 < values.abs().max() < 6 and values.isfinite().all()


def test_the_uniform_bits_behind_them_are_uniform(normal):
    """Box-Muller undone: exp(-r^2 / 2) and the angle of each pair are uniform and independent."""
    first, second = normal[:, :50].double(), normal[:, 50:].double()
    radius = torch.exp(-(first.square() + second.square()) / 2).flatten()
    angle = (torch.atan2(second, first) / (2 * math.pi) % 1).flatten()
    for uniform in (radius, angle):
        assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    table, *_ = np.histogram2d(radius.numpy(), angle.numpy(), bins=10, range=[(0, 1), (0, 1)])
    assert stats.chisquare(table.flatten()).pvalue > 1e-3


def test_the_places_of_a_block_are_uncorrelated(normal):
    correlation = torch.corrcoef(normal.T.double()) - torch.eye(100)
    assert correlation.abs().max() < 5.5 / math.sqrt(2000)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (7, 11)])
def test_a_block_has_its_shape_and_begins_like_a_longer_one_of_the_same_pairs(shape):
    keys = key(torch.arange(6)).reshape(2, 3)
    values = keyed_normal(keys, shape)
    assert values.shape == (2, 3, *shape) and values.dtype == torch.float32
    count = math.prod(shape)
    longer = keyed_normal(keys, (count + count % 2,))
    assert torch.equal(values.flatten(2), longer[..., :count])


# Members

def test_windows_members_draws_and_seeds_are_independent():
    def rows(seed=0, noise_index=0):
        return MemberNoise(seed, WINDOWS, 3, (40, 50))(noise_index, 0, 12)

    blocks = torch.cat([rows(), rows(noise_index=1), rows(noise_index=2), rows(seed=1)]).reshape(48, -1)
    correlation = torch.corrcoef(blocks) - torch.eye(48)
    assert correlation.abs().max() < 5 / math.sqrt(2000)


@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 12])
def test_rows_do_not_depend_on_the_chunks(chunk):
    noise = MemberNoise(7, WINDOWS, 3, (4, 5))
    whole = noise(1, 0, 12)
    parts = [noise(1, first, min(first + chunk, 12)) for first in range(0, 12, chunk)]
    assert whole.shape == (12, 4, 5) and torch.equal(torch.cat(parts), whole)


def test_rows_do_not_depend_on_the_batch_or_on_how_many_members_there_are():
    whole = MemberNoise(7, WINDOWS, 3, (4, 5))(2, 0, 12).reshape(4, 3, 4, 5)
    alone = MemberNoise(7, WINDOWS[2:3], 2, (4, 5))(2, 0, 2)
    assert torch.equal(alone, whole[2, :2])
    turned = MemberNoise(7, WINDOWS.flip(0), 3, (4, 5))(2, 0, 12).reshape(4, 3, 4, 5)
    assert torch.equal(turned.flip(0), whole)


def test_the_global_generator_is_left_alone_and_does_not_matter():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = MemberNoise(0, WINDOWS, 2, (3, 3))(0, 0, 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(MemberNoise(0, WINDOWS, 2, (3, 3))(0, 0, 8), one)


# Steps

def test_a_seeded_step_repeats_its_dropout_whatever_was_drawn_before():
    def masks(*index):
        seed_step(*index)
        return torch.dropout(torch.ones(200), 0.5, True), torch.randint(50, (20,))

    one = masks(0, 3, 14)
    torch.rand(1000)
    again = masks(0, 3, 14)
    assert all(torch.equal(left, right) for left, right in zip(one, again, strict=True))
    for other in ((0, 14, 3), (1, 3, 14), (0, 3, 15)):
        assert not torch.equal(masks(*other)[0], one[0])
