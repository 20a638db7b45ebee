"""The device-side data set against plain Python on a frame that we can read."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxneg.data import dataset as data
from jaxneg.errors import InputError
from jaxneg.models import objectives

# Rows of three users, in time order: train | validation | test. User 2 has no training row, user 1 only one.
USERS = [
    ([3, 1, 3, 2], [5], [4, 1]),
    ([2], [4, 4], []),
    ([], [1], [2]),
    ([5, 4], [], [3]),
]
NUM_ITEMS = 6


def prepared():
    items = np.array([item for user in USERS for part in user for item in part], np.int32)
    lengths = [[len(part) for part in user] for user in USERS]
    user_start = np.concatenate([[0], np.cumsum([sum(row) for row in lengths])])
    train_end = user_start[:-1] + [row[0] for row in lengths]
    valid_end = train_end + [row[1] for row in lengths]
    counts = np.bincount([item for user in USERS for item in set(user[0])], minlength=NUM_ITEMS + 1)
    return data.Prepared(items, items, user_start, train_end, valid_end, counts, counts, counts, {})


def test_training_set_holds_each_users_distinct_training_items():
    dataset = data.training_set(prepared())
    assert dataset.train_users.tolist() == [0, 3]
    bounds = zip(dataset.history_start, dataset.history_end, strict=True)
    histories = [dataset.history_items[start:end].tolist() for start, end in bounds]
    assert histories == [[1, 2, 3], [2], [], [4, 5]]
    assert data.longest_history(dataset) == 3


def test_nobody_to_train_on_is_refused():
    lone = prepared()
    with pytest.raises(InputError, match="two training rows"):
        data.training_set(lone._replace(train_end=lone.user_start[:-1] + 1))


@pytest.mark.parametrize("max_len", [2, 3, 7])
def test_batches_hold_the_last_training_items(max_len):
    dataset = data.training_set(prepared())
    window = data.draw_users(
        jax.random.key(0), dataset, batch_size=32, length=max_len + 1, num_items=NUM_ITEMS, history_size=5
    )
    assert window.times is None
    seen = set()
    made = objectives.next_item().make(jax.random.key(0), window.items)
    for inputs, targets, history, length, row in zip(*map(np.asarray, (*made, *window[1:4])), strict=True):
        own = history[:length]
        user = {(1, 2, 3): 0, (4, 5): 3}[tuple(own.tolist())]
        seen.add(user)
        assert row == user + 1
        train = USERS[user][0][-(max_len + 1) :]
        pads = [0] * (max_len + 1 - len(train))
        assert inputs.tolist() == (pads + train[:-1])
        assert targets.tolist() == ([0] * (max_len - len(train) + 1) + train[1:])
        assert history[length:].tolist() == [NUM_ITEMS + 1] * (5 - length)
    assert seen == {0, 3}


def test_users_are_drawn_uniformly_with_replacement():
    dataset = data.training_set(prepared())
    window = data.draw_users(jax.random.key(1), dataset, batch_size=4000, length=2, num_items=NUM_ITEMS, history_size=3)
    counts = np.bincount(np.asarray(window.history_length), minlength=4)[[3, 2]]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_interactions_are_drawn_uniformly_from_the_training_rows():
    """Of users with two or more: each of their rows as often, with its user and that user's history."""
    lengths = np.array([2, 1, 5, 0, 3, 9, 2])
    end = np.cumsum(lengths + 1)  # and a row of each that is for validation
    start = end - lengths - 1
    items = np.arange(1, end[-1] + 1, dtype=np.int32)  # an item tells its row
    none = np.zeros(len(items) + 1, np.int64)
    made = data.Prepared(items, items, np.append(start, end[-1]), end - 1, end, none, none, none, {})
    dataset = data.training_set(made, with_rows_before=True)
    assert dataset.rows_before.tolist() == [0, 2, 7, 10, 19, 21]
    drawn = data.draw_interactions(
        jax.random.key(3), dataset, batch_size=21_000, length=1, num_items=len(items), history_size=9
    )
    assert drawn.items.shape == (21_000, 1) and drawn.times is None
    counts = np.bincount(np.asarray(drawn.items)[:, 0], minlength=len(items) + 1)
    wanted = [item for u in np.flatnonzero(lengths >= 2) for item in items[start[u] : end[u] - 1]]
    assert counts[wanted].sum() == 21_000 and len(wanted) == 21
    assert stats.chisquare(counts[wanted]).pvalue > 1e-3
    users = np.searchsorted(end, np.asarray(drawn.items)[:, 0], side="left")
    np.testing.assert_array_equal(drawn.users, users + 1)
    np.testing.assert_array_equal(drawn.history_length, lengths[users])
    own = np.arange(9)
    histories = np.where(own < lengths[users][:, None], start[users][:, None] + 1 + own, len(items) + 1)
    np.testing.assert_array_equal(drawn.history, histories)


