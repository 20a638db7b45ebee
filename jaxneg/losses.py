"""Losses: unreduced, one value per position. The masked mean is taken once, in the training step."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxneg.types import Negatives

Weight = float | int | Float[Array, ""]


def bce(
    positive_scores: Float[Array, "B L"],
    negatives: Negatives,
    *,
    negative_weight: Weight = 1.0,
    num_unselected: int = 0,
) -> Float[Array, "B L"]:
    """Binary cross-entropy: -log sigmoid(positive) + negative_weight * mean of -log sigmoid(-negative).

    The mean is over each position's valid negatives; without any, the negative term is 0. Masked scores have
    no influence, not even when they are NaN. `num_unselected` > 0 gives the adaptive loss in the form of the
    code released with arXiv 2410.17276: that many more candidates, of constant score 0, stay in the mean.
    """
    valid = jnp.broadcast_to(negatives.mask, negatives.scores.shape)
    scores = jnp.where(valid, negatives.scores, 0.0)  # before softplus, so that no gradient is 0 * NaN
    total = jnp.sum(jnp.where(valid, jax.nn.softplus(scores), 0.0), axis=-1) + num_unselected * math.log(2.0)
    count = jnp.sum(valid, axis=-1) + num_unselected
    return jax.nn.softplus(-positive_scores) + negative_weight * total / jnp.maximum(count, 1)


def masked_mean(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of the values where `mask` is True; 0 where it is True nowhere."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
