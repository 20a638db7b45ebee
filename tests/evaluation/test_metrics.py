"""Metrics against golden values of the released code, an independent library, and brute force."""

import itertools
from pathlib import Path

import ir_measures
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxneg.evaluation import metrics

GOLDEN = Path(__file__).parent.parent / "golden"


def test_gini_and_balance_equal_the_released_code():
    golden = np.load(GOLDEN / "balance.npz")
    head, mid, tail = golden["triples"].T
    np.testing.assert_allclose(metrics.gini(golden["triples"] + 1e-7), golden["gini"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(metrics.balance(head, mid, tail, reference=True), golden["balance"], rtol=0, atol=1e-15)
    nothing_hit = (golden["triples"] == 0).all(axis=1)
    assert nothing_hit.sum() == 1
    expected = np.where(nothing_hit, np.nan, golden["balance"])
    np.testing.assert_allclose(metrics.balance(head, mid, tail), expected, rtol=0, atol=1e-15)


def test_balance_is_nan_for_an_empty_cohort_and_takes_plain_numbers():
    assert np.isnan(metrics.balance(0.2, float("nan"), 0.1))
    assert np.isnan(metrics.balance(0.2, float("nan"), 0.1, reference=True))
    assert np.isnan(metrics.balance(0, 0, 0))
    assert metrics.balance(0, 0, 0, reference=True) == 1
    assert metrics.balance(0.3, 0.3, 0.3) == pytest.approx(1)
    assert metrics.balance(1.0, 0.0, 0.0) == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_hit_rate_ndcg_mrr_agree_with_ir_measures(k):
    rng = np.random.default_rng(k)
    num_cases, num_items = 40, 60
    scores = rng.permuted(np.tile(np.arange(num_items, dtype=float), (num_cases, 1)), axis=1)
    targets = rng.integers(num_items, size=num_cases)
    cases = [f"q{c}" for c in range(num_cases)]
    queries = np.repeat(cases, num_items)
    documents = np.tile([f"d{i}" for i in range(num_items)], num_cases)
    run = pd.DataFrame({"query_id": queries, "doc_id": documents, "score": scores.ravel()})
    relevant = {"query_id": cases, "doc_id": [f"d{t}" for t in targets], "relevance": 1}
    asked = [ir_measures.Success @ k, ir_measures.nDCG @ k, ir_measures.RR @ k]
    expected = ir_measures.calc_aggregate(asked, pd.DataFrame(relevant), run)

    num_above = (scores > scores[np.arange(num_cases), targets][:, None]).sum(axis=1).astype(np.int32)
    num_tied = np.zeros(num_cases, np.int32)
    for measure, metric in zip(asked, (metrics.hit_rate, metrics.ndcg, metrics.mrr), strict=True):
        ours = metric(num_above, num_tied, k)
        assert ours.dtype == np.float64
        assert ours.mean() == pytest.approx(expected[measure], abs=1e-9)


def test_ties_are_the_mean_over_all_orders_of_the_tied_items():
    scores = np.array([3.0, 2.0, 2.0, 2.0, 1.0, 2.0])
    target, k = 2, 3
    gains = {"hit_rate": [], "ndcg": [], "mrr": []}
    for order in itertools.permutations(range(6)):  # `order` breaks the ties; a stable sort keeps it
        rank = sorted(order, key=lambda item: -scores[item]).index(target)
        gains["hit_rate"].append(rank < k)
        gains["ndcg"].append((rank < k) / np.log2(rank + 2))
        gains["mrr"].append((rank < k) / (rank + 1))
    for name, values in gains.items():
        ours = getattr(metrics, name)(np.int32([1]), np.int32([3]), k)
        np.testing.assert_allclose(ours, [np.mean(values)], rtol=1e-12)


def test_hand_worked_ranks_of_any_shape_numpy_or_jax():
    above, tied = np.int32([[0, 1, 9], [10, 0, 8]]), np.int32([[0, 0, 0], [0, 99, 3]])
    np.testing.assert_allclose(metrics.hit_rate(above, tied, 10), [[1, 1, 1], [0, 0.1, 0.5]])
    expected = [[1, 1 / np.log2(3), 1 / np.log2(11)]]
    np.testing.assert_allclose(metrics.ndcg(above[:1], tied[:1], 10), expected, rtol=1e-14)
    np.testing.assert_allclose(metrics.mrr(above[:1], tied[:1], 10), [[1, 0.5, 0.1]], rtol=1e-14)
    for metric in (metrics.hit_rate, metrics.ndcg, metrics.mrr):
        on_device = metric(jnp.asarray(above), jnp.asarray(tied), 10)
        np.testing.assert_array_equal(on_device, metric(above, tied, 10))


@pytest.mark.parametrize("beta", [0.013, 0.05, 0.1, 0.5, 1.0])
def test_opauc_is_the_area_under_the_curve(beta):
    """One positive among 40 negatives: the ROC curve of every order of the ties, by steps."""
    rng = np.random.default_rng(0)
    above, tied = rng.integers(0, 41, 200), rng.integers(0, 6, 200)
    tied = np.minimum(tied, 40 - above)
    grid = (np.arange(200_000) + 0.5) / 200_000 * beta  # false positive rates
    expected = []
    for first, more in zip(above, tied, strict=True):
        expected.append(np.mean([(grid > rank / 40).mean() for rank in range(first, first + more + 1)]))
    np.testing.assert_allclose(metrics.opauc(above, tied, 40, beta), expected, atol=2e-5)
    if beta == 1:
        np.testing.assert_allclose(metrics.opauc(above, tied, 40, 1), 1 - (above + tied / 2) / 40, atol=1e-12)


def test_opauc_by_hand():
    """Of the first ten of 100 negatives three are above the target: 0.7; beyond the tenth it is 0."""
    np.testing.assert_allclose(
        metrics.opauc(np.int32([0, 3, 9, 10, 99]), np.zeros(5, np.int32), 100, 0.1), [1, 0.7, 0.1, 0, 0], atol=1e-12
    )
    np.testing.assert_allclose(metrics.opauc(np.int32([8]), np.int32([3]), 100, 0.1), [(0.2 + 0.1) / 4], atol=1e-12)


def test_gini_by_its_definition():
    values = np.random.default_rng(0).gamma(0.3, size=(4, 200))
    differences = np.abs(values[:, :, None] - values[:, None, :]).sum(axis=(1, 2))
    np.testing.assert_allclose(metrics.gini(values), differences / (2 * 200 * values.sum(axis=1)), rtol=1e-12)
    assert metrics.gini(np.float64([0, 0, 0, 8])) == pytest.approx(0.75)
    assert np.isnan(metrics.gini(np.zeros(5)))


def test_exposure_metrics_ignore_the_pad():
    exposure = np.int32([[7, 4, 0, 0, 0], [9, 1, 1, 1, 1], [3, 0, 0, 0, 0]])
    np.testing.assert_allclose(metrics.coverage(exposure), [0.25, 1, 0])
    counts = np.int64([1000, 10, 20, 30, 40])
    np.testing.assert_allclose(metrics.average_recommended_popularity(exposure, counts), [10, 25, np.nan])
    np.testing.assert_allclose(metrics.exposure_gini(exposure), [0.75, 0, np.nan])


def test_popular_share_counts_the_recommendations_of_the_most_popular_items():
    exposure = np.int32([[9, 0, 4, 0, 6], [9, 5, 4, 1, 10], [0, 0, 0, 0, 0]])
    counts = np.int64([1000, 10, 20, 20, 30])  # by popularity: 4, 2, 3, 1
    np.testing.assert_allclose(metrics.popular_share(exposure, counts, (1, 2, 3)), [0.6, 0.7, np.nan])
