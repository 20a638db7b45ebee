"""Intervals and tests: against scipy, values worked by hand, and their coverage on data of a known mean."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxneg.report import statistics

A = np.array([0.31, 0.35, 0.28, 0.40, 0.33, 0.30])
B = np.array([0.25, 0.29, 0.27, 0.32, 0.26])


@pytest.mark.parametrize(("num_seeds", "expected"), [(5, 0.920), (8, 0.940), (20, 0.946)])
def test_seed_intervals_cover_the_mean_of_normals(num_seeds, expected):
    """How often they hold the true mean (`expected` is of 5,000 trials); plain percentiles: 0.85, 0.89, 0.93."""
    rng, trials = np.random.default_rng(0), 1500
    samples = rng.normal(3.0, 0.5, (trials, num_seeds))
    intervals = [statistics.seed_interval(values, rng, 2000) for values in samples]
    covered = np.mean([low <= 3.0 <= high for low, high in intervals])
    assert covered == pytest.approx(expected, abs=0.025)  # the standard error is 0.007


def test_the_expanded_interval_is_a_t_interval_for_normal_resamples():
    """Of resamples whose spread is s * sqrt((n - 1) / n) / sqrt(n), as a bootstrap's is, it makes t's quantiles."""
    n, mean, deviation = 8, 0.1, 0.02
    quantiles = (np.arange(200_000) + 0.5) / 200_000
    resamples = stats.norm.ppf(quantiles, mean, deviation * np.sqrt((n - 1) / n) / np.sqrt(n))
    expected = stats.t.interval(0.95, n - 1, mean, deviation / np.sqrt(n))
    assert statistics.percentile_interval(resamples, n) == pytest.approx(expected, rel=1e-3)
    plain = stats.norm.interval(0.95, mean, deviation * np.sqrt((n - 1) / n) / np.sqrt(n))
    assert statistics.percentile_interval(resamples) == pytest.approx(plain, rel=1e-3)


def test_few_seeds_and_unknown_values_have_no_interval():
    rng = np.random.default_rng(0)
    assert np.isnan(statistics.seed_interval(np.arange(4.0), rng, 100)).all()
    assert np.isnan(statistics.seed_interval(np.array([1, 2, 3, 4, np.nan]), rng, 100)).all()
    low, high = statistics.seed_interval(np.array([1, 2, 3, 4, 5, np.nan]), rng, 100)
    assert 1 <= low < 3 < high <= 5
    assert np.isnan(statistics.percentile_interval(np.array([np.nan]))).all()


def test_resampled_users_keep_their_cases_together():
    """The spread of a mean over cases is that of clusters: checked against the formula for a ratio of sums."""
    rng = np.random.default_rng(0)
    count = rng.integers(1, 30, size=300)
    level = rng.normal(0, 1, size=300)  # what a user's cases have in common
    total = np.array([rng.normal(own, 0.1, size=n).sum() for own, n in zip(level, count, strict=True)])
    resampled = statistics.resample_users(rng, np.stack([total, count.astype(float)], axis=1), 4000)
    assert resampled.shape == (4000, 2)
    means = resampled[:, 0] / resampled[:, 1]
    mean = total.sum() / count.sum()
    by_clusters = np.sqrt(((total - mean * count) ** 2).sum()) / count.sum()
    assert means.std() == pytest.approx(by_clusters, rel=0.1)
    cases_alone = np.sqrt(count.sum()) / count.sum()  # about one per case, were all cases independent
    assert means.std() > 2 * cases_alone


def test_user_resamples_are_the_same_for_all_methods():
    sums = np.random.default_rng(0).random((50, 3))
    both = statistics.resample_users(np.random.default_rng(1), sums, 130)
    one = statistics.resample_users(np.random.default_rng(1), sums[:, :1], 130)
    np.testing.assert_allclose(both[:, :1], one)


def test_user_intervals_cover():
    """On 80 users drawn from one population the interval of the mean over cases holds the population's."""
    rng, trials, covered = np.random.default_rng(3), 300, 0
    for _ in range(trials):
        count = rng.poisson(5, size=80) + 1.0
        total = count * rng.normal(0.2, 0.05, size=80)
        resampled = statistics.resample_users(rng, np.stack([total, count], axis=1), 300)
        low, high = statistics.percentile_interval(resampled[:, 0] / resampled[:, 1])
        covered += low <= 0.2 <= high
    assert 0.90 < covered / trials < 0.98


