"""Preparation: against a brute-force version in plain Python, the released code's values, and counts of real files."""

import collections
import json
import math
import multiprocessing
import pathlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg.data import prepare, store
from jaxneg.data.prepare import PrepareSettings
from jaxneg.errors import InputError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
LOOSE = PrepareSettings(min_user_rows=1, min_item_rows=1, test_fraction=0.3, valid_fraction=0.3)


def frame_of(rows, columns=("user", "item", "time"), ticks=1) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(columns))
    frame.attrs["ticks_per_second"] = ticks
    return frame


def brute_force(rows, s: PrepareSettings, ticks=1):
    """The protocol, row by row: a list of (sequence, item, time, split), sequences by id; None if nothing is left."""
    order = (lambda r: (r[0], r[2], r[1])) if s.session_gap_seconds else (lambda r: (r[0], r[2]))
    kept, last, session = [], None, -1
    for row in sorted(rows, key=order):  # sorted is stable
        long_gap = s.session_gap_seconds and last and row[2] - last[2] > s.session_gap_seconds * ticks
        if last is None or row[0] != last[0] or long_gap:
            session += 1
        last = row
        if not s.event or row[3] == s.event:
            kept.append((session, row[1], row[2]))
    if s.drop_repeats:
        kept = [r for i, r in enumerate(kept) if i == 0 or kept[i - 1][:2] != r[:2]]
    while True:
        users = collections.Counter(r[0] for r in kept)
        fewer = [r for r in kept if users[r[0]] >= s.min_user_rows]
        items = collections.Counter(r[1] for r in fewer)
        fewer = [r for r in fewer if items[r[1]] >= s.min_item_rows]
        if len(fewer) == len(kept):
            break
        kept = fewer
    if len({r[1] for r in kept}) < 2:
        return None
    split = [0] * len(kept)
    if s.split == "temporal":
        by_time = sorted(range(len(kept)), key=lambda i: (kept[i][2], i))
        num_test, num_valid = math.ceil(s.test_fraction * len(kept)), math.ceil(s.valid_fraction * len(kept))
        for place, i in enumerate(reversed(by_time)):
            split[i] = 2 if place < num_test else 1 if place < num_test + num_valid else 0
    else:
        for user in {r[0] for r in kept}:
            own = [i for i, r in enumerate(kept) if r[0] == user]
            if len(own) >= 3:
                split[own[-1]], split[own[-2]] = 2, 1
    return [(*row, part) for row, part in zip(kept, split, strict=True)]


def rows_from(arrays):
    """What the arrays say, as (user number, raw item, time, split)."""
    rows = []
    for user in range(len(arrays["user_start"]) - 1):
        start, end = arrays["user_start"][user : user + 2]
        for at in range(start, end):
            split = 0 if at < arrays["train_end"][user] else 1 if at < arrays["valid_end"][user] else 2
            rows.append((user, arrays["item_ids"][arrays["items"][at]].item(), int(arrays["times"][at]), split))
    return rows


def check_against(rows, expected, s, ticks=1):
    """Compares prepare_frame with the brute-force rows in every array and every count."""
    sequences = sorted({r[0] for r in expected})
    expected = [(sequences.index(r[0]), *r[1:]) for r in expected]
    has_train = {r[0] for r in expected if r[3] == 0}
    has_past = {r[0] for r in expected if r[3] < 2}
    valid_cases = sum(r[3] == 1 and r[0] in has_train for r in expected)
    test_cases = sum(r[3] == 2 and r[0] in has_past for r in expected)
    columns = ("user", "item", "time", "event")[: len(rows[0])]
    if not valid_cases or not test_cases:
        with pytest.raises(InputError, match="split has no (test|validation) case"):
            prepare.prepare_frame(frame_of(rows, columns, ticks), s)
        return
    arrays, meta = prepare.prepare_frame(frame_of(rows, columns, ticks), s)
    assert rows_from(arrays) == expected
    assert (meta["num_valid_cases"], meta["num_test_cases"]) == (valid_cases, test_cases)
    train = [r for r in expected if r[3] == 0]
    latest = max(r[2] for r in train)
    item_ids = sorted({r[1] for r in expected})
    assert arrays["item_ids"][1:].tolist() == item_ids
    freq = [len({r[0] for r in train if r[1] == item}) for item in item_ids]
    assert arrays["item_counts"].tolist() == [0, *freq]
    window = s.recent_days * 86400 * ticks
    recent = [sum(r[1] == item and r[2] > latest - window for r in train) for item in item_ids]
    assert arrays["recent_counts"].tolist() == [0, *recent]
    by_rank, running = sorted(range(len(freq)), key=lambda i: (-freq[i], i)), 0
    for i in by_rank:
        running += freq[i]
        cohort = 0 if running < sum(freq) / 3 else 1 if running < 2 * sum(freq) / 3 else 2
        if 3 * running not in (sum(freq), 2 * sum(freq)):  # there, floats of the line above may err
            assert arrays["item_cohorts"][i + 1] == cohort
    assert arrays["item_cohorts"][0] == -1
    assert meta["num_rows"] == len(expected) == len(rows) - sum(meta["removed_rows"].values())
    assert sum(meta["cohort_sizes"].values()) == meta["num_items"] == len(item_ids)


