"""Losses against NumPy in float64, numerical gradients, hand-worked values, their limits, and masks full of NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxneg import losses
from jaxneg.errors import InputError
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


# Every loss over drawn negatives: how it is called, and one position's value in float64, straight from the definition,
# from the positive's score, the valid negatives' scores (one at least) and their log q.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def log_loss(x):
    return np.logaddexp(0, -x)


def numpy_gbce(positive, scores, log_q, items=40, t=0.75):
    rate = len(scores) / (items - 1)
    power = rate * (t * (1 - 1 / rate) + 1 / rate)
    return power * log_loss(positive) + log_loss(-scores).sum()


def numpy_bpr_max(positive, scores, log_q, penalty=0.3):
    weights = softmax(scores)
    likelihood = np.logaddexp.reduce(np.log(weights + 1e-300) - log_loss(positive - scores))
    return -likelihood + penalty * (weights * scores**2).sum()


def numpy_sampled_softmax(positive, scores, log_q):
    return np.logaddexp.reduce([positive, *(scores - log_q - np.log(len(scores)))]) - positive


LOSSES = {
    "bce": (losses.bce, lambda p, s, q: log_loss(p) + log_loss(-s).mean()),
    "bce_sum": (
        functools.partial(losses.bce, negative_reduction="sum", negative_weight=0.5),
        lambda p, s, q: log_loss(p) + 0.5 * log_loss(-s).sum(),
    ),
    "gbce": (functools.partial(losses.gbce, num_items=40, calibration=0.75), numpy_gbce),
    "gbce_mean": (
        functools.partial(losses.gbce, num_items=40, calibration=1.0, negative_reduction="mean"),
        lambda p, s, q: len(s) / 39 * log_loss(p) + log_loss(-s).mean(),
    ),
    "bpr": (losses.bpr, lambda p, s, q: log_loss(p - s).mean()),
    "bpr_max": (functools.partial(losses.bpr_max, score_penalty=0.3), numpy_bpr_max),
    "top1_max": (losses.top1_max, lambda p, s, q: (softmax(s) * (sigmoid(s - p) + sigmoid(s**2))).sum()),
    "sampled_softmax": (losses.sampled_softmax, numpy_sampled_softmax),
    "infonce": (
        functools.partial(losses.infonce, temperature=0.4),
        lambda p, s, q: np.logaddexp.reduce([p / 0.4, *(s / 0.4)]) - p / 0.4,
    ),
}
WITHOUT_NEGATIVES = {
    "bce": log_loss,
    "bce_sum": log_loss,
    "gbce": lambda p: 0.25 * log_loss(p),
    "gbce_mean": lambda p: 0.0,
}  # the others are 0


def drawn(name, mask_shape=(B, L, N), scale=2.0, seed=0):
    """(positive scores, negatives' scores, log q, mask) for the loss of that name."""
    positive, scores, mask = make(mask_shape, scale, seed)
    log_q = np.log(np.random.default_rng(seed + 1).uniform(0.01, 0.3, mask.shape)).astype(np.float32)
    return positive, scores, log_q, mask


def value(name, positive, scores, log_q, mask):
    item_ids = jnp.ones(mask.shape, jnp.int32)
    pool = Negatives(item_ids, jnp.asarray(scores), jnp.asarray(log_q), jnp.asarray(mask))
    return LOSSES[name][0](jnp.asarray(positive), pool)


def numpy_value(name, positive, scores, log_q, mask):
    positive, scores = positive.astype(np.float64), scores.astype(np.float64)
    log_q, mask = (np.broadcast_to(x, scores.shape) for x in (log_q.astype(np.float64), mask))
    out = np.zeros(positive.shape)
    for place in np.ndindex(*positive.shape):
        keep = mask[place]
        if keep.any():
            out[place] = LOSSES[name][1](positive[place], scores[place][keep], log_q[place][keep])
        else:
            out[place] = WITHOUT_NEGATIVES.get(name, lambda p: 0.0)(positive[place])
    return out


@pytest.mark.parametrize("mask_shape", [(1, 1, N), (B, 1, N), (B, L, N)])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_equals_the_definition(name, mask_shape):
    arguments = drawn(name, mask_shape)
    assert not np.broadcast_to(arguments[3], (B, L, N)).all()
    got = jax.jit(functools.partial(value, name))(*arguments)
    assert got.shape == (B, L) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, numpy_value(name, *arguments), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_and_its_slope_far_out(name, scale):
    """Scores of +-100: values, and gradients against central differences of the float64 form."""
    rng = np.random.default_rng(5)
    _, _, log_q, mask = drawn(name)
    positive = (scale * rng.choice([-1.0, 1.0], (B, L))).astype(np.float32)
    scores = (scale * rng.choice([-1.0, 0.1, 1.0], (B, L, N))).astype(np.float32)
    expected = numpy_value(name, positive, scores, log_q, mask)
    np.testing.assert_allclose(value(name, positive, scores, log_q, mask), expected, rtol=1e-5, atol=1e-6)

    gradients = jax.grad(lambda p, s: jnp.sum(value(name, p, s, log_q, mask)), argnums=(0, 1))(positive, scores)
    step = 1e-5
    for index, like in enumerate((positive, scores)):
        flat = np.zeros(like.size)
        for place in range(like.size):
            moved = []
            for sign in (-1, 1):
                arguments = [positive.astype(np.float64), scores.astype(np.float64)]
                arguments[index] = arguments[index].copy()
                arguments[index].reshape(-1)[place] += sign * step
                moved.append(numpy_value(name, *arguments, log_q, mask).sum())
            flat[place] = (moved[1] - moved[0]) / (2 * step)
        np.testing.assert_allclose(gradients[index].reshape(-1), flat, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_passes_check_grads(name):
    positive, scores, log_q, mask = drawn(name, scale=1.0)
    loss = jax.jit(lambda p, s: value(name, p, s, log_q, mask))
    arguments = (jnp.asarray(positive), jnp.asarray(scores))
    modes = ["rev"] if name in ("sampled_softmax", "infonce") else ["fwd", "rev"]  # a gradient written by hand
    check_grads(loss, arguments, order=1, modes=modes, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("poison", [np.inf, np.nan])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_masked_has_no_influence_on_any_loss(name, poison):
    """Neither its score nor its log q; one position has nothing but masked negatives."""
    positive, scores, log_q, mask = drawn(name)
    mask[1, 2] = False
    clean, dirty = (
        jax.value_and_grad(lambda p, s, q: jnp.sum(value(name, p, s, q, mask)), argnums=(0, 1))(
            positive, np.where(mask, scores, fill), np.where(mask, log_q, fill)
        )
        for fill in (np.float32(0), np.float32(poison))
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert np.isfinite(clean[0]) and all(np.isfinite(gradient).all() for gradient in clean[1])
    alone = value(name, positive, scores, log_q, mask)[1, 2]
    nothing = WITHOUT_NEGATIVES.get(name, lambda p: 0.0)(np.float64(positive[1, 2]))
    np.testing.assert_allclose(alone, nothing, rtol=1e-6, atol=1e-7)


def test_gbce_without_calibration_is_bce_with_the_sum():
    positive, scores, mask = make((B, 1, N))
    pool = negatives(scores, mask)
    plain = losses.bce(jnp.asarray(positive), pool, negative_reduction="sum", negative_weight=0.7)
    general = losses.gbce(jnp.asarray(positive), pool, num_items=40, calibration=0.0, negative_weight=0.7)
    np.testing.assert_array_equal(general, plain)
    everything = losses.gbce(
        jnp.asarray(positive), negatives(scores, np.ones((B, L, N), bool)), num_items=N + 1, calibration=1.0
    )
    summed = losses.bce(jnp.asarray(positive), negatives(scores, np.ones((B, L, N), bool)), negative_reduction="sum")
    np.testing.assert_allclose(everything, summed, rtol=1e-6)  # with all items as negatives there is nothing to undo


def test_an_unknown_reduction_or_loss_is_refused():
    positive, scores, mask = make()
    with pytest.raises(InputError, match="loss.negative_reduction is 'median'; allowed: mean, sum"):
        losses.bce(jnp.asarray(positive), negatives(scores, mask), negative_reduction="median")
    with pytest.raises(InputError, match="loss.name is 'hinge'; allowed: bce, gbce, bpr"):
        losses.make("hinge", 9)


def test_the_table_makes_the_losses_with_their_settings():
    positive, scores, log_q, mask = drawn("gbce")
    settings = losses.Settings(calibration=0.75, score_penalty=0.3, temperature=0.4)
    pool = Negatives(jnp.ones(mask.shape, jnp.int32), *(jnp.asarray(x) for x in (scores, log_q, mask)))
    for name in set(losses.LOSSES) - {"full_softmax"}:
        made = losses.make(name, 40, settings)(jnp.asarray(positive), pool, negative_weight=1.0)
        np.testing.assert_allclose(made, numpy_value(name, positive, scores, log_q, mask), rtol=1e-5, atol=1e-6)
    half = losses.make("bce", 40, losses.Settings("sum"))(jnp.asarray(positive), pool, negative_weight=0.5)
    np.testing.assert_allclose(half, numpy_value("bce_sum", positive, scores, log_q, mask), rtol=1e-5)
    mean = losses.make("gbce", 40, losses.Settings("mean", calibration=1.0))
    got = mean(jnp.asarray(positive), pool, negative_weight=1.0)
    np.testing.assert_allclose(got, numpy_value("gbce_mean", positive, scores, log_q, mask), rtol=1e-5)


def catalogue(num_items=37, width=6, scale=1.0, seed=0):
    """(hidden states, item table with a pad that would win every softmax, targets)."""
    rng = np.random.default_rng(seed)
    hidden = (scale * rng.normal(size=(B, L, width))).astype(np.float32)
    item_table = rng.normal(size=(num_items + 1, width)).astype(np.float32)
    item_table[0] = 50 * hidden[0, 0]
    return hidden, item_table, rng.integers(1, num_items + 1, (B, L)).astype(np.int32)


def numpy_full_softmax(hidden, item_table, targets):
    scores = hidden.astype(np.float64) @ item_table[1:].astype(np.float64).T
    own = np.take_along_axis(scores, targets[..., None] - 1, axis=-1)[..., 0]
    return np.logaddexp.reduce(scores, axis=-1) - own


@pytest.mark.parametrize("scale", [1.0, 30.0])  # scores of +-100 and more
@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 38, 1000])
def test_full_softmax_in_chunks_equals_the_definition(chunk, scale):
    hidden, item_table, targets = catalogue(scale=scale)
    full = jax.jit(functools.partial(losses.full_softmax, chunk=chunk))
    expected = numpy_full_softmax(hidden, item_table, targets)
    np.testing.assert_allclose(full(hidden, item_table, targets), expected, rtol=2e-5, atol=2e-5)

    def plain(hidden, item_table):
        logits = hidden @ item_table[1:].T
        own = jnp.take_along_axis(logits, jnp.asarray(targets)[..., None] - 1, axis=-1)[..., 0]
        return jnp.mean((jax.nn.logsumexp(logits, axis=-1) - own) * jnp.arange(L)[None])

    def chunked(hidden, item_table):
        values = losses.full_softmax(hidden, item_table, jnp.asarray(targets), chunk=chunk)
        return jnp.mean(values * jnp.arange(L)[None])

    arguments = (jnp.asarray(hidden), jnp.asarray(item_table))
    for one, other in zip(*(jax.grad(f, (0, 1))(*arguments) for f in (chunked, plain)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert not np.any(jax.grad(chunked, 1)(*arguments)[0])  # the pad is no item


def test_full_softmax_passes_check_grads_and_vmap():
    hidden, item_table, targets = catalogue(num_items=9)
    item_table[0] = 0

    def total(hidden, item_table):
        return jnp.mean(losses.full_softmax(hidden, item_table, jnp.asarray(targets), chunk=4))

    check_grads(
        jax.jit(total), (jnp.asarray(hidden), jnp.asarray(item_table)), order=1, modes=["rev"], atol=1e-2, rtol=1e-2
    )
    seeds = jnp.stack([hidden, 2 * hidden]), jnp.stack([item_table, 3 * item_table])
    together = jax.vmap(jax.grad(total, (0, 1)))(*seeds)
    for seed in range(2):
        alone = jax.grad(total, (0, 1))(*(x[seed] for x in seeds))
        jax.tree.map(
            lambda one, all_: np.testing.assert_allclose(one, all_, rtol=1e-5, atol=1e-7),
            alone,
            jax.tree.map(lambda x, seed=seed: x[seed], together),
        )


def test_full_softmax_needs_no_memory_that_grows_with_the_catalogue():
    """Temporary bytes of the loss with both gradients; the gradients themselves are outputs."""

    def temporary_bytes(num_items):
        hidden, item_table = jnp.zeros((8, 32, 16)), jnp.zeros((num_items + 1, 16))
        targets = jnp.ones((8, 32), jnp.int32)

        def total(hidden, item_table):
            return jnp.sum(losses.full_softmax(hidden, item_table, targets, chunk=128))

        compiled = jax.jit(jax.value_and_grad(total, (0, 1))).lower(hidden, item_table).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(2_000), temporary_bytes(100_000)
    table_gradient = 100_001 * 16 * 4
    assert many - few < 1.1 * table_gradient  # were it made apart from the output; all scores would be 16 times that
    assert few < 4 * 8 * 32 * 128 * 4  # a few chunks of scores


def test_sampled_softmax_of_all_items_is_the_full_softmax():
    hidden, item_table, targets = catalogue(num_items=23)
    others = np.stack([np.delete(np.arange(1, 24), target - 1) for target in targets.ravel()]).reshape(B, L, 22)
    scores = np.einsum("bld,blnd->bln", hidden, item_table[others])
    log_q = np.full((1, 1, 22), -np.log(22), np.float32)  # one draw is each of them
    pool = Negatives(*(jnp.asarray(x) for x in (others.astype(np.int32), scores, log_q, np.ones((1, 1, 22), bool))))
    positive = jnp.asarray(np.sum(hidden * item_table[targets], axis=-1))
    full = losses.full_softmax(*(jnp.asarray(x) for x in (hidden, item_table, targets)), chunk=8)
    np.testing.assert_allclose(losses.sampled_softmax(positive, pool), full, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses.infonce(positive, pool), full, rtol=1e-4, atol=1e-5)
