"""No draws at all, for a loss over the whole catalogue."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxneg.samplers.base import Proposal
from jaxneg.types import Batch, Candidates


def catalogue() -> Proposal:
    """Proposes nothing, N = 0: every item is a negative already, in a loss that scores the whole item table."""

    def init(item_counts, target_counts=None) -> tuple:
        return ()

    def log_prob(tables: tuple, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> Float[Array, "#B #L N"]:
        return jnp.full(item_ids.shape, -jnp.inf, jnp.float32)

    def sample(key: Key[Array, ""], tables: tuple, batch: Batch) -> Candidates:
        shape = (1, 1, 0)
        return Candidates(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), jnp.zeros(shape, bool))

    return Proposal(init, sample, log_prob, 0)
