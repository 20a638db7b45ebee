"""Tables whose rows are split over an axis of the device mesh, looked up and written without moving the whole.

These functions run inside a program that `jaxneg.devices.mesh` has spread over the devices. A plain array stands for a
table that every device has whole, and is treated by the same functions.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sharded:
    """A table [length, ...], of which each device of a mesh axis holds the next R rows; the last ones may be fill.

    Outside of a program `own` is the global array [devices * R, ...]; inside it is what this device holds, [R, ...].
    """

    own: Shaped[Array, "R ..."]
    length: int = dataclasses.field(metadata={"static": True})
    axis: str = dataclasses.field(metadata={"static": True})


Table = Shaped[Array, "rows ..."] | Shaped[np.ndarray, "rows ..."] | Sharded


def length(table: Table) -> int:
    """The number of rows, fill not counted."""
    return table.length if isinstance(table, Sharded) else table.shape[0]


def own(table: Table) -> Shaped[Array, "R ..."] | Shaped[np.ndarray, "R ..."]:
    """The rows that this device holds."""
    return table.own if isinstance(table, Sharded) else table


def first(table: Table) -> Int[Array, ""] | int:
    """The number of this device's first row."""
    return jax.lax.axis_index(table.axis) * table.own.shape[0] if isinstance(table, Sharded) else 0


def place(table: Table, rows: Int[Array, "*S"]) -> Int[Array, "*S"]:
    """Where this device holds these rows; beyond the end of what it holds, for rows that others have."""
    if not isinstance(table, Sharded):
        return rows
    local = rows - first(table)
    return jnp.where((local >= 0) & (local < table.own.shape[0]), local, table.own.shape[0])


def replace(table: Table, rows: Shaped[Array, "R ..."]) -> Table:
    """The table with other rows in place of those that this device holds."""
    return dataclasses.replace(table, own=rows) if isinstance(table, Sharded) else rows


def take(table: Table, rows: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """These rows, on every device: all devices of the axis ask for the same ones.

    Only they travel: each device sends what it holds of them, and zeros for the rest. Rows beyond the table are
    clipped to its first or last one.
    """
    return total(table, held(table, rows))


def take_each(table: Table, rows: Int[Array, "n"]) -> Shaped[Array, "n ..."]:
    """Like `take`, where every device of the axis asks for other rows, and as many."""
    if not isinstance(table, Sharded):
        return held(table, rows)
    asked = jax.lax.all_gather(rows, table.axis, tiled=True)
    return jax.lax.psum_scatter(held(table, asked), table.axis, tiled=True)


def held(table: Table, rows: Int[Array, "..."]) -> Shaped[Array, "..."]:
    """These rows where this device holds them, zeros elsewhere."""
    if not isinstance(table, Sharded):
        return jnp.take(table, rows, axis=0, mode="clip")
    local = place(table, jnp.clip(rows, 0, table.length - 1))
    found = jnp.take(table.own, local, axis=0, mode="clip")
    here = (local < table.own.shape[0]).reshape(local.shape + (1,) * (found.ndim - local.ndim))
    return jnp.where(here, found, jnp.zeros_like(found))


def total(table: Table, values: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The sum over the devices among which the table is split."""
    return jax.lax.psum(values, table.axis) if isinstance(table, Sharded) else values
