"""Row-sparse Adam over named tables: the rows of a step's own items and users move, and no others.

Tables can be kept in two forms (`STORAGES`). Either way a step gathers weights and moments, works out the loss and one
step of Adam on what it has gathered, and scatters it back: all rows in the dense form, the rows that the batch looks up
in the sparse one. That is LazyAdam: an item that the step does not look up (as an input, a target or a candidate,
chosen or not) keeps its row and its moments; steps are counted for all rows together.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from jaxneg.devices import sharded

Ids = Mapping[str, Sequence[Int[Array, "..."]]]  # for each table, arrays of row numbers; 0 is the pad


class Gathered(NamedTuple):
    """What one step works on, in the dense form's layout: for Adam there is no other."""

    params: dict  # {"tables": {name: [rows, D]}, "network": ...}
    opt_state: optax.ScaleByAdamState  # of those
    ids: dict[str, list[Int[Array, "..."]]]  # the ids that were asked for, as rows of these tables; 0 is the pad
    place: dict[str, Any]  # where each table's rows belong


class TableStorage(NamedTuple):
    """A form of keeping the tables and their moments."""

    pack: Callable  # plain (params, ScaleByAdamState) -> (params, opt_state) as they are kept
    weights: Callable  # kept params, of one seed or with a seed axis -> {"tables": {name: [..., rows, D]}, "network"}
    gather: Callable  # (kept params, kept opt_state, Ids) -> Gathered
    scatter: Callable  # (kept params, kept opt_state, Gathered) -> (kept params, kept opt_state)


DENSE = TableStorage(
    pack=lambda params, opt_state: (params, opt_state),
    weights=lambda params: params,
    gather=lambda params, opt_state, ids: Gathered(
        params, opt_state, {name: list(arrays) for name, arrays in ids.items()}, {}
    ),
    scatter=lambda params, opt_state, gathered: (gathered.params, gathered.opt_state),
)


def unsplit(table: Array) -> Array:
    """The table in one piece, on one device."""
    return table


class SparseState(NamedTuple):
    """What the sparse form keeps beside its tables, which hold their own moments: [rows, 3 D]."""

    network: optax.ScaleByAdamState
    slot: dict[str, sharded.Table]  # [rows]: scratch space to find repeated ids; what it holds has no meaning later


class Place(NamedTuple):
    """Where gathered rows belong."""

    row: Int[Array, "n"]  # where this device holds the row to write; beyond its rows for one that it does not hold,
    #                       for a repeated id and for the pad: not at all
    slot: sharded.Table


def pack_sparse(params: dict, opt_state: optax.ScaleByAdamState, split: Callable = unsplit) -> tuple[dict, SparseState]:
    """Value and both moments of a row side by side, so that one gather and one scatter move all three.

    `split` takes a table to what the devices of a mesh hold of it (see `jaxneg.devices.sharded`).
    """
    tables, slot = {}, {}
    for name, table in params["tables"].items():
        parts = [table, opt_state.mu["tables"][name], opt_state.nu["tables"][name]]
        tables[name] = split(jnp.concatenate(parts, axis=1))
        slot[name] = split(jnp.zeros(len(table), jnp.int32))
    return params | {"tables": tables}, SparseState(of_network(opt_state), slot)


def sparse_weights(params: dict) -> dict:
    """The plain weights, without moments: a copy of a third of the tables."""

    def value(packed):
        own = sharded.own(packed)
        return sharded.replace(packed, own[..., : own.shape[-1] // 3])

    return params | {"tables": {name: value(packed) for name, packed in params["tables"].items()}}


def gather_sparse(params: dict, opt_state: SparseState, ids: Ids) -> Gathered:
    """The rows of these ids, as small tables of their own.

    Row 0 of each is the pad. An id that comes up more than once has one row there; the rows of its other places are not
    used.
    """
    tables, mu, nu, renamed, place = {}, {}, {}, {}, {}
    for name, packed in params["tables"].items():
        row, used, place[name] = find_rows(packed, opt_state.slot[name], ids[name])
        value, mu[name], nu[name] = jnp.split(sharded.held(packed, used), 3, axis=1)
        tables[name] = sharded.total(packed, value)  # moments stay: only the device that holds a row writes it
        renamed[name] = split_like(row, ids[name])
    state = with_tables(opt_state.network, mu, nu)
    return Gathered(params | {"tables": tables}, state, renamed, place)


def find_rows(
    table: sharded.Table, slot: sharded.Table, ids: Sequence[Int[Array, "..."]]
) -> tuple[Int[Array, "m"], Int[Array, "n"], Place]:
    """A small table of these ids' rows: (the ids as its rows, each row's id or 0 for none, where they belong)."""
    wanted = jnp.concatenate([jnp.zeros(1, jnp.int32), *(own.reshape(-1) for own in ids)])
    number, there = jnp.arange(len(wanted), dtype=jnp.int32), sharded.place(table, wanted)
    # Of an id's places one wins, no matter which.
    slot = sharded.replace(slot, sharded.own(slot).at[there].set(number, mode="drop"))
    row = jnp.where(wanted == 0, 0, sharded.take(slot, wanted))
    is_used = row == number
    num_rows = len(sharded.own(table))
    written = jnp.where(is_used & (wanted > 0) & (there < num_rows), there, num_rows + number)
    return row[1:], jnp.where(is_used, wanted, 0), Place(written, slot)


def scatter_sparse(params: dict, opt_state: SparseState, gathered: Gathered) -> tuple[dict, SparseState]:
    """Writes the gathered rows into the tables, in place where their buffers may be reused."""
    trees = (gathered.params, gathered.opt_state.mu, gathered.opt_state.nu)
    tables = {
        name: put_rows(packed, gathered.place[name].row, jnp.concatenate([x["tables"][name] for x in trees], axis=1))
        for name, packed in params["tables"].items()
    }
    slot = {name: place.slot for name, place in gathered.place.items()}
    return gathered.params | {"tables": tables}, SparseState(of_network(gathered.opt_state), slot)


def put_rows(table: sharded.Table, place: Int[Array, "n"], rows: Array) -> sharded.Table:
    """The table with these rows where this device holds them; places beyond its own are dropped."""
    return sharded.replace(table, sharded.own(table).at[place].set(rows, mode="drop", unique_indices=True))


def of_network(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    """Adam's state without its tables."""
    mu, nu = ({"network": tree["network"]} for tree in (state.mu, state.nu))
    return state._replace(mu=mu, nu=nu)


def with_tables(network: optax.ScaleByAdamState, mu: dict, nu: dict) -> optax.ScaleByAdamState:
    """`of_network` the other way round."""
    return network._replace(mu=network.mu | {"tables": mu}, nu=network.nu | {"tables": nu})


def split_like(flat: Array, arrays: Sequence[Array]) -> list[Array]:
    """`flat` cut into pieces of the arrays' shapes, in their order."""
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(jnp.split(flat, ends), arrays, strict=True)]


SPARSE = TableStorage(pack_sparse, sparse_weights, gather_sparse, scatter_sparse)
STORAGES = {"dense": DENSE, "sparse": SPARSE}


def sparse_over(split: Callable) -> TableStorage:
    """The sparse form of tables that are split over devices; `split` is `pack_sparse`'s."""
    return SPARSE._replace(pack=functools.partial(pack_sparse, split=split))


# Items from which the sparse form is the faster one. `python benchmarks/catalogue.py --items 10000 30000 100000` on two
# CPU cores, batches of 128 x 50 with 50 negatives: 1.07, 1.11 and 0.90 times the dense form's step.
SPARSE_FROM = 50_000
