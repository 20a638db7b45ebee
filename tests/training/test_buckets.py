"""Buckets hold the batches that are drawn, and cost less than padding."""

import numpy as np
import pytest
from scipy import stats

from jaxneg.training.buckets import Bucket, choose_buckets

LENGTHS = np.minimum(np.random.default_rng(0).geometric(0.1, 5000), 80)


@pytest.mark.parametrize("batch_size, num_buckets", [(1, 6), (16, 3), (128, 6)])
def test_a_batch_overflows_as_seldom_as_stated(batch_size, num_buckets):
    cut = choose_buckets(LENGTHS, batch_size, 50, num_buckets, overflow=1e-2)
    assert sum(bucket.rows for bucket in cut) == batch_size and len(cut) <= num_buckets
    assert cut[0].length == 50 and [b.length for b in cut] == sorted({b.length for b in cut}, reverse=True)
    batches = np.random.default_rng(1).choice(np.minimum(LENGTHS, 50), (20_000, batch_size))
    batches = -np.sort(-batches, axis=1)
    first = np.cumsum([0, *(bucket.rows for bucket in cut)])[:-1]
    too_long = batches[:, first] > [bucket.length for bucket in cut]
    for share in too_long.mean(axis=0):
        assert stats.binomtest(int(share * 20_000), 20_000, 1e-2, alternative="greater").pvalue > 1e-4


def test_buckets_save_most_of_the_pads():
    cut = choose_buckets(LENGTHS, 128, 50, 6, overflow=1e-3)
    computed = sum(bucket.rows * bucket.length for bucket in cut)
    used = np.minimum(LENGTHS, 50).mean() * 128
    assert used < computed < 2 * used < 0.5 * 128 * 50


A_TENTH_IS_SHORT = np.append(np.full(90, 50), np.full(10, 40))


@pytest.mark.parametrize(
    "num_buckets, lengths", [(1, LENGTHS), (6, np.full(10, 50)), (6, np.full(10, 90)), (6, A_TENTH_IS_SHORT)]
)
def test_one_bucket_where_more_gain_nothing(num_buckets, lengths):
    assert choose_buckets(lengths, 32, 50, num_buckets, 1e-3) == (Bucket(32, 50),)
