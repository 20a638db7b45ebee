"""Interactions -> the arrays that training and evaluation use: sessions, filters, split, cohorts.

The steps and their order are those of Prakash et al. (arXiv 2410.17276, section 4.1); each is a plain value in
PrepareSettings. Everything is vectorised, and every result depends on the rows and the settings alone.

Users are numbered 0..U-1 by raw id (sessions: by raw id, then time), items 1..V by raw id; numbers sort as numbers.
"""

import math
import pathlib
import re
import time as clock
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd

from jaxneg.data import cohorts, raw, store
from jaxneg.errors import InputError
from jaxneg.fields import ANY, FRACTION, NOT_NEGATIVE, POSITIVE, at_least, one_of

SPLIT_RULES = ("temporal", "leave_one_out")
DAY_SECONDS = 86400
CHUNK_ROWS = 1 << 23  # what is counted at once, to bound the memory
LARGE_BYTES = 100_000_000  # a file that takes seconds to read: that is said beforehand
PAD_ID = -1  # stands in item_ids[0] where ids are integers; "" where they are text


class PrepareSettings(NamedTuple):
    """How interactions become sequences. The default is the paper's for MovieLens and Amazon ratings."""

    session_gap_seconds: Annotated[float, NOT_NEGATIVE, "a longer pause starts a new session; 0: no sessions"] = 0.0
    event: Annotated[str, ANY, "keep only this event of a file with events; empty: all"] = ""
    drop_repeats: Annotated[bool, ANY, "drop a row that repeats the item just before it"] = True
    min_user_rows: Annotated[int, at_least(1), "users with fewer rows are dropped, again and again"] = 2
    min_item_rows: Annotated[int, at_least(1), "items with fewer rows are dropped, again and again"] = 5
    split: Annotated[
        str, one_of("temporal", "leave_one_out"), "the test: the last rows of all, or each user's last row"
    ] = "temporal"
    test_fraction: Annotated[float, FRACTION, "share of the rows that are the test (temporal split)"] = 0.05
    valid_fraction: Annotated[float, FRACTION, "share of the rows before them that are validation"] = 0.05
    recent_days: Annotated[float, POSITIVE, "last days of training that the recent baseline counts"] = 7.0


DEFAULT = PrepareSettings()
RETAILROCKET = PrepareSettings(session_gap_seconds=3600.0, event="view")


