"""The device-side data set against plain Python on a frame that we can read."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxneg.data import dataset as data
from jaxneg.errors import InputError

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
    batch = data.draw_batch(
        jax.random.key(0), dataset, batch_size=32, max_len=max_len, num_items=NUM_ITEMS, history_size=5
    )
    seen = set()
    for inputs, targets, history, length in zip(*(np.asarray(part) for part in batch), strict=True):
        own = history[:length]
        user = {(1, 2, 3): 0, (4, 5): 3}[tuple(own.tolist())]
        seen.add(user)
        train = USERS[user][0][-(max_len + 1) :]
        pads = [0] * (max_len + 1 - len(train))
        assert inputs.tolist() == (pads + train[:-1])
        assert targets.tolist() == ([0] * (max_len - len(train) + 1) + train[1:])
        assert history[length:].tolist() == [NUM_ITEMS + 1] * (5 - length)
    assert seen == {0, 3}


def test_users_are_drawn_uniformly_with_replacement():
    dataset = data.training_set(prepared())
    batch = data.draw_batch(jax.random.key(1), dataset, batch_size=4000, max_len=2, num_items=NUM_ITEMS, history_size=3)
    counts = np.bincount(np.asarray(batch.history_length), minlength=4)[[3, 2]]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_target_counts_are_those_of_one_pass():
    dataset = data.training_set(prepared())
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
    assert {array.dtype for part in cut for array in part} == {np.dtype(np.int32)}, "devices take no wider integers"

    def rows(cases):
        at = cases.history_of_case
        return list(zip(cases.history_start[at], cases.history_end[at], cases.targets, cases.users, strict=True))

    assert [row for part in cut for row in rows(part)] == rows(whole)
