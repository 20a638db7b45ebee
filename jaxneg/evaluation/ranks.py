"""Full-catalogue evaluation on the device: exact ranks and recommendations, in chunks of bounded memory.

Ranks are found by counting the items that score above (or as high as) the target, so nothing of the
catalogue's size is sorted. All functions are pure; they work under jit and, for several seeds at once, under
vmap over `hidden` and `item_table`. Where the item table is split over devices, each ranks its own items, and only
the targets' rows, counts and first items travel. The scores' products run at full float32 precision on every backend.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxneg.devices import sharded
from jaxneg.types import EvalCases

ITEM_MULTIPLE = 128  # item chunks are whole vector registers (or tiles), so no column is rounded differently
GROUP_SIZE = 32  # items that share one maximum in the first stage of the top K


class Chunks(NamedTuple):
    """How much is in memory at once: histories or cases, times items."""

    case_chunk: int
    item_chunk: int


def choose_chunks(
    num_items: int, width: int, num_seeds: int = 1, memory_bytes: int = 256 * 2**20, floats_per_score: int = 1
) -> Chunks:
    """Chunk sizes for which the temporaries of all seeds together stay within about `memory_bytes`.

    Counted are 2 + floats_per_score [case_chunk, item_chunk] float32 arrays and one [item_chunk, width] copy for each
    seed.
    """
    floats, each = memory_bytes // (4 * num_seeds), 2 + floats_per_score
    item_chunk = min(_round_up(num_items, ITEM_MULTIPLE), 16_384)
    case_chunk = (floats - item_chunk * width) // (each * item_chunk)
    if case_chunk < 64:  # a tight budget: narrower chunks of items rather than fewer cases
        item_chunk = min(item_chunk, max(floats // (width + 64 * each) // ITEM_MULTIPLE, 1) * ITEM_MULTIPLE)
        case_chunk = 64
    return Chunks(case_chunk=int(min(case_chunk // 64 * 64, 256)), item_chunk=int(item_chunk))


def encode_histories(
    encode: Callable[..., Float[Array, "q L D"]],
    items: sharded.Table,
    cases: EvalCases,
    *,
    length: int,
    chunk_size: int,
    times: sharded.Table | None = None,
) -> Float[Array, "Q D"]:
    """The state after each history, the last `length` items of items[start:end], left-padded with 0.

    `encode(items [q, L], users [q], times [q, L + 1])`: users as in `EvalCases.history_user`, None where there are
    none; the last time is that of what is asked, None without `times`.
    Where `items` [T] is split over devices, each has histories of its own, and as many as the others.
    """

    def encode_chunk(chunk):
        start, end, users, asked = chunk
        rows = end[:, None] - length + jnp.arange(length)[None, :]
        inside, rows = rows >= start[:, None], jnp.maximum(rows, 0)
        inputs = jnp.where(inside, _values_at(items, rows), 0)
        if times is not None:
            asked = jnp.concatenate([jnp.where(inside, _values_at(times, rows), 0), asked[:, None]], axis=1)
        return encode(inputs, users, asked)[:, -1]

    of_histories = (cases.history_start, cases.history_end, cases.history_user, cases.asked_time)
    return _map_chunks(encode_chunk, of_histories, chunk_size)


def _values_at(column: sharded.Table, rows: Int[Array, "n m"]) -> Int[Array, "n m"]:
    return sharded.take_each(column, rows.reshape(-1)).reshape(rows.shape)


def dot(states: Float[Array, "c D"], rows: Float[Array, "n D"]) -> Float[Array, "c n"]:
    """The dot product of each state with each row, at full precision on every backend."""
    return jnp.einsum("cd,nd->cn", states, rows, precision=lax.Precision.HIGHEST)


def rank_cases(
    hidden: Float[Array, "Q D"],
    item_table: sharded.Table,
    cases: EvalCases,
    *,
    chunks: Chunks,
    score: Callable[..., Float[Array, "c n"]] = dot,
    seen: sharded.Table | None = None,
    max_seen: int = 0,
) -> tuple[Int[Array, "C"], Int[Array, "C"]]:
    """How many items score above each case's target, and how many OTHER items score exactly as high.

    `score(states [c, D], rows [n, D'])` gives the scores of all pairs; they are not a number where a row is not.
    The target's score is the float that the chunk's own call gives, so items with the same row tie.
    A target whose score is not a number is below all others (a model that has diverged hits nothing). The pad is
    never an item. With `seen` (the rows that the histories are windows of; `max_seen` is the longest window), the
    items of a case's history do not compete with its target; the target itself always competes.
    """
    hidden, cases = jnp.asarray(hidden), jax.tree.map(jnp.asarray, cases)
    if cases.targets.shape[0] == 0:
        return jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)
    tiles = _tile_items(item_table, chunks.item_chunk)

    def rank_chunk(case):
        history, targets = case
        states = hidden[history]
        removed = None
        if seen is not None:
            removed = _seen_ids(cases, history, seen, max_seen)
            removed = jnp.where(removed == targets[:, None], 0, removed)

        def count(scores, tile, target_scores):
            """Counts of a tile, less what the target's own column adds to them."""
            if removed is not None:
                scores = _erase(scores, removed, tiles.start[tile])
            above, tied = _count_above_and_tied(scores, target_scores)
            own = _own_scores(scores, targets - tiles.start[tile])
            return above - (own > target_scores), tied - (own == target_scores)

        if tiles.number == 1 and not isinstance(tiles.table, sharded.Sharded):
            scores = score(states, _tile_rows(tiles, 0))
            target_scores = _own_scores(scores, targets - tiles.start[0])
            num_above, num_tied = count(scores, 0, target_scores)
        else:
            target_scores, num_above, num_tied = _scan_tiles(tiles, states, targets, count, score)
            num_above, num_tied = (sharded.total(tiles.table, counts) for counts in (num_above, num_tied))
        return jnp.where(jnp.isnan(target_scores), tiles.num_items - 1, num_above), num_tied

    case_chunk = min(chunks.case_chunk, tiles.size)  # _scan_tiles needs a column for each case
    return _map_chunks(rank_chunk, (cases.history_of_case, cases.targets), case_chunk)


