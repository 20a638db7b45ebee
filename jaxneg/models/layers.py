"""The encoder's layers, with gradients written by hand: the same numbers, in the forms that run fast.

On CPU much of the time of a small SASRec goes into products with a transposed factor and into sums along rows, which
XLA does at a fraction of the speed of a plain product. So here every product is a plain one, of factors transposed
beforehand, and a sum along a row is a product with ones.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LAYER_NORM_EPSILON = 1e-8


def turned(x: Float[Array, "*n I J"]) -> Float[Array, "*n J I"]:
    """The transpose of each matrix; on CPU a copy of it, which a product reads faster."""
    x = x.swapaxes(-1, -2)
    return jax.lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


@jax.custom_vjp
def product(left: Float[Array, "n I C"], right: Float[Array, "n C J"]) -> Float[Array, "n I J"]:
    """Matrix products, one for each n."""
    return jnp.einsum("nic,ncj->nij", left, right)


def _product(left, right):
    return product(left, right), (left, right)


def _product_back(kept, gradient):
    left, right = kept
    return product(gradient, turned(right)), product(turned(left), gradient)


product.defvjp(_product, _product_back)


@jax.custom_vjp
def products_with_shared(hidden: Float[Array, "B L D"], rows: Float[Array, "N D"]) -> Float[Array, "B L N"]:
    """Dot products of every state with every row.

    The rows' gradient is made as [D, N] and then turned, so that what is turned is not the scores' own, [B, L, N].
    """
    return jnp.einsum("bld,nd->bln", hidden, rows)


def _products_with_shared(hidden, rows):
    return products_with_shared(hidden, rows), (hidden, rows)


def _products_with_shared_back(kept, gradient):
    hidden, rows = kept
    return jnp.einsum("bln,nd->bld", gradient, rows), turned(jnp.einsum("bld,bln->dn", hidden, gradient))


products_with_shared.defvjp(_products_with_shared, _products_with_shared_back)


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
