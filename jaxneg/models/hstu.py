"""HSTU (Zhai et al., ICML 2024): attention without a softmax, which may look at times; for long and dated histories.

As its authors ran it for MovieLens: learned positions are added to the embedded items, each block adds a bias for the
distance between two items to their attention, and a score is the cosine of state and item over a temperature, for the
sampled softmax. With `times` the bias also depends on how long before what is asked an item came. So the model is told
when the next item comes, which SASRec is not: report it with and without.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import glorot_uniform, normal, truncated_normal
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from jaxneg.errors import InputError
from jaxneg.fields import ANY, BELOW_ONE, POSITIVE, at_least
from jaxneg.models import base, layers, objectives
from jaxneg.models.base import Dropout, Model, Piece

NUM_TIME_BUCKETS = 72  # the last one is that of 2**31 seconds
START = 0.02  # standard deviation of the first embeddings, projections and biases
SMALLEST_SQUARE = 1e-12  # of a vector that is normalised


class Settings(NamedTuple):
    width: Annotated[int, at_least(1, 10**4), "width of the embeddings and of the blocks"] = 50
    num_blocks: Annotated[int, at_least(1, 1000), "blocks"] = 2
    num_heads: Annotated[int, at_least(1, 10**4), "attention heads; they divide the width"] = 2
    max_len: Annotated[int, at_least(1, 10**5), "last items of a history that the model sees"] = 50
    times: Annotated[bool, ANY, "true: attention knows when items came, and when what is asked does"] = False
    temperature: Annotated[float, POSITIVE, "by which the cosine of state and item is divided"] = 0.05
    dropout: Annotated[float, BELOW_ONE, "dropout of embeddings and of what each block adds"] = 0.2


def make(settings: Settings, num_items: int) -> Model:
    """The model of these sizes. Raises InputError if `num_heads` does not divide `width`."""
    for name in ("width", "num_blocks", "num_heads", "max_len"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    if settings.width % settings.num_heads:
        raise InputError(f"num_heads is {settings.num_heads}: it must divide the width, {settings.width}")
    if not settings.temperature > 0:
        raise InputError(f"temperature is {settings.temperature}: it must be above 0")
    encoder = HSTU(settings.width, settings.num_blocks, settings.num_heads, settings.max_len, settings.times)

    def init(key: PRNGKeyArray, num_items: int, num_users: int) -> dict:
        """As released: N(0, 0.02) for the table, cut at two deviations, and for the blocks' first matrix and biases."""
        table_key, encoder_key = jax.random.split(key)
        items = truncated_normal(START)(table_key, (num_items + 1, settings.width)).at[0].set(0.0)
        number = jnp.zeros(1, jnp.int32)
        first = Piece(jnp.ones((1, 1), jnp.int32), items[None, :1], None, number, jnp.zeros((1, 2), jnp.int32))
        return {"tables": {"item": items}, "network": encoder.init(encoder_key, [first], None)["params"]}

    def encode(network: dict, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        return encoder.apply({"params": network}, pieces, dropout)

    def score(network: dict, hidden: Float[Array, "B L D"], rows: Float[Array, "#B #L N D"]) -> Float[Array, "B L N"]:
        return base.dot(network, normalise(hidden) / settings.temperature, normalise(rows))

    def pad_state(network: dict) -> Float[Array, "D"]:
        return jnp.zeros(settings.width)

    return Model(
        settings.width,
        settings.max_len,
        objectives.next_item(),
        init,
        encode,
        score,
        needs=("times",) if settings.times else (),
        pad_state=pad_state,
    )


def normalise(x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Each row over its length; one of zeros, as of a pad, stays so, and its gradient is finite."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > SMALLEST_SQUARE, square, 1.0))


def time_buckets(times: Int[Array, "b m"]) -> Int[Array, "b l l"]:
    """For each query and key, the bucket of the seconds from the key's item to that which follows the query's."""
    passed = jnp.abs(times[:, 1:, None] - times[:, None, :-1])
    return jnp.floor(jnp.log(jnp.maximum(passed, 1).astype(jnp.float32)) / 0.301).astype(jnp.int32)


class Block(nn.Module):
    """x + linear(norm(attention(norm(x))) * U) on the positions of all pieces.

    The norms have no scale and no offset, as released: a linear layer follows each of them.
    """

    num_heads: int
    max_len: int
    times: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "P D"],
        is_item: Sequence[Bool[Array, "_ _"]],
        buckets: Sequence[Int[Array, "_ _ _"] | None],
        rate: layers.Rate,
        words: UInt32[Array, "2"] | None,
        places: Sequence[layers.Places],
    ) -> Float[Array, "P D"]:
        width = x.shape[-1]
        norm = nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False)
        position_bias = self.param("position_bias", normal(START), (self.max_len,))
        time_bias = self.param("time_bias", normal(START), (NUM_TIME_BUCKETS,)) if self.times else None

        def attend(projected, valid, bucket):
            query, key, value = jnp.split(projected.reshape(*valid.shape, 3 * self.num_heads, -1), 3, axis=2)
            place = jnp.arange(valid.shape[1])
            distance = place[:, None] - place[None]
            bias = position_bias[jnp.maximum(distance, 0)][None]
            if bucket is not None:
                bias = bias + time_bias[bucket]
            weights = nn.silu(jnp.einsum("bqhd,bkhd->bhqk", query, key) + bias[:, None]) / self.max_len
            allowed = valid[:, None, None] & (distance >= 0)[None, None]
            return jnp.einsum("bhqk,bkhd->bqhd", jnp.where(allowed, weights, 0), value).reshape(*valid.shape, -1)

        projected = nn.Dense(4 * width, use_bias=False, kernel_init=normal(START), name="projected")
        gate, attention = jnp.split(nn.silu(projected(norm(x))), [width], axis=-1)
        of_pieces = layers.unjoined(attention, [valid.shape for valid in is_item])
        attended = layers.joined([attend(*of_piece) for of_piece in zip(of_pieces, is_item, buckets, strict=True)])
        element = layers.joined([place.of_width(width) for place in places])
        added = layers.dropout(words, norm(attended) * gate, rate, element)
        return x + nn.Dense(width, kernel_init=glorot_uniform(), name="output")(added)


