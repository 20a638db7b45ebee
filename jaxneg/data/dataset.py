"""From a prepared folder to device arrays: the training set, its mini-batches, and the cases to rank."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxneg import sharded
from jaxneg.data import store
from jaxneg.errors import InputError
from jaxneg.types import Batch, Dataset, EvalCases


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


def load(folder: str | pathlib.Path) -> Prepared:
    """The prepared folder as memory-mapped arrays. Raises InputError where it is damaged (see `store.read`)."""
    arrays, meta = store.read(pathlib.Path(folder))
    return Prepared(**{name: arrays[name] for name in Prepared._fields if name != "meta"}, meta=meta)


def training_set(prepared: Prepared) -> Dataset:
    """The training arrays as int32 NumPy, ready to be put on a device.

    Raises:
      InputError: no user has two training items, so there is nothing to learn from.
    """
    start = np.asarray(prepared.user_start[:-1])
    train_length = np.asarray(prepared.train_end) - start
    train_users = np.flatnonzero(train_length >= 2)
    if len(train_users) == 0:
        raise InputError("no user has two training rows or more: there is nothing to train on")
    history_start, history_items = _distinct_histories(prepared)
    return Dataset(
        items=np.asarray(prepared.items, np.int32),
        user_start=start.astype(np.int32),
        train_end=np.asarray(prepared.train_end, np.int32),
        train_users=train_users.astype(np.int32),
        history_items=history_items,
        history_start=history_start.astype(np.int32),
    )


def _distinct_histories(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Each user's distinct training items, ascending, one user after another: (start [U+1], items [G])."""
    length = np.asarray(prepared.train_end) - np.asarray(prepared.user_start[:-1])
    user = np.repeat(np.arange(prepared.num_users), np.diff(prepared.user_start))
    position = np.arange(len(prepared.items))
    in_train = position < np.asarray(prepared.train_end)[user]
    # One integer per (user, item) pair: its sorted distinct values are the histories in order.
    pair = np.unique(user[in_train] * np.int64(prepared.num_items + 1) + prepared.items[in_train])
    owner, items = np.divmod(pair, prepared.num_items + 1)
    start = np.zeros(len(length) + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=len(length)), out=start[1:])
    return start, items.astype(np.int32)


def input_lengths(dataset: Dataset) -> np.ndarray:
    """How many inputs the sequence of each user that can be drawn has, before it is cut to max_len: [E]."""
    users = np.asarray(dataset.train_users)
    return np.asarray(dataset.train_end)[users] - np.asarray(dataset.user_start)[users] - 1


def longest_history(dataset: Dataset) -> int:
    """H: the largest number of distinct training items of any user."""
    return int(np.diff(np.asarray(dataset.history_start)).max())


def target_counts(dataset: Dataset, max_len: int, num_items: int) -> np.ndarray:
    """How often each item is a training target, over one pass through the users that can be drawn: [V+1].

    Users are drawn uniformly, so this is each item's expected share of a batch's positives.
    """
    users = np.asarray(dataset.train_users)
    end = np.asarray(dataset.train_end)[users].astype(np.int64)
    first = np.maximum(np.asarray(dataset.user_start)[users] + 1, end - max_len)
    length = end - first
    row = np.arange(length.sum()) + np.repeat(first - (np.cumsum(length) - length), length)
    return np.bincount(np.asarray(dataset.items)[row], minlength=num_items + 1)


def windows(items: sharded.Table, start: Int[Array, "Q"], end: Int[Array, "Q"], max_len: int) -> Int[Array, "Q L"]:
    """The last `max_len` of items[start : end] for each of Q windows, left-padded with 0: [Q, max_len]."""
    index = end[:, None] - max_len + jnp.arange(max_len)[None]
    inside = index >= start[:, None]
    return jnp.where(inside, sharded.take(items, jnp.maximum(index, 0)), 0)


def draw_batch(
    key: jax.Array, dataset: Dataset, *, batch_size: int, max_len: int, num_items: int, history_size: int
) -> Batch:
    """A mini-batch of users drawn uniformly with replacement among those with two training items or more.

    Each sequence is the user's last max_len + 1 training items (arXiv 2410.17276, training): inputs are all but
    the last, targets all but the first, left-padded with 0. Longer training histories come first, so that a batch
    can be cut in buckets. `history_size` is H, at least the longest history.
    """
    drawn = jax.random.randint(key, (batch_size,), 0, sharded.length(dataset.train_users))
    users = sharded.take(dataset.train_users, drawn)
    start, end = sharded.take(dataset.user_start, users), sharded.take(dataset.train_end, users)
    order = jnp.argsort(start - end)
    users, start, end = users[order], start[order], end[order]
    sequence = windows(dataset.items, start, end, max_len + 1)
    first, last = sharded.take(dataset.history_start, users), sharded.take(dataset.history_start, users + 1)
    offset = jnp.arange(history_size)[None]
    own = offset < (last - first)[:, None]
    history = jnp.where(own, sharded.take(dataset.history_items, first[:, None] + offset), num_items + 1)
    # A first item has no input before it: a sequence shorter than the window has its first item as input only.
    targets = jnp.where(sequence[:, :-1] > 0, sequence[:, 1:], 0)
    return Batch(sequence[:, :-1], targets, history, last - first)


def evaluation_cases(prepared: Prepared, split: str, rolling: bool = False) -> EvalCases:
    """The cases of split "valid" or "test" (arXiv 2410.17276, evaluation), as NumPy arrays in (user, time) order.

    Validation: every validation row of a user with a training row, ranked from the training history. Test: every
    test row of a user with a training or validation row, ranked from both. With `rolling`, the split's earlier
    rows of the user join the history, so every case has its own.
    """
    start = np.asarray(prepared.user_start[:-1])
    ends = {"valid": (prepared.train_end, prepared.valid_end), "test": (prepared.valid_end, prepared.user_start[1:])}
    history_end, split_end = (np.asarray(bound) for bound in ends[split])
    user = np.flatnonzero((history_end > start) & (split_end > history_end))
    count = (split_end - history_end)[user]
    case_user = np.repeat(user, count)
    row = np.arange(count.sum()) + np.repeat(history_end[user] - (np.cumsum(count) - count), count)
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
    first = np.searchsorted(bounds, wanted)  # history at which each part begins
    first[-1] = len(cases.history_start)
    return [EvalCases(cases.history_start[one:end], cases.history_end[one:end],
                      cases.history_of_case[bounds[one]:bounds[end]] - one,
                      cases.targets[bounds[one]:bounds[end]], cases.users[bounds[one]:bounds[end]])
            for one, end in zip(first[:-1], first[1:], strict=True)]  # fmt: skip
