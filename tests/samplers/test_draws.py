"""Random integers, the streams' first items and random orders, against Python's integers and brute force."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxneg import hashing
from jaxneg.samplers import draws

in_batch = sys.modules["jaxneg.samplers.in_batch"]  # the package's name `in_batch` is the function


def test_multiply_wide():
    edge = [0, 1, 2, 0xFFFF, 0x10000, 0x10001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    random = np.random.default_rng(0).integers(0, 1 << 32, 200).tolist()
    first, second = (np.array(x, np.uint32) for x in zip(*[(a, b) for a in edge + random for b in edge], strict=True))
    high, low = hashing.multiply_wide(jnp.asarray(first), jnp.asarray(second))
    right = [int(a) * int(b) for a, b in zip(first, second, strict=True)]
    assert [(int(h) << 32) + int(x) for h, x in zip(np.asarray(high), np.asarray(low), strict=True)] == right


@pytest.mark.parametrize("bound", [1, 3, 10**4, 65537, 10**7, 99_999_989, 2**31 - 1])
def test_integers_are_the_exact_multiple_of_64_random_bits(bound):
    """floor(x * bound / 2**64), so no item is preferred by more than bound / 2**64; the fraction is what follows."""
    key = jax.random.key(5)
    index, fraction = draws.integers_and_fraction(key, jnp.int32(bound), (300,))
    words = np.asarray(jax.random.bits(key, (2, 300), jnp.uint32)).astype(object)
    product = ((words[0] << 32) + words[1]) * bound
    assert index.tolist() == (product >> 64).tolist()
    assert fraction.tolist() == (product >> 32 & 0xFFFFFFFF).tolist()


def test_integers_with_bounds_of_their_own():
    bounds = jnp.array([[1], [2], [7], [65536]])
    for largest in (65536, 65537):  # one word, two words
        drawn = np.asarray(draws.integers(jax.random.key(1), bounds, (4, 70_000), largest))
        assert (drawn[0] == 0).all() and (drawn >= 0).all() and (drawn < np.asarray(bounds)).all()
        for row, bound in ((1, 2), (2, 7)):
            assert stats.chisquare(np.bincount(drawn[row], minlength=bound)).pvalue > 1e-4
        assert stats.kstest(drawn[3] / 65536, "uniform").pvalue > 1e-4


def test_first_permitted_against_a_plain_loop():
    rng = np.random.default_rng(2)
    shape, num_samples, width, num_windows = (3, 2), 5, 4, 6
    item_ids = rng.integers(1, 100, (num_windows, *shape, width))
    permitted = rng.random(item_ids.shape) < np.array([0.9, 0.4, 0.05])[:, None, None]
    permitted[:, 0, 1] = False
    stream = jnp.asarray(item_ids, jnp.int32), jnp.asarray(permitted)
    got, filled = draws.first_permitted(lambda done: tuple(x[done] for x in stream), shape, num_samples, num_windows)
    for row in np.ndindex(shape):
        right = [i for w in range(num_windows) for i, ok in zip(item_ids[w][row], permitted[w][row], strict=True) if ok]
        assert got[row][filled[row]].tolist() == right[:num_samples]
        assert filled[row].tolist() == [n < len(right) for n in range(num_samples)]


@pytest.mark.parametrize("num_bits", [6, 7, 10])
def test_shuffled_is_a_bijection(num_bits):
    keys = jax.random.bits(jax.random.key(0), (in_batch.NUM_ROUNDS + 1, 50, 1, 1), jnp.uint32)
    step = jnp.broadcast_to(jnp.arange(1 << num_bits, dtype=jnp.uint32)[None, None], (50, 1, 1 << num_bits))
    order = np.asarray(in_batch.shuffled(keys, step, jnp.uint32(num_bits)))[:, 0]
    assert (np.sort(order, axis=1) == np.arange(1 << num_bits)).all()
    assert len(np.unique(order, axis=0)) == 50


def test_shuffled_pairs_are_even():
    """The first two slots of a random order: all ordered pairs of 64 equally likely, over a million orders."""
    rows = 1 << 20
    keys = jax.random.bits(jax.random.key(1), (in_batch.NUM_ROUNDS + 1, rows, 1, 1), jnp.uint32)
    step = jnp.broadcast_to(jnp.arange(2, dtype=jnp.uint32)[None, None], (rows, 1, 2))
    order = np.asarray(jax.jit(in_batch.shuffled)(keys, step, jnp.uint32(in_batch.MIN_BITS)))[:, 0]
    pairs = np.bincount(order[:, 0].astype(int) * 64 + order[:, 1], minlength=64 * 64).reshape(64, 64)
    assert np.trace(pairs) == 0
    assert stats.chisquare(pairs[~np.eye(64, dtype=bool)]).pvalue > 1e-4


def test_bits_for():
    sizes = [0, 1, 2, 3, 4, 5, 64, 65, 6400, 2**20, 2**20 + 1]
    got = [int(in_batch.bits_for(jnp.uint32(size))) for size in sizes]
    assert got == [max(size - 1, 0).bit_length() for size in sizes]


def test_pads_last():
    pool, size = in_batch.pads_last(jnp.array([0, 3, 0, 0, 1, 3, 0]))
    assert pool.tolist() == [3, 1, 3, 0, 0, 0, 0] and int(size) == 3


def test_hashed_bits_look_random():
    """Each bit is even, bits and neighbours are independent, and so are streams of neighbouring and of split keys."""
    size = 1 << 18
    keys = [jax.random.key(0), jax.random.key(1), *jax.random.split(jax.random.key(0), 2)]
    streams = np.stack([np.asarray(draws.hashed_bits(key, (2, size // 2))).ravel() for key in keys])
    for stream in streams:
        bytes_ = stream.view(np.uint8)
        assert stats.chisquare(np.bincount(bytes_, minlength=256)).pvalue > 1e-4
        one = np.unpackbits(bytes_).reshape(size, 32).astype(float)
        assert np.abs(one.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(size)
        for lag in (0, 1, 2, 64):  # correlations of all pairs of bits, of a word and of a word further on
            first, second = (part - 0.5 for part in (one[: size - lag], one[lag:]))
            correlation = 4 * first.T @ second / (size - lag)
            np.fill_diagonal(correlation, correlation.diagonal() * (lag > 0))
            assert np.abs(correlation).max() < 6 / np.sqrt(size)
        pairs = (stream[:-1] >> 28) * 16 + (stream[1:] >> 28)
        assert stats.chisquare(np.bincount(pairs[::2], minlength=256)).pvalue > 1e-4
    for one in range(len(streams)):
        for other in range(one):
            distance = np.unpackbits((streams[one] ^ streams[other]).view(np.uint8)).reshape(size, 32).sum(axis=1)
            expected = stats.binom.pmf(np.arange(33), 32, 0.5) * size
            kept = expected > 5
            assert (
                stats.chisquare(
                    np.bincount(distance, minlength=33)[kept],
                    expected[kept] * np.isin(distance, np.flatnonzero(kept)).sum() / expected[kept].sum(),
                ).pvalue
                > 1e-4
            )
