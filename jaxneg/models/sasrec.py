"""SASRec (Kang & McAuley, ICDM 2018), in the form of the released code of Prakash et al. (arXiv 2410.17276).

The item table stays outside the module, which takes embedded rows, so that a row-sparse optimizer can
differentiate with respect to the gathered rows alone. Shape letters: see `jaxneg.types`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt32

from jaxneg.devices import sharded
from jaxneg.errors import InputError
from jaxneg.hashing import hashed
from jaxneg.models import layers

Rate = float | int | Float[Array, ""]

MASKED_SCORE = -1e9  # finite, so that the softmax of a row with no key left is uniform and not NaN
SETTINGS = ("num_blocks", "num_heads", "width", "max_len", "compute")  # SASRec's own, as the config names them
QUERY_CHUNK = 50  # of attention on CPU


def dropout_words(key: PRNGKeyArray, number: int) -> UInt32[Array, "number 2"]:
    """The randomness of `number` dropouts: one call of threefry for all of them, as each has to be compiled."""
    return jax.random.bits(key, (number, 2), jnp.uint32)


def dropout(
    words: UInt32[Array, "2"] | None, values: Float[Array, "*shape"], rate: Rate, index: UInt32[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Inverted dropout: zero with probability `rate` in [0, 1), else divided by 1 - rate.

    `index` numbers the elements: equal numbers, equal fate. `rate` may be traced (another one per vmapped
    seed); rate 0 is the exact identity. Without words nothing is traced.
    """
    if words is None:
        return values
    rate = jnp.asarray(rate, jnp.float32)
    threshold = (rate * 2.0**32).astype(jnp.uint32)
    keep = hashed(index, words[0], words[1]) >= threshold
    return jnp.where(keep, values * (1.0 / (1.0 - rate)).astype(values.dtype), 0)


class Places(NamedTuple):
    """Numbers of the elements of a batch's arrays, the same however the batch is cut (see `jaxneg.training.buckets`).

    An element is numbered by its row and its position in the padded batch, so a piece of the batch has the
    dropout that it would have in the whole.
    """

    position: UInt32[Array, "B L"]  # row * max_len + position
    max_len: int

    def of_width(self, width: int) -> UInt32[Array, "B L D"]:
        """The elements of hidden states."""
        return self.position[..., None] * width + jnp.arange(width, dtype=jnp.uint32)[None, None]

    def of_pairs(self, num_heads: int, start: int, end: int) -> UInt32[Array, "B H K Q"]:
        """The elements of attention weights: keys up to `end`, and queries from `start` to `end`."""
        first_key = self.max_len - self.position.shape[1]
        row = self.position[:, start:end][:, None] * num_heads
        query = row + jnp.arange(num_heads, dtype=jnp.uint32)[None, :, None]
        key = jnp.arange(first_key, first_key + end, dtype=jnp.uint32)
        return query[:, :, None] * self.max_len + key[None, None, :, None]


def places(rows: Int[Array, "B"], length: int, max_len: int) -> Places:
    """The numbers of the elements of these rows of a padded batch, right-aligned in max_len positions."""
    first = rows.astype(jnp.uint32)[:, None] * max_len
    return Places(first + jnp.arange(max_len - length, max_len, dtype=jnp.uint32)[None], max_len)


