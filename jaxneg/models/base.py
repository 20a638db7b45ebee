"""What a model is to the training step and the evaluation, which know none by name: some sizes and some functions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.devices import sharded
from jaxneg.models import layers
from jaxneg.models.objectives import Objective


class Dropout(NamedTuple):
    """What a model drops by, while it trains."""

    key: PRNGKeyArray
    rate: Float[Array, ""] | float  # may be traced: each seed of one program may have its own


class Piece(NamedTuple):
    """The sequences of one bucket, right-aligned, with what was looked up for them."""

    inputs: Int[Array, "b l"]  # 0 at pads, MASK where an item is hidden
    embedded: Float[Array, "b l D"]  # their rows of the item table; 0 at pads and at MASK
    user: Float[Array, "b E"] | None  # their users' rows, where the model has a user table; 0 for an unknown user
    number: Int[Array, "b"]  # place in the whole batch, so that dropout does not depend on the cut
    times: Int[Array, "b m"] | None = None  # [b, l + 1] seconds, the last one that of what is asked


def dot(network: dict, hidden: Float[Array, "B L D"], rows: Float[Array, "#B #L N D"]) -> Float[Array, "B L N"]:
    """Dot products of hidden states with items' rows, one matrix product where positions share the items."""
    if rows.shape[2] == 1 and rows.shape[:2] == hidden.shape[:2]:  # the positives
        return jnp.sum(hidden * rows[:, :, 0], axis=-1, keepdims=True)
    if rows.shape[:2] == (1, 1):
        return layers.matmul_shared(hidden, rows[0, 0])
    axes = "".join(name for name, size in zip("bl", rows.shape, strict=False) if size > 1)
    shared = [axis for axis in (0, 1) if rows.shape[axis] == 1]
    return jnp.einsum(f"bld,{axes}nd->bln", hidden, jnp.squeeze(rows, shared))


class Model(NamedTuple):
    """A model whose sizes are fixed. The tables stay outside of the network, which takes rows of theirs.

    `width`: D, of the item table's rows. `max_len`: L, the most positions that it looks at.
    `init(key, num_items, num_users) -> {"tables": {"item": Float[V+1, D], ["user": Float[U+1, E]]}, "network": tree}`;
        row 0 of each table is 0.
    `encode(network, Sequence[Piece], Dropout | None) -> [Float[b, l, D] for each piece]`.
    `score(network, hidden Float[B, L, D], rows Float[#B, #L, N, D]) -> Float[B, L, N]`; `floats_per_score` is how many
        numbers it holds for each score at once.
    `needs`: what a window has to have besides items: ("times",) or nothing.
    `query_len`: how many items of a history it is asked with; None: max_len.
    `pad_state(network) -> Float[D]`: the state at every pad; None: pads differ, or have no state of their own.
    """

    width: int
    max_len: int
    objective: Objective
    init: Callable
    encode: Callable
    score: Callable = dot
    needs: tuple[str, ...] = ()
    pad_state: Callable | None = None
    query_len: int | None = None
    floats_per_score: int = 1


def each_piece(function: Callable) -> Callable:
    """An `encode` from a function of one piece: (network, Piece, Dropout | None) -> Float[b, l, D]."""
    return lambda network, pieces, dropout: [function(network, piece, dropout) for piece in pieces]


def lookup(table: sharded.Table, ids: Int[Array, "*ids"]) -> Float[Array, "*ids D"]:
    """Rows of a table; the pad, 0, and MASK give zeros (and no gradient) whatever row 0 holds."""
    return jnp.where(ids[..., None] > 0, sharded.take(table, jnp.maximum(ids, 0)), 0)


def cut_rows(rows: Float[Array, "n D"], ids: Sequence[Int[Array, "..."]]) -> list[Float[Array, "..."]]:
    """Rows that were looked up together, of several arrays of ids one after another, as an array for each."""
    ends = np.cumsum([part.size for part in ids])[:-1]
    return [part.reshape(*own.shape, rows.shape[1]) for part, own in zip(jnp.split(rows, ends), ids, strict=True)]


def encode_inputs(
    model: Model,
    params: dict,
    inputs: Int[Array, "B L"],
    users: Int[Array, "B"] | None = None,
    times: Int[Array, "B M"] | None = None,
    dropout: Dropout | None = None,
) -> Float[Array, "B L D"]:
    """Hidden states of left-padded item ids; `users` are rows of the user table (0: unknown), where there is one."""
    tables = params["tables"]
    user = lookup(tables["user"], users) if "user" in tables else None
    piece = Piece(inputs, lookup(tables["item"], inputs), user, jnp.arange(inputs.shape[0]), times)
    return model.encode(params["network"], [piece], dropout)[0]


def user_state(piece: Piece) -> Float[Array, "b E"]:
    """The users' rows; an unknown user, whose row is 0, gets the mean of the rows of the items that are there."""
    number = jnp.sum(piece.inputs > 0, axis=1, keepdims=True)
    mean = jnp.sum(piece.embedded, axis=1) / jnp.maximum(number, 1)
    return jnp.where(jnp.any(piece.user != 0, axis=1, keepdims=True), piece.user, mean)
