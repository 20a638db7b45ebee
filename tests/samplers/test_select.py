"""Selectors against NumPy's sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
