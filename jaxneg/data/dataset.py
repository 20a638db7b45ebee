"""From a prepared folder to device arrays: the training set, its mini-batches, and the cases to rank."""

import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from jaxneg.data import store
from jaxneg.devices import sharded
from jaxneg.errors import InputError
from jaxneg.types import Dataset, EvalCases, Window

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
    times: np.ndarray | None = None


def training_rows(prepared: Prepared, with_times: bool = False) -> Rows:
    """The rows as they lie in the prepared folder; of their number only the times, where asked for, are copied.

    Raises:
      InputError: no user has two training items, so there is nothing to learn from.
    """
    start, end = np.asarray(prepared.user_start[:-1]), np.asarray(prepared.train_end)
    train_users = np.flatnonzero(end - start >= 2)
    if len(train_users) == 0:
        raise InputError("no user has two training rows or more: there is nothing to train on")
    items = np.asarray(prepared.items, np.int32)
    times = seconds_since_first(prepared) if with_times else None
    return Rows(items, start.astype(np.int32), end.astype(np.int32), train_users.astype(np.int32), times)


def training_set(prepared: Prepared, with_rows_before: bool = False, with_times: bool = False) -> Dataset:
    """The training arrays as int32 NumPy, ready to be put on a device. Raises InputError (see `training_rows`)."""
    rows = training_rows(prepared, with_times)
    bounds, history_items = distinct_histories(rows.items, rows.user_start, rows.train_end, prepared.num_items)
    bounds = bounds.astype(np.int32)
    return Dataset(
        *rows[:4],
        history_items=history_items,
        history_start=bounds[:-1],
        history_end=bounds[1:],
        rows_before=rows_before(rows) if with_rows_before else None,
        times=rows.times,
    )


def rows_before(rows: Rows) -> np.ndarray:
    """How many training rows the users that can be trained on have before each of them, and in all: [E + 1]."""
    lengths = (rows.train_end - rows.user_start)[rows.train_users]
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def seconds_since_first(prepared: Prepared) -> np.ndarray:
    """The rows' times in whole seconds since the first of all, int32 [T]. Raises InputError if they span too much."""
    times = np.asarray(prepared.times)
    span = int(times.max() - times.min())
    if span >= 2**31:
        raise InputError(f"the data's times span {span:,} s; allowed for model.times: less than {2**31:,} s, 68 years")
    return (times - times.min()).astype(np.int32)


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


def train_lengths(dataset: Dataset | Rows) -> np.ndarray:
    """How many training rows each user has that can be drawn: [E]."""
    users = np.asarray(dataset.train_users)
    return np.asarray(dataset.train_end)[users] - np.asarray(dataset.user_start)[users]


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


def target_counts(dataset: Dataset | Rows, max_len: int, num_items: int, extra: int = 1) -> np.ndarray:
    """How often each item may be a training target, over one pass through the users that can be drawn: [V+1].

    These are the last max_len items of each, without its first ones where they only precede others (`extra` 1).
    Users are drawn uniformly, so this is each item's expected share of a batch's positives.
    """
    users, items = np.asarray(dataset.train_users), np.asarray(dataset.items)
    end = np.asarray(dataset.train_end)[users].astype(np.int64)
    first = np.maximum(np.asarray(dataset.user_start)[users] + extra, end - max_len)
    counts = np.zeros(num_items + 1, np.int64)
    for chunk in row_chunks(end - first):
        counts += np.bincount(items[rows_of_windows(first[chunk], end[chunk])[0]], minlength=num_items + 1)
    return counts


def windows(items: sharded.Table, start: Int[Array, "Q"], end: Int[Array, "Q"], max_len: int) -> Int[Array, "Q L"]:
    """The last `max_len` of items[start : end] for each of Q windows, left-padded with 0: [Q, max_len]."""
    index = end[:, None] - max_len + jnp.arange(max_len)[None]
    inside = index >= start[:, None]
    return jnp.where(inside, sharded.take(items, jnp.maximum(index, 0)), 0)


def draw_places(key: jax.Array, batch_size: int, num_users: int) -> Int[Array, "B"]:
    """Which of the users that can be drawn are in the batch of this key: uniform, with replacement."""
    return jax.random.randint(key, (batch_size,), 0, num_users)


