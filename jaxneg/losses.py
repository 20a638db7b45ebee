"""Losses: unreduced, one value per position. The masked mean is taken once, in the training step.

Each takes the positive's scores and the negatives', of any number, and is finite where none of them is valid; masked
scores have no influence, not even when they are NaN. Only `full_softmax` scores the whole catalogue by itself.
"""

import functools
import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxneg.errors import InputError
from jaxneg.fields import FROM_0_TO_1, NOT_NEGATIVE, POSITIVE, at_least, one_of
from jaxneg.types import Negatives

Weight = float | int | Float[Array, ""]
REDUCTIONS = ("mean", "sum")
FAR_BELOW = -1e30  # the score of what is masked in a softmax; finite, so that no gradient is 0 * inf


def bce(
    positive_scores: Float[Array, "B L"],
    negatives: Negatives,
    *,
    negative_weight: Weight = 1.0,
    negative_reduction: str = "mean",
    num_unselected: int = 0,
) -> Float[Array, "B L"]:
    """Binary cross-entropy: -log sigmoid(positive) + negative_weight * mean (or sum) of -log sigmoid(-negative).

    The mean is over each position's valid negatives; without any, the negative term is 0. `num_unselected` > 0 gives
    the adaptive loss in the form of the code released with arXiv 2410.17276: that many more candidates, of constant
    score 0, stay in the mean. Raises InputError for an unknown reduction.
    """
    valid, scores = valid_scores(negatives)
    total = jnp.sum(jnp.where(valid, jax.nn.softplus(scores), 0.0), axis=-1) + num_unselected * math.log(2.0)
    count = jnp.sum(valid, axis=-1) + num_unselected
    return jax.nn.softplus(-positive_scores) + negative_weight * reduced(total, count, negative_reduction)


def gbce(
    positive_scores: Float[Array, "B L"],
    negatives: Negatives,
    *,
    num_items: int,
    calibration: float,
    negative_weight: Weight = 1.0,
    negative_reduction: str = "sum",
) -> Float[Array, "B L"]:
    """Generalised BCE: the positive term is -log sigmoid(positive)^b (gSASRec: Petrov & Macdonald, RecSys 2023).

    b = a (t (1 - 1/a) + 1/a) = 1 - t (1 - a), where t is `calibration` in [0, 1] and the sampling rate a is
    (valid negatives) / (items - 1). It undoes the overconfidence of BCE summed over uniform negatives: t = 0 is that
    BCE, and with t = 1 a score's sigmoid estimates the item's probability. Raises InputError for an unknown reduction.
    """
    valid, scores = valid_scores(negatives)
    count = jnp.sum(valid, axis=-1)
    rate = jnp.minimum(count / max(num_items - 1, 1), 1.0)
    exponent = 1.0 - calibration * (1.0 - rate)
    total = jnp.sum(jnp.where(valid, jax.nn.softplus(scores), 0.0), axis=-1)
    return exponent * jax.nn.softplus(-positive_scores) + negative_weight * reduced(total, count, negative_reduction)


def bpr(positive_scores: Float[Array, "B L"], negatives: Negatives) -> Float[Array, "B L"]:
    """BPR: mean over the valid negatives of -log sigmoid(positive - negative) (Rendle et al., UAI 2009); 0 without any.

    With `dns` it optimises OPAUC, with `softmax_hard` a soft form of it (Shi et al., WWW 2023, arXiv 2302.03472).
    """
    valid, scores = valid_scores(negatives)
    each = jax.nn.softplus(scores - positive_scores[:, :, None])
    return reduced(jnp.sum(jnp.where(valid, each, 0.0), axis=-1), jnp.sum(valid, axis=-1), "mean")