def _scan_tiles(tiles, states, targets, count, score):
    """(score of the target, items above, items tied) of each case, over all tiles: each float32 or int32 [c].

    Step 0 puts the targets' rows in the first columns of a tile, so that the very product that scores their rivals
    scores them; the other steps count.
    """

    def step(carry, index):
        target_scores, num_above, num_tied = carry
        tile = jnp.maximum(index - 1, 0)
        rows = _tile_rows(tiles, tile)
        rows = lax.cond(index == 0, lambda: rows.at[: targets.shape[0]].set(target_rows), lambda: rows)
        scores = score(states, rows)
        target_scores = jnp.where(index == 0, jnp.diagonal(scores), target_scores)
        above, tied = count(scores, tile, target_scores)
        counts = index > 0
        return (target_scores, num_above + counts * above, num_tied + counts * tied), None

    target_rows = sharded.take(tiles.table, targets)
    zeros = jnp.zeros(targets.shape, jnp.int32)
    start = (jnp.zeros(targets.shape, states.dtype), zeros, zeros)
    return lax.scan(step, start, jnp.arange(tiles.number + 1))[0]


def count_recommended(
    hidden: Float[Array, "Q D"],
    item_table: sharded.Table,
    ks: tuple[int, ...],
    *,
    chunks: Chunks,
    score: Callable[..., Float[Array, "c n"]] = dot,
    cases: EvalCases | None = None,
    seen: sharded.Table | None = None,
    max_seen: int = 0,
) -> Int[Array, "K rows"]:
    """How many of the Q histories have each item among their first k, for each k of `ks` (ascending).

    One column for each row of the item table that this device holds.
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
    num_rows = sharded.own(item_table).shape[0]
    first_k = jnp.asarray(np.searchsorted(ks, np.arange(max_k), side="right"))  # a place counts from here on

    def add(exposure, histories):
        states = hidden[jnp.minimum(histories, num_histories - 1)]
        removed = None if seen is None else _seen_ids(cases, jnp.minimum(histories, num_histories - 1), seen, max_seen)
        values, ids = _best(tiles, states, max_k, score, removed)
        counts = (values > -jnp.inf) & (histories < num_histories)[:, None]
        rows = jnp.broadcast_to(first_k[None, :], ids.shape)
        return exposure.at[rows, sharded.place(item_table, ids)].add(counts.astype(jnp.int32), mode="drop"), None

    exposure = jnp.zeros((len(ks), num_rows), jnp.int32)
    if num_histories == 0:
        return exposure
    size = min(chunks.case_chunk, num_histories)
    histories = jnp.arange(_round_up(num_histories, size), dtype=jnp.int32).reshape(-1, size)
    return jnp.cumsum(lax.scan(add, exposure, histories)[0], axis=0)


def top_k(
    hidden: Float[Array, "Q D"],
    item_table: sharded.Table,
    k: int,
    *,
    chunks: Chunks,
    score: Callable[..., Float[Array, "c n"]] = dot,
    removed: Int[Array, "Q H"] | None = None,
    allowed: Bool[Array, "V1"] | None = None,
) -> tuple[Int[Array, "Q K"], Float[Array, "Q K"]]:
    """The min(k, V) items that score highest for each state, the best first, and their scores.

    Of equal scores the lower id comes first. `removed`: items that are not recommended, filled up with 0; `allowed`:
    the only ones that are, by id (V + 1 values). Where fewer than k items are left, or scores are not numbers, the
    last places hold id 0 and score -inf.
    """
    tiles = _tile_items(item_table, chunks.item_chunk)

    def best(chunk):
        states, own = chunk
        values, ids = _best(tiles, states, min(k, tiles.num_items), score, own, allowed)
        return jnp.where(values > -jnp.inf, ids, 0), values

    return _map_chunks(best, (hidden, removed), chunks.case_chunk)


def _best(
    tiles: "_Tiles", states, k: int, score: Callable, removed=None, allowed=None
) -> tuple[Float[Array, "c k"], Int[Array, "c k"]]:
    """The k highest scores of some states, and their ids; `removed` and `allowed` as in `top_k`."""

    def step(best, tile):
        scores = score(states, _tile_rows(tiles, tile))
        if removed is not None:
            scores = _erase(scores, removed, tiles.start[tile])
        if allowed is not None:
            ids = jnp.minimum(tiles.start[tile] + jnp.arange(scores.shape[1]), tiles.num_items)
            scores = jnp.where(allowed[ids][None], scores, jnp.nan)
        return _best_groups(best, scores, tiles.start[tile]), None

    shape = (states.shape[0], k)
    lowest = jnp.asarray(-jnp.inf, states.dtype)
    start = _Groups(jnp.full(shape, lowest), jnp.zeros(shape, jnp.int32), jnp.full((*shape, GROUP_SIZE), lowest))
    best = _best_of_groups(lax.scan(step, start, jnp.arange(tiles.number))[0])
    if isinstance(tiles.table, sharded.Sharded):  # those of the first device come first, as their ids are the lowest
        best = _highest(*(lax.all_gather(part, tiles.table.axis, axis=1, tiled=True) for part in best), k)
    return best


def baseline_table(counts: Int[np.ndarray, "V+1"]) -> Float[np.ndarray, "V+1 1"]:
    """An item table of width 1 whose order is that of `counts`; a history's hidden state is then [1.0].

    Holds the dense ranks of the counts: float32 cannot tell counts beyond 2**24 apart.
    """
    ranks = np.unique(np.asarray(counts)[1:], return_inverse=True)[1]
    return np.concatenate([[0], ranks]).astype(np.float32)[:, None]


class _Tiles(NamedTuple):
    """What this device holds of the catalogue, cut in tiles of one size; the last one reaches back over earlier ids."""

    table: sharded.Table
    rows: Float[Array, "rows D"]  # those of this device; NaN behind them if they are fewer than one tile has columns
    start: Int[Array, "tiles"]  # id of each tile's first column
    first_row: Int[Array, "tiles"]  # and its row
    first_new: Int[Array, "tiles"]  # the first row of the tile that no earlier tile has
    number: int
    size: int
    num_items: int


def _tile_items(item_table, item_chunk: int) -> _Tiles:
    is_split = isinstance(item_table, sharded.Sharded)
    rows, num_items = jnp.asarray(sharded.own(item_table)), sharded.length(item_table) - 1
    pad_rows = 0 if is_split else 1  # a whole table begins with the pad
    num_own = rows.shape[0] - pad_rows
    size = _round_up(min(item_chunk, num_own), ITEM_MULTIPLE)
    number = -(-num_own // size)
    table = item_table
    if number == 1:
        rows = jnp.pad(rows, ((0, size - num_own), (0, 0)), constant_values=jnp.nan)
        table = item_table if is_split else rows
    first_new = pad_rows + size * np.arange(number)
    first_row = np.minimum(first_new, rows.shape[0] - size)
    start = sharded.first(item_table) + jnp.asarray(first_row)
    return _Tiles(table, rows, start, jnp.asarray(first_row), jnp.asarray(first_new), number, size, num_items)


def _tile_rows(tiles: _Tiles, tile) -> Float[Array, "n D"]:
    """The tile's rows of the item table. NaN where a column must not count: it compares neither above nor equal."""
    is_split = isinstance(tiles.table, sharded.Sharded)
    if tiles.number == 1 and not is_split:
        return tiles.rows[1:]
    column = jnp.arange(tiles.size)
    left_out = tiles.first_row[tile] + column < tiles.first_new[tile]
    if is_split:  # one device holds the pad, and the last ones rows beyond the catalogue
        item_id = tiles.start[tile] + column
        left_out = left_out | (item_id < 1) | (item_id > tiles.num_items)
    rows = lax.dynamic_slice_in_dim(tiles.rows, tiles.first_row[tile], tiles.size)
    return jnp.where(left_out[:, None], jnp.nan, rows)