def test_holm_by_hand():
    """0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to the 0.06 before it), 0.04 * 1 (raised too)."""
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([0.02, np.nan, 0.03]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)
    assert len(statistics.holm([])) == 0


def test_holm_keeps_the_family_wise_error():
    """With no difference anywhere, a family of 10 tests has a false finding in 5% of the cases, or fewer."""
    p_values = np.random.default_rng(0).random((4000, 10))
    found = np.mean([statistics.holm(row).min() < 0.05 for row in p_values])
    assert 0.035 < found < 0.058
    assert np.mean(p_values.min(axis=1) < 0.05) > 0.35  # without the adjustment


def test_tests_agree_with_their_formulas():
    difference, error = A.mean() - B.mean(), np.sqrt(A.var(ddof=1) / 6 + B.var(ddof=1) / 5)
    freedom = error**4 / ((A.var(ddof=1) / 6) ** 2 / 5 + (B.var(ddof=1) / 5) ** 2 / 4)
    assert statistics.welch(A, B) == pytest.approx(2 * stats.t.sf(difference / error, freedom))
    moments = [(float(x.mean()), float(x.std(ddof=1)), len(x)) for x in (A, B)]
    assert statistics.welch_of_moments(*moments) == pytest.approx(statistics.welch(A, B))
    # Mann-Whitney, exactly: how many of all splits of the 11 ranks are as extreme as this one.
    pooled, wins = np.concatenate([A, B]), (A[:, None] > B).sum()
    splits = [
        sum(pooled[i] > pooled[j] for i in chosen for j in set(range(11)) - set(chosen))
        for chosen in itertools.combinations(range(11), 6)
    ]
    exact = 2 * np.mean(np.array(splits) >= wins)
    assert statistics.mann_whitney(A, B) == pytest.approx(exact)
    assert statistics.cliffs_delta(A, B) == pytest.approx((wins - (A[:, None] < B).sum()) / 30)


def test_the_test_paired_by_user_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.random(40), rng.random(40)
    assert statistics.paired_by_user(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert np.isnan(statistics.paired_by_user(a, a)) and np.isnan(statistics.paired_by_user(a[:1], b[:1]))


def test_hedges_g_by_hand():
    """Means 2 and 5, both variances 1, three each: d = -3, corrected by 1 - 3 / (4 * 4 - 1) = 0.8."""
    assert statistics.hedges_g(np.array([1.0, 2, 3]), np.array([4.0, 5, 6])) == pytest.approx(-2.4)
    assert np.isnan(statistics.hedges_g(A[:1], B)) and np.isnan(statistics.hedges_g(np.ones(3), np.zeros(3)))


def test_what_cannot_be_tested_is_unknown():
    constant = np.full(3, 0.5)
    assert np.isnan(statistics.welch(A[:1], B)) and np.isnan(statistics.welch(constant, constant))
    assert np.isnan(statistics.welch_of_moments((1, 0.1, 1), (1, 0.1, 5)))
    assert np.isnan(statistics.mann_whitney(A[:0], B)) and np.isnan(statistics.cliffs_delta(A[:0], B))


def test_pareto_front():
    x = np.array([1.0, 2.0, 3.0, 2.0, np.nan, 3.0, 0.5])
    y = np.array([3.0, 2.0, 1.0, 1.5, 9.0, 1.0, 3.0])
    assert statistics.pareto_front(x, y).tolist() == [True, True, True, False, False, True, False]
    both = statistics.pareto_front(np.stack([x, -x]), np.stack([y, y]))
    assert both.shape == (2, 7) and both[0].tolist() == statistics.pareto_front(x, y).tolist()
    assert both[1].tolist() == [False, False, False, False, False, False, True]


def test_means_of_what_is_known():
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])
    assert statistics.mean_known(values, axis=1) == pytest.approx([2.0, np.nan], nan_ok=True)
