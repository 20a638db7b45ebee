"""Made-up interactions of any size with the traits that matter: popularity, tastes, transitions, arrival.

    python -m jaxneg.data.synthetic --rows 1000000 --out interactions.parquet

Items have Zipf popularity and belong to a taste each. A user has a first and a second taste. The next item follows the
one before it (each item has a few fixed successors, mostly of its taste), or is drawn by popularity from one of
the user's tastes, or from everything. Users and a part of the items arrive over time. There is no loop over rows:
users go in step, their first items together, then their second ones.
"""

import argparse
import math
import pathlib
import sys
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd

from jaxneg.data import prepare as preparation
from jaxneg.data import raw, store
from jaxneg.errors import InputError, refuse
from jaxneg.fields import FROM_0_TO_1, POSITIVE, at_least, up_to

LARGE_ROWS = 5_000_000  # rows that take seconds to generate: that is said beforehand
CHUNK_ROWS = 1 << 23  # what is drawn at once, to bound the memory
START = 1_577_836_800  # 2020-01-01, in seconds
SUCCESSOR_WEIGHTS = (0.5, 0.25, 0.15, 0.1)
SECOND_TASTE = 0.2  # the share of a user's second taste in what is drawn by taste
LATE_ITEMS = 0.2  # the share of items that arrive after the start
POPULARITY_SHIFT = 10.0  # weight (rank + shift)^-exponent: Zipf-Mandelbrot, so that no single item dominates
MIN_LENGTH = 5  # of a sequence, where there are rows enough


class SyntheticSettings(NamedTuple):
    """The arguments of `generate`; the default trains in a minute or two on a CPU."""

    num_rows: Annotated[int, at_least(1), "rows of the synthetic data (format=synthetic)"] = 100_000
    num_users: Annotated[int, at_least(1), "its users"] = 2_000
    num_items: Annotated[int, at_least(2), "its items"] = 1_000
    seed: Annotated[int, at_least(0, 2**32 - 1), "its seed"] = 0
    num_tastes: Annotated[int, at_least(1), "groups of its items; each user likes a few; num_items / 2 at most"] = 20
    zipf_exponent: Annotated[float, up_to(10), "its popularity falls with the rank to this power"] = 1.0
    follow: Annotated[float, FROM_0_TO_1, "how often the next item is a successor of the one before"] = 0.5
    taste: Annotated[float, FROM_0_TO_1, "how often another item is of the user's tastes, not of everything"] = 0.8
    days: Annotated[float, POSITIVE, "how long it lasts"] = 365.0


DEFAULT = SyntheticSettings()


class _Items(NamedTuple):
    """The catalogue, items sorted by taste: taste k's are start[k] : start[k+1]. Ids here are 0..V-1."""

    cumulative: np.ndarray  # [V+1] running sum of the popularity weights
    start: np.ndarray  # [tastes+1]
    arrival: np.ndarray  # [V] fraction of the period
    stand_in: np.ndarray  # [V] an item of the same taste, there from the start, for an item not there yet
    successors: np.ndarray  # [V, number of successors]
    raw_id: np.ndarray  # [V] 1..V, in no order


