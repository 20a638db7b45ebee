"""Matrix factorisation (BPR-MF: Rendle et al., UAI 2009): a vector for each user; where the order of items says little.

A score is the dot product of a user's and an item's vector; both start from N(0, 0.1). With loss `bpr` this is BPR-MF.

A user without a row (row 0) is served by the mean of the rows of the last `max_len` items of the history. The rows of
users and items live in one space, so this is a fair guess, and no substitute for training on the user.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.errors import InputError
from jaxneg.fields import ANY, at_least, one_of
from jaxneg.models import base, objectives
from jaxneg.models.base import Dropout, Model, Piece

START = 0.1  # standard deviation of the first vectors


class Settings(NamedTuple):
    width: Annotated[int, at_least(1, 10**4), "width of the vectors of users and items"] = 64
    unit: Annotated[
        str,
        one_of("interaction", "user"),
        "what a batch is drawn of: single interactions, or users with their last max_len items",
    ] = "interaction"
    max_len: Annotated[
        int, at_least(1, 10**5), "items of a user's window, for unit=user; last items that serve an unknown user"
    ] = 50
    item_bias: Annotated[bool, ANY, "true: each item has a bias, which its score gains"] = False


def make(settings: Settings, num_items: int) -> Model:
    """The model of these sizes; with `item_bias` an item's row has its bias as the last column."""
    for name in ("width", "max_len"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    if settings.unit not in ("interaction", "user"):
        raise InputError(f"unit is {settings.unit!r}: it must be interaction or user")
    width, with_bias = settings.width, int(settings.item_bias)

    def init(key: PRNGKeyArray, num_items: int, num_users: int) -> dict:
        """Vectors from N(0, 0.1), biases of items 0."""
        item_key, user_key = jax.random.split(key)
        items = (START * jax.random.normal(item_key, (num_items + 1, width))).at[0].set(0.0)
        users = (START * jax.random.normal(user_key, (num_users + 1, width))).at[0].set(0.0)
        return {"tables": {"item": jnp.pad(items, ((0, 0), (0, with_bias))), "user": users}, "network": {}}

    def encode(network: dict, piece: Piece, dropout: Dropout | None) -> Float[Array, "b l D"]:
        """The user's vector, at each position."""
        user = base.user_state(piece._replace(embedded=piece.embedded[..., :width]))
        user = jnp.pad(user, ((0, 0), (0, with_bias)), constant_values=1.0)
        return jnp.broadcast_to(user[:, None], (*piece.inputs.shape, width + with_bias))

    return Model(
        width + with_bias,
        1 if settings.unit == "interaction" else settings.max_len,
        objectives.own_items(settings.unit),
        init,
        base.each_piece(encode),
        query_len=settings.max_len,
    )
