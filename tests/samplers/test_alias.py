"""The alias table's implied probabilities, exactly, and draws from it."""

import time

import jax
import numpy as np
import pytest
from scipy import stats

from jaxneg.errors import InputError
from jaxneg.samplers import alias


def implied(table):
    """Each item's mass in units of 2**-32 cell, by exact integer sums over all cells."""
    threshold = table.threshold.astype(np.int64)
    mass = threshold.copy()
    np.add.at(mass, table.alias, alias.CELL - threshold)
    return mass


def worst(weights, table):
    """The largest relative error of any item whose weight is not 0."""
    asked = weights / weights.sum() * len(weights) * alias.CELL
    positive = weights > 0
    return np.abs(implied(table)[positive] / asked[positive] - 1).max()


rng = np.random.default_rng(0)
WEIGHTS = {
    "one": np.array([3.0]),
    "equal": np.ones(1000),
    "two of three": np.array([1.0, 0.0, 1.0]),
    "zipf": 1 / np.arange(1, 1_000_001),
    "steep zipf": rng.permutation(1 / np.arange(1.0, 200_001) ** 1.4),
    "inverse counts": 1 / rng.integers(1, 70_000, 100_000),
    "counts with zeros": rng.integers(0, 4, 100_000) * rng.pareto(1, 100_000).round(),
    # One heavy item fills a million cells that are full but for 1e-6: float32 thresholds misstate it by percents.
    "nearly equal": np.append(np.ones(999_999), 2.0),
    "one of many": np.eye(1, 50_000, 777)[0],
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_implied_probabilities(name):
    weights = WEIGHTS[name]
    table = alias.build(weights)
    assert (table.threshold.dtype, table.alias.dtype) == (np.uint32, np.int32)
    assert worst(weights, table) < 6e-5
    assert (implied(table)[weights == 0] == 0).all()
    assert implied(table).sum() == len(weights) * alias.CELL


def test_absolute_error_is_bounded_for_the_rarest():
    """Weights over twelve orders of magnitude: within a few units of 2**-32 / V each."""
    weights = 1 / np.arange(1.0, 1_000_001) ** 2
    asked = weights / weights.sum() * len(weights) * alias.CELL
    light = asked < alias.CELL
    assert np.abs(implied(alias.build(weights)) - asked)[light].max() < 2


def test_build_has_no_row_loop():
    weights = np.random.default_rng(0).pareto(1.0, 2_000_000)
    start = time.perf_counter()
    alias.build(weights)
    assert time.perf_counter() - start < 8  # about half a second on an idle core; a Python loop takes minutes


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [np.inf], [[1.0]]])
def test_impossible_weights(weights):
    with pytest.raises(InputError, match="alias weights"):
        alias.build(np.array(weights))


def test_draws():
    weights = np.array([5, 0, 1, 1, 40, 2, 0.5, 3])
    table = alias.build(weights)
    drawn = np.asarray(jax.jit(lambda key, table: alias.draw(key, table, (400, 500)))(jax.random.key(0), table))
    observed = np.bincount(drawn.ravel(), minlength=8)
    assert drawn.shape == (400, 500) and drawn.dtype == np.int32 and observed[1] == 0
    keep = weights > 0
    expected = weights[keep] / weights.sum() * drawn.size
    assert stats.chisquare(observed[keep], expected).pvalue > 1e-4
    pairs = np.bincount(8 * drawn[:, 0] + drawn[:, 1], minlength=64).reshape(8, 8)[np.ix_(keep, keep)]
    assert pairs.sum() == 400