class HSTU(nn.Module):
    """The encoder: embedded items with positions, and the blocks. At pads the state is 0."""

    width: int
    num_blocks: int
    num_heads: int
    max_len: int
    times: bool

    @nn.compact
    def __call__(self, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        """Hidden states [b, l, D] of each piece, whose positions count from the right end."""
        num_sites = 1 + self.num_blocks
        rate = 0.0 if dropout is None else dropout.rate
        words = (None,) * num_sites if dropout is None else layers.dropout_words(dropout.key, num_sites)
        shapes, is_item = [piece.inputs.shape for piece in pieces], [piece.inputs > 0 for piece in pieces]
        places = [layers.places(piece.number, piece.inputs.shape[1], self.max_len) for piece in pieces]
        buckets = [time_buckets(piece.times) if self.times else None for piece in pieces]
        positions = self.param("positions", truncated_normal(self.width**-0.5), (self.max_len, self.width))

        placed = [
            piece.embedded * math.sqrt(self.width) + positions[None, -piece.inputs.shape[1] :] for piece in pieces
        ]
        element = layers.joined([place.of_width(self.width) for place in places])
        x = layers.dropout(words[0], layers.joined(placed), rate, element)
        valid = layers.joined(is_item)[:, None]
        x = jnp.where(valid, x, 0)
        for i in range(self.num_blocks):
            block = Block(self.num_heads, self.max_len, self.times, name=f"block_{i}")
            x = jnp.where(valid, block(x, is_item, buckets, rate, words[1 + i], places), 0)
        return layers.unjoined(x, shapes)
