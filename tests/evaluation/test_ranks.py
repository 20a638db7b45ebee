"""Full-catalogue ranks and recommendations against brute force in NumPy float64."""

import json
import pathlib
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.evaluation import ranks as ranking
from jaxneg.evaluation.ranks import Chunks
from jaxneg.types import EvalCases


def make_cases(rng, num_items, num_users=9, rolling=False, rows_per_user=12):
    """Random rows of `num_users` users, and cases: the last three rows of each. Items repeat within users."""
    items = rng.integers(1, num_items + 1, num_users * rows_per_user).astype(np.int32)
    first_row = np.arange(num_users) * rows_per_user
    user = np.repeat(np.arange(num_users), 3)
    rows = first_row[user] + np.tile(np.arange(rows_per_user - 3, rows_per_user), num_users)
    if rolling:
        start, end, history = first_row[user], rows, np.arange(len(rows))
    else:
        start, end, history = first_row, first_row + rows_per_user - 3, user
    cases = EvalCases(*(jnp.asarray(x, jnp.int32) for x in (start, end, history, items[rows], user)))
    return jnp.asarray(items), cases


def whole_numbers(rng, *shape):
    """Small whole numbers: products are exact in float32, in any order of summation, and ties are many."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def brute_force_ranks(hidden, item_table, cases, seen=None):
    scores = np.asarray(hidden, np.float64) @ np.asarray(item_table, np.float64).T
    above, tied = [], []
    start, end, history_of_case, targets, *_ = (np.asarray(array) for array in cases)
    for history, target in zip(history_of_case, targets, strict=True):
        others = np.ones(scores.shape[1], bool)
        if seen is not None:
            others[np.asarray(seen)[start[history] : end[history]]] = False
        others[[0, target]] = False
        above.append((scores[history][others] > scores[history, target]).sum())
        tied.append((scores[history][others] == scores[history, target]).sum())
    return np.array(above), np.array(tied)


def brute_force_exposure(hidden, item_table, ks, cases=None, seen=None):
    scores = np.asarray(hidden, np.float64) @ np.asarray(item_table, np.float64).T
    exposure = np.zeros((len(ks), scores.shape[1]), int)
    for history, row in enumerate(scores):
        removed = {0}
        if seen is not None:
            start, end = int(cases.history_start[history]), int(cases.history_end[history])
            removed |= set(np.asarray(seen)[start:end].tolist())
        ranked = [item for item in np.argsort(-row, kind="stable") if item not in removed]
        for line, k in enumerate(ks):
            exposure[line, ranked[:k]] += 1
    return exposure


@pytest.mark.parametrize(
    ("num_items", "chunks", "filter_seen", "rolling"),
    [
        (5, Chunks(4, 128), True, False),
        (127, Chunks(27, 256), False, True),
        (128, Chunks(4, 128), False, False),
        (129, Chunks(4, 128), True, True),
        (700, Chunks(27, 128), False, False),
        (700, Chunks(4, 256), True, True),
        (700, Chunks(64, 4096), True, False),
    ],
)
def test_ranks_and_exposure_equal_brute_force(num_items, chunks, filter_seen, rolling):
    rng = np.random.default_rng([num_items, rolling])
    items, cases = make_cases(rng, num_items, rolling=rolling)
    hidden = whole_numbers(rng, len(cases.history_start), 6)
    item_table = whole_numbers(rng, num_items + 1, 6)
    item_table[0] = 100 * hidden[0]  # a pad that would beat every item
    seen = {"seen": items, "max_seen": 12} if filter_seen else {}

    ranks = jax.jit(partial(ranking.rank_cases, chunks=chunks, max_seen=seen.get("max_seen", 0)))
    above, tied = ranks(hidden, item_table, cases, seen=seen.get("seen"))
    expected_above, expected_tied = brute_force_ranks(hidden, item_table, cases, seen.get("seen"))
    assert above.dtype == tied.dtype == jnp.int32
    np.testing.assert_array_equal(above, expected_above)
    np.testing.assert_array_equal(tied, expected_tied)
    assert (expected_tied > 0).any()

    ks = (1, 10, 40)
    recommend = partial(ranking.count_recommended, ks=ks, chunks=chunks, max_seen=seen.get("max_seen", 0))
    exposure = jax.jit(recommend)(hidden, item_table, cases=cases, seen=seen.get("seen"))
    expected = brute_force_exposure(hidden, item_table, ks, cases, seen.get("seen"))
    assert exposure.dtype == jnp.int32
    np.testing.assert_array_equal(exposure, expected)


@pytest.mark.parametrize("chunks", [Chunks(7, 5120), Chunks(7, 2816), Chunks(7, 128)])
def test_top_k_of_a_large_catalogue_with_many_ties(chunks):
    """More groups than are kept, in one chunk of items and in several, the last of which overlaps another."""
    rng = np.random.default_rng(1)
    hidden, item_table, ks = whole_numbers(rng, 15, 4), whole_numbers(rng, 5001, 4), (1, 3, 10)
    assert 10 * ks[-1] < 5000 // ranking.GROUP_SIZE
    exposure = jax.jit(partial(ranking.count_recommended, ks=ks, chunks=chunks))(hidden, item_table)
    np.testing.assert_array_equal(exposure, brute_force_exposure(hidden, item_table, ks))


@pytest.mark.parametrize("chunks", [Chunks(8, 128), Chunks(40, 640), Chunks(128, 2048)])
@pytest.mark.parametrize("width", [1, 7, 50])
def test_items_with_the_same_row_always_tie(chunks, width):
    """Scores of real models round; copies of the target's row anywhere must still score exactly as high."""
    rng = np.random.default_rng(width)
    num_items, num_cases = 1500, 90
    item_table = rng.normal(size=(num_items + 1, width)).astype(np.float32)
    copies = rng.permutation(np.arange(1, num_items + 1))[: 3 * 400].reshape(3, 400)
    item_table[copies[1]] = item_table[copies[2]] = item_table[copies[0]]
    hidden = rng.normal(size=(num_cases, width)).astype(np.float32)
    index = np.arange(num_cases)
    cases = EvalCases(index, index, index, rng.choice(copies[0], num_cases), index)
    above, tied = jax.jit(partial(ranking.rank_cases, chunks=chunks))(hidden, item_table, cases)
    expected_above, _ = brute_force_ranks(hidden, item_table, cases)
    np.testing.assert_array_equal(above, expected_above)
    np.testing.assert_array_equal(tied, np.full(num_cases, 2))


