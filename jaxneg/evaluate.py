"""Full-catalogue evaluation on the device: exact ranks and recommendations, in chunks of bounded memory.

Ranks are found by counting the items that score above (or as high as) the target, so nothing of the
catalogue's size is sorted. All functions are pure; they work under jit and, for several seeds at once, under
vmap over `hidden` and `item_table`. The scores' products run at full float32 precision on every backend.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxneg.types import EvalCases

ITEM_MULTIPLE = 128  # item chunks are whole vector registers (or tiles), so no column is rounded differently
GROUP_SIZE = 32  # items that share one maximum in the first stage of the top K


class Chunks(NamedTuple):
    """How much is in memory at once: histories or cases, times items."""

    case_chunk: int
    item_chunk: int


def choose_chunks(num_items: int, width: int, num_seeds: int = 1, memory_bytes: int = 256 * 2**20) -> Chunks:
    """Chunk sizes for which the temporaries of all seeds together stay within about `memory_bytes`.

    Counted are three [case_chunk, item_chunk] float32 arrays and one [item_chunk, width] copy for each seed.
    """
    floats = memory_bytes // (4 * num_seeds)
    item_chunk = min(_round_up(num_items, ITEM_MULTIPLE), 16_384)
    case_chunk = (floats - item_chunk * width) // (3 * item_chunk)
    if case_chunk < 64:  # a tight budget: narrower chunks of items rather than fewer cases
        item_chunk = min(item_chunk, max(floats // (width + 192) // ITEM_MULTIPLE, 1) * ITEM_MULTIPLE)
        case_chunk = 64
    return Chunks(case_chunk=int(min(case_chunk // 64 * 64, 256)), item_chunk=int(item_chunk))


def encode_histories(
    encode: Callable[[Int[Array, "q L"]], Float[Array, "q L D"]],
    items: Int[Array, "T"],
    history_start: Int[Array, "Q"],
    history_end: Int[Array, "Q"],
    *,
    max_len: int,
    chunk_size: int,
) -> Float[Array, "Q D"]:
    """Hidden state after each history, the last `max_len` items of items[start:end], left-padded with 0."""

    def encode_chunk(window):
        start, end = window
        rows = end[:, None] - max_len + jnp.arange(max_len)[None, :]
        inputs = jnp.where(rows >= start[:, None], items[jnp.maximum(rows, 0)], 0)
        return encode(inputs)[:, -1]

    return _map_chunks(encode_chunk, (history_start, history_end), chunk_size)


def rank_cases(
    hidden: Float[Array, "Q D"],
    item_table: Float[Array, "V+1 D"],
    cases: EvalCases,
    *,
    chunks: Chunks,
    seen: Int[Array, "T"] | None = None,
    max_seen: int = 0,
) -> tuple[Int[Array, "C"], Int[Array, "C"]]:
    """How many items score above each case's target, and how many OTHER items score exactly as high.

    The target's score is the float that the chunk's own matrix product gives, so items with the same row tie.
    A score that is not a number counts as above: a model that has diverged hits nothing. The pad is never an
    item. With `seen` (the rows that the histories are windows of; `max_seen` is the longest window), the
    items of a case's history do not compete with its target; the target itself always competes.
    """
    hidden, cases = jnp.asarray(hidden), jax.tree.map(jnp.asarray, cases)
    tiles = _tile_items(item_table, chunks.item_chunk)

    def rank_chunk(case):
        history, targets = case
        states = hidden[history]
        ids_seen = None if seen is None else _seen_ids(cases, history, seen, max_seen)

        def count(scores, tile, target_scores):
            ids = tiles.start[tile] + jnp.arange(tiles.size)
            competes = (ids >= tiles.first_new[tile])[None, :] & (ids <= tiles.num_items)[None, :]
            competes = competes & (ids[None, :] != targets[:, None])
            if ids_seen is not None:
                competes = competes & ~_mark(ids_seen, tiles.start[tile], tiles.size)
            above = competes & ~(scores <= target_scores[:, None])
            tied = competes & (scores == target_scores[:, None])
            return above.sum(axis=1, dtype=jnp.int32), tied.sum(axis=1, dtype=jnp.int32)

        if tiles.number == 1:
            scores = _scores(states, tiles.table[1:])
            columns = (targets - tiles.start[0])[:, None]
            return count(scores, 0, jnp.take_along_axis(scores, columns, axis=1)[:, 0])

        def step(carry, index):
            # Step 0 puts the targets' rows in the first columns, so that the very same product scores them.
            target_scores, num_above, num_tied = carry
            tile = jnp.maximum(index - 1, 0)
            rows = lax.dynamic_slice_in_dim(tiles.table, tiles.start[tile], tiles.size)
            rows = lax.cond(index == 0, lambda: _with_first_rows(rows, tiles.table[targets]), lambda: rows)
            scores = _scores(states, rows)
            target_scores = jnp.where(index == 0, jnp.diagonal(scores), target_scores)
            above, tied = count(scores, tile, target_scores)
            counts = index > 0
            return (target_scores, num_above + counts * above, num_tied + counts * tied), None

        zeros = jnp.zeros(targets.shape, jnp.int32)
        start = (jnp.zeros(targets.shape, hidden.dtype), zeros, zeros)
        (_, num_above, num_tied), _ = lax.scan(step, start, jnp.arange(tiles.number + 1))
        return num_above, num_tied

    if cases.targets.shape[0] == 0:
        return jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)
    case_chunk = min(chunks.case_chunk, tiles.size)  # step 0 needs a column for each case
    return _map_chunks(rank_chunk, (cases.history_of_case, cases.targets), case_chunk)


def count_recommended(
    hidden: Float[Array, "Q D"],
    item_table: Float[Array, "V+1 D"],
    ks: tuple[int, ...],
    *,
    chunks: Chunks,
    cases: EvalCases | None = None,
    seen: Int[Array, "T"] | None = None,
    max_seen: int = 0,
) -> Int[Array, "K V+1"]:
    """How many of the Q histories have each item among their first k, for each k of `ks` (ascending).

    Items with equal scores are taken in the order of their ids. A history recommends fewer than k items where
    fewer are left, or where scores are not numbers. With `seen` (then `cases` too; see `rank_cases`), the
    items of a history are not recommended.
    """
    if list(ks) != sorted(set(ks)):
        raise ValueError(f"ks must ascend without repeats, got {ks}")
    hidden, cases = jnp.asarray(hidden), jax.tree.map(jnp.asarray, cases)
    tiles = _tile_items(item_table, chunks.item_chunk)
    num_histories = hidden.shape[0]
    max_k = min(ks[-1], tiles.num_items)
    first_k = jnp.asarray(np.searchsorted(ks, np.arange(max_k), side="right"))  # a place counts from here on

    def recommend(histories):
        states = hidden[histories]
        ids_seen = None if seen is None else _seen_ids(cases, histories, seen, max_seen)

        def step(best, tile):
            ids = tiles.start[tile] + jnp.arange(tiles.size)
            rows = lax.dynamic_slice_in_dim(tiles.table, tiles.start[tile], tiles.size)
            allowed = ((ids >= tiles.first_new[tile]) & (ids <= tiles.num_items))[None, :]
            if ids_seen is not None:
                allowed = allowed & ~_mark(ids_seen, tiles.start[tile], tiles.size)
            scores = jnp.where(allowed, _scores(states, rows), -jnp.inf)
            values, columns = _top_k(scores, min(max_k, tiles.size))
            values = jnp.concatenate([best[0], values], axis=1)
            ids = jnp.concatenate([best[1], tiles.start[tile] + columns], axis=1)
            values, places = lax.top_k(values, max_k)
            return (values, jnp.take_along_axis(ids, places, axis=1)), None

        shape = (histories.shape[0], max_k)
        start = (jnp.full(shape, -jnp.inf, hidden.dtype), jnp.zeros(shape, jnp.int32))
        return lax.scan(step, start, jnp.arange(tiles.number))[0]

    def add(exposure, histories):
        values, ids = recommend(jnp.minimum(histories, num_histories - 1))
        counts = (values > -jnp.inf) & (histories < num_histories)[:, None]
        rows = jnp.broadcast_to(first_k[None, :], ids.shape)
        return exposure.at[rows, ids].add(counts.astype(jnp.int32)), None

    exposure = jnp.zeros((len(ks), tiles.num_items + 1), jnp.int32)
    if num_histories == 0:
        return exposure
    size = min(chunks.case_chunk, num_histories)
    histories = jnp.arange(_round_up(num_histories, size), dtype=jnp.int32).reshape(-1, size)
    return jnp.cumsum(lax.scan(add, exposure, histories)[0], axis=0)


def baseline_table(counts: Int[np.ndarray, "V+1"]) -> Float[np.ndarray, "V+1 1"]:
    """An item table of width 1 whose order is that of `counts`; a history's hidden state is then [1.0].

    Holds the dense ranks of the counts: float32 cannot tell counts beyond 2**24 apart.
    """
    ranks = np.unique(np.asarray(counts)[1:], return_inverse=True)[1]
    return np.concatenate([[0], ranks]).astype(np.float32)[:, None]


class _Tiles(NamedTuple):
    """The catalogue cut in tiles of one size; the last one reaches back over ids that others have."""

    table: Float[Array, "rows D"]  # padded with zeros if there are fewer items than one tile has columns
    start: Int[Array, "tiles"]  # id of each tile's first column
    first_new: Int[Array, "tiles"]  # the first id of the tile that no earlier tile has
    number: int
    size: int
    num_items: int


def _tile_items(item_table, item_chunk: int) -> _Tiles:
    item_table, num_items = jnp.asarray(item_table), item_table.shape[0] - 1
    size = _round_up(min(item_chunk, num_items), ITEM_MULTIPLE)
    number = -(-num_items // size)
    if number == 1:
        item_table = jnp.pad(item_table, ((0, size - num_items), (0, 0)))
    first_new = 1 + size * np.arange(number)
    start = np.minimum(first_new, item_table.shape[0] - size)
    return _Tiles(item_table, jnp.asarray(start), jnp.asarray(first_new), number, size, num_items)


def _scores(states: Float[Array, "c D"], rows: Float[Array, "n D"]) -> Float[Array, "c n"]:
    return jnp.einsum("cd,nd->cn", states, rows, precision=lax.Precision.HIGHEST)


def _with_first_rows(rows, first):
    return lax.dynamic_update_slice_in_dim(rows, first, 0, axis=0)


def _seen_ids(cases: EvalCases, histories, seen, max_seen: int) -> Int[Array, "c H"]:
    """The items of each history, padded with 0."""
    start, end = cases.history_start[histories], cases.history_end[histories]
    rows = start[:, None] + jnp.arange(max_seen)[None, :]
    return jnp.where(rows < end[:, None], seen[jnp.minimum(rows, seen.shape[0] - 1)], 0)


def _mark(ids: Int[Array, "c H"], first_id, size: int):
    """Bool [c, size]: True where a column's id (first_id, first_id + 1, ...) is among the row's ids."""
    inside = (ids >= first_id) & (ids < first_id + size)
    columns = jnp.where(inside, ids - first_id, size)
    rows = jnp.broadcast_to(jnp.arange(ids.shape[0])[:, None], ids.shape)
    return jnp.zeros((ids.shape[0], size), bool).at[rows, columns].set(True, mode="drop")


def _top_k(scores: Float[Array, "q n"], k: int):
    """Like lax.top_k, in two stages: the k largest lie in the k groups of columns with the largest maxima."""
    num_rows, num_columns = scores.shape
    num_groups = num_columns // GROUP_SIZE
    if num_groups <= k:
        return lax.top_k(scores, k)
    grouped = scores.reshape(num_rows, num_groups, GROUP_SIZE)
    groups = jnp.sort(lax.top_k(grouped.max(axis=2), k)[1], axis=1)  # ascending: ties go to the lower id
    candidates = jnp.take_along_axis(grouped, groups[:, :, None], axis=1).reshape(num_rows, k * GROUP_SIZE)
    values, places = lax.top_k(candidates, k)
    columns = jnp.take_along_axis(groups, places // GROUP_SIZE, axis=1) * GROUP_SIZE + places % GROUP_SIZE
    return values, columns


def _map_chunks(function, arrays, chunk_size: int):
    """function over chunks of the arrays' first axis, in turn; the last chunk is padded with zeros."""
    length = arrays[0].shape[0]
    size = max(1, min(chunk_size, length))
    padded = _round_up(max(length, 1), size)
    pieces = [jnp.pad(array, (0, padded - length)).reshape(-1, size) for array in arrays]
    results = lax.map(function, tuple(pieces))
    return jax.tree.map(lambda result: result.reshape(padded, *result.shape[2:])[:length], results)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