def _own_scores(scores: Float[Array, "c n"], columns: Int[Array, "c"]) -> Float[Array, "c"]:
    """scores[i, columns[i]], NaN where the column is not in the tile."""
    inside = (columns >= 0) & (columns < scores.shape[1])
    own = jnp.take_along_axis(scores, jnp.where(inside, columns, 0)[:, None], axis=1)[:, 0]
    return jnp.where(inside, own, jnp.nan)


def _count_above_and_tied(scores: Float[Array, "c n"], target_scores: Float[Array, "c"]):
    """Both counts in one pass: a reduction over pairs, which XLA does not fuse by itself from two sums."""
    above = (scores > target_scores[:, None]).astype(jnp.int32)
    tied = (scores == target_scores[:, None]).astype(jnp.int32)
    zero = jnp.int32(0)
    return lax.reduce((above, tied), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,))


def _seen_ids(cases: EvalCases, histories, seen, max_seen: int) -> Int[Array, "c H"]:
    """The items of each history, padded with 0."""
    start, end = cases.history_start[histories], cases.history_end[histories]
    rows = start[:, None] + jnp.arange(max_seen)[None, :]
    return jnp.where(rows < end[:, None], _values_at(seen, rows), 0)


def _erase(scores: Float[Array, "c n"], ids: Int[Array, "c H"], first_id) -> Float[Array, "c n"]:
    """Scores with NaN where a column's id (first_id, first_id + 1, ...) is among the row's ids."""
    size = scores.shape[1]
    inside = (ids >= first_id) & (ids < first_id + size)
    columns = jnp.where(inside, ids - first_id, size)
    rows = jnp.broadcast_to(jnp.arange(ids.shape[0])[:, None], ids.shape)
    return scores.at[rows, columns].set(jnp.nan, mode="drop")


