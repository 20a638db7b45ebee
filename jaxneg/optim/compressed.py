"""Row-sparse tables with their moments in fewer bytes: 8 a weight with bfloat16, 6 with int8, where it takes 12.

What is kept of Adam's second moment is its square root, by which the step divides: half the range, no negative number,
and an int8 row's smallest code stands for more than 0, so that no step is divided by nothing. Rounding is random
and right on average: a change that is smaller than the distance of two codes is not lost, as (1 - b2) of a moment is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from jaxneg.devices import sharded
from jaxneg.hashing import hashed, mixed
from jaxneg.optim.row_tables import (
    DENSE,
    Gathered,
    Ids,
    TableStorage,
    find_rows,
    of_network,
    put_rows,
    sparse_over,
    split_like,
    unsplit,
    with_tables,
)


class Code(NamedTuple):
    """How rows of moments are stored, as arrays with a row for each."""

    encode: Callable  # (first moment, root of the second: [n, D] each, random words [n, 2 D]) -> {name: rows}
    decode: Callable  # {name: rows} -> (first moment, root of the second)


class CodedState(NamedTuple):
    """What is kept beside the plain weights."""

    network: optax.ScaleByAdamState
    slot: dict[str, sharded.Table]  # as in `row_tables.SparseState`
    coded: dict[str, dict]  # for each table {part: [rows, ...]}, as the Code made them


def encode_bfloat16(mean: Float[Array, "n D"], root: Float[Array, "n D"], words: UInt32[Array, "n D2"]) -> dict:
    """Both side by side. A bfloat16 is the upper half of a float32: random bits, added to the lower half, carry.

    Kept as whole numbers: XLA on a CPU would make a float32 copy of a bfloat16 table to write a few of its rows.
    """
    bits = lax.bitcast_convert_type(jnp.concatenate([mean, root], axis=1), jnp.uint32)
    return {"moments": ((bits + (words & 0xFFFF)) >> 16).astype(jnp.uint16)}


def decode_bfloat16(coded: dict) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
    bits = coded["moments"].astype(jnp.uint32) << 16
    return tuple(jnp.split(lax.bitcast_convert_type(bits, jnp.float32), 2, axis=1))


def encode_int8(mean: Float[Array, "n D"], root: Float[Array, "n D"], words: UInt32[Array, "n D2"]) -> dict:
    """Whole numbers of a 127th (a 255th) of the row's largest."""
    scale = jnp.stack([jnp.max(jnp.abs(mean), axis=1), jnp.max(root, axis=1)], axis=1)
    up = jnp.split((words >> 8).astype(jnp.float32) * np.float32(2**-24), 2, axis=1)  # in [0, 1)
    unit = jnp.where(scale > 0, scale, 1)
    mean_code = jnp.clip(jnp.floor(mean / unit[:, :1] * 127 + up[0]), -127, 127).astype(jnp.int8)
    root_code = jnp.where(root > 0, jnp.clip(jnp.floor(root / unit[:, 1:] * 255 + up[1]), 1, 255), 0)
    return {"mean": mean_code, "root": root_code.astype(jnp.uint8), "scale": scale}


def decode_int8(coded: dict) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
    mean, root = (coded[name].astype(jnp.float32) for name in ("mean", "root"))
    return mean * (coded["scale"][:, :1] / 127), root * (coded["scale"][:, 1:] / 255)


CODES = {"bfloat16": Code(encode_bfloat16, decode_bfloat16), "int8": Code(encode_int8, decode_int8)}


def storage(form: str, moments: str, split: Callable = unsplit) -> TableStorage:
    """The form of `row_tables.STORAGES`, or the sparse one with these moments.

    `split` takes a table to what the devices of a mesh hold of it (see `row_tables.pack_sparse`).
    """
    if form == "dense":
        return DENSE
    return sparse_over(split) if moments == "float32" else coded_storage(CODES[moments], split)


def coded_storage(code: Code, split: Callable = unsplit) -> TableStorage:
    """`row_tables.SPARSE`, but for how the moments are kept: a step decodes the rows that it gathers."""

    def pack(params: dict, opt_state: optax.ScaleByAdamState) -> tuple[dict, CodedState]:
        tables, slot, coded = {}, {}, {}
        for name, table in params["tables"].items():
            mean, square = opt_state.mu["tables"][name], opt_state.nu["tables"][name]
            words = jnp.zeros((mean.shape[0], 2 * mean.shape[1]), jnp.uint32)
            coded[name] = jax.tree.map(split, code.encode(mean, jnp.sqrt(square), words))
            tables[name], slot[name] = split(table), split(jnp.zeros(len(table), jnp.int32))
        return params | {"tables": tables}, CodedState(of_network(opt_state), slot, coded)

    def gather(params: dict, opt_state: CodedState, ids: Ids) -> Gathered:
        tables, mu, nu, renamed, place = {}, {}, {}, {}, {}
        for name, table in params["tables"].items():
            row, used, place[name] = find_rows(table, opt_state.slot[name], ids[name])
            held = {part: sharded.held(rows, used) for part, rows in opt_state.coded[name].items()}
            mu[name], root = code.decode(held)
            nu[name], tables[name] = jnp.square(root), sharded.take(table, used)
            renamed[name] = split_like(row, ids[name])
        return Gathered(params | {"tables": tables}, with_tables(opt_state.network, mu, nu), renamed, place)

    def scatter(params: dict, opt_state: CodedState, gathered: Gathered) -> tuple[dict, CodedState]:
        state, tables, coded = gathered.opt_state, {}, {}
        for name, table in params["tables"].items():
            values, there = gathered.params["tables"][name], gathered.place[name].row
            words = rounding_words(values, sharded.first(table) + there, state.count)
            rows = code.encode(state.mu["tables"][name], jnp.sqrt(state.nu["tables"][name]), words)
            coded[name] = {part: put_rows(opt_state.coded[name][part], there, rows[part]) for part in rows}
            tables[name] = put_rows(table, there, values)
        slot = {name: place.slot for name, place in gathered.place.items()}
        return gathered.params | {"tables": tables}, CodedState(of_network(state), slot, coded)

    return TableStorage(pack, lambda params: params, gather, scatter)


def rounding_words(values: Float[Array, "n D"], item: Int[Array, "n"], step: Int[Array, ""]) -> UInt32[Array, "n D2"]:
    """A random word for each number to be rounded, from the item, the step and the weight, which differs by seed."""
    bits = jnp.tile(lax.bitcast_convert_type(values, jnp.uint32), (1, 2))
    place = jnp.arange(bits.shape[1], dtype=jnp.uint32)[None, :]
    return hashed(bits ^ mixed(place + mixed(item.astype(jnp.uint32))[:, None]), step.astype(jnp.uint32), jnp.uint32(0))
