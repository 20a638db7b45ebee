"""From a prepared folder to device arrays: the training set, its mini-batches, and the cases to rank."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxneg.data import store
from jaxneg.devices import sharded
from jaxneg.errors import InputError
from jaxneg.types import Batch, Dataset, EvalCases

CHUNK_ROWS = 1 << 22  # rows that the host works on at once: some 200 MB of temporaries


class Prepared(NamedTuple):
    """A prepared folder, memory-mapped. Flat arrays run over users' rows, by user then time."""

    items: np.ndarray  # [T] 1..V
    times: np.ndarray  # [T]
    user_start: np.ndarray  # [U+1]
    train_end: np.ndarray  # [U]
    valid_end: np.ndarray  # [U]
    item_counts: np.ndarray  # [V+1] distinct training users
    recent_counts: np.ndarray  # [V+1] training rows of the last days
    item_cohorts: np.ndarray  # [V+1] 0 head, 1 mid, 2 tail
    meta: dict

    @property
    def num_users(self) -> int:
        return len(self.train_end)

    @property
    def num_items(self) -> int:
        return len(self.item_counts) - 1


def load(folder: str | pathlib.Path, verify: bool = True) -> Prepared:
    """The prepared folder as memory-mapped arrays. Raises InputError where it is damaged (see `store.read`).

    To `verify` reads all of it once; one of several hosts does it for all.
    """
    arrays, meta = store.read(pathlib.Path(folder), verify)
    return Prepared(**{name: arrays[name] for name in Prepared._fields if name != "meta"}, meta=meta)


class Rows(NamedTuple):
    """The rows and who can be trained on, on the host; `items` stays in its file. As in `Dataset`."""

    items: np.ndarray
    user_start: np.ndarray
    train_end: np.ndarray
    train_users: np.ndarray


def training_rows(prepared: Prepared) -> Rows:
    """The rows as they lie in the prepared folder; nothing of their number is copied.

    Raises:
      InputError: no user has two training items, so there is nothing to learn from.
    """
    start, end = np.asarray(prepared.user_start[:-1]), np.asarray(prepared.train_end)
    train_users = np.flatnonzero(end - start >= 2)
    if len(train_users) == 0:
        raise InputError("no user has two training rows or more: there is nothing to train on")
    items = np.asarray(prepared.items, np.int32)
    return Rows(items, start.astype(np.int32), end.astype(np.int32), train_users.astype(np.int32))


def training_set(prepared: Prepared) -> Dataset:
    """The training arrays as int32 NumPy, ready to be put on a device. Raises InputError (see `training_rows`)."""
    rows = training_rows(prepared)
    bounds, history_items = distinct_histories(rows.items, rows.user_start, rows.train_end, prepared.num_items)
    bounds = bounds.astype(np.int32)
    return Dataset(*rows, history_items=history_items, history_start=bounds[:-1], history_end=bounds[1:])