def _highest(values: Float[Array, "q n"], ids: Int[Array, "q n"], k: int):
    """The k highest values with their ids, the first of equal ones first."""
    values, places = lax.top_k(values, k)
    return values, jnp.take_along_axis(ids, places, axis=1)


def _without_nan(scores: Float[Array, "q n"]) -> Float[Array, "q n"]:
    return jnp.where(jnp.isnan(scores), -jnp.inf, scores)


class _Groups(NamedTuple):
    """For each history the k groups of neighbouring items with the highest maxima, which hold its k best items."""

    maxima: Float[Array, "q k"]
    first_id: Int[Array, "q k"]
    scores: Float[Array, "q k GROUP_SIZE"]


def _best_groups(best: _Groups, scores: Float[Array, "q n"], first_id: Int[Array, ""]) -> _Groups:
    """The best groups among those so far and those of a tile, whose ids are higher; NaN becomes -inf."""
    number, k = best.maxima.shape
    tile = _without_nan(scores).reshape(number, -1, GROUP_SIZE)
    # Not jnp.max, which looks for what is not a number: on CPU it takes longer.
    maxima = lax.reduce(tile, jnp.asarray(-jnp.inf, tile.dtype), lambda a, b: jnp.where(b > a, b, a), (2,))
    maxima, places = lax.top_k(jnp.concatenate([best.maxima, maxima], axis=1), k)
    is_new, old, new = places >= k, jnp.minimum(places, k - 1), jnp.maximum(places - k, 0)
    first_id = jnp.where(is_new, first_id + new * GROUP_SIZE, jnp.take_along_axis(best.first_id, old, axis=1))
    old, new = (jnp.take_along_axis(rows, at[:, :, None], axis=1) for rows, at in ((best.scores, old), (tile, new)))
    return _Groups(maxima, first_id, jnp.where(is_new[:, :, None], new, old))


