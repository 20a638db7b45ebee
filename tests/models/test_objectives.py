"""What a model is given of a window and what it has to find, for each objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxneg.models import objectives
from jaxneg.models.objectives import MASK

WINDOW = np.array([[0, 0, 4, 8, 15], [3, 1, 4, 1, 5], [0, 0, 0, 7, 9], [0, 0, 0, 0, 6], [0, 0, 0, 0, 0]], np.int32)
KEY = jax.random.key(0)


def test_the_next_item():
    """At each item the one behind it; a first item that has none before it is an input only."""
    objective = objectives.next_item()
    inputs, targets = objective.make(KEY, jnp.asarray(WINDOW))
    assert (objective.unit, objective.extra) == ("user", 1)
    assert inputs.tolist() == [[0, 0, 4, 8], [3, 1, 4, 1], [0, 0, 0, 7], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert targets.tolist() == [[0, 0, 8, 15], [1, 4, 1, 5], [0, 0, 0, 9], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(objective.query(WINDOW), WINDOW)


@pytest.mark.parametrize("rate, last_only", [(0.0, 0.0), (0.2, 0.0), (0.5, 1.0), (0.5, 0.3)])
def test_masked_hides_what_is_to_be_found_and_the_last_item_always(rate, last_only):
    objective = objectives.masked(rate, last_only)
    assert (objective.unit, objective.extra) == ("user", 0)
    inputs, targets = (np.asarray(part) for part in objective.make(KEY, jnp.asarray(WINDOW)))
    hidden = inputs == MASK
    np.testing.assert_array_equal(np.where(hidden, targets, inputs), WINDOW)  # each item is in one of the two
    np.testing.assert_array_equal(hidden, targets > 0)
    np.testing.assert_array_equal(hidden[:, -1], WINDOW[:, -1] > 0)
    assert not hidden[WINDOW == 0].any()
    if rate == 0 or last_only == 1:
        assert not hidden[:, :-1].any()


@pytest.mark.parametrize("rate, last_only", [(0.15, 0.0), (0.6, 0.0), (0.4, 0.25)])
def test_masked_hides_at_the_stated_rate(rate, last_only):
    """Every position before the last alike, each by itself; and a share of the sequences have the last one only."""
    number, length = 40_000, 6
    window = jnp.asarray(np.random.default_rng(0).integers(1, 50, (number, length)), jnp.int32)
    inputs, _ = objectives.masked(rate, last_only).make(jax.random.key(5), window)
    hidden = np.asarray(inputs == MASK)[:, :-1]
    counts = np.bincount(hidden.sum(axis=1), minlength=length)
    expected = (1 - last_only) * stats.binom.pmf(np.arange(length), length - 1, rate)
    expected[0] += last_only
    assert stats.chisquare(counts, number * expected).pvalue > 1e-3
    of_position = hidden.sum(axis=0)
    share = (1 - last_only) * rate
    for count in of_position:
        assert stats.chisquare([count, number - count], [number * share, number * (1 - share)]).pvalue > 1e-3


def test_masked_is_drawn_anew_by_each_key():
    window = jnp.full((50, 8), 3, jnp.int32)
    make = objectives.masked(0.5, 0.5).make
    one, again, other = (np.asarray(make(jax.random.key(seed), window)[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_masked_asks_behind_the_history():
    query = objectives.masked(0.2).query(jnp.asarray(WINDOW))
    assert query.tolist() == [[0, 4, 8, 15, MASK], [1, 4, 1, 5, MASK], [0, 0, 7, 9, MASK], [0, 0, 0, 6, MASK]] + [
        [0, 0, 0, 0, MASK]
    ]


@pytest.mark.parametrize("unit", ["user", "interaction"])
def test_own_items_are_all_to_be_found(unit):
    objective = objectives.own_items(unit)
    assert (objective.unit, objective.extra) == (unit, 0)
    for part in objective.make(KEY, WINDOW):
        np.testing.assert_array_equal(part, WINDOW)
    np.testing.assert_array_equal(objective.query(WINDOW), WINDOW)


def test_what_is_hidden_is_no_item():
    assert MASK < 0