def share_out(rows: Rows, parts: int) -> np.ndarray:
    """Users in order, for parts with about as many rows: part p has the users from the p-th number on, [parts + 1]."""
    wanted = np.arange(parts) * (len(rows.items) // parts)
    return np.append(np.searchsorted(rows.user_start, wanted), len(rows.user_start))


def share_of(rows: Rows, first: int, end: int, num_items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, lengths of the histories, histories one after another) of users first ... end - 1; reads no others'."""
    users = slice(first, end)
    starts, ends = rows.user_start[users], rows.train_end[users]
    bounds, history_items = distinct_histories(rows.items, starts, ends, num_items)
    low = rows.user_start[first] if first < len(rows.user_start) else len(rows.items)
    high = rows.user_start[end] if end < len(rows.user_start) else len(rows.items)
    return rows.items[low:high], np.diff(bounds).astype(np.int32), history_items


def training_bytes(prepared: Prepared) -> int:
    """The most bytes that the arrays of `training_set` take."""
    return 4 * (2 * len(prepared.items) + 5 * prepared.num_users)


def distinct_histories(
    items: np.ndarray, start: np.ndarray, end: np.ndarray, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct items of each window items[start : end], ascending, one after another: (bounds [W+1], items [G])."""
    counts, found = [np.zeros(1, np.int64)], []
    for chunk in row_chunks(end - start):
        row, owner = rows_of_windows(start[chunk], end[chunk])
        # One integer per (window, item) pair: its sorted distinct values are the histories in order.
        pair = owner * np.int64(num_items + 1) + items[row]
        pair.sort()  # not np.unique, which by now hashes whole numbers: that takes five times as long
        owner, distinct = np.divmod(pair[np.append(True, pair[1:] != pair[:-1])[: len(pair)]], num_items + 1)
        counts.append(np.bincount(owner, minlength=chunk.stop - chunk.start))
        found.append(distinct.astype(np.int32))
    return np.cumsum(np.concatenate(counts)), np.concatenate(found or [np.zeros(0, np.int32)])


def row_chunks(lengths: np.ndarray) -> Iterator[slice]:
    """Slices of windows of these lengths, one after another, each of about CHUNK_ROWS rows."""
    upto, first = np.cumsum(lengths, dtype=np.int64), 0
    while first < len(lengths):
        before = upto[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(upto, before + CHUNK_ROWS, side="right")))
        yield slice(first, last)
        first = last


def rows_of_windows(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row numbers start ... end - 1 of each window, one after another, and which window each is of."""
    length = end.astype(np.int64) - start
    row = np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
    return row, np.repeat(np.arange(len(length)), length)


def input_lengths(dataset: Dataset | Rows) -> np.ndarray:
    """How many inputs the sequence of each user that can be drawn has, before it is cut to max_len: [E]."""
    users = np.asarray(dataset.train_users)
    return np.asarray(dataset.train_end)[users] - np.asarray(dataset.user_start)[users] - 1


def longest_history(dataset: Dataset) -> int:
    """H: the largest number of distinct training items of any user."""
    return int((np.asarray(dataset.history_end) - np.asarray(dataset.history_start)).max())


def longest_history_of_rows(rows: Rows, num_items: int) -> int:
    """`longest_history`, without the histories: from the users with the most rows on, while one may have more."""
    length = rows.train_end - rows.user_start
    users = np.argsort(-length, kind="stable")
    longest = 0
    for chunk in row_chunks(length[users]):
        own = users[chunk]
        if length[own[0]] <= longest:
            break
        bounds, _ = distinct_histories(rows.items, rows.user_start[own], rows.train_end[own], num_items)
        longest = max(longest, int(np.diff(bounds).max()))
    return longest


def target_counts(dataset: Dataset | Rows, max_len: int, num_items: int) -> np.ndarray:
    """How often each item is a training target, over one pass through the users that can be drawn: [V+1].

    Users are drawn uniformly, so this is each item's expected share of a batch's positives.
    """
    users, items = np.asarray(dataset.train_users), np.asarray(dataset.items)
    end = np.asarray(dataset.train_end)[users].astype(np.int64)
    first = np.maximum(np.asarray(dataset.user_start)[users] + 1, end - max_len)
    counts = np.zeros(num_items + 1, np.int64)
    for chunk in row_chunks(end - first):
        counts += np.bincount(items[rows_of_windows(first[chunk], end[chunk])[0]], minlength=num_items + 1)
    return counts


def windows(items: sharded.Table, start: Int[Array, "Q"], end: Int[Array, "Q"], max_len: int) -> Int[Array, "Q L"]:
    """The last `max_len` of items[start : end] for each of Q windows, left-padded with 0: [Q, max_len]."""
    index = end[:, None] - max_len + jnp.arange(max_len)[None]
    inside = index >= start[:, None]
    return jnp.where(inside, sharded.take(items, jnp.maximum(index, 0)), 0)


def draw_users(key: jax.Array, batch_size: int, num_users: int) -> Int[Array, "B"]:
    """Which of the users that can be drawn are in the batch of this key: uniform, with replacement."""
    return jax.random.randint(key, (batch_size,), 0, num_users)


def draw_batch(
    key: jax.Array, dataset: Dataset, *, batch_size: int, max_len: int, num_items: int, history_size: int
) -> Batch:
    """A mini-batch of users drawn uniformly with replacement among those with two training items or more.

    Each sequence is the user's last max_len + 1 training items (arXiv 2410.17276, training): inputs are all but
    the last, targets all but the first, left-padded with 0. Longer training histories come first, so that a batch
    can be cut in buckets. `history_size` is H, at least the longest history.
    """
    drawn = draw_users(key, batch_size, sharded.length(dataset.train_users))
    users = sharded.take(dataset.train_users, drawn)
    start, end = sharded.take(dataset.user_start, users), sharded.take(dataset.train_end, users)
    order = jnp.argsort(start - end)
    users, start, end = users[order], start[order], end[order]
    sequence = windows(dataset.items, start, end, max_len + 1)
    first, last = sharded.take(dataset.history_start, users), sharded.take(dataset.history_end, users)
    offset = jnp.arange(history_size)[None]
    own = offset < (last - first)[:, None]
    history = jnp.where(own, sharded.take(dataset.history_items, first[:, None] + offset), num_items + 1)
    # A first item has no input before it: a sequence shorter than the window has its first item as input only.
    targets = jnp.where(sequence[:, :-1] > 0, sequence[:, 1:], 0)
    return Batch(sequence[:, :-1], targets, history, last - first)


def evaluation_cases(prepared: Prepared, split: str, rolling: bool = False, max_users: int = 0) -> EvalCases:
    """The cases of split "valid" or "test" (arXiv 2410.17276, evaluation), as NumPy arrays in (user, time) order.

    Validation: every validation row of a user with a training row, ranked from the training history. Test: every
    test row of a user with a training or validation row, ranked from both. With `rolling`, the split's earlier
    rows of the user join the history, so every case has its own. `max_users`: only the cases of that many users, the
    same ones at every call; 0: of all.
    """
    start = np.asarray(prepared.user_start[:-1])
    ends = {"valid": (prepared.train_end, prepared.valid_end), "test": (prepared.valid_end, prepared.user_start[1:])}
    history_end, split_end = (np.asarray(bound) for bound in ends[split])
    user = np.flatnonzero((history_end > start) & (split_end > history_end))
    if 0 < max_users < len(user):
        user = np.sort(np.random.default_rng(0).choice(user, max_users, replace=False))
    count = (split_end - history_end)[user]
    case_user = np.repeat(user, count)
    row = rows_of_windows(history_end[user], split_end[user])[0]
    if rolling:
        starts, ends_, history = start[case_user], row, np.arange(len(row))
    else:
        starts, ends_, history = start[user], history_end[user], np.repeat(np.arange(len(user)), count)
    arrays = (starts, ends_, history, np.asarray(prepared.items)[row], case_user)
    return EvalCases(*(np.ascontiguousarray(array, np.int32) for array in arrays))


def cut_cases(cases: EvalCases, parts: int) -> list[EvalCases]:
    """Evaluation cases cut between histories into parts of about as many cases, each with its own histories only."""
    # bounds[h]: history h's first case
    bounds = np.searchsorted(cases.history_of_case, np.arange(len(cases.history_start) + 1))
    wanted = np.arange(parts + 1) * len(cases.targets) // parts
    first = np.searchsorted(bounds, wanted).astype(np.int32)  # history at which each part begins
    first[-1] = len(cases.history_start)
    return [
        EvalCases(
            cases.history_start[one:end],
            cases.history_end[one:end],
            cases.history_of_case[bounds[one] : bounds[end]] - one,
            cases.targets[bounds[one] : bounds[end]],
            cases.users[bounds[one] : bounds[end]],
        )
        for one, end in zip(first[:-1], first[1:], strict=True)
    ]
