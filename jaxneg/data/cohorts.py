"""Head, mid and tail: items grouped by training frequency, each group a third of all interactions. NumPy only."""

import numpy as np

HEAD, MID, TAIL = 0, 1, 2
NAMES = ("head", "mid", "tail")


def cohorts(item_counts: np.ndarray) -> np.ndarray:
    """The cohort of every item: int8 [V+1], 0 head, 1 mid, 2 tail, and -1 for the pad at index 0.

    `item_counts` is int [V+1]: distinct training users of each item; index 0 is ignored. Items are sorted by falling
    frequency, equal frequencies by the lower id. An item is head while the running sum, itself included, is below a
    third of the total, mid while it is below two thirds, tail after that: the item that crosses a line goes to the
    lower cohort. Items of frequency 0 are tail. (The cohorts of Prakash et al. 2024, arXiv 2410.17276.)
    """
    counts = np.array(item_counts, np.int64)[1:]
    order = np.argsort(-counts, kind="stable")
    tripled_sum = 3 * np.cumsum(counts[order])  # in integers, so that no third is ever rounded
    total = counts.sum()
    by_rank = np.where(tripled_sum < total, HEAD, np.where(tripled_sum < 2 * total, MID, TAIL))
    result = np.full(len(counts) + 1, -1, np.int8)
    result[1:][order] = np.where(counts[order] > 0, by_rank, TAIL)
    return result