@pytest.mark.parametrize("chunks", [Chunks(5, 128), Chunks(64, 1024)])
def test_three_seeds_in_one_vmap(chunks):
    rng = np.random.default_rng(3)
    items, cases = make_cases(rng, 300)
    hidden, item_table = whole_numbers(rng, 3, 9, 6), whole_numbers(rng, 3, 301, 6)

    def both(hidden, item_table):
        seen = {"seen": items, "max_seen": 9}
        ranks = ranking.rank_cases(hidden, item_table, cases, chunks=chunks, **seen)
        recommend = partial(ranking.count_recommended, chunks=chunks, cases=cases, **seen)
        return ranks, recommend(hidden, item_table, (5, 10))

    (above, tied), exposure = jax.jit(jax.vmap(both))(hidden, item_table)
    for seed in range(3):
        expected = brute_force_ranks(hidden[seed], item_table[seed], cases, items)
        np.testing.assert_array_equal((above[seed], tied[seed]), expected)
        expected = brute_force_exposure(hidden[seed], item_table[seed], (5, 10), cases, items)
        np.testing.assert_array_equal(exposure[seed], expected)


def test_a_model_that_has_diverged_hits_and_recommends_nothing():
    rng = np.random.default_rng(0)
    _, cases = make_cases(rng, 300)
    for chunks in (Chunks(27, 128), Chunks(27, 1024)):
        nothing = np.full((9, 4), np.nan, np.float32)
        above, tied = ranking.rank_cases(nothing, np.ones((301, 4), np.float32), cases, chunks=chunks)
        np.testing.assert_array_equal(above, np.full(27, 299))
        np.testing.assert_array_equal(tied, np.zeros(27))
        exposure = ranking.count_recommended(nothing, np.ones((301, 4), np.float32), (10,), chunks=chunks)
        assert exposure.sum() == 0