def _best_of_groups(groups: _Groups) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """The k highest scores and their ids, the lower id first of equal scores."""
    number, k = groups.maxima.shape
    order = jnp.argsort(groups.first_id, axis=1)
    first_id = jnp.take_along_axis(groups.first_id, order, axis=1)
    scores = jnp.take_along_axis(groups.scores, order[:, :, None], axis=1).reshape(number, -1)
    values, places = lax.top_k(scores, k)
    return values, jnp.take_along_axis(first_id, places // GROUP_SIZE, axis=1) + places % GROUP_SIZE


def _map_chunks(function, arrays, chunk_size: int):
    """function over chunks of the arrays' first axis, in turn; the last chunk is padded with zeros. None stays None."""
    length = arrays[0].shape[0]
    size = max(1, min(chunk_size, length))
    padded = _round_up(max(length, 1), size)

    def cut(array):
        rows = jnp.pad(array, [(0, padded - length)] + [(0, 0)] * (array.ndim - 1))
        return rows.reshape(-1, size, *array.shape[1:])

    results = lax.map(function, jax.tree.map(cut, tuple(arrays)))
    return jax.tree.map(lambda result: result.reshape(padded, *result.shape[2:])[:length], results)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def rank_hidden(hidden, item_table, items, cases: EvalCases, ks, chunks, max_seen: int, score: Callable = dot):
    """(num_above [C], num_tied [C], exposure [K, V+1]) of histories' states; `max_seen` 0 filters nothing.

    A history without items is one that pads a split: its scores are no numbers, so it recommends nothing.
    """
    hidden = jnp.where((cases.history_end > cases.history_start)[:, None], hidden, jnp.nan)
    how = {"chunks": chunks, "score": score} | ({"seen": items, "max_seen": max_seen} if max_seen else {})
    num_above, num_tied = rank_cases(hidden, item_table, cases, **how)
    how |= {"cases": cases} if max_seen else {}
    return num_above, num_tied, count_recommended(hidden, item_table, ks, **how)
