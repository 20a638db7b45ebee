"""Selectors against NumPy's sort, and against the laws that they should draw by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxneg import losses, samplers
from jaxneg.errors import InputError
from jaxneg.samplers import select
from jaxneg.types import Negatives

KEY = jax.random.key(0)


def pool(shared: bool, num_masked: int = 0, shape=(3, 4, 9)):
    rng = np.random.default_rng(0)
    lead = (shape[0], 1) if shared else shape[:2]
    mask = np.ones((*lead, shape[2]), bool)
    mask[..., :num_masked] = False
    item_ids = rng.permuted(np.broadcast_to(np.arange(1, 10), mask.shape), axis=2).astype(np.int32)
    scores = rng.normal(size=shape).astype(np.float32)
    return Negatives(*map(jnp.asarray, (item_ids, scores, np.full(mask.shape, -2.0, np.float32), mask)))


def test_all_is_the_identity():
    negatives = pool(True)
    assert select.all(KEY, negatives) is negatives


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("num_masked", [0, 3])
def test_top_k_is_a_sort(shared, num_masked):
    negatives = pool(shared, num_masked)
    kept = jax.jit(select.top_k(4))(KEY, negatives)
    shape = negatives.scores.shape
    item_ids, mask = (np.broadcast_to(x, shape) for x in (negatives.item_ids, negatives.mask))
    order = np.argsort(np.where(mask, -np.asarray(negatives.scores), np.inf), axis=2)[..., :4]
    np.testing.assert_array_equal(kept.scores, np.take_along_axis(np.asarray(negatives.scores), order, 2))
    np.testing.assert_array_equal(kept.item_ids, np.take_along_axis(item_ids, order, 2))
    assert kept.mask.all()


def test_top_k_masks_what_is_missing():
    kept = select.top_k(4)(KEY, pool(True, num_masked=7))
    assert (kept.mask.sum(axis=2) == 2).all() and kept.mask[..., :2].all()
    assert np.isfinite(kept.scores).all()


def test_top_k_log_q_can_not_be_used_unseen():
    kept = select.top_k(4)(KEY, pool(True))
    assert kept.log_q.shape == (1, 1, 4) and np.isnan(kept.log_q).all()


def test_equal_scores_go_by_place():
    negatives = pool(False)._replace(scores=jnp.zeros((3, 4, 9)))
    np.testing.assert_array_equal(select.top_k(4)(KEY, negatives).item_ids, negatives.item_ids[..., :4])


def test_gradients_reach_the_kept_scores_only():
    negatives = pool(True, num_masked=2)

    def loss(scores):
        kept = select.top_k(3)(KEY, negatives._replace(scores=scores))
        return jnp.sum(jnp.where(kept.mask, kept.scores, 0.0) * 2)

    gradient = np.asarray(jax.grad(loss)(negatives.scores))
    ranked = np.where(np.broadcast_to(negatives.mask, gradient.shape), negatives.scores, -np.inf)
    third = -np.sort(-ranked, axis=2)[..., 2:3]
    np.testing.assert_array_equal(gradient, np.where(ranked >= third, 2.0, 0.0))


def test_top_k_of_the_whole_pool_and_beyond():
    negatives = pool(True)
    assert select.top_k(9)(KEY, negatives).scores.shape == (3, 4, 9)
    with pytest.raises(InputError, match="num_kept is 10; allowed: at most the pool, 9"):
        select.top_k(10)(KEY, negatives)
    with pytest.raises(InputError, match="num_kept is 0; allowed: 1 or more"):
        select.top_k(0)


def draw_many(selector, negatives, positive_scores, num_keys):
    """Kept item ids and masks [num_keys, B, L, K]."""
    keys = jax.random.split(jax.random.key(1), num_keys)
    kept = jax.jit(jax.vmap(selector, (0, None, None)))(keys, negatives, positive_scores)
    return np.asarray(kept.item_ids), np.asarray(kept.mask)


def assert_laws(item_ids, laws):
    """Chi-square of what each place kept, item_ids [keys, B, L, K], against its law [B, L, 10] over the ids."""
    for place in np.ndindex(*laws.shape[:2]):
        observed = np.bincount(item_ids[(slice(None), *place)].ravel(), minlength=10)
        expected = laws[place] * observed.sum()
        assert (observed[laws[place] == 0] == 0).all()
        possible = expected > 5
        assert expected[~possible].sum() < 5e-3 * observed.sum()
        if possible.sum() > 1:
            scaled = expected[possible] * observed[possible].sum() / expected[possible].sum()
            assert stats.chisquare(observed[possible], scaled).pvalue > 1e-4


def law_by_id(negatives, weights):
    """Weights [B, L, N] of the places as a law over the item ids 0..9."""
    laws = np.zeros((*weights.shape[:2], 10))
    ids = np.broadcast_to(negatives.item_ids, weights.shape)
    np.put_along_axis(laws, ids, weights / np.maximum(weights.sum(axis=2, keepdims=True), 1e-300), axis=2)
    return laws


def positives(shape=(3, 4)):
    return jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("num_masked", [0, 6])
@pytest.mark.parametrize("shared", [True, False])
def test_random_of_top_takes_each_of_the_top_alike(shared, num_masked):
    """With 3 valid of 9 and M = 4 it is one of the three."""
    negatives = pool(shared, num_masked)
    item_ids, mask = draw_many(select.random_of_top(4), negatives, positives(), 1500)
    assert item_ids.shape == (1500, 3, 4, 1) and mask.all()
    valid = np.broadcast_to(negatives.mask, negatives.scores.shape)
    ranked = np.where(valid, negatives.scores, -np.inf)
    fourth = -np.sort(-ranked, axis=2)[..., 3:4]
    assert_laws(item_ids, law_by_id(negatives, ((ranked >= fourth) & valid).astype(float)))


def numpy_softmax_v(scores, positive_scores, mask, rho):
    """The law of Softmax-v(rho, N), position by position in float64, as the paper states it."""
    out = np.zeros(scores.shape)
    for place in np.ndindex(*scores.shape[:2]):
        keep = np.broadcast_to(mask, scores.shape)[place]
        pair_losses = np.log1p(np.exp(scores[place][keep].astype(np.float64) - float(positive_scores[place])))
        tau = np.sqrt(np.var(pair_losses) / (2 * rho))
        out[place][keep] = np.exp((pair_losses - pair_losses.max()) / tau)
    return out / out.sum(axis=2, keepdims=True)


@pytest.mark.parametrize("rho", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("num_masked", [0, 3])
def test_softmax_draws_by_its_law(rho, num_masked):
    negatives = pool(False, num_masked)
    law = numpy_softmax_v(np.asarray(negatives.scores), np.asarray(positives()), np.asarray(negatives.mask), rho)
    difference = negatives.scores - positives()[..., None]
    weights = np.asarray(select.hardness_weights(jax.nn.softplus(difference), negatives.mask, rho))
    np.testing.assert_allclose(weights / weights.sum(axis=2, keepdims=True), law, rtol=1e-4, atol=1e-7)
    item_ids, mask = draw_many(select.softmax(6, rho), negatives, positives(), 1000)
    assert mask.all() and item_ids.shape == (1000, 3, 4, 6)
    assert_laws(item_ids, law_by_id(negatives, law))


def test_softmax_at_its_limits():
    """rho 0 and equal losses draw alike; hardness does not depend on the scale; scores of +-100 leave a law."""
    negatives, positive = pool(False), positives()
    uniform = np.full((3, 4, 9), 1 / 9)
    item_ids, _ = draw_many(select.softmax(6, 0.0), negatives, positive, 500)
    assert_laws(item_ids, law_by_id(negatives, uniform))
    item_ids, _ = draw_many(select.softmax(6, 3.0), negatives._replace(scores=jnp.full((3, 4, 9), 2.5)), positive, 500)
    assert_laws(item_ids, law_by_id(negatives, uniform))
    pair_losses = jnp.asarray(np.random.default_rng(0).random((3, 4, 9)), jnp.float32)
    weights = select.hardness_weights(pair_losses, negatives.mask, 0.5)
    for scale in (1e-25, 1e20):  # the squares of these are no float32
        scaled = select.hardness_weights(scale * pair_losses, negatives.mask, 0.5)
        np.testing.assert_allclose(scaled, weights, rtol=1e-4)
    far = negatives._replace(scores=100 * jnp.sign(negatives.scores))
    law = numpy_softmax_v(np.asarray(far.scores), np.asarray(positive), np.asarray(far.mask), 1.0)
    item_ids, _ = draw_many(select.softmax(6, 1.0), far, positive, 500)
    assert_laws(item_ids, law_by_id(far, law))


def test_softmax_of_a_pool_without_any_valid_candidate():
    negatives = pool(True, num_masked=9)._replace(scores=jnp.full((3, 4, 9), jnp.nan))
    kept = select.softmax(2, 0.5)(KEY, negatives, positives())
    assert not kept.mask.any() and kept.scores.shape == (3, 4, 2)


@pytest.mark.parametrize("selector", [select.top_k(3), select.random_of_top(3), select.softmax(3, 0.5)])
def test_no_gradient_goes_through_the_choice(selector):
    """The gradient of the kept scores' sum counts how often each was kept; positives have none."""
    negatives = pool(True)

    def total(scores, positive_scores):
        kept = selector(KEY, negatives._replace(scores=scores), positive_scores)
        return jnp.sum(kept.scores), kept

    (_, kept), (of_scores, of_positives) = jax.value_and_grad(total, (0, 1), has_aux=True)(
        negatives.scores, positives()
    )
    assert np.isnan(kept.log_q).all() and kept.log_q.shape == (1, 1, kept.scores.shape[2])
    assert not np.any(of_positives)
    ids = np.broadcast_to(negatives.item_ids, negatives.scores.shape)
    for place in np.ndindex(3, 4):
        counts = np.bincount(np.asarray(kept.item_ids)[place], minlength=10)
        np.testing.assert_array_equal(np.asarray(of_scores)[place], counts[ids[place]])