def test_no_case_and_no_history():
    none = EvalCases(*([jnp.zeros(0, jnp.int32)] * 5))
    hidden, item_table = jnp.zeros((0, 4)), jnp.ones((31, 4))
    chunks = Chunks(8, 128)
    above, tied = ranking.rank_cases(hidden, item_table, none, chunks=chunks)
    assert above.shape == tied.shape == (0,)
    assert ranking.count_recommended(hidden, item_table, (10,), chunks=chunks).sum() == 0


def test_ks_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="ascend"):
        ranking.count_recommended(jnp.ones((2, 4)), jnp.ones((9, 4)), (10, 5), chunks=Chunks(8, 128))


@pytest.mark.parametrize(("chunk_size", "max_len"), [(1, 3), (4, 8), (9, 20), (100, 20)])
def test_histories_are_encoded_from_their_last_items_left_padded(max_len, chunk_size):
    rng = np.random.default_rng(0)
    items, cases = make_cases(rng, 50, rolling=True)
    start, end = np.asarray(cases.history_start), np.asarray(cases.history_end).copy()
    end[0] = start[0]  # an empty history: pads only
    windows = cases._replace(history_end=jnp.asarray(end))

    def encode(inputs, users, times):  # depends on every place; 0 everywhere but at the last position
        assert users is None and times is None
        places = jnp.arange(1, max_len + 1)[None, :]
        last = jnp.stack([inputs.sum(axis=1), (places * inputs).sum(axis=1)], axis=1)
        return jnp.zeros((*inputs.shape, 2)).at[:, -1].set(last)

    hidden = ranking.encode_histories(encode, items, windows, length=max_len, chunk_size=chunk_size)
    for row in range(len(start)):
        window = np.asarray(items)[start[row] : end[row]][-max_len:]
        padded = np.concatenate([np.zeros(max_len - len(window)), window])
        np.testing.assert_array_equal(hidden[row], [padded.sum(), (np.arange(1, max_len + 1) * padded).sum()])


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_histories_are_encoded_with_their_users_and_times(chunk_size):
    """Each with its own row, the times of its window, and the time at which it is asked."""
    rng = np.random.default_rng(1)
    items, cases = make_cases(rng, 50)
    times = np.cumsum(rng.integers(1, 9, len(items))).astype(np.int32)
    number = len(cases.history_start)
    cases = cases._replace(history_user=jnp.arange(number) + 3, asked_time=jnp.arange(number) + 1000)

    def encode(inputs, users, times):
        assert times.shape == (inputs.shape[0], inputs.shape[1] + 1)
        told = jnp.concatenate([inputs, users[:, None], times], axis=1).astype(jnp.float32)
        return jnp.broadcast_to(told[:, None], (len(told), 2, told.shape[1]))

    found = ranking.encode_histories(encode, items, cases, length=11, chunk_size=chunk_size, times=jnp.asarray(times))
    for row, (start, end) in enumerate(zip(cases.history_start, cases.history_end, strict=True)):
        pads = [0] * (11 - int(end - start))
        own, when = np.asarray(items)[start:end], times[start:end]
        assert pads and found[row].tolist() == [*pads, *own, row + 3, *pads, *when, row + 1000]