def check(settings: SyntheticSettings) -> None:
    """Raises InputError, naming the value and what is allowed, where a setting is out of range."""
    s = settings
    rules = [
        ("num_users", 1 <= s.num_users < 2**31, "a number from 1 to 2^31 - 1"),
        ("num_rows", s.num_users <= s.num_rows < 2**31, "a number from num_users to 2^31 - 1"),
        ("num_items", 2 <= s.num_items < 2**31, "a number from 2 to 2^31 - 1"),
        ("seed", s.seed >= 0, "a number >= 0"),
        ("num_tastes", 1 <= s.num_tastes <= s.num_items // 2, "a number from 1 to num_items / 2"),
        ("zipf_exponent", 0 <= s.zipf_exponent < math.inf, "a number >= 0"),
        ("follow", 0 <= s.follow <= 1, "a number from 0 to 1"),
        ("taste", 0 <= s.taste <= 1, "a number from 0 to 1"),
        ("days", 0 < s.days < 1e6, "a number > 0 and < 1e6"),
    ]
    for name, holds, allowed in rules:
        if not holds:
            raise InputError(f"synthetic {name} is {getattr(s, name)!r}; allowed is {allowed}")


def generate(
    num_rows: int = DEFAULT.num_rows,
    num_users: int = DEFAULT.num_users,
    num_items: int = DEFAULT.num_items,
    seed: int = DEFAULT.seed,
    **others,
) -> pd.DataFrame:
    """Rows of user (1..num_users), item (1..num_items), time (seconds), by user, then time; the same for a seed.

    `others` are the further fields of SyntheticSettings. Not every item need occur. Raises InputError.
    """
    settings = SyntheticSettings(num_rows, num_users, num_items, seed, **others)
    check(settings)
    rng = np.random.default_rng([seed, 0])
    items = _make_items(rng, settings)
    lengths = _lengths(rng, num_rows, num_users)
    start = np.append(0, np.cumsum(lengths))
    user = np.repeat(np.arange(1, num_users + 1, dtype=np.int32), lengths)
    item, time = np.empty(num_rows, np.int32), np.empty(num_rows, np.int64)
    first = 0
    while first < num_users:
        last = max(first + 1, int(np.searchsorted(start, start[first] + CHUNK_ROWS, side="right")) - 1)
        rows = slice(start[first], start[last])
        chunk_rng = np.random.default_rng([seed, 1, first])
        instants = _instants(chunk_rng, lengths[first:last])
        item[rows] = items.raw_id[_walk(chunk_rng, items, lengths[first:last], instants, settings)]
        time[rows] = START + (instants * (settings.days * preparation.DAY_SECONDS)).astype(np.int64)
        first = last
    frame = pd.DataFrame({"user": user, "item": item, "time": time}, copy=False)
    frame.attrs.update(format="synthetic", ticks_per_second=1)
    return frame


def _make_items(rng: np.random.Generator, settings: SyntheticSettings) -> _Items:
    num_items, num_tastes = settings.num_items, settings.num_tastes
    others = rng.integers(num_tastes, size=num_items - 2 * num_tastes)
    taste = np.sort(np.append(np.tile(np.arange(num_tastes), 2), others))  # no taste has less than two items
    start = np.searchsorted(taste, np.arange(num_tastes + 1))
    weights = (rng.permutation(num_items) + 1.0 + POPULARITY_SHIFT) ** -settings.zipf_exponent
    cumulative = np.append(0.0, np.cumsum(weights))
    arrival = np.where(rng.random(num_items) < LATE_ITEMS, rng.random(num_items), 0.0)
    arrival[start[:-1]] = 0.0  # one item of each taste, at least, is there from the start
    present = np.append(0.0, np.cumsum(np.where(arrival == 0.0, weights, 0.0)))
    stand_in = _draw(rng, present, start[taste], start[taste + 1])
    share = (num_items, len(SUCCESSOR_WEIGHTS))
    at_home = rng.random(share) < 0.9  # most successors are of the same taste
    low = np.where(at_home, start[taste][:, None], 0)
    high = np.where(at_home, start[taste + 1][:, None], num_items)
    successors = _draw(rng, cumulative, low, high)
    itself = successors == np.arange(num_items)[:, None]
    successors = np.where(itself, (successors + 1) % num_items, successors)
    return _Items(cumulative, start, arrival, stand_in, successors, rng.permutation(num_items).astype(np.int32) + 1)


def _draw(rng: np.random.Generator, cumulative: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Items of low..high-1 (arrays of one shape), each with the weight that `cumulative` [V+1] gives it."""
    level = cumulative[low] + rng.random(low.shape) * (cumulative[high] - cumulative[low])
    return np.clip(np.searchsorted(cumulative, level, side="right") - 1, low, high - 1)


def _lengths(rng: np.random.Generator, num_rows: int, num_users: int) -> np.ndarray:
    """Rows of each user: log-normal, as in the public data sets, and num_rows in all."""
    activity = np.minimum(rng.lognormal(0.0, 0.8, num_users), 12.0)
    least = min(MIN_LENGTH, num_rows // num_users)
    return least + rng.multinomial(num_rows - least * num_users, activity / activity.sum())


def _instants(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """When each row happens, as a fraction of the period, ascending within a user, who stays for a while."""
    begin = 0.9 * rng.random(len(lengths))
    end = np.minimum(begin + 0.05 + rng.exponential(0.4, len(lengths)), 1.0)
    gaps = rng.exponential(1.0, int(lengths.sum()) + len(lengths))  # one more gap per user: uniform order statistics
    first = np.append(0, np.cumsum(lengths + 1))[:-1]
    total = np.add.reduceat(gaps, first)
    running = np.cumsum(gaps)
    passed = running - np.repeat(running[first] - gaps[first], lengths + 1)
    fraction = np.delete(passed, first + lengths) / np.repeat(total, lengths)
    instants = np.repeat(begin, lengths) + np.clip(fraction, 0.0, 1.0) * np.repeat(end - begin, lengths)
    return np.minimum(instants, np.nextafter(1.0, 0.0))


def _walk(
    rng: np.random.Generator, items: _Items, lengths: np.ndarray, instants: np.ndarray, settings: SyntheticSettings
) -> np.ndarray:
    """The item of each row [T], users one after another. Step s sets the s-th item of all users who have one."""
    order = np.argsort(-lengths, kind="stable")  # so that the users still walking are the first ones
    start = np.append(0, np.cumsum(lengths))[:-1][order]
    still = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(lengths.max()), side="right")
    weights = (items.start[1:] - items.start[:-1]).astype(np.float64)  # tastes with more items have more users
    tastes = rng.choice(settings.num_tastes, size=(2, len(lengths)), p=weights / weights.sum())
    preferred = np.cumsum(SUCCESSOR_WEIGHTS)[:-1]
    walked = np.empty(len(instants), np.int64)
    current = np.zeros(len(lengths), np.int64)
    for step, count in enumerate(still):
        at = start[:count] + step
        taste = np.where(rng.random(count) < SECOND_TASTE, tastes[1, :count], tastes[0, :count])
        own = rng.random(count) < settings.taste
        low = np.where(own, items.start[taste], 0)
        high = np.where(own, items.start[taste + 1], settings.num_items)
        drawn = _draw(rng, items.cumulative, low, high)
        choice = np.searchsorted(preferred, rng.random(count), side="right")
        follows = (rng.random(count) < settings.follow) & (step > 0)
        drawn = np.where(follows, items.successors[current[:count], choice], drawn)
        drawn = np.where(items.arrival[drawn] > instants[at], items.stand_in[drawn], drawn)
        walked[at] = current[:count] = drawn
    return walked


def prepare_synthetic(
    settings: SyntheticSettings = DEFAULT,
    prepare_settings: preparation.PrepareSettings = preparation.DEFAULT,
    *,
    cache_dir: str | pathlib.Path | None = None,
    name: str = "synthetic",
) -> pathlib.Path:
    """Generates and prepares; returns the folder, as `prepare.prepare` does for a file. Raises InputError."""
    check(settings)
    preparation.check(prepare_settings)
    key = {"synthetic": settings._asdict(), "settings": prepare_settings._asdict()}

    def build():
        if settings.num_rows >= LARGE_ROWS:
            store.say(f"generating {settings.num_rows:,} synthetic rows")
        frame = generate(**settings._asdict())
        arrays, meta = preparation.prepare_frame(frame, prepare_settings, source="synthetic data")
        return arrays, {**meta, "synthetic": settings._asdict()}

    return store.cached(cache_dir, name, key, build)


def write(frame: pd.DataFrame, path: str | pathlib.Path) -> None:
    """Writes rows as a raw file: .parquet, .csv, .tsv (also .gz; columns as in raw.COLUMNS). Raises InputError."""
    path = pathlib.Path(path)
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ("parquet", "csv", "tsv") or path.name.endswith(".parquet.gz"):
        raise InputError(f"out is {path}; allowed are names in .parquet, .csv, .tsv, .csv.gz, .tsv.gz")
    table = frame.set_axis(list(raw.COLUMNS), axis=1)
    temporary = path.with_name(f".part-{path.name}")
    try:
        if kind == "parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, sep="," if kind == "csv" else "\t", index=False)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"out {path} cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m jaxneg.data.synthetic", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=DEFAULT.num_rows, help="interactions (%(default)s)")
    parser.add_argument("--users", type=int, default=0, help="users (rows / 50)")
    parser.add_argument("--items", type=int, default=0, help="items (about 30 times the square root of rows / 50)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same rows (%(default)s)")
    parser.add_argument("--tastes", type=int, default=DEFAULT.num_tastes, help="groups of items (%(default)s)")
    parser.add_argument("--days", type=float, default=DEFAULT.days, help="length of the period (%(default)s)")
    parser.add_argument("--out", required=True, help="a file in .parquet, .csv, .tsv, .csv.gz or .tsv.gz")
    parser.error = refuse
    try:
        given = parser.parse_args(arguments)
        if not 1 <= given.rows < 2**31:
            raise InputError(f"--rows={given.rows} is not allowed: a number from 1 to 2^31 - 1")
        num_users = given.users or max(given.rows // 50, 1)
        num_items = given.items or max(round(30 * math.sqrt(given.rows / 50)), 2 * given.tastes)
        frame = generate(given.rows, num_users, num_items, given.seed, num_tastes=given.tastes, days=given.days)
        write(frame, given.out)
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {given.rows:,} rows, {num_users:,} users, {num_items:,} items", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
