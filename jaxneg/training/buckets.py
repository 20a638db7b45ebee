"""How to cut a batch, sorted by length, into pieces that hold few pads."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int
from scipy import special

from jaxneg.types import Batch, Candidates

BUCKET_COST = 0.008  # what one more bucket costs in smaller matrix products, as a share of the padded batch
LEAST_GAIN = 0.1  # share of the padded batch that a cut has to leave out: it is one more form of the step to compile


class Bucket(NamedTuple):
    """The next `rows` sequences of a batch that is sorted by falling length, cut to their last `length` positions."""

    rows: int
    length: int


def choose_buckets(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    max_len: int,
    num_buckets: int,
    overflow: float,
    parts: int = 1,
) -> tuple[Bucket, ...]:
    """The buckets with the fewest positions that hold a batch drawn uniformly from these lengths [E].

    How many sequences of a batch exceed a length is binomial, so each bucket is as large as makes it overflow with
    probability `overflow` at most; a batch that does overflow has to be padded to `max_len`. At most `num_buckets`,
    each of a multiple of `parts` rows; one bucket, the padded batch, where a cut would leave out too few pads.
    """
    lengths = np.minimum(np.asarray(lengths), max_len)
    grid = np.unique(np.append(np.arange(0, max_len, max(max_len // 48, 1))[1:], max_len)).tolist()
    longer = [float((lengths > length).mean()) for length in grid]
    # need[i]: rows of a sorted batch that have to be longer than grid[i]
    need = [_exceeded_rarely(overflow, batch_size, share) if share else 0 for share in longer]
    need = [min(-(-rows // parts) * parts, batch_size) for rows in need]

    extra = BUCKET_COST * batch_size * max_len

    @functools.cache
    def best(index: int, pieces: int) -> tuple[float, tuple[Bucket, ...]]:
        """(cost, buckets) for the rows from need[index] on, the first bucket being grid[index] long."""
        start, length = need[index], grid[index]
        options = [((batch_size - start) * length, (Bucket(batch_size - start, length),))]
        for shorter in range(index if pieces > 1 else 0):
            rows = need[shorter] - start
            if rows > 0:
                cost, rest = best(shorter, pieces - 1)
                options.append((rows * length + extra + cost, (Bucket(rows, length), *rest)))
        return min(options)

    found = tuple(bucket for bucket in best(len(grid) - 1, num_buckets)[1] if bucket.rows)
    computed = sum(rows * length for rows, length in found)
    is_worth_it = computed <= (1 - LEAST_GAIN) * batch_size * max_len
    return found if is_worth_it else (Bucket(batch_size, max_len),)


def _exceeded_rarely(chance: float, number: int, share: float) -> int:
    """The smallest count that Binomial(number, share) exceeds with this chance at most."""
    exceeds = special.bdtrc(np.arange(number + 1), number, share)
    return int(np.argmax(exceeds <= chance))


class Cut(NamedTuple):
    """One bucket's part of a batch."""

    first_row: int
    inputs: Int[Array, "R l"]
    targets: Int[Array, "R l"]
    candidates: Candidates
    new_ids: Int[Array, "#R #l n"]  # the candidates'; none where the batch shares them and another cut has them
    users: Int[Array, "R"]
    times: Int[Array, "R m"] | None

    @property
    def item_ids(self) -> tuple[Int[Array, "..."], ...]:
        """Items whose rows the loss needs, but for those that an earlier cut looks up."""
        return self.inputs, self.targets, self.new_ids


def cut_batch(batch: Batch, candidates: Candidates, buckets: tuple[Bucket, ...]) -> Iterator[Cut]:
    """The parts of a batch, each with its rows' last positions and the candidates that belong to them."""
    first = 0
    for rows, length in buckets:
        own_rows = slice(first, first + rows)

        def part(x, own_rows=own_rows, length=length):
            x = x[own_rows] if x.shape[0] > 1 else x
            return x[:, x.shape[1] - length :] if x.shape[1] > 1 else x

        ids = candidates.item_ids
        new_ids = ids[..., :0] if first and ids.shape[0] == 1 else part(ids)
        own = Candidates(*(part(x) for x in candidates))
        users, times = (None if x is None else x[own_rows] for x in (batch.users, batch.times))
        if times is not None:  # a window may be longer than its inputs
            times = times[:, batch.inputs.shape[1] - length :]
        yield Cut(first, part(batch.inputs), part(batch.targets), own, new_ids, users, times)
        first += rows
