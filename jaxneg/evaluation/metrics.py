"""Ranking, fairness and exposure metrics: pure functions of counts, in NumPy float64 on the host.

A case's rank is known as two counts: how many items score above the target, and how many OTHER items tie
with it. Ties are broken uniformly at random, and the metrics are the expectation over that: the 0-based rank
is uniform in num_above ... num_above + num_tied. Exposure, [..., V + 1], is how often each id is recommended;
id 0 is the pad.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real

Values = Real[Any, "*n"] | float | int


def hit_rate(num_above: Int[Any, "*cases"], num_tied: Int[Any, "*cases"], k: int) -> Float[Any, "*cases"]:
    """Expected HR@k: the probability that the target is among the first k."""
    return _expected_gain(num_above, num_tied, np.ones(k))


def ndcg(num_above: Int[Any, "*cases"], num_tied: Int[Any, "*cases"], k: int) -> Float[Any, "*cases"]:
    """Expected NDCG@k of one relevant item: 1 / log2(rank + 2) for a 0-based rank below k, else 0."""
    return _expected_gain(num_above, num_tied, 1 / np.log2(np.arange(2, k + 2)))


def mrr(num_above: Int[Any, "*cases"], num_tied: Int[Any, "*cases"], k: int) -> Float[Any, "*cases"]:
    """Expected MRR@k: 1 / (rank + 1) for a 0-based rank below k, else 0."""
    return _expected_gain(num_above, num_tied, 1 / np.arange(1, k + 1))


def opauc(
    num_above: Int[Any, "*cases"], num_tied: Int[Any, "*cases"], num_negatives: int, beta: float | int
) -> Float[Any, "*cases"]:
    """Expected OPAUC(beta) of one relevant item: area under the ROC curve for FPR in [0, beta], as a share of beta.

    Of `num_negatives` other items, `num_above` are above the target: its true positive rate is 1 from an FPR of
    num_above / num_negatives on, so OPAUC is max(0, 1 - num_above / (beta * num_negatives)). 1 is a target above all,
    and beta = 1 is AUC (Shi et al., WWW 2023, arXiv 2302.03472). Items left out of a ranking count as below.
    """
    reach = beta * num_negatives
    first = np.asarray(num_above).astype(np.float64)
    last = np.minimum(first + np.asarray(num_tied), np.maximum(np.ceil(reach) - 1, 0))  # the last rank with any area
    count = np.maximum(last - first + 1, 0)
    area = count * (1 - (first + last) / 2 / np.maximum(reach, 1e-300))  # of an arithmetic series
    return area / (np.asarray(num_tied) + 1)


def _expected_gain(num_above, num_tied, gains: np.ndarray) -> np.ndarray:
    """Mean of gains[rank] over the tied ranks: a difference of prefix sums; 0 from len(gains) on."""
    k = len(gains)
    prefix = np.concatenate([[0.0], np.cumsum(gains)])
    first = np.asarray(num_above).astype(np.int64)
    count = np.asarray(num_tied).astype(np.int64) + 1
    return np.asarray((prefix[np.minimum(first + count, k)] - prefix[np.minimum(first, k)]) / count)


def gini(values: Real[Any, "*batch n"]) -> Float[Any, "*batch"]:
    """Gini coefficient of non-negative values along the last axis: sum_ij |x_i - x_j| / (2 n sum_i x_i).

    0 when all are equal, 1 - 1/n when one has everything; NaN when they sum to 0 or hold a NaN.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = ordered.shape[-1]
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    total = ordered.sum(axis=-1)
    known = total > 0  # False for NaN too
    return np.where(known, (ordered * weights).sum(axis=-1) / np.where(known, n * total, 1.0), np.nan)


def balance(
    head: Values, mid: Values, tail: Values, epsilon: float = 1e-7, reference: bool = False
) -> Float[Any, "*n"]:
    """Balance = 1 - Gini of a metric's three cohort means (Prakash et al. 2024), epsilon added to each.

    1 is perfectly even, 1/3 (nearly) is everything in one cohort. NaN where no cohort has a hit (1 with
    `reference`, as the released code has it), and where a cohort's mean is NaN because it has no case.
    """
    means = np.stack([np.asarray(cohort, dtype=np.float64) for cohort in (head, mid, tail)], axis=-1)
    evenness = 1 - gini(means + epsilon)
    return evenness if reference else np.where((means == 0).all(axis=-1), np.nan, evenness)


def coverage(exposure: Real[Any, "*ks ids"]) -> Float[Any, "*ks"]:
    """Share of the V items that are recommended at least once. exposure[..., 0], the pad's, is ignored."""
    return np.asarray((np.asarray(exposure)[..., 1:] > 0).mean(axis=-1))


def average_recommended_popularity(exposure: Real[Any, "*ks ids"], item_counts: Real[Any, "ids"]) -> Float[Any, "*ks"]:
    """ARP: the mean training count of a recommended item, once per recommendation; NaN if none is."""
    shown = np.asarray(exposure, dtype=np.float64)[..., 1:]
    total = shown.sum(axis=-1)
    weighted = shown @ np.asarray(item_counts, dtype=np.float64)[1:]
    return np.where(total > 0, weighted / np.where(total > 0, total, 1.0), np.nan)


def exposure_gini(exposure: Real[Any, "*ks ids"]) -> Float[Any, "*ks"]:
    """Gini of how often each of the V items is recommended; NaN if none is."""
    return gini(np.asarray(exposure)[..., 1:])


def popular_share(
    exposure: Real[Any, "*ks ids"], item_counts: Real[Any, "ids"], ks: Sequence[int]
) -> Float[Any, "*ks"]:
    """Share of the recommendations that go to the k most popular items of training; NaN if none is made.

    Near 1 the model repeats the popularity list whoever asks. Equal counts are taken in the order of the ids.
    """
    shown = np.asarray(exposure, dtype=np.float64)[..., 1:]
    by_popularity = np.argsort(-np.asarray(item_counts, dtype=np.float64)[1:], kind="stable")
    total = shown.sum(axis=-1)
    popular = [shown[..., row, by_popularity[:k]].sum(axis=-1) for row, k in enumerate(ks)]
    return np.where(total > 0, np.stack(popular, axis=-1) / np.where(total > 0, total, 1.0), np.nan)
