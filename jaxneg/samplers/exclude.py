"""Sets of items that a sequence must not get as negatives: membership, and drawing around them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxneg.errors import InputError
from jaxneg.types import Batch

LARGEST = jnp.iinfo(jnp.int32).max
NUM_INTERVALS = 16  # a power of two: what the pivots divide a row into
MANY = 256  # values of a row from which comparing with all pivots is quicker than looking four of them up (CPU)


class Excluded(NamedTuple):
    """One set of items per sequence: ascending, distinct, padded with anything above V."""

    item_ids: Int[Array, "B H"]
    count: Int[Array, "B"]


def history(batch: Batch, num_items: int) -> Excluded:
    """The user's whole training history."""
    return Excluded(batch.history, batch.history_length)


def ordered_targets(batch: Batch, num_items: int) -> Int[Array, "B L"]:
    """Each sequence's targets in ascending order, repeats and all, pads last (as V + 1)."""
    return jnp.sort(jnp.where(batch.targets > 0, batch.targets, num_items + 1), axis=1)


def targets(batch: Batch, num_items: int) -> Excluded:
    """The sequence's own distinct targets (the released code's mixed pool excludes only these)."""
    ordered = ordered_targets(batch, num_items)
    is_new = jnp.diff(ordered, axis=1, prepend=0) > 0
    distinct = jnp.sort(jnp.where(is_new, ordered, num_items + 1), axis=1)
    return Excluded(distinct, jnp.sum(distinct <= num_items, axis=1, dtype=jnp.int32))


EXCLUDED = {"history": history, "targets": targets}


def lookup(name: str):
    """The function (batch, num_items) -> Excluded of that name; raises InputError with the known ones."""
    if name not in EXCLUDED:
        raise InputError(f"exclude is {name!r}; allowed: {', '.join(EXCLUDED)}")
    return EXCLUDED[name]


def count_at_most(ascending: Int[Array, "B H"], values: Int[Array, "#B #L N"]) -> Int[Array, "B #L N"]:
    """How many entries of row b are <= each value for row b: a branch-free binary search of ceil(log2(H+1)) steps.

    Where a row has many values, its first steps are plain comparisons with 15 pivots: they need no gather.
    """
    num_rows, length = ascending.shape
    step = 1 << length.bit_length() >> 1
    size = 2 * step - 1  # the row is padded so that no probe can leave it
    ascending = jnp.pad(ascending, ((0, 0), (0, size - length)), constant_values=LARGEST)
    shape = (num_rows, *values.shape[1:])
    values = jnp.broadcast_to(values, shape).reshape(num_rows, -1)
    position = jnp.zeros_like(values)
    if values.shape[1] >= MANY:
        step = max(2 * step // NUM_INTERVALS, 1)
        for pivot in range(step - 1, size, step):
            position = position + jnp.where(ascending[:, pivot, None] <= values, step, 0)
        step //= 2
    num_steps = step.bit_length()

    def halve(turn, position):
        half = jnp.int32(1) << (num_steps - 1 - turn)
        probe = jnp.take_along_axis(ascending, position + (half - 1), axis=1, mode="clip")
        return jnp.where(probe <= values, position + half, position)

    # A GPU fuses the steps into one pass. On a CPU, fused steps would each compute the values anew: it gets a loop.
    looped = functools.partial(jax.lax.fori_loop, 0, num_steps, halve)
    position = jax.lax.platform_dependent(position, cpu=looped, default=functools.partial(looped, unroll=True))
    return position.reshape(shape)


def contains(ascending: Int[Array, "B H"], item_ids: Int[Array, "#B #L N"]) -> Bool[Array, "B #L N"]:
    """Whether each item is in row b's ascending set (repeats allowed)."""
    at_most = count_at_most(ascending, item_ids)
    index = jnp.maximum(at_most - 1, 0).reshape(ascending.shape[0], -1)
    largest = jnp.take_along_axis(ascending, index, axis=1, mode="clip")
    return largest.reshape(at_most.shape) == item_ids


def shift(excluded: Excluded, index: Int[Array, "B #L N"]) -> Int[Array, "B #L N"]:
    """The items (1-based) at 0-based `index` among all items outside the sequence's set.

    The j-th excluded item (0-based) has item - 1 - j permitted ones below it, which never falls with j: the answer
    is index + 1 plus the number of excluded items with at most `index` permitted ones below them. Exact.
    """
    place = jnp.arange(excluded.item_ids.shape[1], dtype=jnp.int32)[None]
    permitted_below = jnp.where(place < excluded.count[:, None], excluded.item_ids - 1 - place, LARGEST)
    return index + 1 + count_at_most(permitted_below, index)