ROWS = st.lists(st.tuples(st.integers(-2, 5), st.integers(3, 9), st.integers(0, 12)), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    rows=ROWS,
    text_ids=st.booleans(),
    scale=st.sampled_from([1, 40_000, 10**14]),
    drop_repeats=st.booleans(),
    min_user_rows=st.integers(1, 3),
    min_item_rows=st.integers(1, 5),
    split=st.sampled_from(prepare.SPLIT_RULES),
    fraction=st.sampled_from([0.05, 0.2, 0.4]),
)
def test_against_brute_force(rows, text_ids, scale, drop_repeats, min_user_rows, min_item_rows, split, fraction):
    rows = [(f"u{u}", f"i{i}", t * scale) if text_ids else (u, i, t * scale) for u, i, t in rows]
    s = PrepareSettings(0.0, "", drop_repeats, min_user_rows, min_item_rows, split, fraction, 0.25, recent_days=2.0)
    expected = brute_force(rows, s)
    if expected is None:
        with pytest.raises(InputError, match="items are left of .* rows, at least two"):
            prepare.prepare_frame(frame_of(rows), s)
    else:
        check_against(rows, expected, s)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 40), st.sampled_from(["view", "cart"])),
        min_size=4,
        max_size=60,
    ),
    ticks=st.sampled_from([1, 1000]),
)
def test_sessions_against_brute_force(rows, ticks):
    rows = [(u, i, t * ticks, e) for u, i, t, e in rows]
    s = LOOSE._replace(session_gap_seconds=5.0, event="view")
    expected = brute_force(rows, s, ticks) if any(r[3] == "view" for r in rows) else None
    if expected is None:
        with pytest.raises(InputError, match="items are left|no row has the event 'view'"):
            prepare.prepare_frame(frame_of(rows, ("user", "item", "time", "event"), ticks), s)
    else:
        check_against(rows, expected, s, ticks)


def test_sessions_by_hand():
    """A purchase keeps a session alive, a gap of exactly the limit does too, one more second ends it."""
    rows = [
        (7, 1, 0, "view"),
        (7, 2, 3600, "cart"),
        (7, 3, 7200, "view"),  # one session
        (7, 1, 10801, "view"),
        (7, 2, 10801, "view"),
        (7, 3, 10802, "view"),  # a second one
        (5, 2, 0, "view"),
        (5, 1, 0, "view"),  # equal times: by item
    ]
    s = prepare.RETAILROCKET._replace(min_item_rows=1, test_fraction=0.2, valid_fraction=0.2)
    arrays, meta = prepare.prepare_frame(frame_of(rows, ("user", "item", "time", "event")), s)
    assert arrays["user_ids"].tolist() == [5, 7, 7]
    assert arrays["user_start"].tolist() == [0, 2, 4, 7]
    assert arrays["items"].tolist() == [1, 2, 1, 3, 1, 2, 3]
    assert meta["removed_rows"] == {"event": 1, "repeats": 0, "support": 0}


def test_a_repeat_across_a_dropped_item_stays():
    """Consecutive repeats are dropped once, before the filter: a, b, a with b filtered out leaves a, a."""
    rows = [(0, 1, 0), (0, 9, 1), (0, 1, 2), (0, 2, 3), (0, 2, 4), (0, 3, 5), (1, 1, 0), (1, 2, 1), (1, 3, 2)]
    s = LOOSE._replace(min_item_rows=2, split="leave_one_out")
    arrays, meta = prepare.prepare_frame(frame_of(rows), s)
    assert arrays["items"].tolist() == [1, 1, 2, 3, 1, 2, 3]
    assert meta["removed_rows"] == {"event": 0, "repeats": 1, "support": 1}