def test_expected_losses_are_those_of_the_theory():
    """One of the top M, over many keys, costs what the top-M average costs; softmax what its weighted sum costs."""
    negatives, positive = pool(False), positives()
    pair = np.log1p(np.exp(np.asarray(negatives.scores, np.float64) - np.asarray(positive)[..., None]))
    law = numpy_softmax_v(np.asarray(negatives.scores), np.asarray(positive), np.asarray(negatives.mask), 0.5)
    average = losses.bpr(positive, select.top_k(4)(KEY, negatives))
    np.testing.assert_allclose(average, -np.sort(-pair, axis=2)[..., :4].mean(axis=2), rtol=1e-5)
    keys = jax.random.split(KEY, 4000)
    for selector, expected in [
        (select.random_of_top(4), np.asarray(average)),
        (select.softmax(4, 0.5), (law * pair).sum(axis=2)),
    ]:
        drawn = jax.jit(jax.vmap(lambda key, chosen=selector: losses.bpr(positive, chosen(key, negatives, positive))))
        values = np.asarray(drawn(keys))
        error = values.std(axis=0) / np.sqrt(len(keys))
        assert (np.abs(values.mean(axis=0) - expected) < 4 * error + 1e-6).all()


@pytest.mark.parametrize("form", ["average", "random_one"])
@pytest.mark.parametrize("loss", [losses.bce, losses.bpr])
def test_dns_that_keeps_all_is_uniform(loss, form, world):
    """M = N: the mean over the top is the mean over all; one of the top is one of all."""
    settings = samplers.Settings(num_uniform=6, num_kept=6, dns_form=form)
    dns, uniform = (samplers.make(name, world.num_items, settings) for name in ("dns", "uniform"))
    drawn = [jax.jit(method.proposal.sample)(KEY, (), world.batch) for method in (dns, uniform)]
    np.testing.assert_array_equal(drawn[0].item_ids, drawn[1].item_ids)
    scores = jax.random.normal(jax.random.key(5), (*world.targets.shape, 6))
    pool_, positive = Negatives(drawn[0].item_ids, scores, *drawn[0][1:]), positives(world.targets.shape)
    whole = loss(positive, uniform.selector(KEY, pool_, positive))
    if form == "average":
        np.testing.assert_allclose(loss(positive, dns.selector(KEY, pool_, positive)), whole, rtol=1e-6)
        return
    keys = jax.random.split(KEY, 4000)
    values = np.asarray(jax.jit(jax.vmap(lambda key: loss(positive, dns.selector(key, pool_, positive))))(keys))
    error = values.std(axis=0) / np.sqrt(len(keys))
    assert (np.abs(values.mean(axis=0) - np.asarray(whole)) < 4 * error + 1e-6).all()


