"""Batches for data that no device holds: the host reads them from the mapped rows, in blocks, ahead of the steps.

Which users a step draws follows from the run's key, so the host finds out by the device's own function, reads their
rows, and makes the very windows that `dataset.draw_users` would have made. Prefetch i holds those of the steps
i * K ... (i + 1) * K - 1 of all seeds; while the device works on one, a thread makes the next.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from jaxneg.data.dataset import Rows, distinct_histories, row_chunks, rows_of_windows
from jaxneg.types import EvalCases, Window

PREFETCH_BYTES = 32 * 2**20  # of a block: some hundred steps, read in less than a second
AHEAD = 2  # blocks beside the one in use: the one before it, not yet let go, and the next


class Prefetch(NamedTuple):
    """What is drawn for K steps of every seed."""

    first_step: Int[Array, "S"]  # the same for all seeds
    windows: Window  # every array is [S, K, B, ...]


class Stream(NamedTuple):
    """What the blocks of a run are made from."""

    rows: Rows
    draw: Callable  # (run keys' data [S, 2], steps [K]) -> indices [S, K, B] into rows.train_users
    num_seeds: int  # S, with those that fill up devices
    batch_size: int
    length: int  # M, of a window
    num_items: int
    history_size: int  # H, at least the longest history

    @property
    def num_steps(self) -> int:
        """K."""
        of_windows = self.length * (1 if self.rows.times is None else 2)
        numbers = self.num_seeds * self.batch_size * (of_windows + self.history_size + 2)
        return max(1, PREFETCH_BYTES // (4 * numbers))


def shapes(stream: Stream) -> Prefetch:
    """The shapes of a block, to trace programs with."""

    def array(*shape):
        return jax.ShapeDtypeStruct((stream.num_seeds, *shape), np.int32)

    of_batch = (stream.num_steps, stream.batch_size)
    items, history = array(*of_batch, stream.length), array(*of_batch, stream.history_size)
    times = None if stream.rows.times is None else items
    return Prefetch(array(), Window(items, history, array(*of_batch), array(*of_batch), times))


def window_at(block: Prefetch, step: Int[Array, ""]) -> Window:
    """What is drawn for one step, from one seed's part of a block."""
    return jax.tree.map(lambda x: x[step - block.first_step], block.windows)


def read_windows(rows: Rows, drawn: np.ndarray, *, length: int, num_items: int, history_size: int) -> Window:
    """What `dataset.draw_users` makes where it draws these users: `drawn` [..., B] into `train_users`."""
    users = rows.train_users[drawn]
    start, end = rows.user_start[users], rows.train_end[users]
    order = np.argsort(start - end, axis=-1, kind="stable")
    users, start, end = (np.take_along_axis(of_user, order, axis=-1).reshape(-1) for of_user in (users, start, end))
    index = end[:, None] - length + np.arange(length, dtype=np.int32)
    inside, index = index >= start[:, None], np.maximum(index, 0)
    items = np.where(inside, rows.items[index], 0)
    times = None if rows.times is None else np.where(inside, rows.times[index], 0)
    _, first, owner = np.unique(start, return_index=True, return_inverse=True)
    bounds, own_items = distinct_histories(rows.items, start[first], end[first], num_items)
    history = np.full((len(first), history_size), num_items + 1, np.int32)
    number = np.diff(bounds)
    history[np.arange(history_size) < number[:, None]] = own_items
    windows = Window(items, history[owner], number[owner].astype(np.int32), users + 1, times)
    return jax.tree.map(lambda x: x.reshape(*drawn.shape, *x.shape[1:]), windows)


class Prefetches:
    """The blocks of a run, by their numbers: what a loader takes."""

    def __init__(self, stream: Stream, keys: jax.Array, last_step: int):
        """`keys` [S] are the run keys of the states (`TrainState.key`)."""
        self._stream, self._number = stream, -(-last_step // stream.num_steps)
        self._host = host_device()
        self._keys = jax.device_put(np.asarray(jax.random.key_data(keys)), self._host)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Prefetch:
        stream = self._stream
        first = index * stream.num_steps
        steps = jax.device_put(first + np.arange(stream.num_steps, dtype=np.int32), self._host)
        drawn = np.asarray(stream.draw(self._keys, steps))
        windows = read_windows(
            stream.rows,
            drawn,
            length=stream.length,
            num_items=stream.num_items,
            history_size=stream.history_size,
        )
        return Prefetch(np.full(stream.num_seeds, first, np.int32), windows)


def host_device() -> jax.Device:
    """Where the host works out the draws: its CPU, or what JAX has where it was told to have no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def load(stream: Stream, keys: jax.Array, first_step: int, last_step: int, put: Callable) -> Iterator[tuple[int, Any]]:
    """From the block that has `first_step` on: (one past its last step, put(block)), each made ahead by a thread."""
    import grain  # here, because it takes a second and few runs need it

    first = first_step // stream.num_steps
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    source = grain.MapDataset.source(Prefetches(stream, keys, last_step))
    loaded = iter(source[first:].map(put).to_iter_dataset(options))
    try:
        for index, block in enumerate(loaded, first):
            yield (index + 1) * stream.num_steps, block
    finally:
        loaded.close()


def evaluated_rows(
    columns: Sequence[np.ndarray], splits: Sequence[EvalCases], most: int | None
) -> tuple[list[np.ndarray], list[EvalCases]]:
    """Of some columns of the rows, those that the histories of these cases are made of, and the cases within them.

    `most` is how many of the last rows of a history are looked at (None: all). An empty history, which pads a
    split, stays empty.
    """
    start = np.concatenate([cases.history_start for cases in splits])
    end = np.concatenate([cases.history_end for cases in splits])
    there = end > start
    start = start if most is None else np.maximum(start, end - most)
    order = np.argsort(start[there], kind="stable")
    low, high = start[there][order], np.maximum.accumulate(end[there][order])
    begins = np.append(True, low[1:] > high[:-1])[: len(low)]  # windows that touch are read as one
    group = np.cumsum(begins) - 1
    first = low[begins]
    last = high[np.append(begins[1:], True)[: len(low)]]
    place = np.cumsum(last - first) - (last - first)  # of the group in what is kept
    shift = np.zeros(len(start), np.int64)
    shift[np.flatnonzero(there)[order]] = (first - place)[group]
    start, end = (np.where(there, bound - shift, 0).astype(np.int32) for bound in (start, end))
    cuts = np.cumsum([len(cases.history_start) for cases in splits])[:-1]
    parts = zip(splits, np.split(start, cuts), np.split(end, cuts), strict=True)
    within = [cases._replace(history_start=start, history_end=end) for cases, start, end in parts]

    def kept(column):
        chunks = row_chunks(last - first)
        return np.concatenate(
            [column[rows_of_windows(first[chunk], last[chunk])[0]] for chunk in chunks] or [column[:1]]
        )

    return [kept(column) for column in columns], within