class Rows(NamedTuple):
    """Interactions as arrays [T], sorted by user, then time; user and item are codes into the ids."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray


def prepare(
    path: str | pathlib.Path,
    settings: PrepareSettings = DEFAULT,
    *,
    format: str = "auto",
    columns: Sequence[str] = raw.COLUMNS,
    member: str = "",
    cache_dir: str | pathlib.Path | None = None,
    name: str = "",
) -> pathlib.Path:
    """Prepares a raw file and returns the folder with its arrays and meta.json; a folder made before is reused.

    The folder lies in `cache_dir` (default: the user's cache folder) and is found by a fingerprint of the raw file's
    content and of all settings. `name` (default: from the file's name) is only for people. Raises InputError.
    """
    check(settings)
    path = pathlib.Path(path)
    key = {
        "content": store.content_hash(path),
        "settings": settings._asdict(),
        "format": format,
        "columns": list(columns),
        "member": member,
    }

    def build():
        start = clock.perf_counter()
        if path.stat().st_size >= LARGE_BYTES:
            store.say(f"reading {path}")
        frame = raw.read(path, format, columns=columns, member=member)
        arrays, meta = prepare_frame(frame, settings, source=str(path))
        store.say(
            f"{path}: read {len(frame):,} rows ({meta['format']}); prepared {meta['num_rows']:,} of "
            f"{meta['num_users']:,} users and {meta['num_items']:,} items, {meta['num_test_cases']:,} test "
            f"cases, in {clock.perf_counter() - start:.1f} s"
        )
        return arrays, meta

    return store.cached(cache_dir, name or _name(path), key, build)


def _name(path: pathlib.Path) -> str:
    """A name for the prepared folder, from the file's: what comes before the first dot, made fit."""
    return re.sub(r"[^\w-]", "_", path.name.split(".")[0])[:100].lstrip("-") or "data"


def check(settings: PrepareSettings) -> None:
    """Raises InputError, naming the value and what is allowed, where a setting is out of range."""
    s = settings
    gap = s.session_gap_seconds
    test, valid = s.test_fraction, s.valid_fraction
    rules = [
        ("session_gap_seconds", 0 <= gap < math.inf, "a number > 0, or 0 for no sessions"),
        ("split", s.split in SPLIT_RULES, " or ".join(SPLIT_RULES)),
        ("min_user_rows", s.min_user_rows >= 1, "a number >= 1"),
        ("min_item_rows", s.min_item_rows >= 1, "a number >= 1"),
        ("test_fraction", 0 < test < 1 and test + valid < 1, "0 < test_fraction, and both fractions together < 1"),
        ("valid_fraction", 0 < valid < 1 and test + valid < 1, "0 < valid_fraction, and both fractions together < 1"),
        ("recent_days", 0 < s.recent_days < math.inf, "a number > 0"),
    ]
    for name, holds, allowed in rules:
        if not holds:
            raise InputError(f"{name} is {getattr(s, name)!r}; allowed is {allowed}")


def prepare_frame(
    frame: pd.DataFrame, settings: PrepareSettings = DEFAULT, *, source: str = "the data"
) -> tuple[dict[str, np.ndarray], dict]:
    """The pure core: a frame of user, item, time (and event) -> the arrays of a prepared folder, and its meta.

    Args:
        frame: rows in the file's order; `attrs["ticks_per_second"]` is the unit of time (1 where it is not given).
        source: what messages call the data.

    Returns:
        items int32 [T], times int64 [T], user_start, train_end, valid_end int64, item_counts and recent_counts int64
        [V+1], item_cohorts int8 [V+1], user_ids [U], item_ids [V+1]; and a dict of plain values.

    Raises:
        InputError: a setting is out of range, nothing or fewer than two items are left, no test or validation case.
    """
    check(settings)
    ticks = int(frame.attrs.get("ticks_per_second", 1))
    rows, user_ids, item_ids, removed = _sequences(frame, settings, ticks, source)
    rows, user_ids, item_ids, removed["support"] = _supported(rows, user_ids, item_ids, settings)
    if len(item_ids) < 2:
        raise InputError(_nothing_left(source, len(frame), removed, len(item_ids), settings))
    num_users, num_items = len(user_ids), len(item_ids)
    user_start = _starts(rows.user, num_users)
    split = temporal_split(rows.time, settings.test_fraction, settings.valid_fraction)
    if settings.split == "leave_one_out":
        split = leave_one_out(user_start)
    train_end = user_start[:-1] + np.bincount(rows.user[split == 0], minlength=num_users)
    valid_end = train_end + np.bincount(rows.user[split == 1], minlength=num_users)
    has_train, has_history = train_end > user_start[:-1], valid_end > user_start[:-1]
    valid_cases = int((valid_end - train_end)[has_train].sum())
    test_cases = int((user_start[1:] - valid_end)[has_history].sum())
    for part, cases in (("test", test_cases), ("validation", valid_cases)):
        if not cases:
            raise InputError(
                f"{source}: the {settings.split} split has no {part} case (a {part} row of a user with earlier rows); "
                f"{len(rows.user)} rows of {num_users} users are left to split"
            )
    train = Rows(*(column[split == 0] for column in rows))
    item_counts = np.append(0, distinct_users(train.user, train.item, num_items))
    since = int(train.time.max()) - settings.recent_days * DAY_SECONDS * ticks
    recent_counts = np.append(0, np.bincount(train.item[train.time > since], minlength=num_items))
    item_cohorts = cohorts.cohorts(item_counts)
    arrays = {
        "items": (rows.item + 1).astype(np.int32),
        "times": rows.time,
        "user_start": user_start,
        "train_end": train_end,
        "valid_end": valid_end,
        "item_counts": item_counts,
        "recent_counts": recent_counts,
        "item_cohorts": item_cohorts,
        "user_ids": user_ids,
        "item_ids": _with_pad(item_ids),
    }
    meta = {
        "num_users": num_users,
        "num_items": num_items,
        "num_rows": len(rows.user),
        "num_train_rows": len(train.user),
        "num_valid_cases": valid_cases,
        "num_test_cases": test_cases,
        "cohort_sizes": {name: int((item_cohorts == c).sum()) for c, name in enumerate(cohorts.NAMES)},
        "time_range": [int(rows.time.min()), int(rows.time.max())],
        "ticks_per_second": ticks,
        "format": frame.attrs.get("format", "frame"),
        "num_raw_rows": len(frame),
        "removed_rows": removed,
        "settings": settings._asdict(),
    }
    return arrays, meta


def _sequences(frame: pd.DataFrame, settings: PrepareSettings, ticks: int, source: str):
    """Sorted rows after sessions, the event filter and consecutive repeats; the ids; how many rows each step cost."""
    if len(frame) == 0:
        raise InputError(f"{source}: there is no row of data in it")
    user, user_ids = encode_ids(frame["user"])
    item, item_ids = encode_ids(frame["item"])
    time = frame["time"].to_numpy(dtype=np.int64)
    # the paper's sort: where there are sessions, equal times go by item, otherwise by row
    order = sorted_order([item, time, user] if settings.session_gap_seconds else [time, user])
    rows = Rows(user[order], item[order], time[order])
    del user, item, time  # a hundred million rows of each are gigabytes
    keep = np.ones(len(order), bool)
    if settings.session_gap_seconds:
        # over all events, before any is dropped: a purchase keeps a session alive
        first = rows.user[1:] != rows.user[:-1]
        first |= np.diff(rows.time) > settings.session_gap_seconds * ticks
        session = np.cumsum(np.append(0, first.astype(np.int32)))
        user_ids = user_ids[rows.user[np.append(True, first)]]
        rows = rows._replace(user=session)
    removed = {"event": 0, "repeats": 0}
    if settings.event and "event" in frame:
        keep = (frame["event"] == settings.event).to_numpy()[order]
        if not keep.any():
            kinds = ", ".join(map(str, frame["event"].unique()[:10]))
            raise InputError(f"{source}: no row has the event {settings.event!r}; the events are {kinds}")
        removed["event"] = int((~keep).sum())
        rows = Rows(*(column[keep] for column in rows))
    if settings.drop_repeats:
        keep = np.append(True, (rows.user[1:] != rows.user[:-1]) | (rows.item[1:] != rows.item[:-1]))
        removed["repeats"] = int((~keep).sum())
        rows = Rows(*(column[keep] for column in rows))
    return rows, user_ids, item_ids, removed


def _supported(rows: Rows, user_ids: np.ndarray, item_ids: np.ndarray, settings: PrepareSettings):
    """Drops short sequences, then rare items, until nothing changes; renumbers what is left, in the same order."""
    before, last = len(rows.user), -1
    while len(rows.user) != last:
        last = len(rows.user)
        for codes, least in (("user", settings.min_user_rows), ("item", settings.min_item_rows)):
            column = getattr(rows, codes)
            enough = np.bincount(column) >= least if len(column) else np.zeros(0, bool)
            if not enough.all():
                keep = enough[column]
                if not keep.all():
                    rows = Rows(*(c[keep] for c in rows))
    user, used_users = _renumber(rows.user, len(user_ids))
    item, used_items = _renumber(rows.item, len(item_ids))
    return Rows(user, item, rows.time), user_ids[used_users], item_ids[used_items], before - last


def _renumber(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes without gaps, in the same order, int32 [T] (there are fewer than 2^31 ids), and the old ones that occur."""
    used = np.zeros(size, bool)
    used[codes] = True
    number = np.cumsum(used, dtype=np.int32)
    number -= 1
    return number[codes], np.flatnonzero(used)


def _nothing_left(source: str, num_rows: int, removed: dict, num_items: int, settings: PrepareSettings) -> str:
    return (
        f"{source}: {num_items} items are left of {num_rows} rows, at least two are needed; the event filter removed "
        f"{removed['event']} rows, repeats {removed['repeats']}, and sequences under min_user_rows="
        f"{settings.min_user_rows} or items under min_item_rows={settings.min_item_rows} rows {removed['support']}"
    )


def encode_ids(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0..n-1 [T], int32, in the order of the raw ids, and the n ids that are used: int64 or fixed-width text."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = column.cat.categories.to_numpy().astype(np.str_)
        order = np.argsort(names, kind="stable")
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        codes, used = _renumber(rank[column.cat.codes.to_numpy()], len(names))
        return codes, names[order][used]
    if not pd.api.types.is_integer_dtype(column.dtype):
        codes, ids = pd.factorize(column.astype(str), sort=True)
        return codes.astype(np.int32), np.asarray(ids, dtype=np.str_)
    values = column.to_numpy(dtype=np.int64)
    low, high = int(values.min()), int(values.max())
    if high - low > 4 * len(values) + (1 << 20):
        codes, ids = pd.factorize(values, sort=True)
        return codes.astype(np.int32), ids
    codes, used = _renumber(values - low, high - low + 1)
    return codes, used + low


def sorted_order(keys: Sequence[np.ndarray]) -> np.ndarray:
    """The stable order of rows by several integer keys [T], the last key first, as np.lexsort gives it.

    Key and row number are packed into one int64 where they fit: an in-place sort of values is ten times faster
    than an argsort.
    """
    order = None
    for key in keys:
        step = _stable_argsort(key if order is None else key[order])
        order = step if order is None else order[step]
    return order


def _stable_argsort(key: np.ndarray) -> np.ndarray:
    low, bits = int(key.min()), len(key).bit_length()
    if (int(key.max()) - low).bit_length() + bits > 62:
        return np.argsort(key, kind="stable")
    packed = ((key.astype(np.int64, copy=False) - low) << bits) | np.arange(len(key))
    packed.sort()
    packed &= (1 << bits) - 1
    return packed


def temporal_split(time: np.ndarray, test_fraction: float, valid_fraction: float) -> np.ndarray:
    """0 train, 1 validation, 2 test for each row [T]: the latest ceil(fraction * T) rows of all are test.

    Rows must be sorted by (user, time); equal times are ordered by row. Global temporal split of section 4.1.
    """
    order = _stable_argsort(time)
    num_test, num_valid = (math.ceil(fraction * len(time)) for fraction in (test_fraction, valid_fraction))
    split = np.zeros(len(time), np.int8)
    split[order[max(len(time) - num_test - num_valid, 0) :]] = 1
    split[order[len(time) - num_test :]] = 2
    return split


def leave_one_out(user_start: np.ndarray) -> np.ndarray:
    """0 train, 1 validation, 2 test per row: a user's last row is test, the one before validation.

    Users with fewer than three rows are all train. `user_start` is [U+1].
    """
    split = np.zeros(user_start[-1], np.int8)
    last = user_start[1:][np.diff(user_start) >= 3] - 1
    split[last] = 2
    split[last - 1] = 1
    return split


def _starts(user: np.ndarray, num_users: int) -> np.ndarray:
    return np.append(0, np.cumsum(np.bincount(user, minlength=num_users))).astype(np.int64)


def distinct_users(user: np.ndarray, item: np.ndarray, num_items: int) -> np.ndarray:
    """How many distinct users have each item: int64 [V], from codes user [T] and item [T] (0..V-1)."""
    pairs = user.astype(np.int64) * num_items + item
    pairs.sort()
    counts, last = np.zeros(num_items, np.int64), -1
    for start in range(0, len(pairs), CHUNK_ROWS):
        chunk = pairs[start : start + CHUNK_ROWS]
        first = chunk != np.append(last, chunk[:-1])
        counts += np.bincount(chunk[first] % num_items, minlength=num_items)
        last = chunk[-1]
    return counts


def _with_pad(item_ids: np.ndarray) -> np.ndarray:
    return np.concatenate([np.array([PAD_ID if item_ids.dtype.kind == "i" else ""], item_ids.dtype), item_ids])