def bpr_max(
    positive_scores: Float[Array, "B L"], negatives: Negatives, *, score_penalty: Weight = 1.0
) -> Float[Array, "B L"]:
    """BPR-max: -log sum_j w_j sigmoid(positive - s_j) + score_penalty * sum_j w_j s_j^2; 0 without a valid negative.

    w is the softmax of the negatives' scores, and is differentiated too (Hidasi & Karatzoglou, CIKM 2018).
    """
    valid, scores = valid_scores(negatives)
    log_weights = log_softmax_valid(valid, scores)
    better = log_weights + jax.nn.log_sigmoid(positive_scores[:, :, None] - scores)
    likelihood = jax.nn.logsumexp(jnp.where(valid, better, FAR_BELOW), axis=-1)
    penalty = jnp.sum(jnp.where(valid, jnp.exp(log_weights) * jnp.square(scores), 0.0), axis=-1)
    return jnp.where(jnp.any(valid, axis=-1), score_penalty * penalty - likelihood, 0.0)


def top1_max(positive_scores: Float[Array, "B L"], negatives: Negatives) -> Float[Array, "B L"]:
    """TOP1-max: sum_j w_j (sigmoid(s_j - positive) + sigmoid(s_j^2)); 0 without a valid negative.

    w as in `bpr_max` (Hidasi & Karatzoglou, CIKM 2018).
    """
    valid, scores = valid_scores(negatives)
    each = jax.nn.sigmoid(scores - positive_scores[:, :, None]) + jax.nn.sigmoid(jnp.square(scores))
    weights = jnp.exp(log_softmax_valid(valid, scores))
    return jnp.sum(jnp.where(valid, weights * each, 0.0), axis=-1)


def sampled_softmax(positive_scores: Float[Array, "B L"], negatives: Negatives) -> Float[Array, "B L"]:
    """Cross-entropy of the positive against the negatives, whose scores are corrected by logQ; 0 without a valid one.

    A negative's score is s_j - log(n q_j), n being the position's valid negatives and q_j the probability with which
    one draw is that item: the sum of exp then estimates without bias that over all items that can be drawn (Bengio &
    Senecal, 2008). The positive is there always, not by a draw, and is not corrected. `log_q` has to be known.
    """
    valid, scores = valid_scores(negatives)
    log_q = jnp.where(negatives.mask, negatives.log_q, 0.0)
    count = jnp.sum(valid, axis=-1, keepdims=True)
    corrected = scores - log_q - jnp.log(jnp.maximum(count, 1).astype(scores.dtype))
    return cross_entropy(positive_scores, valid, corrected)


def infonce(
    positive_scores: Float[Array, "B L"], negatives: Negatives, *, temperature: Weight = 1.0
) -> Float[Array, "B L"]:
    """InfoNCE: cross-entropy of the positive among itself and the valid negatives, scores divided by `temperature`.

    Negatives count as they come, without logQ (van den Oord et al., 2018, arXiv 1807.03748); 0 without a valid one.
    """
    valid, scores = valid_scores(negatives)
    return cross_entropy(positive_scores / temperature, valid, scores / temperature)


def full_softmax(
    hidden: Float[Array, "B L D"], item_table: Float[Array, "rows D"], targets: Int[Array, "B L"], *, chunk: int
) -> Float[Array, "B L"]:
    """Cross-entropy of the target among all items 1..V, by dot products with the item table [V + 1, D].

    Scores are made for `chunk` items at a time and made again in the backward pass, so memory grows with B * L * chunk
    and with the table, not with B * L * V. The value at a pad (target 0) has no meaning.
    """
    own = jnp.sum(hidden * jnp.take(item_table, targets, axis=0, mode="clip"), axis=-1)
    everything = log_sum_exp_items(hidden.reshape(-1, hidden.shape[-1]), item_table, chunk)
    return everything.reshape(targets.shape) - own


def valid_scores(negatives: Negatives) -> tuple[Bool[Array, "B L N"], Float[Array, "B L N"]]:
    """Which negatives count, and their scores, 0 where masked: before any function, so that no gradient is 0 * NaN."""
    valid = jnp.broadcast_to(negatives.mask, negatives.scores.shape)
    return valid, jnp.where(valid, negatives.scores, 0.0)