@pytest.mark.parametrize("num_candidates, num_kept", [(100, 50), (100, 16), (128, 127), (128, 128), (33, 20)])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "infinite"])
def test_threshold_keeps_what_lax_top_k_keeps(num_candidates, num_kept, kind, monkeypatch):
    """The same set, with ties, zeros of both signs, the smallest floats, and masked candidates (-inf)."""
    monkeypatch.setattr(select, "POOLS_AT_A_TIME", 40)  # three blocks, the last one not full
    rng = np.random.default_rng(num_kept)
    scores = rng.normal(size=(4, 25, num_candidates)).astype(np.float32)
    scores[0] *= 1e-39  # subnormal
    if kind == "ties":
        scores = np.round(scores)  # with -0.0
    if kind == "equal":
        scores[:] = -1.5
    if kind == "infinite":
        scores[rng.random(scores.shape) < 0.7] = -np.inf
        scores[rng.random(scores.shape) < 0.05] = np.inf
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, np.asarray(jax.lax.top_k(scores, num_kept)[1]), True, axis=2)
    for way in (select.marked_by_bits, select.marked_by_top_k):
        np.testing.assert_array_equal(jax.jit(way, static_argnums=1)(scores, num_kept), expected)
    over_seeds = jax.jit(jax.vmap(lambda one: select.highest(one, num_kept)))(np.stack([scores, -scores]))
    np.testing.assert_array_equal(over_seeds[0], expected)


