"""In-batch negatives (BNS): other sequences' positives, so an item comes as often as it is a target."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from jaxneg.devices import sharded
from jaxneg.samplers import exclude as excluding
from jaxneg.samplers.base import Proposal, check_counts, check_scope, normalised
from jaxneg.samplers.draws import first_permitted, hashed_bits
from jaxneg.samplers.weighted import outside_mass
from jaxneg.types import Batch, Candidates

NUM_ROUNDS = 12  # an even number, of the shuffling network; with 8, the pairs of a small pool are measurably uneven
MIN_BITS = 6  # and so they are with very narrow halves


class InBatchTables(NamedTuple):
    probability: np.ndarray  # float32 [V+1]: each item's share of the training targets


def in_batch(num_items: int, num_samples: int, *, scope: str = "sequence") -> Proposal:
    """N draws without replacement from the multiset of the batch's targets, less the sequence's own items.

    An item of the sequence's own is excluded wherever in the batch it occurs; an item that occurs k times has
    k chances. Where fewer than N are left, the rest is masked. `scope`: per "sequence", per "position", or one
    draw for the "batch" from all targets, in which each sequence's own items are masked.

    Every row walks the targets in a random order of its own (`shuffled`) and takes the first N permitted ones:
    rows are independent, nothing is sorted, and nothing of size B x (B L) is made.

    log q is that of a draw over random batches: the item's share of the training targets (`target_counts`),
    divided by the share of all that are not the sequence's own distinct targets. (Given one batch, the law is
    the batch's own multiset.) Raises InputError for an unknown scope.
    """
    scope = check_scope(scope)

    def init(item_counts, target_counts=None) -> InBatchTables:
        counts = item_counts if target_counts is None else target_counts
        return InBatchTables(normalised(check_counts("target_counts", counts, num_items)))

    def log_prob(tables: InBatchTables, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> Float[Array, "B #L N"]:
        own = excluding.targets(batch, num_items)
        left = outside_mass(tables.probability, own, num_items)
        log_q = jnp.log(sharded.take(tables.probability, item_ids)) - jnp.log(left)[:, None, None]
        return jnp.where(excluding.contains(own.item_ids, item_ids), -jnp.inf, log_q)

    def sample(key: Key[Array, ""], tables: InBatchTables, batch: Batch) -> Candidates:
        num_rows, length = batch.targets.shape
        own = excluding.ordered_targets(batch, num_items)
        per_batch = scope == "batch"
        shape = (1 if per_batch else num_rows, length if scope == "position" else 1)
        pool, pool_size = pads_last(batch.targets.reshape(-1))
        num_bits = jnp.maximum(bits_for(pool_size), MIN_BITS)
        round_keys = hashed_bits(key, (NUM_ROUNDS + 1, *shape, 1))
        width = 2 * num_samples  # up to half of the places are beyond the pool

        def window(done):
            step = done.astype(jnp.uint32) * width + jnp.arange(width, dtype=jnp.uint32)
            step = jnp.broadcast_to(step[None, None], (*shape, width))
            slot = shuffled(round_keys, step, num_bits)
            drawn = jnp.take(pool, slot.astype(jnp.int32), mode="clip")
            permitted = (slot < pool_size) & (step >> num_bits == 0)
            return drawn, permitted if per_batch else permitted & ~excluding.contains(own, drawn)

        num_windows = (((jnp.uint32(1) << num_bits) + (width - 1)) // width).astype(jnp.int32)
        item_ids, mask = first_permitted(window, shape, num_samples, num_windows)
        mask = mask & ~excluding.contains(own, item_ids) if per_batch else mask
        return Candidates(item_ids, jnp.where(mask, log_prob(tables, batch, item_ids), 0.0), mask)

    return Proposal(init, sample, log_prob, num_samples)


def pads_last(targets: Int[Array, " T"]) -> tuple[Int[Array, " T"], UInt32[Array, ""]]:
    """The targets in their order with all pads (0) moved to the end, and how many are not pads."""
    is_item = targets > 0
    place = jnp.where(is_item, jnp.cumsum(is_item, dtype=jnp.int32) - 1, targets.shape[0])
    return jnp.zeros_like(targets).at[place].set(targets, mode="drop"), jnp.sum(is_item, dtype=jnp.uint32)


def bits_for(size: UInt32[Array, ""]) -> UInt32[Array, ""]:
    """The fewest bits that can number `size` slots; 0 for 0 or 1."""
    return (32 - jax.lax.clz(jnp.maximum(size, 1) - 1)).astype(jnp.uint32)


def shuffled(
    round_keys: UInt32[Array, "R B P 1"], step: UInt32[Array, "B P W"], num_bits: UInt32[Array, ""]
) -> UInt32[Array, "B P W"]:
    """Where step 0, 1, ... of each row's own random order of 0 ... 2**num_bits - 1 leads.

    A Feistel network, that is a bijection whatever its keys are, keyed by random bits (the variable-length Philox
    of Mitchell et al. 2021, "Bandwidth-optimal random shuffling for GPUs", arXiv 2106.06161); steps beyond the
    last wrap around. The last key is added by XOR, which makes each single slot's law exactly uniform.
    """
    low_bits = num_bits // 2
    high_bits = num_bits - low_bits
    low_mask, high_mask = (jnp.uint32(1) << low_bits) - 1, (jnp.uint32(1) << high_bits) - 1

    def two_rounds(halves, keys):
        # The halves take turns, so that neither needs to be as wide as the other.
        high, low = halves
        high = high ^ (scrambled(low ^ keys[0]) & high_mask)
        low = low ^ (scrambled(high ^ keys[1]) & low_mask)
        return (high, low), None

    # A loop: a compiler that fuses rounds one after another computes each as often as it is used, 2**NUM_ROUNDS times.
    pairs = round_keys[:NUM_ROUNDS].reshape(-1, 2, *round_keys.shape[1:])
    high, low = jax.lax.scan(two_rounds, (step >> low_bits & high_mask, step & low_mask), pairs)[0]
    return (high << low_bits | low) ^ (round_keys[NUM_ROUNDS] & (low_mask | high_mask << low_bits))


def scrambled(words: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A 32-bit hash in which every input bit moves every output bit (MurmurHash3's finaliser, Appleby 2011)."""
    words = (words ^ words >> 16) * jnp.uint32(0x85EBCA6B)
    words = (words ^ words >> 13) * jnp.uint32(0xC2B2AE35)
    return words ^ words >> 16
