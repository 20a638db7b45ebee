"""The row-sparse item table with its moments in fewer bytes: 8 a weight with bfloat16, 6 with int8, where it takes 12.

What is kept of Adam's second moment is its square root, by which the step divides: half the range, no negative number,
and an int8 row's smallest code stands for more than 0, so that no step is divided by nothing. Rounding is random
and right on average: a change that is smaller than the distance of two codes is not lost, as (1 - b2) of a moment is.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from jaxneg.devices import sharded
from jaxneg.hashing import hashed, mixed
from jaxneg.optim.row_tables import DENSE, Borrowed, ItemTable, find_rows, sparse_over, split_like, whole


class Code(NamedTuple):
    """How rows of moments are stored, as arrays with a row for each."""

    encode: Callable  # (first moment, root of the second: [n, D] each, random words [n, 2 D]) -> {name: rows}
    decode: Callable  # {name: rows} -> (first moment, root of the second)


class CodedState(NamedTuple):
    """What is kept beside the plain weights."""

    encoder: optax.ScaleByAdamState
    slot: sharded.Table  # [V + 1], as in `row_tables.SparseState`
    coded: dict  # {name: [V + 1, ...]}, as the Code made them


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


def item_table(form: str, moments: str, split: Callable = whole) -> ItemTable:
    """The form of `row_tables.ITEM_TABLES`, or the sparse one with these moments.

    `split` takes a table to what the devices of a mesh hold of it (see `row_tables.keep_sparse`).
    """
    if form == "dense":
        return DENSE
    return sparse_over(split) if moments == "float32" else coded_table(CODES[moments], split)


def coded_table(code: Code, split: Callable = whole) -> ItemTable:
    """`row_tables.SPARSE`, but for how the moments are kept: a step decodes the rows that it borrows."""

    def keep(params: dict, opt_state: optax.ScaleByAdamState) -> tuple[dict, CodedState]:
        mean, square = (tree["item_table"] for tree in (opt_state.mu, opt_state.nu))
        words = jnp.zeros((mean.shape[0], 2 * mean.shape[1]), jnp.uint32)
        coded = jax.tree.map(split, code.encode(mean, jnp.sqrt(square), words))
        slot = split(jnp.zeros(len(mean), jnp.int32))
        return params | {"item_table": split(params["item_table"])}, CodedState(_of_encoder(opt_state), slot, coded)

    def borrow(params: dict, opt_state: CodedState, item_ids: Sequence[Int[Array, "..."]]) -> Borrowed:
        table = params["item_table"]
        row, used, place = find_rows(table, opt_state.slot, item_ids)
        mean, root = code.decode({name: sharded.held(rows, used) for name, rows in opt_state.coded.items()})
        encoder = opt_state.encoder
        state = encoder._replace(mu=encoder.mu | {"item_table": mean}, nu=encoder.nu | {"item_table": jnp.square(root)})
        return Borrowed(params | {"item_table": sharded.take(table, used)}, state, split_like(row, item_ids), place)

    def give_back(params: dict, opt_state: CodedState, borrowed: Borrowed) -> tuple[dict, CodedState]:
        table, values, state, there = (
            params["item_table"],
            borrowed.params["item_table"],
            borrowed.opt_state,
            borrowed.place.item,
        )

        def put(table, rows):
            return sharded.replace(table, sharded.own(table).at[there].set(rows, mode="drop", unique_indices=True))

        words = rounding_words(values, sharded.first(table) + there, state.count)
        rows = code.encode(state.mu["item_table"], jnp.sqrt(state.nu["item_table"]), words)
        coded = {name: put(opt_state.coded[name], part) for name, part in rows.items()}
        params = borrowed.params | {"item_table": put(table, values)}
        return params, CodedState(_of_encoder(state), borrowed.place.slot, coded)

    return ItemTable(keep, lambda params: params, borrow, give_back)


def rounding_words(values: Float[Array, "n D"], item: Int[Array, "n"], step: Int[Array, ""]) -> UInt32[Array, "n D2"]:
    """A random word for each number to be rounded, from the item, the step and the weight, which differs by seed."""
    bits = jnp.tile(lax.bitcast_convert_type(values, jnp.uint32), (1, 2))
    place = jnp.arange(bits.shape[1], dtype=jnp.uint32)[None, :]
    return hashed(bits ^ mixed(place + mixed(item.astype(jnp.uint32))[:, None]), step.astype(jnp.uint32), jnp.uint32(0))


def _of_encoder(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
    mu, nu = ({"encoder": tree["encoder"]} for tree in (state.mu, state.nu))
    return state._replace(mu=mu, nu=nu)