@pytest.mark.parametrize("num_masked", [0, 25])
def test_selectors_that_take_many(num_masked):
    """Enough for the threshold: masked candidates only where nothing else is left, and one of the valid tops alike."""
    rng = np.random.default_rng(4)
    mask = np.ones((2, 1, 40), bool)
    mask[..., rng.permutation(40)[:num_masked]] = False
    ids = np.broadcast_to(np.arange(1, 41, dtype=np.int32), mask.shape)
    scores = rng.normal(size=(2, 3, 40)).astype(np.float32)
    negatives = Negatives(*map(jnp.asarray, (ids, scores, np.zeros(mask.shape, np.float32), mask)))
    kept = jax.jit(select.top_k(20))(KEY, negatives)
    ranked = np.where(mask, scores, -np.inf)
    right = np.zeros(scores.shape, bool)
    np.put_along_axis(right, np.argsort(-ranked, axis=2, kind="stable")[..., :20], True, axis=2)
    np.testing.assert_array_equal(kept.mask, right & mask)
    np.testing.assert_array_equal(kept.scores, scores)
    assert np.isnan(kept.log_q).all()
    alone = select.chosen(negatives, jax.lax.top_k(ranked, 20)[1])
    positive = jnp.zeros((2, 3))
    for loss in (losses.bce, losses.bpr, losses.bpr_max, losses.top1_max, losses.infonce):
        np.testing.assert_allclose(loss(positive, kept), loss(positive, alone), rtol=2e-6)
    keys = jax.random.split(jax.random.key(1), 3000)
    one = jax.jit(jax.vmap(lambda key: select.random_of_top(20)(key, negatives)))(keys)
    assert np.asarray(one.mask).all()
    possible = right & mask
    for place in np.ndindex(2, 3):
        observed = np.bincount(np.asarray(one.item_ids)[(slice(None), *place, 0)], minlength=41)[1:]
        assert (observed[~possible[place]] == 0).all()
        assert stats.chisquare(observed[possible[place]]).pvalue > 1e-4