def test_leave_one_out_by_hand():
    rows = [(0, 1, 0), (0, 2, 1), (0, 3, 2), (0, 4, 3), (1, 1, 9), (1, 2, 9), (2, 3, 5), (2, 4, 5), (2, 1, 5)]
    arrays, meta = prepare.prepare_frame(frame_of(rows), LOOSE._replace(split="leave_one_out"))
    assert arrays["user_start"].tolist() == [0, 4, 6, 9]
    assert arrays["train_end"].tolist() == [2, 6, 7]  # a user of two rows is all train
    assert arrays["valid_end"].tolist() == [3, 6, 8]
    assert (meta["num_test_cases"], meta["num_valid_cases"]) == (2, 2)
    assert arrays["items"][8] == 1  # equal times: the last row of the file is the test


def test_sorted_order_is_lexsort():
    rng = np.random.default_rng(0)
    for spread in (3, 10**6, 2**62):  # the last does not fit beside the row number
        keys = [rng.integers(-spread, spread, 500) for _ in range(2)] + [rng.integers(0, 20, 500)]
        np.testing.assert_array_equal(prepare.sorted_order(keys), np.lexsort(keys))


@pytest.mark.parametrize("dtype", ["int64", "int32", "str", "category", "object"])
def test_ids_are_numbered_in_their_order(dtype):
    values = [30, 4, 10**12, 4, 200] if dtype == "int64" else [30, 4, 1000, 4, 200]
    column = pd.Series(values if dtype.startswith("int") else [str(value) for value in values]).astype(dtype)
    if dtype == "category":
        column = column.cat.add_categories("unused")
    codes, ids = prepare.encode_ids(column)
    assert ids[codes].tolist() == column.tolist()
    assert ids.tolist() == sorted(set(column)) and ids.dtype.kind in "iU"


# ------------------------------------------------------------------ the released code's values


def test_golden_cohorts():
    golden = np.load(GOLDEN / "cohorts.npz")
    user, item, split = golden["rows"].T
    train = split == 0
    counts = prepare.distinct_users(user[train], item[train] - 1, int(golden["itemnum"]))
    np.testing.assert_array_equal(counts, golden["freq"])
    found = prepare.cohorts.cohorts(np.append(0, counts))[1:]
    assert np.array(["head", "mid", "tail"])[found].tolist() == golden["index"].tolist()


def test_golden_split_wherever_times_do_not_tie():
    """The released rows are in (user, time) order; ours have the same times there, and the same items and split.

    Where times tie, the released order is not stable: there, items are compared as multisets, and the split
    wherever a tie does not lie across its border.
    """
    golden = np.load(GOLDEN / "split_ties.npz")
    frame = frame_of(np.stack([golden["SessionId"], golden["ItemId"], golden["Time"]], axis=1))
    arrays, _ = prepare.prepare_frame(frame, PrepareSettings(min_user_rows=1, min_item_rows=1, drop_repeats=False))
    users = np.repeat(np.arange(len(arrays["user_ids"])), np.diff(arrays["user_start"]))
    at = np.arange(len(users))
    split = (at >= arrays["train_end"][users]).astype(int) + (at >= arrays["valid_end"][users])
    assert (users + 1).tolist() == golden["user"].tolist()
    assert np.bincount(split).tolist() == np.bincount(golden["split"]).tolist() == [181, 11, 11]
    border = [time for time in set(arrays["times"]) if len(set(split[arrays["times"] == time])) > 1]
    clear = ~np.isin(arrays["times"], border)
    assert len(border) == 2 and clear.sum() == 203 - 13 - 6
    assert split[clear].tolist() == golden["split"][clear].tolist()
    # the release numbers items by first appearance: rows alone at their moment tell which of its ids is which of ours
    rows = pd.DataFrame({"user": users, "time": arrays["times"], "ours": arrays["items"], "theirs": golden["item"]})
    alone = rows[~rows.duplicated(["user", "time"], keep=False)].drop_duplicates(["ours", "theirs"])
    assert alone["ours"].is_unique and alone["theirs"].is_unique and len(alone) > 20
    ours_of = dict(zip(alone["theirs"], alone["ours"], strict=True))
    for _, moment in rows.groupby(["user", "time"]):
        theirs = [ours_of.get(item) for item in moment["theirs"]]
        if None not in theirs:
            assert sorted(theirs) == sorted(moment["ours"])


# ------------------------------------------------------------------ real files

