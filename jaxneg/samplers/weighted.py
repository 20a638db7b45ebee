"""Negatives in proportion to a power of their frequency: popularity (PNS) and inverse popularity (IPNS)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxneg.devices import sharded
from jaxneg.errors import InputError
from jaxneg.samplers import alias
from jaxneg.samplers import exclude as excluding
from jaxneg.samplers.base import Proposal, check_counts, check_scope, normalised
from jaxneg.samplers.draws import first_permitted
from jaxneg.types import Batch, Candidates


class WeightedTables(NamedTuple):
    alias: alias.AliasTable
    probability: np.ndarray  # float32 [V+1], before any exclusion; 0 at the pad


def weighted(
    num_items: int, num_samples: int, *, exponent: float = 1.0, scope: str = "sequence", max_redraws: int = 16
) -> Proposal:
    """N i.i.d. draws, with replacement, with p ~ frequency ** exponent outside the user's history.

    `exponent`: 1 is popularity, 0.75 word2vec's smoothing (Mikolov et al. 2013), -1 inverse popularity. An item of
    frequency 0 is never drawn. Draws that hit the history are replaced by further draws, at most `max_redraws`
    times as many as the first ones; places still empty after that are masked (with 16 only users whose
    history holds about 95% of the probability have any). `scope` as for `uniform`.
    log q = log p_i - log(1 - the history's p). Raises InputError for an unknown scope or impossible frequencies.
    """
    scope = check_scope(scope)
    if max_redraws < 0:
        raise InputError(f"max_redraws is {max_redraws}; allowed: 0 or more")

    def init(item_counts, target_counts=None) -> WeightedTables:
        counts = check_counts("item_counts", item_counts, num_items)
        weights = np.zeros(num_items)
        np.power(counts, exponent, out=weights, where=counts > 0)
        return WeightedTables(alias.build(weights), normalised(weights))

    def log_prob(tables: WeightedTables, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> Float[Array, "B #L N"]:
        excluded = excluding.history(batch, num_items)
        left = outside_mass(tables.probability, excluded, num_items)
        log_q = jnp.log(sharded.take(tables.probability, item_ids)) - jnp.log(left)[:, None, None]
        return jnp.where(excluding.contains(excluded.item_ids, item_ids), -jnp.inf, log_q)

    def sample(key: Key[Array, ""], tables: WeightedTables, batch: Batch) -> Candidates:
        num_rows, length = batch.targets.shape
        excluded = excluding.history(batch, num_items)
        if scope == "batch":
            item_ids = alias.draw(key, tables.alias, (1, 1, num_samples)) + 1
            mask = ~excluding.contains(excluded.item_ids, item_ids)
        else:
            shape = (num_rows, length if scope == "position" else 1)
            width = num_samples + max(num_samples // 4, 4)  # some spare: most batches then need one window only

            def window(done):
                drawn = alias.draw(jax.random.fold_in(key, done), tables.alias, (*shape, width)) + 1
                return drawn, ~excluding.contains(excluded.item_ids, drawn)

            item_ids, mask = first_permitted(window, shape, num_samples, 1 + max_redraws)
        return Candidates(item_ids, jnp.where(mask, log_prob(tables, batch, item_ids), 0.0), mask)

    return Proposal(init, sample, log_prob, num_samples)


def outside_mass(
    probability: sharded.Table | Float[np.ndarray, "V1"], excluded: excluding.Excluded, num_items: int
) -> Float[Array, "B"]:
    """The probability of all items outside each sequence's set, never 0."""
    is_item = excluded.item_ids <= num_items
    mass = jnp.where(is_item, sharded.take(probability, excluded.item_ids), 0.0)
    return jnp.maximum(1.0 - jnp.sum(mass, axis=1), jnp.finfo(jnp.float32).tiny)