def numpy_top_k(scores, k, removed=None, allowed=None):
    """(ids, scores) of the best: by score, then by id; id 0 and -inf where none is left."""
    found_ids, found = np.zeros((len(scores), k), int), np.full((len(scores), k), -np.inf)
    for row, own in enumerate(np.asarray(scores, np.float64)):
        out = {0} | (set() if removed is None else set(removed[row].tolist()))
        left = [item for item in np.argsort(-own, kind="stable") if item not in out and np.isfinite(own[item])]
        left = [item for item in left if allowed is None or allowed[item]][:k]
        found_ids[row, : len(left)], found[row, : len(left)] = left, own[left]
    return found_ids, found


@pytest.mark.parametrize("chunks", [Chunks(4, 128), Chunks(3, 256), Chunks(64, 4096)])
@pytest.mark.parametrize("num_items", [5, 128, 700])
@pytest.mark.parametrize("limits", ["none", "removed", "allowed", "both", "few"])
def test_top_k_equals_numpy(num_items, chunks, limits):
    """Many ties, in one tile and in several, and fewer than k items left."""
    rng = np.random.default_rng([num_items, len(limits)])
    hidden, item_table = whole_numbers(rng, 10, 4), whole_numbers(rng, num_items + 1, 4)
    item_table[0] = 100 * hidden[0]  # a pad that would beat every item
    removed = allowed = None
    if limits in ("removed", "both"):
        removed = np.where(rng.random((10, 8)) < 0.7, rng.integers(1, num_items + 1, (10, 8)), 0).astype(np.int32)
    if limits in ("allowed", "both"):
        allowed = rng.random(num_items + 1) < 0.5
    if limits == "few":
        allowed = np.isin(np.arange(num_items + 1), [0, 2, 5])
    k = 12
    find = jax.jit(partial(ranking.top_k, k=k, chunks=chunks))
    ids, scores = find(hidden, item_table, removed=removed, allowed=allowed)
    assert ids.shape == scores.shape == (10, min(k, num_items))
    wanted_ids, wanted = numpy_top_k(hidden @ item_table.T, min(k, num_items), removed, allowed)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(scores, wanted)
    assert (wanted_ids == 0).any() == (num_items == 5 and limits != "none" or limits == "few")


def test_top_k_of_what_is_no_number_is_empty():
    ids, scores = ranking.top_k(jnp.full((3, 2), jnp.nan), jnp.ones((301, 2)), 4, chunks=Chunks(2, 128))
    assert not ids.any() and np.isneginf(scores).all()


def distance(states, rows):
    """A score that is no dot product: the nearer, the higher."""
    return -jnp.sum(jnp.square(states[:, None] - rows[None]), axis=-1)


@pytest.mark.parametrize("chunks", [Chunks(4, 128), Chunks(27, 1024)])
def test_a_score_of_another_kind_ranks_and_recommends(chunks):
    """The ranks, what is recommended, and the top k, by distance, against brute force over the same scores."""
    rng = np.random.default_rng(8)
    items, cases = make_cases(rng, 300)
    hidden, item_table = whole_numbers(rng, len(cases.history_start), 5), whole_numbers(rng, 301, 5)
    scores = -np.square(hidden[:, None].astype(np.float64) - item_table[None]).sum(-1)
    assert not np.array_equal(np.argsort(-scores[0]), np.argsort(-hidden[0] @ item_table.T))
    one_hot = np.eye(len(hidden))  # so that the brute force's products are these very scores
    above, tied = ranking.rank_cases(hidden, item_table, cases, chunks=chunks, score=distance)
    np.testing.assert_array_equal((above, tied), brute_force_ranks(one_hot, scores.T, cases))
    exposure = ranking.count_recommended(hidden, item_table, (1, 10), chunks=chunks, score=distance)
    np.testing.assert_array_equal(exposure, brute_force_exposure(one_hot, scores.T, (1, 10)))
    ids, best = ranking.top_k(hidden, item_table, 10, chunks=chunks, score=distance)
    wanted_ids, wanted = numpy_top_k(scores, 10)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(best, wanted)
    filtered = ranking.rank_hidden(hidden, item_table, items, cases, (10,), chunks, 9, distance)
    np.testing.assert_array_equal(filtered[:2], brute_force_ranks(one_hot, scores.T, cases, items))
    np.testing.assert_array_equal(filtered[2], brute_force_exposure(one_hot, scores.T, (10,), cases, items))


