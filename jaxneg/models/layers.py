"""The encoder's layers, with gradients written by hand: the same numbers, in the forms that run fast.

On CPU much of the time of a small SASRec goes into products with a transposed factor and into sums along rows, which
XLA does at a fraction of the speed of a plain product. So here every product is a plain one, of factors transposed
beforehand, and a sum along a row is a product with ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt32

from jaxneg.hashing import hashed

Rate = float | int | Float[Array, ""]

MASKED_SCORE = -1e9  # finite, so that the softmax of a row with no key left is uniform and not NaN
QUERY_CHUNK = 50  # of attention on CPU
LAYER_NORM_EPSILON = 1e-8


def transpose(x: Float[Array, "*n I J"]) -> Float[Array, "*n J I"]:
    """The transpose of each matrix; on CPU a copy of it, which a product reads faster."""
    x = x.swapaxes(-1, -2)
    return jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


@jax.custom_vjp
def matmul(left: Float[Array, "n I C"], right: Float[Array, "n C J"]) -> Float[Array, "n I J"]:
    """Matrix products, one for each n."""
    return jnp.einsum("nic,ncj->nij", left, right)


def _matmul(left, right):
    return matmul(left, right), (left, right)


def _matmul_back(kept, gradient):
    left, right = kept
    return matmul(gradient, transpose(right)), matmul(transpose(left), gradient)


matmul.defvjp(_matmul, _matmul_back)


@jax.custom_vjp
def matmul_shared(hidden: Float[Array, "B L D"], rows: Float[Array, "N D"]) -> Float[Array, "B L N"]:
    """Dot products of every state with every row.

    The rows' gradient is made as [D, N] and transposed then: the scores' own, [B, L, N], never is.
    """
    return jnp.einsum("bld,nd->bln", hidden, rows)


def _matmul_shared(hidden, rows):
    return matmul_shared(hidden, rows), (hidden, rows)


def _matmul_shared_back(kept, gradient):
    hidden, rows = kept
    return jnp.einsum("bln,nd->bld", gradient, rows), transpose(jnp.einsum("bld,bln->dn", hidden, gradient))


matmul_shared.defvjp(_matmul_shared, _matmul_shared_back)


@jax.custom_vjp
def standardise(rows: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Each row less its mean, over its standard deviation (biased; epsilon 1e-8 added to the variance)."""
    return _standardise(rows)[0]


def _standardise(rows):
    centred = rows - mean_of_row(rows)
    inverse = jax.lax.rsqrt(mean_of_row(jnp.square(centred)) + LAYER_NORM_EPSILON)
    normed = centred * inverse
    return normed, (normed, inverse)


def _standardise_back(kept, gradient):
    normed, inverse = kept
    return (inverse * (gradient - mean_of_row(gradient) - normed * mean_of_row(gradient * normed)),)


standardise.defvjp(_standardise, _standardise_back)


def mean_of_row(rows: Float[Array, "*rows D"]) -> Float[Array, "*rows 1"]:
    """The mean over the last axis."""
    column = jnp.full((rows.shape[-1], 1), 1.0 / rows.shape[-1], rows.dtype)
    return jnp.dot(rows, column, precision=jax.lax.Precision.HIGHEST)


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
    """Numbers of the elements of a batch's arrays, the same however the batch is cut (see `jaxneg.data.buckets`).

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
        return standardise(x) * scale[None] + offset[None]


def joined(pieces: Sequence[Shaped[Array, "_ _ *tail"]]) -> Shaped[Array, "P *tail"]:
    """[B, L, ...] of each piece, as the positions of all one after another."""
    return jnp.concatenate([piece.reshape(-1, *piece.shape[2:]) for piece in pieces])


def unjoined(rows: Shaped[Array, "P *tail"], shapes: Sequence[tuple[int, int]]) -> list[Shaped[Array, "_ _ *tail"]]:
    """`joined` the other way round, for pieces of these shapes."""
    ends = np.cumsum([number * length for number, length in shapes])[:-1]
    parts = jnp.split(rows, ends)
    return [part.reshape(*shape, *rows.shape[1:]) for part, shape in zip(parts, shapes, strict=True)]


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
        scores = matmul(key[:, :end], transpose(query[:, start:end]))
        allowed = is_item[:, :end, None] & (jnp.arange(end)[:, None] <= jnp.arange(start, end)[None])[None]
        allowed = jnp.repeat(allowed, num_heads, axis=0)
        weights = jax.nn.softmax(jnp.where(allowed, scores.astype(jnp.float32), MASKED_SCORE), axis=1)
        element = place.of_pairs(num_heads, start, end)
        weights = dropout(words, weights.astype(value.dtype), rate, element.reshape(weights.shape))
        attended.append(matmul(transpose(weights), value[:, :end]))
    attended = jnp.concatenate(attended, axis=1).reshape(batch, num_heads, length, -1)
    return attended.swapaxes(1, 2).reshape(batch, length, width)
