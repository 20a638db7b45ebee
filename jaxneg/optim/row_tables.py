"""Adam without the learning rate, which belongs to the training state (each seed may have its own).

The item table can be kept in two forms (`ITEM_TABLES`). Either way a step borrows weights and moments, works out the
loss and one step of Adam on what it has borrowed, and gives it back: all of them in the dense form, the rows of the
batch's own items in the sparse one. That is LazyAdam: an item that the step does not look up (as an input, a target or
a candidate, chosen or not) keeps its row and its moments; steps are counted for all items together.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from jaxneg.devices import sharded


class Borrowed(NamedTuple):
    """What one step works on, in the dense form's layout: for Adam there is no other."""

    params: dict  # {"item_table": [rows, D], "encoder"}
    opt_state: optax.ScaleByAdamState  # of those
    item_ids: list[Int[Array, "..."]]  # the ids that were asked for, as rows of this item table; 0 is the pad
    place: Any  # where the rows belong


class ItemTable(NamedTuple):
    """A form of keeping the item table and its moments."""

    keep: Callable  # plain (params, ScaleByAdamState) -> (params, opt_state) as they are kept
    weights: Callable  # kept params, of one seed or with a seed axis -> {"item_table": [..., V + 1, D], "encoder"}
    borrow: Callable  # (kept params, kept opt_state, arrays of item ids) -> Borrowed
    give_back: Callable  # (kept params, kept opt_state, Borrowed) -> (kept params, kept opt_state)


DENSE = ItemTable(
    keep=lambda params, opt_state: (params, opt_state),
    weights=lambda params: params,
    borrow=lambda params, opt_state, item_ids: Borrowed(params, opt_state, list(item_ids), None),
    give_back=lambda params, opt_state, borrowed: (borrowed.params, borrowed.opt_state),
)


def whole(table: Array) -> Array:
    """The table in one piece, on one device."""
    return table


class SparseState(NamedTuple):
    """What the sparse form keeps beside its item table, which holds its own moments: [V + 1, 3 D]."""

    encoder: optax.ScaleByAdamState
    slot: sharded.Table  # [V + 1], by item: scratch space to find repeated items; what it holds has no meaning later


class Place(NamedTuple):
    """Where borrowed rows belong."""

    item: Int[Array, "n"]  # where this device holds the row to write; beyond its rows for one that it does not hold,
    #                        for a repeated item and for the pad: not at all
    slot: sharded.Table


def keep_sparse(params: dict, opt_state: optax.ScaleByAdamState, split: Callable = whole) -> tuple[dict, SparseState]:
    """Value and both moments of an item side by side, so that one gather and one scatter move all three.

    `split` takes a table to what the devices of a mesh hold of it (see `jaxneg.devices.sharded`).
    """
    parts = [tree["item_table"] for tree in (params, opt_state.mu, opt_state.nu)]
    encoder = opt_state._replace(mu={"encoder": opt_state.mu["encoder"]}, nu={"encoder": opt_state.nu["encoder"]})
    slot = jnp.zeros(len(parts[0]), jnp.int32)
    return params | {"item_table": split(jnp.concatenate(parts, axis=1))}, SparseState(encoder, split(slot))


def sparse_weights(params: dict) -> dict:
    """The plain weights, without moments: a copy of a third of the table."""
    packed = params["item_table"]
    own = sharded.own(packed)
    return params | {"item_table": sharded.replace(packed, own[..., : own.shape[-1] // 3])}


def borrow_sparse(params: dict, opt_state: SparseState, item_ids: Sequence[Int[Array, "..."]]) -> Borrowed:
    """The rows of these items, as a small item table of their own.

    Its row 0 is the pad. An item that comes up more than once has one row there; the rows of its other places are
    not used.
    """
    packed = params["item_table"]
    row, used, place = find_rows(packed, opt_state.slot, item_ids)
    value, mu, nu = jnp.split(sharded.held(packed, used), 3, axis=1)
    value = sharded.total(packed, value)  # the moments stay: only the device that holds a row writes it
    encoder = opt_state.encoder
    state = encoder._replace(mu=encoder.mu | {"item_table": mu}, nu=encoder.nu | {"item_table": nu})
    return Borrowed(params | {"item_table": value}, state, split_like(row, item_ids), place)


def find_rows(
    table: sharded.Table, slot: sharded.Table, item_ids: Sequence[Int[Array, "..."]]
) -> tuple[Int[Array, "m"], Int[Array, "n"], Place]:
    """A small table of these items' rows: (the ids as its rows, each row's item or 0 for none, where they belong)."""
    wanted = jnp.concatenate([jnp.zeros(1, jnp.int32), *(ids.reshape(-1) for ids in item_ids)])
    number, there = jnp.arange(len(wanted), dtype=jnp.int32), sharded.place(table, wanted)
    # Of an item's places one wins, no matter which.
    slot = sharded.replace(slot, sharded.own(slot).at[there].set(number, mode="drop"))
    row = jnp.where(wanted == 0, 0, sharded.take(slot, wanted))
    is_used = row == number
    num_rows = len(sharded.own(table))
    written = jnp.where(is_used & (wanted > 0) & (there < num_rows), there, num_rows + number)
    return row[1:], jnp.where(is_used, wanted, 0), Place(written, slot)


def give_back_sparse(params: dict, opt_state: SparseState, borrowed: Borrowed) -> tuple[dict, SparseState]:
    """Writes the borrowed rows into the table, in place where its buffer may be reused."""
    parts = [tree["item_table"] for tree in (borrowed.params, borrowed.opt_state.mu, borrowed.opt_state.nu)]
    packed = params["item_table"]
    written = (
        sharded.own(packed)
        .at[borrowed.place.item]
        .set(jnp.concatenate(parts, axis=1), mode="drop", unique_indices=True)
    )
    mu, nu = ({"encoder": tree["encoder"]} for tree in (borrowed.opt_state.mu, borrowed.opt_state.nu))
    encoder = borrowed.opt_state._replace(mu=mu, nu=nu)
    return borrowed.params | {"item_table": sharded.replace(packed, written)}, SparseState(encoder, borrowed.place.slot)


def split_like(flat: Array, arrays: Sequence[Array]) -> list[Array]:
    """`flat` cut into pieces of the arrays' shapes, in their order."""
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(jnp.split(flat, ends), arrays, strict=True)]


SPARSE = ItemTable(keep_sparse, sparse_weights, borrow_sparse, give_back_sparse)
ITEM_TABLES = {"dense": DENSE, "sparse": SPARSE}


def sparse_over(split: Callable) -> ItemTable:
    """The sparse form of a table that is split over devices; `split` is `keep_sparse`'s."""
    return SPARSE._replace(keep=functools.partial(keep_sparse, split=split))


# Items from which the sparse form is the faster one. `python benchmarks/catalogue.py --items 10000 30000 100000` on two
# CPU cores, batches of 128 x 50 with 50 negatives: 1.07, 1.11 and 0.90 times the dense form's step.
SPARSE_FROM = 50_000