def test_baselines_rank_by_counts_that_float32_cannot_tell_apart():
    counts = np.array([0, 2**25 + 1, 2**25, 2**25 + 1, 0, 0, 2**25 + 2], np.int64)
    assert len(np.unique(counts.astype(np.float32))) < len(np.unique(counts))
    table = ranking.baseline_table(counts)
    assert table.shape == (7, 1) and table.dtype == np.float32
    cases = EvalCases(*([jnp.zeros(6, jnp.int32)] * 3), jnp.arange(1, 7), jnp.zeros(6, jnp.int32))
    above, tied = ranking.rank_cases(jnp.ones((1, 1)), table, cases, chunks=Chunks(4, 128))
    np.testing.assert_array_equal(above, [1, 3, 1, 4, 4, 0])
    np.testing.assert_array_equal(tied, [1, 0, 1, 1, 1, 0])
    exposure = ranking.count_recommended(jnp.ones((5, 1)), table, (1, 3), chunks=Chunks(4, 128))
    np.testing.assert_array_equal(exposure, [[0, 0, 0, 0, 0, 0, 5], [0, 5, 0, 5, 0, 0, 5]])


def temporary_bytes(num_items, chunks):
    hidden, table = jnp.zeros((512, 16)), jnp.zeros((num_items + 1, 16))
    index = jnp.zeros(512, jnp.int32)

    def both(hidden, table, cases):
        counted = ranking.count_recommended(hidden, table, (10, 50), chunks=chunks)
        return ranking.rank_cases(hidden, table, cases, chunks=chunks), counted

    compiled = jax.jit(both).lower(hidden, table, EvalCases(index, index, index, index, index)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_stays_within_the_budget_however_large_the_catalogue():
    budget = 16 * 2**20
    for num_items in (10_000, 100_000):
        chunks = ranking.choose_chunks(num_items, 16, memory_bytes=budget)
        exposure = 2 * 4 * (num_items + 1) * 2  # the result, and its running sum
        assert temporary_bytes(num_items, chunks) < budget + exposure
    # 512 cases x 100,000 items at once would take 205 MB; a product of one chunk is a fraction of the budget.
    assert budget < 512 * 100_000 * 4 / 10


@pytest.mark.parametrize("num_seeds", [1, 20])
@pytest.mark.parametrize("num_items", [1, 100, 10_000, 1_000_000])
def test_chunks_fit_the_budget(num_items, num_seeds):
    for budget in (2**20, 2**26, 2**30):
        chunks = ranking.choose_chunks(num_items, 50, num_seeds, budget)
        assert chunks.case_chunk >= 1 and chunks.item_chunk % 128 == 0
        floats = num_seeds * chunks.item_chunk * (3 * chunks.case_chunk + 50)
        assert 4 * floats <= budget or chunks == Chunks(64, 128)
        wide = ranking.choose_chunks(num_items, 50, num_seeds, budget, floats_per_score=64)
        floats = num_seeds * wide.item_chunk * (66 * wide.case_chunk + 50)
        assert 4 * floats <= budget or wide == Chunks(64, 128)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("memory_mb", [16, 64])
def test_a_million_items_stay_within_the_stated_memory(memory_mb):
    """In a process of its own, beyond the tables: `eval.memory_mb` and the benchmark's stated constant."""
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "evaluate_memory.py"
    command = [sys.executable, script, f"--memory_mb={memory_mb}", "--histories=300"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    assert 0 < measured["beyond_before_mb"] < measured["allowed_mb"]
