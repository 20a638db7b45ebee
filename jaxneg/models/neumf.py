"""NeuMF (He et al., WWW 2017): a network scores each pair of user and item; a point of comparison, slow to rank with.

A product of two vectors (GMF) stands beside layers on two others (MLP), and one linear layer reads both. The rows of
users and items are [GMF part | MLP part]. A tuned dot product, `mf`, often ranks better (Rendle et al., RecSys 2020).

A user without a row (row 0) is served by the mean of the rows of the last `max_len` items of the history. Here rows of
users and items do not live in one space, so this is a mere stopgap.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.errors import InputError
from jaxneg.fields import Rule, at_least, one_of
from jaxneg.models import base, objectives
from jaxneg.models.base import Dropout, Model, Piece

START = 0.01  # standard deviation of the first rows


class Settings(NamedTuple):
    gmf_width: Annotated[int, at_least(1, 10**4), "width of the vectors that are multiplied"] = 8
    layers: Annotated[
        tuple[int, ...],
        Rule(
            "2 whole numbers or more, from 1 to 10000, the first one even, as in (64, 32, 16, 8)",
            lambda sizes: (
                len(sizes) > 1 and all(type(size) is int and 1 <= size <= 10**4 for size in sizes) and sizes[0] % 2 == 0
            ),
        ),
        "widths of the MLP's layers; the first is that of its input, half of it the user's and half the item's",
    ] = (64, 32, 16, 8)
    unit: Annotated[
        str,
        one_of("interaction", "user"),
        "what a batch is drawn of: single interactions, or users with their last max_len items",
    ] = "interaction"
    max_len: Annotated[
        int, at_least(1, 10**5), "items of a user's window, for unit=user; last items that serve an unknown user"
    ] = 50


def make(settings: Settings, num_items: int) -> Model:
    """The model of these sizes."""
    gmf_width, sizes = settings.gmf_width, settings.layers
    for name in ("gmf_width", "max_len"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    if len(sizes) < 2 or min(sizes) < 1 or sizes[0] % 2:
        raise InputError(f"layers is {sizes}: it must be 2 whole numbers or more, 1 or more each, the first one even")
    if settings.unit not in ("interaction", "user"):
        raise InputError(f"unit is {settings.unit!r}: it must be interaction or user")
    width, hidden_layers = gmf_width + sizes[0] // 2, [f"layer_{i}" for i in range(len(sizes) - 1)]

    def init(key: PRNGKeyArray, num_items: int, num_users: int) -> dict:
        """Rows from N(0, 0.01), Glorot uniform for every matrix, biases 0."""
        item_key, user_key, *keys = jax.random.split(key, 2 + len(sizes))
        tables = {
            "item": (START * jax.random.normal(item_key, (num_items + 1, width))).at[0].set(0.0),
            "user": (START * jax.random.normal(user_key, (num_users + 1, width))).at[0].set(0.0),
        }
        shapes = dict(zip(hidden_layers, zip(sizes, sizes[1:], strict=False), strict=True))
        shapes["output"] = (gmf_width + sizes[-1], 1)
        network = {
            name: {"kernel": glorot_uniform()(own, shape), "bias": jnp.zeros(shape[1])}
            for own, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return {"tables": tables, "network": network}

    def encode(network: dict, piece: Piece, dropout: Dropout | None) -> Float[Array, "b l D"]:
        """The user's row, at each position."""
        return jnp.broadcast_to(base.user_state(piece)[:, None], (*piece.inputs.shape, width))

    def score(network: dict, hidden: Float[Array, "B L D"], rows: Float[Array, "#B #L N D"]) -> Float[Array, "B L N"]:
        """The network's output; each half of the first layer is worked out once for each state and each row."""
        user_factors, user_input = jnp.split(hidden, [gmf_width], axis=-1)
        item_factors, item_input = jnp.split(rows, [gmf_width], axis=-1)
        first, *others = (network[name] for name in hidden_layers)
        of_user, of_item = jnp.split(first["kernel"], 2)
        of_factors, of_layers = jnp.split(network["output"]["kernel"][:, 0], [gmf_width])
        x = (user_input @ of_user + first["bias"][None, None])[:, :, None] + item_input @ of_item
        for layer in others:
            x = jax.nn.relu(x) @ layer["kernel"] + layer["bias"][None, None, None]
        product = base.dot(network, user_factors * of_factors[None, None], item_factors)
        return product + jax.nn.relu(x) @ of_layers + network["output"]["bias"][None, None]

    return Model(
        width,
        1 if settings.unit == "interaction" else settings.max_len,
        objectives.own_items(settings.unit),
        init,
        base.each_piece(encode),
        score,
        query_len=settings.max_len,
        floats_per_score=sum(sizes[1:]),
    )