def reduced(total: Float[Array, "B L"], count: Int[Array, "B L"], reduction: str) -> Float[Array, "B L"]:
    """The total, or the mean; 0 of nothing. Raises InputError for an unknown reduction."""
    if reduction not in REDUCTIONS:
        raise InputError(f"loss.negative_reduction is {reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    return total if reduction == "sum" else total / jnp.maximum(count, 1)


def log_softmax_valid(valid: Bool[Array, "B L N"], scores: Float[Array, "B L N"]) -> Float[Array, "B L N"]:
    """log of each valid score's share of the softmax over the valid ones; far below 0 where masked."""
    return jax.nn.log_softmax(jnp.where(valid, scores, FAR_BELOW), axis=-1)


def cross_entropy(
    positive_scores: Float[Array, "B L"], valid: Bool[Array, "B L N"], scores: Float[Array, "B L N"]
) -> Float[Array, "B L"]:
    """-log(exp(positive) / (exp(positive) + sum of exp(valid scores))), as a softplus of the difference of the logs."""
    return jax.nn.softplus(log_sum_exp(jnp.where(valid, scores, FAR_BELOW)) - positive_scores)


@jax.custom_vjp
def log_sum_exp(scores: Float[Array, "B L N"]) -> Float[Array, "B L"]:
    """log of the sum of exp(scores) over the last axis; in reverse mode the exponentials are not made again."""
    return log_sum_exp_forward(scores)[0]


def log_sum_exp_forward(scores):
    largest = jnp.max(scores, axis=-1, keepdims=True)
    powers = jnp.exp(scores - largest)
    # On CPU a product with ones is faster than a sum along rows.
    total = jnp.dot(powers, jnp.ones(scores.shape[-1:], scores.dtype), precision=lax.Precision.HIGHEST)
    return largest[..., 0] + jnp.log(total), (powers, total)


def log_sum_exp_backward(saved, gradient):
    powers, total = saved
    return ((gradient / total)[..., None] * powers,)


log_sum_exp.defvjp(log_sum_exp_forward, log_sum_exp_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def log_sum_exp_items(states: Float[Array, "R D"], item_table: Float[Array, "rows D"], chunk: int) -> Float[Array, "R"]:
    """log of the sum over items 1..V of exp(state . item), in one pass over chunks of the table."""

    def add(carry, index):
        largest, total = carry
        scores, _, _ = chunk_scores(states, item_table, chunk, index)
        peak = jnp.maximum(largest, jnp.max(scores, axis=1))
        return (peak, total * jnp.exp(largest - peak) + jnp.sum(jnp.exp(scores - peak[:, None]), axis=1)), None

    nothing = jnp.full(states.shape[:1], -jnp.inf, states.dtype), jnp.zeros(states.shape[:1], states.dtype)
    largest, total = lax.scan(add, nothing, jnp.arange(num_chunks(item_table, chunk)))[0]
    return largest + jnp.log(total)


def log_sum_exp_items_forward(states, item_table, chunk):
    log_sum = log_sum_exp_items(states, item_table, chunk)
    return log_sum, (states, item_table, log_sum)


def log_sum_exp_items_backward(chunk, saved, gradient):
    """Each item's probability, chunk by chunk again, weighs its row for the states, and the states for its row."""
    states, item_table, log_sum = saved

    def add(carry, index):
        of_states, of_table = carry
        scores, rows, first = chunk_scores(states, item_table, chunk, index)
        weights = jnp.exp(scores - log_sum[:, None]) * gradient[:, None]
        own = lax.dynamic_slice_in_dim(of_table, first, len(rows)) + weights.T @ states
        return (of_states + weights @ rows, lax.dynamic_update_slice_in_dim(of_table, own, first, 0)), None

    nothing = jnp.zeros_like(states), jnp.zeros_like(item_table)
    return lax.scan(add, nothing, jnp.arange(num_chunks(item_table, chunk)))[0]


log_sum_exp_items.defvjp(log_sum_exp_items_forward, log_sum_exp_items_backward)


def num_chunks(item_table: Float[Array, "rows D"], chunk: int) -> int:
    """How many chunks hold all items but the pad."""
    return -(-(item_table.shape[0] - 1) // chunk)


def chunk_scores(states, item_table, chunk: int, index):
    """Scores [R, n] of a chunk's items, -inf for what an earlier chunk has; the items' rows [n, D]; the first id.

    The last chunk reaches back to be as long as the others, so that the table is never padded, that is copied.
    """
    num_items = item_table.shape[0] - 1
    size = min(chunk, num_items)
    first_new = 1 + index * size
    first = jnp.minimum(first_new, 1 + num_items - size)
    rows = lax.dynamic_slice_in_dim(item_table, first, size)
    is_new = first + jnp.arange(size) >= first_new
    return jnp.where(is_new[None], states @ rows.T, -jnp.inf), rows, first


def masked_mean(values: Float[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of the values where `mask` is True; 0 where it is True nowhere."""
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


class Settings(NamedTuple):
    """What the losses can be told; each reads its own part."""

    negative_reduction: Annotated[
        str, one_of("auto", "mean", "sum"), "how bce and gbce join their negatives; auto: mean, and sum for gbce"
    ] = "auto"
    calibration: Annotated[float, FROM_0_TO_1, "gbce's t; 0: plain bce"] = 0.75
    score_penalty: Annotated[float, NOT_NEGATIVE, "weight of the squared scores (bpr_max)"] = 1.0
    temperature: Annotated[float, POSITIVE, "infonce divides its scores by it"] = 1.0
    chunk: Annotated[int, at_least(1, 10**6), "items that full_softmax scores at a time"] = 1024


ABOUT = {
    "bce": "binary cross-entropy; the paper's",
    "gbce": "BCE that is calibrated for many uniform negatives (gSASRec)",
    "bpr": "pairs of the positive and each negative; what dns and softmax_hard are meant for",
    "bpr_max": "pairs, weighted by the softmax of the negatives",
    "top1_max": "relative ranks, weighted in the same way",
    "sampled_softmax": "cross-entropy among the negatives, each corrected by log q",
    "infonce": "cross-entropy among the negatives as they come, with a temperature",
    "full_softmax": "cross-entropy among all items; for method catalogue",
}
TWO_TERMS = ("bce", "gbce")  # the losses whose negatives are a term of their own


def _bce(settings: Settings, num_items: int, num_unselected: int) -> Callable:
    reduction = "mean" if settings.negative_reduction == "auto" else settings.negative_reduction
    return functools.partial(bce, negative_reduction=reduction, num_unselected=num_unselected)


def _gbce(settings: Settings, num_items: int, num_unselected: int) -> Callable:
    reduction = "sum" if settings.negative_reduction == "auto" else settings.negative_reduction
    calibration = settings.calibration
    return functools.partial(gbce, num_items=num_items, calibration=calibration, negative_reduction=reduction)


def _without_weight(loss: Callable) -> Callable:
    """For a loss whose negatives are no term of their own: `negative_weight` has nothing to weigh."""
    return lambda positive_scores, negatives, *, negative_weight: loss(positive_scores, negatives)


# name -> (settings, num_items, num_unselected) -> the loss as the training step calls it
LOSSES = {
    "bce": _bce,
    "gbce": _gbce,
    "bpr": lambda settings, *_: _without_weight(bpr),
    "bpr_max": lambda settings, *_: _without_weight(functools.partial(bpr_max, score_penalty=settings.score_penalty)),
    "top1_max": lambda settings, *_: _without_weight(top1_max),
    "sampled_softmax": lambda settings, *_: _without_weight(sampled_softmax),
    "infonce": lambda settings, *_: _without_weight(functools.partial(infonce, temperature=settings.temperature)),
    "full_softmax": lambda settings, *_: functools.partial(full_softmax, chunk=settings.chunk),
}


def make(name: str, num_items: int, settings: Settings | None = None, num_unselected: int = 0) -> Callable:
    """The loss of that name: (positive_scores, Negatives, negative_weight=...) -> Float[B, L].

    That of full_softmax is (hidden, item_table, targets) -> Float[B, L]. `num_unselected` is `bce`'s: the others
    have no such form. Raises InputError for an unknown name.
    """
    if name not in LOSSES:
        raise InputError(f"loss.name is {name!r}; allowed: {', '.join(LOSSES)}")
    return LOSSES[name](Settings() if settings is None else settings, num_items, num_unselected)
