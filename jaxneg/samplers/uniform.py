"""Uniform negatives (the paper's RNS): every item that is not the user's own is equally likely."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxneg.samplers import exclude as excluding
from jaxneg.samplers.base import Proposal, check_scope
from jaxneg.samplers.draws import integers
from jaxneg.types import Batch, Candidates


def uniform(num_items: int, num_samples: int, *, scope: str = "sequence", exclude: str = "history") -> Proposal:
    """N i.i.d. draws, with replacement, from the items outside the user's history, by an exact index shift.

    `scope`: one set per "sequence", per "position", or one for the "batch"; the last is drawn from all items and the
    user's own ones are masked. `exclude`: "history" (the whole training history) or "targets" (the sequence's own
    distinct targets only, as the released code's mixed pool does). With no item left all is masked. log q is
    -log(V - h), h being the number of excluded items. Raises InputError for an unknown scope or exclusion.
    """
    excluded_of, scope = excluding.lookup(exclude), check_scope(scope)

    def init(item_counts, target_counts=None) -> tuple:
        return ()

    def log_prob(tables: tuple, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> Float[Array, "B #L N"]:
        excluded = excluded_of(batch, num_items)
        num_left = jnp.maximum(num_items - excluded.count, 1).astype(jnp.float32)
        return jnp.where(excluding.contains(excluded.item_ids, item_ids), -jnp.inf, -jnp.log(num_left)[:, None, None])

    def sample(key: Key[Array, ""], tables: tuple, batch: Batch) -> Candidates:
        num_rows, length = batch.targets.shape
        excluded = excluded_of(batch, num_items)
        if scope == "batch":
            item_ids = integers(key, jnp.int32(num_items), (1, 1, num_samples), num_items) + 1
            mask = ~excluding.contains(excluded.item_ids, item_ids)
        else:
            shape = (num_rows, length if scope == "position" else 1, num_samples)
            num_left = (num_items - excluded.count)[:, None, None]
            index = integers(key, jnp.maximum(num_left, 1), shape, num_items)
            item_ids = jnp.minimum(excluding.shift(excluded, index), num_items)  # V + 1 where nothing is left
            mask = jnp.broadcast_to(num_left > 0, shape)
        return Candidates(item_ids, jnp.where(mask, log_prob(tables, batch, item_ids), 0.0), mask)

    return Proposal(init, sample, log_prob, num_samples)
