"""Membership and the index shift, against sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg.errors import InputError
from jaxneg.samplers import exclude

V, H = 20, 24  # rows are padded beyond the catalogue, so that a full history fits too


@st.composite
def sets(draw):
    return draw(st.lists(st.sets(st.integers(1, V)), min_size=3, max_size=3))


def padded(own):
    rows = np.full((len(own), H), V + 1, np.int32)
    for row, items in zip(rows, own, strict=True):
        row[: len(items)] = sorted(items)
    return exclude.Excluded(jnp.asarray(rows), jnp.asarray([len(items) for items in own], jnp.int32))


shift, contains, count_at_most = jax.jit(exclude.shift), jax.jit(exclude.contains), jax.jit(exclude.count_at_most)


@settings(max_examples=150, deadline=None)
@given(sets())
def test_shift_lists_exactly_what_is_left(own):
    index = jnp.broadcast_to(jnp.arange(V)[None, None], (3, 1, V))
    got = np.asarray(shift(padded(own), index))[:, 0]
    for row, items in zip(got, own, strict=True):
        left = [item for item in range(1, V + 1) if item not in items]
        assert row[: len(left)].tolist() == left


@settings(max_examples=100, deadline=None)
@given(sets())
def test_membership(own):
    every = jnp.arange(1, V + 1)[None, None]
    got = np.asarray(contains(padded(own).item_ids, every))[:, 0]
    assert got.tolist() == [[item in items for item in range(1, V + 1)] for items in own]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 200])
def test_count_at_most_is_searchsorted(length):
    rng = np.random.default_rng(length)
    rows = np.sort(rng.integers(0, 30, (4, length)), axis=1).astype(np.int32)  # repeats too
    values = rng.integers(-2, 33, (4, 3, 50)).astype(np.int32)
    got = np.asarray(count_at_most(jnp.asarray(rows), jnp.asarray(values)))
    for row, value, count in zip(rows, values, got, strict=True):
        np.testing.assert_array_equal(count, np.searchsorted(row, value, side="right"))
    found = np.asarray(contains(jnp.asarray(rows), jnp.asarray(values)))
    np.testing.assert_array_equal(found, [np.isin(v, r) for v, r in zip(values, rows, strict=True)])


def test_own_targets(make_batch):
    batch = make_batch([[1, 4, 5], [2], []], [[0, 4, 1, 4], [2, 2, 2, 2], [0, 0, 0, 0]], 6)
    own = exclude.targets(batch, 6)
    assert own.item_ids.tolist() == [[1, 4, 7, 7], [2, 7, 7, 7], [7, 7, 7, 7]] and own.count.tolist() == [2, 1, 0]
    assert exclude.ordered_targets(batch, 6).tolist() == [[1, 4, 4, 7], [2, 2, 2, 2], [7, 7, 7, 7]]


def test_unknown_exclusion():
    with pytest.raises(InputError, match="exclude is 'both'; allowed: history, targets"):
        exclude.lookup("both")
