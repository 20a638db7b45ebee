"""Losses against NumPy in float64, numerical gradients, hand-worked values and masks full of NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxneg import losses
from jaxneg.types import Negatives

B, L, N = 3, 4, 5
MASK_SHAPES = [(1, 1, N), (B, 1, N), (1, L, N), (B, L, N)]


def each(positive, scores, mask, **options):
    """The loss of NumPy (or traced) arrays."""
    return losses.bce(jnp.asarray(positive), negatives(scores, mask), **options)


def make(mask_shape=(B, L, N), scale=2.0, seed=0, share_valid=0.7):
    rng = np.random.default_rng(seed)
    positive = (scale * rng.normal(size=(B, L))).astype(np.float32)
    scores = (scale * rng.normal(size=(B, L, N))).astype(np.float32)
    mask = rng.random(mask_shape) < share_valid
    return positive, scores, mask


def negatives(scores, mask):
    ids = jnp.ones(mask.shape, jnp.int32)
    return Negatives(ids, jnp.asarray(scores), jnp.zeros(mask.shape), jnp.asarray(mask))


def numpy_bce(positive, scores, mask, negative_weight=1.0, num_unselected=0):
    """Position by position, in float64, straight from the definition."""
    positive, scores = positive.astype(np.float64), scores.astype(np.float64)
    mask = np.broadcast_to(mask, scores.shape)
    out = np.zeros(positive.shape)
    for b, t in np.ndindex(*positive.shape):
        terms = [np.logaddexp(0, s) for s in scores[b, t][mask[b, t]]] + [np.log(2.0)] * num_unselected
        out[b, t] = np.logaddexp(0, -positive[b, t]) + negative_weight * (np.mean(terms) if terms else 0.0)
    return out


@pytest.mark.parametrize("mask_shape", MASK_SHAPES)
@pytest.mark.parametrize("num_unselected", [0, 7])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_bce_equals_the_definition(mask_shape, num_unselected, weight):
    positive, scores, mask = make(mask_shape)
    options = {"negative_weight": weight, "num_unselected": num_unselected}
    expected = numpy_bce(positive, scores, mask, **options)
    eager = each(positive, scores, mask, **options)
    jitted = jax.jit(lambda p, s, m: each(p, s, m, **options))(positive, scores, mask)
    np.testing.assert_allclose(eager, expected, rtol=2e-6)
    np.testing.assert_allclose(jitted, expected, rtol=2e-6)


def test_bce_by_hand():
    """Scores of 0 cost log 2 on either side; log 3 makes sigmoid 3/4."""
    scores = np.asarray([[[np.log(3.0), 0.0]]], np.float32)
    loss = each(np.asarray([[np.log(3.0)]], np.float32), scores, np.ones((1, 1, 2), bool))
    np.testing.assert_allclose(loss, [[np.log(4 / 3) + (np.log(4.0) + np.log(2.0)) / 2]], rtol=1e-6)


def test_bce_is_the_mean_over_what_is_valid():
    """Repeating every negative changes nothing, and neither does padding the pool with masked ones."""
    positive, scores, mask = make()
    once = each(positive, scores, mask)
    doubled = np.concatenate([scores] * 2, -1)
    twice = each(positive, doubled, np.concatenate([mask] * 2, -1))
    padded = each(positive, doubled, np.concatenate([mask, np.zeros_like(mask)], -1))
    np.testing.assert_allclose(twice, once, rtol=1e-6)
    np.testing.assert_allclose(padded, once, rtol=1e-6)


@pytest.mark.parametrize("score", [-100.0, 100.0, -1e4, 1e4])
def test_bce_is_exact_far_out(score):
    positive = np.full((1, 1), score, np.float32)
    scores = np.full((1, 1, 2), score, np.float32)
    mask = np.ones((1, 1, 2), bool)

    def total(p, s):
        return jnp.sum(each(p, s, mask))

    value, (grad_positive, grad_scores) = jax.value_and_grad(total, argnums=(0, 1))(positive, scores)
    np.testing.assert_allclose(value, abs(score), rtol=1e-6)  # one side costs |score|, the other nothing
    np.testing.assert_allclose(grad_positive, [[-1.0 if score < 0 else 0.0]], atol=1e-6)
    np.testing.assert_allclose(grad_scores, np.full((1, 1, 2), 0.5 if score > 0 else 0.0), atol=1e-6)


@pytest.mark.parametrize("num_unselected", [0, 3])
def test_bce_gradients_are_numerically_right(num_unselected):
    positive, scores, mask = make(scale=1.0)

    def loss(p, s, weight):
        return each(p, s, mask, negative_weight=jnp.asarray(weight), num_unselected=num_unselected)

    arguments = (jnp.asarray(positive), jnp.asarray(scores), jnp.asarray(0.6))
    check_grads(jax.jit(loss), arguments, order=1, modes=["fwd", "rev"], atol=1e-2, rtol=1e-2)


def test_bce_gradients_equal_the_formula():
    """d/ds+ = sigmoid(s+) - 1; d/ds- = sigmoid(s-) / count on valid entries."""
    positive, scores, mask = make((B, 1, N))
    arguments = (jnp.asarray(positive), jnp.asarray(scores))
    grads = jax.grad(lambda p, s: jnp.sum(each(p, s, mask)), argnums=(0, 1))(*arguments)
    sigmoid = 1 / (1 + np.exp(-scores.astype(np.float64)))
    count = np.maximum(mask.sum(-1, keepdims=True), 1)
    np.testing.assert_allclose(grads[0], 1 / (1 + np.exp(-positive.astype(np.float64))) - 1, rtol=1e-5)
    np.testing.assert_allclose(grads[1], np.where(mask, sigmoid / count, 0), rtol=1e-5)


@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("mask_shape", MASK_SHAPES)
def test_masked_scores_have_no_influence(poison, mask_shape):
    positive, scores, mask = make(mask_shape)
    poisoned = np.where(np.broadcast_to(mask, scores.shape), scores, np.float32(poison))

    def total(p, s):
        return jnp.sum(each(p, s, mask))

    clean = jax.value_and_grad(total, argnums=(0, 1))(positive, scores)
    dirty = jax.value_and_grad(total, argnums=(0, 1))(positive, poisoned)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_position_without_negatives_keeps_its_positive_term():
    positive, scores, mask = make()
    mask[1, 2] = False

    loss = each(positive, scores, mask)
    np.testing.assert_allclose(loss[1, 2], np.logaddexp(0, -np.float64(positive[1, 2])), rtol=1e-6)
    grads = jax.grad(lambda p, s: jnp.sum(each(p, s, mask)), argnums=(0, 1))(positive, scores)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_array_equal(grads[1][1, 2], 0.0)


def test_negative_weight_may_differ_under_vmap():
    positive, scores, mask = make()
    weights = jnp.asarray([0.0, 1.0, 2.5])
    both = jax.vmap(lambda w: each(positive, scores, mask, negative_weight=w))(weights)
    for weight, loss in zip(weights, both, strict=True):
        np.testing.assert_allclose(loss, numpy_bce(positive, scores, mask, float(weight)), rtol=2e-6)


def test_masked_mean_equals_numpy():
    values, _, _ = make()
    mask = np.random.default_rng(1).random((B, L)) < 0.5
    mean = losses.masked_mean(jnp.asarray(values), jnp.asarray(mask))
    np.testing.assert_allclose(mean, values[mask].mean(), rtol=1e-6)


@pytest.mark.parametrize("poison", [np.inf, np.nan])
def test_masked_mean_ignores_what_is_masked(poison):
    values = jnp.asarray([[1.0, poison], [3.0, poison]])
    mask = jnp.asarray([[True, False], [True, False]])
    value, grad = jax.value_and_grad(losses.masked_mean)(values, mask)
    assert value == 2.0
    np.testing.assert_array_equal(grad, [[0.5, 0.0], [0.5, 0.0]])


def test_masked_mean_of_nothing_is_zero():
    value, grad = jax.value_and_grad(losses.masked_mean)(jnp.full((B, L), np.nan), jnp.zeros((B, L), bool))
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)
