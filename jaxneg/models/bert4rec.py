"""BERT4Rec (Sun et al., CIKM 2019): items hidden at random, seen from both sides; it needs more epochs than SASRec.

Each hidden item is found from all the others. A query is the history without its first item, with a hidden one
behind it. An item's score is the dot product with its row plus its bias, which is the row's last column. A hidden item
is embedded by a vector of the network, so neither it nor the pad is ever ranked.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from jaxneg.errors import InputError
from jaxneg.fields import BELOW_ONE, FROM_0_TO_1, at_least
from jaxneg.models import layers, objectives
from jaxneg.models.base import Dropout, Model, Piece

START = nn.initializers.truncated_normal(0.02)  # of every matrix and table
EXPANSION = 4  # how many times wider the feed-forward layers are inside
SITES = 3  # of dropout in a block


class Settings(NamedTuple):
    width: Annotated[int, at_least(1, 10**4), "width of the embeddings and of the blocks"] = 50
    num_blocks: Annotated[int, at_least(1, 1000), "transformer blocks"] = 2
    num_heads: Annotated[int, at_least(1, 10**4), "attention heads; they divide the width"] = 2
    max_len: Annotated[
        int, at_least(1, 10**5), "last items of a history that the model sees, the hidden one among them"
    ] = 50
    mask_rate: Annotated[float, FROM_0_TO_1, "chance of an item to be hidden; the last one always is"] = 0.2
    last_only: Annotated[float, FROM_0_TO_1, "share of sequences of which the last item alone is hidden"] = 0.0
    dropout: Annotated[float, BELOW_ONE, "dropout of embeddings, attention and feed-forward layers"] = 0.2


def make(settings: Settings, num_items: int) -> Model:
    """The model of these sizes. Raises InputError if `num_heads` does not divide `width`."""
    for name in ("width", "num_blocks", "num_heads", "max_len"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    if settings.width % settings.num_heads:
        raise InputError(f"num_heads is {settings.num_heads}: it must divide the width, {settings.width}")
    for name in ("mask_rate", "last_only"):
        if not 0 <= getattr(settings, name) <= 1:
            raise InputError(f"{name} is {getattr(settings, name)}: it must be from 0 to 1")
    encoder = BERT4Rec(settings.width, settings.num_blocks, settings.num_heads, settings.max_len)

    def init(key: PRNGKeyArray, num_items: int, num_users: int) -> dict:
        """Matrices and tables from N(0, 0.02), cut at two deviations; biases 0, LayerNorm scale 1 and offset 0."""
        table_key, encoder_key = jax.random.split(key)
        items = jnp.pad(START(table_key, (num_items + 1, settings.width)).at[0].set(0.0), ((0, 0), (0, 1)))
        first = Piece(jnp.ones((1, 1), jnp.int32), items[None, :1], None, jnp.zeros(1, jnp.int32))
        return {"tables": {"item": items}, "network": encoder.init(encoder_key, [first], None)["params"]}

    def encode(network: dict, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        return encoder.apply({"params": network}, pieces, dropout)

    objective = objectives.masked(settings.mask_rate, settings.last_only)
    return Model(settings.width + 1, settings.max_len, objective, init, encode)


def attend(
    query: Float[Array, "B L D"],
    key: Float[Array, "B L D"],
    value: Float[Array, "B L D"],
    is_item: Bool[Array, "B L"],
    num_heads: int,
    rate: layers.Rate,
    words: UInt32[Array, "2"] | None,
    place: layers.Places,
) -> Float[Array, "B L D"]:
    """Scaled dot-product attention to all items of the sequence, before and behind."""
    batch, length, width = query.shape
    query, key, value = (x.reshape(batch, length, num_heads, -1) for x in (query, key, value))
    scores = jnp.einsum("bkhd,bqhd->bhkq", key, query) * math.sqrt(num_heads / width)
    weights = jax.nn.softmax(jnp.where(is_item[:, None, :, None], scores, layers.MASKED_SCORE), axis=2)
    weights = layers.dropout(words, weights, rate, place.of_pairs(num_heads, 0, length))
    return jnp.einsum("bhkq,bkhd->bqhd", weights, value).reshape(batch, length, width)


def dense(name: str, size: int) -> nn.Dense:
    """A layer with the start of every matrix."""
    return nn.Dense(size, kernel_init=START, name=name)


def norm(name: str) -> nn.LayerNorm:
    """LayerNorm with BERT's epsilon; parameters `scale` and `bias`."""
    return nn.LayerNorm(epsilon=1e-12, use_fast_variance=False, name=name)


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + feed_forward(x)), on the positions of all pieces."""

    num_heads: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "P D"],
        is_item: Sequence[Bool[Array, "_ _"]],
        rate: layers.Rate,
        words: UInt32[Array, "3 2"] | tuple[None, ...],
        places: Sequence[layers.Places],
    ) -> Float[Array, "P D"]:
        width = x.shape[-1]
        of_weights, of_attended, of_outer = words
        element = layers.joined([place.of_width(width) for place in places])
        shapes = [valid.shape for valid in is_item]
        projected = [layers.unjoined(dense(name, width)(x), shapes) for name in ("query", "key", "value")]
        attended = [
            attend(*of_piece, self.num_heads, rate, of_weights, place)
            for *of_piece, place in zip(*projected, is_item, places, strict=True)
        ]
        attended = dense("attention_output", width)(layers.joined(attended))
        x = norm("attention_norm")(x + layers.dropout(of_attended, attended, rate, element))
        inner = nn.gelu(dense("ffn_inner", EXPANSION * width)(x), approximate=False)
        outer = layers.dropout(of_outer, dense("ffn_outer", width)(inner), rate, element)
        return norm("ffn_norm")(x + outer)


class BERT4Rec(nn.Module):
    """The encoder: item rows or the MASK vector and positions, normalised; the blocks; and the paper's projection.

    The projection (equation 7 of the paper) is a GELU layer before the product with the items' rows; the released code
    normalises it, and so does this.
    """

    width: int
    num_blocks: int
    num_heads: int
    max_len: int

    @nn.compact
    def __call__(self, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        """Hidden states [b, l, width + 1] of each piece, 1 in the last column, before the items' biases."""
        num_sites = 1 + SITES * self.num_blocks
        rate = 0.0 if dropout is None else dropout.rate
        words = (None,) * num_sites if dropout is None else layers.dropout_words(dropout.key, num_sites)
        shapes, is_item = [piece.inputs.shape for piece in pieces], [piece.inputs != 0 for piece in pieces]
        places = [layers.places(piece.number, piece.inputs.shape[1], self.max_len) for piece in pieces]
        positions = self.param("positions", START, (self.max_len, self.width))
        mask = self.param("mask", START, (self.width,))

        items = layers.joined([piece.embedded[..., : self.width] for piece in pieces])
        hidden = layers.joined([piece.inputs == objectives.MASK for piece in pieces])
        placed = [jnp.broadcast_to(positions[None, -shape[1] :], (*shape, self.width)) for shape in shapes]
        x = norm("embedding_norm")(jnp.where(hidden[:, None], mask[None], items) + layers.joined(placed))
        x = layers.dropout(words[0], x, rate, layers.joined([place.of_width(self.width) for place in places]))
        for i in range(self.num_blocks):
            of_block = words[1 + SITES * i :][:SITES]
            x = Block(self.num_heads, name=f"block_{i}")(x, is_item, rate, of_block, places)
        x = norm("projection_norm")(nn.gelu(dense("projection", self.width)(x), approximate=False))
        return layers.unjoined(jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0), shapes)
