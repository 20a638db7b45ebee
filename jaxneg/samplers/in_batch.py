"""In-batch negatives (BNS): other sequences' positives, so an item comes as often as it is a target."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from jaxneg.samplers import exclude as excluding
from jaxneg.samplers.base import Proposal, check_counts, check_scope, normalised
from jaxneg.samplers.draws import first_permitted
from jaxneg.samplers.weighted import outside_mass
from jaxneg.types import Batch, Candidates


class InBatchTables(NamedTuple):
    probability: np.ndarray  # float32 [V+1]: each item's share of the training targets


def in_batch(num_items: int, num_samples: int, *, scope: str = "sequence") -> Proposal:
    """N draws without replacement from the multiset of the batch's targets, without the sequence's own target items.

    An item of the sequence's own is excluded wherever in the batch it occurs; an item that occurs k times has k
    chances. Where fewer than N are left, the rest is masked. `scope`: per "sequence", per "position", or one draw for
    the "batch" from all targets, in which each sequence's own items are masked.

    All rows read one random permutation of the batch's targets, each from its own random start with its own random
    odd stride (modulo a power of two: every slot once). A row's law is exactly that of drawing without replacement,
    two rows' draws are pairwise as good as independent, and one short sort serves all rows.

    log q is that of a draw over random batches: the item's share of the training targets (`target_counts`), scaled
    up by the share of the sequence's own distinct targets, which can not be drawn. Given one batch, the law is the
    batch's own multiset instead. Raises InputError for an unknown scope.
    """
    scope = check_scope(scope)

    def init(item_counts, target_counts=None) -> InBatchTables:
        counts = item_counts if target_counts is None else target_counts
        return InBatchTables(normalised(check_counts("target_counts", counts, num_items)))

    def log_prob(tables: InBatchTables, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> Float[Array, "B #L N"]:
        own = excluding.targets(batch, num_items)
        left = outside_mass(tables.probability, own, num_items)
        log_p = jnp.log(jnp.take(tables.probability, item_ids, mode="clip"))
        return jnp.where(excluding.contains(own, item_ids), -jnp.inf, log_p - jnp.log(left)[:, None, None])

    def sample(key: Key[Array, ""], tables: InBatchTables, batch: Batch) -> Candidates:
        num_rows, length = batch.targets.shape
        own = excluding.targets(batch, num_items)
        per_batch = scope == "batch"
        shape = (1 if per_batch else num_rows, length if scope == "position" else 1)
        pool_key, start_key, stride_key = jax.random.split(key, 3)
        pool, pool_size = shuffled(pool_key, batch.targets.reshape(-1))
        period = power_of_two_from(pool_size)
        start = jax.random.bits(start_key, (*shape, 1), jnp.uint32)
        stride = jax.random.bits(stride_key, (*shape, 1), jnp.uint32) | 1
        width = min(2 * num_samples, pool.shape[0])  # up to half of the places are beyond the pool

        def window(done):
            step = done.astype(jnp.uint32) * width + jnp.arange(width, dtype=jnp.uint32)
            step = jnp.expand_dims(step, (0, 1))
            slot = (start + stride * step) & (period - 1)
            drawn = jnp.take(pool, slot.astype(jnp.int32), mode="clip")
            permitted = (slot < pool_size) & (step < period)
            return drawn, permitted if per_batch else permitted & ~excluding.contains(own, drawn)

        num_windows = ((period + width - 1) // width).astype(jnp.int32)
        item_ids, mask = first_permitted(window, shape, num_samples, num_windows)
        mask = mask & ~excluding.contains(own, item_ids) if per_batch else mask
        return Candidates(item_ids, jnp.where(mask, log_prob(tables, batch, item_ids), 0.0), mask)

    return Proposal(init, sample, log_prob, num_samples)


def shuffled(key: Key[Array, ""], targets: Int[Array, "T"]) -> tuple[Int[Array, "T"], UInt32[Array, ""]]:
    """The targets in random order, pads (0) last, and how many are not pads."""
    is_item = targets > 0
    order = jax.random.bits(key, targets.shape, jnp.uint32) >> 1  # 31 bits, so that no item ties with a pad
    order = jnp.where(is_item, order, jnp.uint32(0xFFFFFFFF))
    _, pool = jax.lax.sort((order, targets), num_keys=1)
    return pool, jnp.sum(is_item, dtype=jnp.uint32)


def power_of_two_from(number: UInt32[Array, ""]) -> UInt32[Array, ""]:
    """The smallest power of two that is not below `number`; 1 for 0."""
    below = jnp.maximum(number, 1) - 1
    return jnp.uint32(1) << (32 - jax.lax.clz(below)).astype(jnp.uint32)
