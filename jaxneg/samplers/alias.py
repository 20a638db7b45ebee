"""Walker's alias method: draws from any fixed distribution in constant time (Walker 1977; Vose 1991)."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxneg.devices import sharded
from jaxneg.errors import InputError
from jaxneg.samplers.draws import integers_and_fraction

CELL = 1 << 32  # a cell's capacity: thresholds are integers in units of 2**-32 cell


class AliasTable(NamedTuple):
    """V cells of equal weight; cell i is item i up to its threshold, and item alias[i] above it."""

    threshold: np.ndarray  # uint32 [V]; a whole cell has itself as alias and threshold 0
    alias: np.ndarray  # int32 [V]


def build(weights: np.ndarray) -> AliasTable:
    """The table of a distribution proportional to `weights` [V], float, not negative; NumPy, O(V) memory, no row loop.

    Weights become integers that sum to V cells exactly, and all that follows is integer arithmetic: every
    probability the table implies is within 2**-32 / V of the asked one (6e-5 relative for any item of 4e-6 of the
    mean weight or more), and exactly 0 for a weight of 0. Float thresholds would misstate a heavy item that is
    the alias of millions of nearly full cells. Raises InputError if the weights are no distribution.
    """
    weights = np.asarray(weights, np.float64)
    total = weights.sum()
    if weights.ndim != 1 or not np.isfinite(total) or not total > 0 or weights.min() < 0:
        raise InputError("alias weights must be finite, not negative, and positive for one item at least")
    mass = _integer_masses(weights, total)
    threshold = np.zeros(len(mass), np.uint32)
    alias = np.arange(len(mass), dtype=np.int32)
    light, heavy = np.flatnonzero(mass < CELL), np.flatnonzero(mass > CELL)
    if len(light):
        # Each heavy item in turn fills light cells while it has any excess; once it has less than a cell of its own
        # left, it is a light cell of the next heavy item. The running sums say who meets whom.
        deficit = np.cumsum(CELL - mass[light])
        excess = np.cumsum(mass[heavy] - CELL)
        threshold[light] = mass[light]
        before = np.concatenate([[0], deficit[:-1]])
        alias[light] = heavy[np.searchsorted(excess, before, side="right")]
        overdraft = deficit[np.searchsorted(deficit, excess, side="left")] - excess
        short = np.flatnonzero(overdraft > 0)
        threshold[heavy[short]] = CELL - overdraft[short]
        alias[heavy[short]] = heavy[short + 1]
    return AliasTable(threshold, alias)


def _integer_masses(weights: np.ndarray, total: float) -> np.ndarray:
    """int64 [V] in units of 2**-32 cell, that sum to V cells exactly; what rounding leaves is spread one unit each."""
    num_cells = len(weights)
    mass = (weights * (num_cells / total * CELL * (1 - 2.0**-48))).astype(np.int64)  # never above V cells in sum
    positive = np.flatnonzero(weights)
    share, rest = divmod(num_cells * CELL - int(mass.sum()), len(positive))
    mass[positive] += share
    mass[positive[:rest]] += 1
    return mass


def draw(key: Key[Array, ""], table: AliasTable, shape: tuple[int, ...]) -> Int[Array, "..."]:
    """0-based items int32 [*shape]: one 64-bit random number and two look-ups each, for V up to 2**31."""
    cell, fraction = integers_and_fraction(key, jnp.int32(sharded.length(table.alias)), shape)
    keeps_cell = fraction < sharded.take(table.threshold, cell)
    return jnp.where(keeps_cell, cell, sharded.take(table.alias, cell))
