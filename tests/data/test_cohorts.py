"""Cohorts by hand."""

import numpy as np
import pytest

from jaxneg.data.cohorts import cohorts


@pytest.mark.parametrize(
    "counts, expected",
    [
        ([1, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2]),  # sums 1..6 of 6: head below 2, mid below 4; equal counts by lower id
        ([2, 9, 0, 4, 3], [2, 1, 2, 2, 2]),  # 9 of 18 crosses a third at once: no head; 13 is beyond two thirds
        ([1, 2, 10, 10, 10, 12], [2, 2, 1, 2, 2, 0]),  # of 45: 12 < 15; 22 < 30; 32 crosses
        ([5, 10], [2, 2]),  # 10 of 15 is two thirds, and not below it
        ([0, 0], [2, 2]),
        ([7], [2]),
    ],
)
def test_by_hand(counts, expected):
    assert cohorts(np.array([99, *counts])).tolist() == [-1, *expected]