class LayerNorm(nn.Module):
    """Over the last axis, with the biased variance and epsilon 1e-8 (flax's own default differs); in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "P D"]) -> Float[Array, "P D"]:
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        offset = self.param("offset", nn.initializers.zeros, (x.shape[-1],))
        return layers.standardise(x) * scale[None] + offset[None]


def attend(
    query: Float[Array, "B L D"],
    key: Float[Array, "B L D"],
    value: Float[Array, "B L D"],
    is_item: Bool[Array, "B L"],
    num_heads: int,
    rate: Rate,
    words: UInt32[Array, "2"] | None,
    place: Places,
) -> Float[Array, "B L D"]:
    """Causal scaled dot-product attention: each position looks at the items up to its own.

    A position without an item up to its own looks at keys of its chunk alike, and nobody uses what it sees. On CPU
    long sequences are cut into chunks of queries, each with the keys that it may see: half of the products are saved.
    """
    batch, length, width = query.shape

    def by_head(x):
        return x.reshape(batch, length, num_heads, -1).swapaxes(1, 2).reshape(batch * num_heads, length, -1)

    query, key, value = by_head(query * math.sqrt(num_heads / width)), by_head(key), by_head(value)
    chunk = QUERY_CHUNK if jax.default_backend() == "cpu" and length > QUERY_CHUNK else length
    attended = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        # Keys before queries: on CPU sums over an axis that is not the last are vectorised.
        scores = layers.product(key[:, :end], layers.turned(query[:, start:end]))
        allowed = is_item[:, :end, None] & (jnp.arange(end)[:, None] <= jnp.arange(start, end)[None])[None]
        allowed = jnp.repeat(allowed, num_heads, axis=0)
        weights = jax.nn.softmax(jnp.where(allowed, scores.astype(jnp.float32), MASKED_SCORE), axis=1)
        element = place.of_pairs(num_heads, start, end)
        weights = dropout(words, weights.astype(value.dtype), rate, element.reshape(weights.shape))
        attended.append(layers.product(layers.turned(weights), value[:, :end]))
    attended = jnp.concatenate(attended, axis=1).reshape(batch, num_heads, length, -1)
    return attended.swapaxes(1, 2).reshape(batch, length, width)


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
        rate: Rate,
        words: UInt32[Array, "3 2"] | tuple[None, None, None],
        place: Sequence[Places],
    ) -> Float[Array, "P D"]:
        def dense(name):
            return nn.Dense(x.shape[-1], dtype=self.compute, kernel_init=glorot_uniform(), name=name)

        of_attention, of_inner, of_outer = words
        normed = LayerNorm(name="attention_norm")(x)
        shapes = [piece.shape for piece in is_item]
        projected = [unjoined(part, shapes) for part in (dense("query")(normed), dense("key")(x), dense("value")(x))]
        attended = [
            attend(query, key, value, valid, self.num_heads, rate, of_attention, numbers)
            for query, key, value, valid, numbers in zip(*projected, is_item, place, strict=True)
        ]
        x = normed + joined(attended)
        normed = LayerNorm(name="ffn_norm")(x)
        element = joined([numbers.of_width(x.shape[-1]) for numbers in place])
        inner = dropout(of_inner, nn.relu(dense("ffn_inner")(normed)), rate, element)
        return normed + dropout(of_outer, dense("ffn_outer")(inner), rate, element)


def joined(pieces: Sequence[Shaped[Array, "_ _ *tail"]]) -> Shaped[Array, "P *tail"]:
    """[B, L, ...] of each piece, as the positions of all one after another."""
    return jnp.concatenate([piece.reshape(-1, *piece.shape[2:]) for piece in pieces])


def unjoined(rows: Shaped[Array, "P *tail"], shapes: Sequence[tuple[int, int]]) -> list[Shaped[Array, "_ _ *tail"]]:
    """`joined` the other way round, for pieces of these shapes."""
    ends = np.cumsum([number * length for number, length in shapes])[:-1]
    parts = jnp.split(rows, ends)
    return [part.reshape(*shape, *rows.shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


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
        dropout_rate: Rate = 0.0,
        dropout_key: PRNGKeyArray | None = None,
        rows: Int[Array, "B"] | None = None,
    ) -> list[Float[Array, "_ _ D"]]:
        """Hidden states [B, L, D] of each piece of a batch, from `embedded`, rows of the item table (0 at pads).

        A piece is some sequences of a batch, cut to a length of their own by dropping pads on their left; position
        embeddings are aligned at the right end, so each sequence gets the states that it has in the padded batch. At
        pads the output is the last LayerNorm's offset. `dropout_rate` may be traced; no dropout is traced where
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
        place = [places(own, length, self.max_len) for own, (_, length) in zip(of_pieces, shapes, strict=True)]
        words = (None,) * num_sites if dropout_key is None else dropout_words(dropout_key, num_sites)

        valid = joined(is_item)[:, None]
        placed = [x * math.sqrt(width) + positions[None, self.max_len - x.shape[1] :] for x in embedded]
        element = joined([numbers.of_width(width) for numbers in place])
        x = jnp.where(valid, dropout(words[0], joined(placed), dropout_rate, element), 0)
        for i in range(self.num_blocks):
            block = Block(self.num_heads, self.compute, name=f"block_{i}")
            x = block(x, is_item, dropout_rate, words[1 + 3 * i : 4 + 3 * i], place)
            x = jnp.where(valid, x, 0)
        return unjoined(LayerNorm(name="final_norm")(x), shapes)