def test_times_are_seconds_since_the_first_row():
    times = 1_600_000_000 + np.array([7, 9, 9, 40, 50, 60, 61, 0, 5, 5, 3, 8, 90, 91, 92], np.int64)
    made = prepared()._replace(times=times)
    dataset = data.training_set(made, with_times=True)
    assert dataset.times.dtype == np.int32
    np.testing.assert_array_equal(dataset.times, times - 1_600_000_000)
    window = data.draw_users(jax.random.key(0), dataset, batch_size=16, length=3, num_items=NUM_ITEMS, history_size=3)
    for users, found in zip(np.asarray(window.users), np.asarray(window.times), strict=True):
        assert found.tolist() == {1: [9, 9, 40], 4: [0, 90, 91]}[int(users)]
    for split, asked in (("valid", [50, 5]), ("test", [60, 8, 92])):
        cases = data.evaluation_cases(made, split, with_times=True)
        assert cases.asked_time.tolist() == asked
    for part in data.cut_cases(cases, 2):
        assert len(part.asked_time) == len(part.history_user) == len(part.history_start)
    with pytest.raises(InputError, match="68 years"):
        data.training_set(made._replace(times=times * np.array([1] * 14 + [3])), with_times=True)


@pytest.mark.parametrize("rolling", [False, True])
def test_a_history_has_the_row_of_a_user_that_was_trained_on(rolling):
    """Users 1 and 2 have too few training rows: their rows of a user table were never learnt, so they are unknown."""
    for split, wanted in (("valid", {0: 1, 1: 0}), ("test", {0: 1, 2: 0, 3: 4})):
        cases = data.evaluation_cases(prepared(), split, rolling)
        of_case = cases.history_user[cases.history_of_case]
        assert of_case.tolist() == [wanted[user] for user in cases.users.tolist()]


def test_target_counts_are_those_of_one_pass():
    dataset = data.training_set(prepared())
    assert data.train_lengths(dataset).tolist() == [4, 2]
    assert data.target_counts(dataset, 50, NUM_ITEMS, extra=0).tolist() == [0, 1, 1, 2, 1, 1, 0]
    assert data.target_counts(dataset, 50, NUM_ITEMS).tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert data.target_counts(dataset, 2, NUM_ITEMS).tolist() == [0, 0, 1, 1, 1, 0, 0]


def cases_as_lists(cases, items):
    return [
        (int(user), int(target), items[cases.history_start[q] : cases.history_end[q]].tolist())
        for user, target, q in zip(cases.users, cases.targets, cases.history_of_case, strict=True)
    ]


def test_validation_cases_need_a_training_row():
    items = prepared().items
    cases = cases_as_lists(data.evaluation_cases(prepared(), "valid"), items)
    assert cases == [(0, 5, [3, 1, 3, 2]), (1, 4, [2]), (1, 4, [2])]


def test_test_cases_share_the_history_of_train_and_validation():
    cases = data.evaluation_cases(prepared(), "test")
    assert cases_as_lists(cases, prepared().items) == [
        (0, 4, [3, 1, 3, 2, 5]),
        (0, 1, [3, 1, 3, 2, 5]),
        (2, 2, [1]),
        (3, 3, [5, 4]),
    ]
    assert len(cases.history_start) == 3  # each history once


def test_rolling_cases_see_the_users_earlier_test_items():
    cases = cases_as_lists(data.evaluation_cases(prepared(), "test", rolling=True), prepared().items)
    assert cases[:2] == [(0, 4, [3, 1, 3, 2, 5]), (0, 1, [3, 1, 3, 2, 5, 4])]


def test_a_sample_of_users_keeps_all_of_their_cases():
    """The cases of a few users are those that they have among all, in the same order, at every call."""
    lengths = np.arange(200) % 5 + 4
    end = np.cumsum(lengths)
    start = np.append(0, end)
    items = np.random.default_rng(0).integers(1, NUM_ITEMS + 1, end[-1]).astype(np.int32)
    counts = np.ones(NUM_ITEMS + 1, np.int64)
    made = data.Prepared(items, items, start, end - 3, end - 2, counts, counts, counts, {})
    for rolling in (False, True):
        every, some = (data.evaluation_cases(made, "test", rolling, number) for number in (0, 30))
        chosen = np.unique(some.users)
        assert len(chosen) == 30 and len(np.unique(every.users)) == 200
        mine = np.isin(every.users, chosen)
        np.testing.assert_array_equal(some.users, every.users[mine])
        np.testing.assert_array_equal(some.targets, every.targets[mine])
        for bound in ("history_start", "history_end"):
            one, other = (getattr(cases, bound)[cases.history_of_case] for cases in (some, every))
            np.testing.assert_array_equal(one, other[mine])
        again = data.evaluation_cases(made, "test", rolling, 30)
        np.testing.assert_array_equal(again.users, some.users)
    assert len(data.evaluation_cases(made, "test", False, 1000).users) == len(every.users)


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_cut_cases_are_all_cases_with_their_own_histories(parts, rolling):
    whole = data.evaluation_cases(prepared(), "test", rolling)
    cut = data.cut_cases(whole, parts)
    assert len(cut) == parts
    assert {array.dtype for part in cut for array in part if array is not None} == {np.dtype(np.int32)}, (
        "devices take no wider integers"
    )

    def rows(cases):
        at = cases.history_of_case
        of_history = (cases.history_start[at], cases.history_end[at], cases.history_user[at])
        return list(zip(*of_history, cases.targets, cases.users, strict=True))

    assert [row for part in cut for row in rows(part)] == rows(whole)
