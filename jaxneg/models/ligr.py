"""LiGR blocks (Borisyuk et al., arXiv 2502.03417), as in eSASRec: often ranks better than SASRec, and costs more.

eSASRec (Tikhonovich et al., RecSys 2025) is this encoder trained with the sampled softmax. In each block attention and
a SwiGLU network read the normalised input; what they add is gated by the input itself, which is not normalised.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt32

from jaxneg.errors import InputError
from jaxneg.fields import BELOW_ONE, at_least
from jaxneg.models import layers, objectives
from jaxneg.models.base import Dropout, Model, Piece

SITES = 4  # of dropout in a block


class Settings(NamedTuple):
    width: Annotated[int, at_least(1, 10**4), "width of the embeddings and of the blocks"] = 50
    num_blocks: Annotated[int, at_least(1, 1000), "transformer blocks"] = 2
    num_heads: Annotated[int, at_least(1, 10**4), "attention heads; they divide the width"] = 1
    max_len: Annotated[int, at_least(1, 10**5), "last items of a history that the model sees"] = 50
    expansion: Annotated[int, at_least(1, 100), "how many times wider the feed-forward layers are inside"] = 4
    dropout: Annotated[float, BELOW_ONE, "dropout of embeddings, attention and feed-forward layers"] = 0.2


def make(settings: Settings, num_items: int) -> Model:
    """The model of these sizes. Raises InputError if `num_heads` does not divide `width`."""
    for name in ("width", "num_blocks", "num_heads", "max_len", "expansion"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    if settings.width % settings.num_heads:
        raise InputError(f"num_heads is {settings.num_heads}: it must divide the width, {settings.width}")
    encoder = LiGR(settings.width, settings.num_blocks, settings.num_heads, settings.max_len, settings.expansion)

    def init(key: PRNGKeyArray, num_items: int, num_users: int) -> dict:
        """Glorot uniform for every matrix and both tables, biases 0, LayerNorm scale 1 and offset 0."""
        table_key, encoder_key = jax.random.split(key)
        items = glorot_uniform()(table_key, (num_items + 1, settings.width)).at[0].set(0.0)
        first = Piece(jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1, settings.width)), None, jnp.zeros(1, jnp.int32))
        return {"tables": {"item": items}, "network": encoder.init(encoder_key, [first], None)["params"]}

    def encode(network: dict, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        return encoder.apply({"params": network}, pieces, dropout)

    def pad_state(network: dict) -> Float[Array, "D"]:
        return network["final_norm"]["offset"]

    return Model(settings.width, settings.max_len, objectives.next_item(), init, encode, pad_state=pad_state)


class Block(nn.Module):
    """x + sigmoid(W x) attention(norm(x)), then x + sigmoid(W' x) swiglu(norm(x)), on the positions of all pieces."""

    num_heads: int
    expansion: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "P D"],
        is_item: Sequence[Bool[Array, "_ _"]],
        rate: layers.Rate,
        words: UInt32[Array, "4 2"] | tuple[None, ...],
        places: Sequence[layers.Places],
    ) -> Float[Array, "P D"]:
        width, inner_width = x.shape[-1], self.expansion * x.shape[-1]
        of_weights, of_attended, of_inner, of_outer = words

        def dense(name, size=width, use_bias=True):
            return nn.Dense(size, use_bias, kernel_init=glorot_uniform(), name=name)

        def drop(words, values):
            index = layers.joined([place.of_width(values.shape[-1]) for place in places])
            return layers.dropout(words, values, rate, index)

        normed = layers.LayerNorm(name="attention_norm")(x)
        shapes = [valid.shape for valid in is_item]
        projected = [layers.unjoined(dense(name)(normed), shapes) for name in ("query", "key", "value")]
        attended = [
            layers.attend(*of_piece, self.num_heads, rate, of_weights, place)
            for *of_piece, place in zip(*projected, is_item, places, strict=True)
        ]
        attended = drop(of_attended, dense("attention_output")(layers.joined(attended)))
        x = x + nn.sigmoid(dense("attention_gate")(x)) * attended

        normed = layers.LayerNorm(name="ffn_norm")(x)
        inner = nn.silu(dense("ffn_silu", inner_width, False)(normed)) * dense("ffn_linear", inner_width, False)(normed)
        outer = drop(of_outer, dense("ffn_output", use_bias=False)(drop(of_inner, inner)))
        return x + nn.sigmoid(dense("ffn_gate")(x)) * outer


class LiGR(nn.Module):
    """The encoder: embedded items with positions, the blocks, and a LayerNorm, whose offset is the state at pads."""

    width: int
    num_blocks: int
    num_heads: int
    max_len: int
    expansion: int

    @nn.compact
    def __call__(self, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        """Hidden states [b, l, D] of each piece, whose positions count from the right end."""
        num_sites = 1 + SITES * self.num_blocks
        rate = 0.0 if dropout is None else dropout.rate
        words = (None,) * num_sites if dropout is None else layers.dropout_words(dropout.key, num_sites)
        shapes, is_item = [piece.inputs.shape for piece in pieces], [piece.inputs > 0 for piece in pieces]
        places = [layers.places(piece.number, piece.inputs.shape[1], self.max_len) for piece in pieces]
        positions = self.param("positions", glorot_uniform(), (self.max_len, self.width))

        x = layers.joined([piece.embedded + positions[None, -piece.inputs.shape[1] :] for piece in pieces])
        x = layers.dropout(words[0], x, rate, layers.joined([place.of_width(self.width) for place in places]))
        valid = layers.joined(is_item)[:, None]
        x = jnp.where(valid, x, 0)
        for i in range(self.num_blocks):
            of_block = words[1 + SITES * i :][:SITES]
            x = Block(self.num_heads, self.expansion, name=f"block_{i}")(x, is_item, rate, of_block, places)
            x = jnp.where(valid, x, 0)
        return layers.unjoined(layers.LayerNorm(name="final_norm")(x), shapes)
