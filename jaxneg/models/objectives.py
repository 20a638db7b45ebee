"""What a model learns from a user's items: which of them it is given, and which it has to find."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

MASK = -1  # stands in `inputs` for a hidden item: no row of the item table, so nothing ever ranks it


class Objective(NamedTuple):
    """How inputs and targets are made of the window that a batch draws for each of its rows.

    `extra`: items of the drawn window beyond the model's positions L.
    `unit`: "user": a batch row is a user drawn uniformly, and its window is the user's last training items;
        "interaction": it is a row of the training data drawn uniformly, and its window is that one item.
    `make(key, window Int[B, L + extra]) -> (inputs Int[B, L], targets Int[B, L])`; at target 0 nothing is learnt.
    `query(history Int[Q, L]) -> inputs Int[Q, L]`, whose last position is asked for what comes next.
    """

    extra: int
    unit: str
    make: Callable
    query: Callable


def next_item() -> Objective:
    """At each position the item that follows it (SASRec, GRU4Rec, LiGR, HSTU)."""

    def make(key: PRNGKeyArray, window: Int[Array, "B M"]) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
        inputs = window[:, :-1]
        # A first item has no input before it: a sequence shorter than the window has its first item as input only.
        return inputs, jnp.where(inputs > 0, window[:, 1:], 0)

    return Objective(1, "user", make, lambda history: history)


def masked(rate: float, last_only: float = 0.0) -> Objective:
    """Items hidden at random, to be found from those on both sides (BERT4Rec: Sun et al., CIKM 2019, section 3.6).

    Each item of a window is hidden with probability `rate`, and the last one always, so that every sequence teaches
    something. In a share `last_only` of the sequences the last one alone is hidden, as in the query, which is the
    history without its first item, and MASK behind it.
    """

    def make(key: PRNGKeyArray, window: Int[Array, "B L"]) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
        of_item, of_row = jax.random.split(key)
        at_random = jax.random.uniform(of_item, window.shape) < rate
        alone = jax.random.uniform(of_row, window.shape[:1]) < last_only
        hidden = (at_random & ~alone[:, None]).at[:, -1].set(True) & (window > 0)
        return jnp.where(hidden, MASK, window), jnp.where(hidden, window, 0)

    def query(history: Int[Array, "Q L"]) -> Int[Array, "Q L"]:
        return jnp.concatenate([history[:, 1:], jnp.full_like(history[:, :1], MASK)], axis=1)

    return Objective(0, "user", make, query)


def own_items(unit: str) -> Objective:
    """Every item of the window is a positive of the user's (MF, NeuMF); the query looks at the user only."""
    return Objective(0, unit, lambda key, window: (window, window), lambda history: history)
