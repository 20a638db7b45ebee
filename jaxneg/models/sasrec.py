"""SASRec (Kang & McAuley, ICDM 2018), in the form of the released code of Prakash et al. (arXiv 2410.17276).

Shape letters: see `jaxneg.types`.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from jaxneg.errors import InputError
from jaxneg.fields import BELOW_ONE, at_least, one_of
from jaxneg.models import layers, objectives
from jaxneg.models.base import Dropout, Model, Piece


class Settings(NamedTuple):
    width: Annotated[int, at_least(1, 10**4), "width of the embeddings and of every layer"] = 50
    num_blocks: Annotated[int, at_least(1, 1000), "transformer blocks"] = 2
    num_heads: Annotated[int, at_least(1, 10**4), "attention heads; they divide the width"] = 1
    max_len: Annotated[int, at_least(1, 10**5), "last items of a history that the model sees"] = 50
    compute: Annotated[
        str,
        one_of("float32", "bfloat16"),
        "precision of the encoder's products; weights, sums and scores stay float32",
    ] = "float32"
    dropout: Annotated[float, BELOW_ONE, "dropout of embeddings, attention and feed-forward layers"] = 0.2


def make(settings: Settings, num_items: int) -> Model:
    """The model of these sizes. Raises InputError if `num_heads` does not divide `width`."""
    encoder = SASRec(settings.num_blocks, settings.num_heads, settings.width, settings.max_len, settings.compute)

    def init(key: PRNGKeyArray, num_items: int, num_users: int) -> dict:
        """Glorot uniform for every matrix and both tables, biases 0, LayerNorm scale 1 and offset 0; row 0 is 0."""
        table_key, encoder_key = jax.random.split(key)
        item_table = glorot_uniform()(table_key, (num_items + 1, encoder.width)).at[0].set(0.0)
        embedded = jnp.zeros((1, encoder.max_len, encoder.width))
        network = encoder.init(encoder_key, [embedded], [jnp.ones((1, encoder.max_len), bool)])["params"]
        return {"tables": {"item": item_table}, "network": network}

    def encode(network: dict, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        rate, key = (0.0, None) if dropout is None else (dropout.rate, dropout.key)
        embedded, is_item = [piece.embedded for piece in pieces], [piece.inputs > 0 for piece in pieces]
        numbers = jnp.concatenate([piece.number for piece in pieces])
        return encoder.apply({"params": network}, embedded, is_item, rate, key, numbers)

    def pad_state(network: dict) -> Float[Array, "D"]:
        return network["final_norm"]["offset"]

    return Model(settings.width, settings.max_len, objectives.next_item(), init, encode, pad_state=pad_state)


class Block(nn.Module):
    """One block. The residuals add the NORMALISED input, and keys and values see the un-normalised one.

    It works on all positions of a batch one after another, whatever the lengths of their sequences: attention alone
    knows of sequences. So a batch in pieces costs as many operations as a whole one.
    """

    num_heads: int
    compute: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "P D"],
        is_item: Sequence[Bool[Array, "_ _"]],
        rate: layers.Rate,
        words: UInt32[Array, "3 2"] | tuple[None, None, None],
        place: Sequence[layers.Places],
    ) -> Float[Array, "P D"]:
        def dense(name):
            return nn.Dense(x.shape[-1], dtype=self.compute, kernel_init=glorot_uniform(), name=name)

        of_attention, of_inner, of_outer = words
        normed = layers.LayerNorm(name="attention_norm")(x)
        shapes = [piece.shape for piece in is_item]
        projected = [
            layers.unjoined(part, shapes) for part in (dense("query")(normed), dense("key")(x), dense("value")(x))
        ]
        attended = [
            layers.attend(query, key, value, valid, self.num_heads, rate, of_attention, numbers)
            for query, key, value, valid, numbers in zip(*projected, is_item, place, strict=True)
        ]
        x = normed + layers.joined(attended)
        normed = layers.LayerNorm(name="ffn_norm")(x)
        element = layers.joined([numbers.of_width(x.shape[-1]) for numbers in place])
        inner = layers.dropout(of_inner, nn.relu(dense("ffn_inner")(normed)), rate, element)
        return normed + layers.dropout(of_outer, dense("ffn_outer")(inner), rate, element)


class SASRec(nn.Module):
    """The encoder: `num_blocks` blocks of `num_heads` heads on rows of `width`, up to `max_len` long.

    `compute` is the type of what the products multiply: "float32" or "bfloat16". Weights, residuals, LayerNorm and
    softmax are float32 either way, and so is the result.
    Raises InputError where a size is below 1 or `num_heads` does not divide `width`.
    """

    num_blocks: int
    num_heads: int
    width: int
    max_len: int
    compute: str = "float32"

    def __post_init__(self):
        for name in ("num_blocks", "num_heads", "width", "max_len"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.width % self.num_heads:
            raise InputError(f"num_heads is {self.num_heads}: it must divide the width, {self.width}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        embedded: Sequence[Float[Array, "_ _ D"]],
        is_item: Sequence[Bool[Array, "_ _"]],
        dropout_rate: layers.Rate = 0.0,
        dropout_key: PRNGKeyArray | None = None,
        rows: Int[Array, "B"] | None = None,
    ) -> list[Float[Array, "_ _ D"]]:
        """Hidden states [B, L, D] of each piece of a batch, from `embedded`, rows of the item table (0 at pads).

        A piece is some sequences of a batch, cut to a length of their own by dropping pads on their left; position
        embeddings are aligned at the right end, so each sequence gets the states that it has in the padded batch. At
        pads the output is the last layers.LayerNorm's offset. `dropout_rate` may be traced; no dropout is traced where
        `dropout_key` is None. Dropout too is that of the padded batch, in which the pieces, one after another, are
        these `rows` (None: the first ones). Raises InputError where L > max_len.
        """
        shapes, width = [piece.shape for piece in is_item], self.width
        longest = max(length for _, length in shapes)
        if longest > self.max_len:
            raise InputError(f"sequence length is {longest}: it must be at most max_len, {self.max_len}")
        positions = self.param("positions", glorot_uniform(), (self.max_len, width))
        num_sites = 1 + 3 * self.num_blocks
        numbers = [number for number, _ in shapes]
        rows = jnp.arange(sum(numbers)) if rows is None else rows
        of_pieces = jnp.split(rows, np.cumsum(numbers)[:-1])
        place = [layers.places(own, length, self.max_len) for own, (_, length) in zip(of_pieces, shapes, strict=True)]
        words = (None,) * num_sites if dropout_key is None else layers.dropout_words(dropout_key, num_sites)

        valid = layers.joined(is_item)[:, None]
        placed = [x * math.sqrt(width) + positions[None, self.max_len - x.shape[1] :] for x in embedded]
        element = layers.joined([numbers.of_width(width) for numbers in place])
        x = jnp.where(valid, layers.dropout(words[0], layers.joined(placed), dropout_rate, element), 0)
        for i in range(self.num_blocks):
            block = Block(self.num_heads, self.compute, name=f"block_{i}")
            x = block(x, is_item, dropout_rate, words[1 + 3 * i : 4 + 3 * i], place)
            x = jnp.where(valid, x, 0)
        return layers.unjoined(layers.LayerNorm(name="final_norm")(x), shapes)