def draw_users(
    key: jax.Array, dataset: Dataset, *, batch_size: int, length: int, num_items: int, history_size: int
) -> Window:
    """The last `length` training items of users drawn uniformly with replacement (arXiv 2410.17276, training).

    Drawn are those with two training items or more. Longer training histories come first, so that a batch can be cut
    in buckets. `history_size` is H, at least the longest history.
    """
    drawn = draw_places(key, batch_size, sharded.length(dataset.train_users))
    users = sharded.take(dataset.train_users, drawn)
    start, end = sharded.take(dataset.user_start, users), sharded.take(dataset.train_end, users)
    order = jnp.argsort(start - end)
    users, start, end = users[order], start[order], end[order]
    times = None if dataset.times is None else windows(dataset.times, start, end, length)
    history = histories(dataset, users, num_items, history_size)
    return Window(windows(dataset.items, start, end, length), *history, users + 1, times)


def draw_interactions(
    key: jax.Array, dataset: Dataset, *, batch_size: int, length: int, num_items: int, history_size: int
) -> Window:
    """Training rows of the same users, drawn uniformly with replacement: each is one item, and `length` is 1."""
    number = sharded.length(dataset.rows_before) - 1
    drawn = jax.random.randint(key, (batch_size,), 0, sharded.take(dataset.rows_before, jnp.int32(number)))
    place = last_not_above(dataset.rows_before, drawn)
    users = sharded.take(dataset.train_users, place)
    row = sharded.take(dataset.user_start, users) + drawn - sharded.take(dataset.rows_before, place)
    history = histories(dataset, users, num_items, history_size)
    return Window(sharded.take(dataset.items, row)[:, None], *history, users + 1)


DRAW = {"user": draw_users, "interaction": draw_interactions}  # by `Objective.unit`


def histories(
    dataset: Dataset, users: Int[Array, "B"], num_items: int, history_size: int
) -> tuple[Int[Array, "B H"], Int[Array, "B"]]:
    """The users' distinct training items, ascending, padded with V + 1, and how many they are."""
    first, last = sharded.take(dataset.history_start, users), sharded.take(dataset.history_end, users)
    offset = jnp.arange(history_size)[None]
    own = offset < (last - first)[:, None]
    return jnp.where(own, sharded.take(dataset.history_items, first[:, None] + offset), num_items + 1), last - first


def last_not_above(ascending: sharded.Table, values: Int[Array, "B"]) -> Int[Array, "B"]:
    """The last place at which the ascending table, which begins at 0, is not above each value: by halving."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        above = sharded.take(ascending, middle) > values
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    number = sharded.length(ascending)
    bounds = jnp.zeros_like(values), jnp.full_like(values, number)
    return lax.fori_loop(0, math.ceil(math.log2(number)), halve, bounds)[0]


def evaluation_cases(
    prepared: Prepared, split: str, rolling: bool = False, max_users: int = 0, with_times: bool = False
) -> EvalCases:
    """The cases of split "valid" or "test" (arXiv 2410.17276, evaluation), as NumPy arrays in (user, time) order.

    Validation: every validation row of a user with a training row, ranked from the training history. Test: every
    test row of a user with a training or validation row, ranked from both. With `rolling`, the split's earlier
    rows of the user join the history, so every case has its own. `max_users`: only the cases of that many users, the
    same ones at every call; 0: of all. `with_times`: with the times at which it is asked (see `seconds_since_first`).
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
        starts, ends_, history, history_user = start[case_user], row, np.arange(len(row)), case_user
    else:
        starts, ends_, history, history_user = (
            start[user],
            history_end[user],
            np.repeat(np.arange(len(user)), count),
            user,
        )
    trained = np.asarray(prepared.train_end) - start >= 2
    user_row = np.where(trained[history_user], history_user + 1, 0)
    arrays = (starts, ends_, history, np.asarray(prepared.items)[row], case_user, user_row)
    cases = EvalCases(*(np.ascontiguousarray(array, np.int32) for array in arrays))
    return cases._replace(asked_time=seconds_since_first(prepared)[cases.history_end]) if with_times else cases


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
            *(None if of_history is None else of_history[one:end] for of_history in cases[5:]),
        )
        for one, end in zip(first[:-1], first[1:], strict=True)
    ]