def lookup(item_table: sharded.Table, item_ids: Int[Array, "*ids"]) -> Float[Array, "*ids D"]:
    """Rows of the item table; id 0, the pad, gives zeros (and no gradient) whatever row 0 holds."""
    rows = sharded.take(item_table, item_ids)
    return jnp.where(item_ids[..., None] != 0, rows, 0)


def init(key: PRNGKeyArray, model: SASRec, num_items: int) -> dict:
    """Initial parameters {"item_table": [num_items + 1, D], "encoder": flax parameters}.

    Glorot uniform for every matrix and both tables, biases 0, LayerNorm scale 1 and offset 0; row 0 is 0.
    """
    table_key, encoder_key = jax.random.split(key)
    item_table = glorot_uniform()(table_key, (num_items + 1, model.width)).at[0].set(0.0)
    embedded = jnp.zeros((1, model.max_len, model.width))
    encoder = model.init(encoder_key, [embedded], [jnp.ones((1, model.max_len), bool)])["params"]
    return {"item_table": item_table, "encoder": encoder}


def encode(
    model: SASRec,
    params: dict,
    inputs: Int[Array, "B L"],
    dropout_rate: Rate = 0.0,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "B L D"]:
    """Hidden states of left-padded item ids (0 is the pad)."""
    embedded = lookup(params["item_table"], inputs)
    return model.apply({"params": params["encoder"]}, [embedded], [inputs != 0], dropout_rate, dropout_key)[0]


def cut_rows(rows: Float[Array, "n D"], ids: Sequence[Int[Array, "..."]]) -> list[Float[Array, "..."]]:
    """Rows that were looked up together, of several arrays of ids one after another, as an array for each."""
    ends = np.cumsum([part.size for part in ids])[:-1]
    return [part.reshape(*own.shape, rows.shape[1]) for part, own in zip(jnp.split(rows, ends), ids, strict=True)]


def dot(hidden: Float[Array, "B L D"], rows: Float[Array, "#B #L N D"]) -> Float[Array, "B L N"]:
    """Dot products of hidden states with items' rows, one matrix product where positions share the items."""
    if rows.shape[:2] == (1, 1):
        return layers.products_with_shared(hidden, rows[0, 0])
    axes = "".join(name for name, size in zip("bl", rows.shape, strict=False) if size > 1)
    shared = [axis for axis in (0, 1) if rows.shape[axis] == 1]
    return jnp.einsum(f"bld,{axes}nd->bln", hidden, jnp.squeeze(rows, shared))


def score(
    hidden: Float[Array, "B L D"], item_table: Float[Array, "rows D"], item_ids: Int[Array, "#B #L N"]
) -> Float[Array, "B L N"]:
    """Scores of items: dot products of hidden states with the items' rows (0 for id 0).

    Ids shared by a sequence [B, 1, N] or by the batch [1, 1, N] are gathered once; only ids per position
    materialise [B, L, N, D].
    """
    return dot(hidden, lookup(item_table, item_ids))
