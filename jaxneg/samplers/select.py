"""Selectors: which of the scored candidates become the negatives. (key, Negatives with N) -> Negatives with K."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from jaxneg.errors import InputError
from jaxneg.types import Negatives


def all(key: Key[Array, ""], negatives: Negatives) -> Negatives:
    """Every candidate."""
    return negatives


def top_k(num_kept: int) -> Callable:
    """The K candidates with the highest scores at each position (the paper's ANS and AMNS).

    Equal scores go by the lower place in the pool. Masked candidates are taken last and stay masked. Gradients flow
    through the kept scores. What is left of a pool after a top-K has no known probability, so `log_q` becomes NaN
    [1, 1, K]: a loss that reads it can not fail unseen. Raises InputError for K < 1 here, and for K > N when called.
    """
    if num_kept < 1:
        raise InputError(f"sampler.num_kept is {num_kept}; allowed: 1 or more")

    def select(key: Key[Array, ""], negatives: Negatives) -> Negatives:
        shape = negatives.scores.shape
        if num_kept > shape[-1]:
            raise InputError(f"sampler.num_kept is {num_kept}; allowed: at most the pool, {shape[-1]}")
        ranked = jnp.where(negatives.mask, jax.lax.stop_gradient(negatives.scores), -jnp.inf)
        _, place = jax.lax.top_k(ranked, num_kept)

        def kept(values):
            return jnp.take_along_axis(jnp.broadcast_to(values, shape), place, axis=2, mode="clip")

        log_q = jnp.full((1, 1, num_kept), jnp.nan, jnp.float32)
        return Negatives(kept(negatives.item_ids), kept(negatives.scores), log_q, kept(negatives.mask))

    return select