COUNTS = {  # rows, users, items, test cases, validation cases
    "ml-1m": (999_611, 6_040, 3_416, 49_091, 46_717),
    "ml-100k": (99_287, 943, 1_349, 2_159, 680),
    "beauty-5core": (198_502, 22_363, 12_101, 8_026, 8_229),
    "sports-5core": (296_337, 35_598, 18_357, 11_630, 12_432),
    "online-retail-uci": (395_297, 4_246, 3_191, 18_612, 16_405),
    "diginetica": (896_052, 191_051, 39_885, 2_892, 1_300),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_real_files(data_dir, tmp_path, name):
    folder = prepare.prepare(data_dir / name / f"{name}_full.tsv.gz", cache_dir=tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    keys = ("num_rows", "num_users", "num_items", "num_test_cases", "num_valid_cases")
    assert tuple(meta[key] for key in keys) == COUNTS[name]


# ------------------------------------------------------------------ bad values


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "random"}, "split is 'random'; allowed is temporal or leave_one_out"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0; allowed is 0 < test_fraction"),
        ({"test_fraction": 0.6, "valid_fraction": 0.4}, "together < 1"),
        ({"valid_fraction": -0.1}, "valid_fraction is -0.1"),
        ({"test_fraction": float("nan")}, "test_fraction is nan"),
        ({"session_gap_seconds": -1.0}, "session_gap_seconds is -1.0"),
        ({"min_user_rows": 0}, "min_user_rows is 0; allowed is a number >= 1"),
        ({"min_item_rows": 0}, "min_item_rows is 0"),
        ({"recent_days": 0.0}, "recent_days is 0.0"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=message):
        prepare.prepare_frame(frame_of([(0, 1, 0), (0, 2, 1)]), PrepareSettings()._replace(**change))


ANY_SUPPORT = {"min_user_rows": 1, "min_item_rows": 1}


@pytest.mark.parametrize(
    "rows, change, message",
    [
        ([(0, 1, 0), (1, 2, 1)], {}, "0 items are left of 2 rows, .* min_user_rows=2 .* min_item_rows=5 rows 2"),
        ([(0, 1, 0), (0, 1, 1)], ANY_SUPPORT, "1 items are left of 2 rows.* repeats 1"),
        ([], {}, "there is no row of data"),
        # the last row belongs to a user who was not there before
        ([(0, 1, 0), (0, 2, 1), (0, 3, 2), (1, 1, 3)], ANY_SUPPORT, "temporal split has no test"),
        ([(0, 1, 0), (1, 2, 1), (0, 3, 2)], ANY_SUPPORT, "temporal split has no validation"),
        (
            [(0, 1, 0), (0, 2, 1)],
            {"min_item_rows": 1, "split": "leave_one_out"},
            "leave_one_out split has no test case",
        ),
    ],
)
def test_data_that_cannot_be_prepared(rows, change, message):
    with pytest.raises(InputError, match=message):
        prepare.prepare_frame(frame_of(rows), PrepareSettings()._replace(**change))


# ------------------------------------------------------------------ prepared folders


@pytest.fixture
def raw_file(tmp_path) -> pathlib.Path:
    rng = np.random.default_rng(1)
    highest = {"SessionId": 30, "ItemId": 40, "Time": 10**6}
    rows = {name: rng.integers(0, high, 900) for name, high in highest.items()}
    path = tmp_path / "raw" / "mine.csv"
    path.parent.mkdir()
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_the_folder_is_as_described(raw_file, tmp_path):
    folder = prepare.prepare(raw_file, cache_dir=tmp_path / "cache")
    assert folder.parent == tmp_path / "cache" and folder.name.startswith("mine-")
    meta = json.loads((folder / "meta.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in store.DTYPES}
    sizes = {
        "items": meta["num_rows"],
        "user_ids": meta["num_users"],
        "user_start": meta["num_users"] + 1,
        "item_counts": meta["num_items"] + 1,
        "item_ids": meta["num_items"] + 1,
    }
    assert {name: len(arrays[name]) for name in sizes} == sizes
    types = {name: str(array.dtype) for name, array in arrays.items()}
    assert types == {name: dtype or "int64" for name, dtype in store.DTYPES.items()}
    assert meta["name"] == "mine" and meta["settings"] == PrepareSettings()._asdict()
    assert meta["fingerprint"] in folder.name
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [folder.name]
    assert [p.name for p in raw_file.parent.iterdir()] == ["mine.csv"]  # never beside the raw file


def test_reused_until_file_or_settings_change(raw_file, tmp_path):
    first = prepare.prepare(raw_file, cache_dir=tmp_path)
    stamp = (first / "items.npy").stat().st_mtime_ns
    assert prepare.prepare(raw_file, cache_dir=tmp_path) == first
    assert (first / "items.npy").stat().st_mtime_ns == stamp
    assert prepare.prepare(raw_file, PrepareSettings(min_item_rows=6), cache_dir=tmp_path) != first
    text = raw_file.read_text()
    raw_file.write_text(text.replace("\n1", "\n2", 1))  # the same size
    assert prepare.prepare(raw_file, cache_dir=tmp_path) != first
    raw_file.write_text(text)
    assert prepare.prepare(raw_file, cache_dir=tmp_path) == first


def damage_missing(folder):
    (folder / "times.npy").unlink()


def damage_short(folder):
    np.save(folder / "items.npy", np.load(folder / "items.npy")[:-1])


def damage_type(folder):
    np.save(folder / "items.npy", np.load(folder / "items.npy").astype(np.int64))


def damage_truncated(folder):
    (folder / "items.npy").write_bytes((folder / "items.npy").read_bytes()[:-8])


def damage_meta(folder):
    (folder / "meta.json").write_text("{")


@pytest.mark.parametrize("damage", [damage_missing, damage_short, damage_type, damage_truncated, damage_meta])
def test_a_damaged_folder_is_made_again(raw_file, tmp_path, damage):
    folder = prepare.prepare(raw_file, cache_dir=tmp_path / "cache")
    expected = np.load(folder / "items.npy")
    damage(folder)
    assert prepare.prepare(raw_file, cache_dir=tmp_path / "cache") == folder
    np.testing.assert_array_equal(np.load(folder / "items.npy"), expected)
    assert store.read(folder)[1]["fingerprint"] in folder.name
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [folder.name]


def _prepare_many(path, cache_dir, start, answers):
    start.wait()
    answers.put(str(prepare.prepare(path, cache_dir=cache_dir)))


def test_two_processes_at_once(raw_file, tmp_path):
    context = multiprocessing.get_context("spawn")
    start, answers = context.Event(), context.Queue()
    jobs = [context.Process(target=_prepare_many, args=(raw_file, tmp_path / "c", start, answers)) for _ in range(2)]
    for job in jobs:
        job.start()
    start.set()
    folders = {answers.get(timeout=60) for _ in jobs}
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0] and len(folders) == 1
    assert [str(p) for p in (tmp_path / "c").iterdir()] == list(folders)


def test_the_second_of_two_takes_the_first_ones_folder(raw_file, tmp_path):
    """The race itself, made certain: another process finishes while this one still builds."""
    key = {"some": "key"}
    arrays, meta = prepare.prepare_frame(prepare.raw.read(raw_file), PrepareSettings())
    inner = []

    def build():
        inner.append(store.cached(tmp_path / "c", "n", key, lambda: (arrays, {**meta, "who": "inner"})))
        return arrays, {**meta, "who": "outer"}

    outer = store.cached(tmp_path / "c", "n", key, build)
    assert inner == [outer] and json.loads((outer / "meta.json").read_text())["who"] == "inner"
    assert [p.name for p in (tmp_path / "c").iterdir()] == [outer.name]


def test_bad_input_leaves_nothing(tmp_path):
    (tmp_path / "t.csv").write_text("SessionId,ItemId,Time\n1,2,3\n1,3,x\n")
    with pytest.raises(InputError, match="row 2"):
        prepare.prepare(tmp_path / "t.csv", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=message):
            prepare.prepare(path, cache_dir=tmp_path / "cache")


def test_a_cache_that_cannot_be_written(raw_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cache_dir .*file cannot be written"):
        prepare.prepare(raw_file, cache_dir=tmp_path / "file")
    with pytest.raises(InputError, match="name is '../x'"):
        prepare.prepare(raw_file, cache_dir=tmp_path, name="../x")


def test_default_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXNEG_CACHE", str(tmp_path / "a"))
    assert store.default_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("JAXNEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert store.default_cache_dir() == tmp_path / "b" / "jaxneg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert store.default_cache_dir() == tmp_path / "c" / ".cache" / "jaxneg"


@pytest.mark.parametrize("chunk_rows", [1, 7, 10_000])
def test_distinct_users_are_counted_in_chunks_of_any_size(monkeypatch, chunk_rows):
    monkeypatch.setattr(prepare, "CHUNK_ROWS", chunk_rows)
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 9, 300).astype(np.int32), rng.integers(0, 13, 300).astype(np.int32)
    pairs = np.array(sorted(set(zip(user.tolist(), item.tolist(), strict=True))))
    found = prepare.distinct_users(user, item, 13)
    np.testing.assert_array_equal(found, np.bincount(pairs[:, 1], minlength=13))
