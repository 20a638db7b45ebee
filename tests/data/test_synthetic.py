"""Synthetic interactions: exact sizes, reproducible, and with the traits that they promise."""

import json

import numpy as np
import pytest

from jaxneg.data import prepare, raw, synthetic
from jaxneg.data.synthetic import SyntheticSettings
from jaxneg.errors import InputError

SIZES = [(1_000, 100, 50), (1_000, 1_000, 40), (20_000, 3, 40), (200_000, 4_000, 9_000)]


@pytest.mark.parametrize("rows, users, items", SIZES)
def test_sizes(rows, users, items):
    frame = synthetic.generate(rows, users, items, seed=1)
    assert len(frame) == rows and frame.columns.tolist() == ["user", "item", "time"]
    assert frame["user"].nunique() == users and frame["user"].min() == 1 and frame["user"].max() == users
    assert frame["item"].between(1, items).all() and frame["item"].nunique() > 0.5 * min(items, rows / 20)
    days = (frame["time"] - synthetic.START) / 86400
    assert days.min() >= 0 and days.max() < 365
    assert (frame.groupby("user")["time"].diff().dropna() >= 0).all()


def test_the_seed_decides():
    first, again, other = (synthetic.generate(5_000, 100, 200, seed) for seed in (3, 3, 4))
    assert first.equals(again)
    assert (first["item"].to_numpy() != other["item"].to_numpy()).mean() > 0.9


def test_chunks_bound_the_memory_and_keep_the_traits(monkeypatch):
    monkeypatch.setattr(synthetic, "CHUNK_ROWS", 1_000)
    frame = synthetic.generate(10_000, 300, 200, seed=0)
    assert len(frame) == 10_000 and frame["user"].nunique() == 300
    assert (frame.groupby("user")["time"].diff().dropna() >= 0).all()


@pytest.fixture(scope="module")
def frame():
    return synthetic.generate(200_000, 4_000, 2_000, seed=0)


def test_popularity_is_zipf(frame):
    """Over the catalogue of weights (rank + 10)^-1: the log-log slope against rank + 10 is near -1."""
    counts = np.sort(np.bincount(frame["item"], minlength=2_001)[1:])[::-1]
    rank = np.arange(1, 2_001)
    middle = slice(5, 500)
    slope = np.polyfit(np.log(rank[middle] + 10.0), np.log(counts[middle]), 1)[0]
    assert -1.5 < slope < -0.7
    assert counts[:200].sum() > 0.4 * counts.sum()  # a tenth of the items


def test_next_items_follow_from_the_one_before(frame):
    """The commonest follower of each item, learnt from even users, is right for odd users far above popularity."""
    item, user = frame["item"].to_numpy(), frame["user"].to_numpy()
    pairs = np.flatnonzero(user[1:] == user[:-1])
    learn, test = pairs[user[pairs] % 2 == 0], pairs[user[pairs] % 2 == 1]
    table = np.zeros((2_001, 2_001), np.int32)
    np.add.at(table, (item[learn], item[learn + 1]), 1)
    by_order = (table.argmax(axis=1)[item[test]] == item[test + 1]).mean()
    by_popularity = (np.bincount(item[learn]).argmax() == item[test + 1]).mean()
    assert by_order > 0.15 > 5 * by_popularity


def test_users_have_tastes(frame):
    """Two halves of one user's items overlap far more than halves of two users do."""
    item, user = frame["item"].to_numpy(), frame["user"].to_numpy()
    start = np.searchsorted(user, np.arange(1, 4_002))
    rng = np.random.default_rng(0)
    own, other = [], []
    for u in range(300):
        rows = rng.permutation(item[start[u] : start[u + 1]])
        stranger = item[start[u + 1] : start[u + 2]]
        half = len(rows) // 2
        own.append(np.isin(rows[half:], rows[:half]).mean())
        other.append(np.isin(rows[half:], stranger[:half]).mean())
    assert np.mean(own) > 2 * np.mean(other)


def test_users_and_items_arrive_over_time(frame):
    first_user = np.sort(frame.groupby("user")["time"].min().to_numpy())
    assert ((first_user - synthetic.START) / 86400)[[400, 2_000, 3_600]] == pytest.approx([36, 165, 295], abs=40)
    first_item = (frame.groupby("item")["time"].min() - synthetic.START) / 86400
    assert 0.05 < (first_item > 60).mean() < 0.5


def test_split_has_train_users_in_test():
    arrays, meta = prepare.prepare_frame(synthetic.generate())
    assert meta["num_test_cases"] > 0.8 * 0.05 * meta["num_rows"]
    top = np.argsort(-arrays["item_counts"])[:10]
    tests = np.concatenate(
        [arrays["items"][end:stop] for end, stop in zip(arrays["valid_end"], arrays["user_start"][1:], strict=True)]
    )
    assert 0.03 < np.isin(tests, top).mean() < 0.2  # popularity is worth something, and leaves much to learn


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_rows": 5, "num_users": 10}, "synthetic num_rows is 5; allowed is a number from num_users to"),
        ({"num_users": 0}, "synthetic num_users is 0"),
        ({"num_items": 1}, "synthetic num_items is 1"),
        ({"num_items": 30}, "synthetic num_tastes is 20; allowed is a number from 1 to num_items / 2"),
        ({"follow": 1.5}, "synthetic follow is 1.5"),
        ({"taste": -0.1}, "synthetic taste is -0.1"),
        ({"seed": -1}, "synthetic seed is -1"),
        ({"days": 0.0}, "synthetic days is 0.0"),
    ],
)
def test_bad_settings(change, message, tmp_path):
    settings = SyntheticSettings()._replace(**change)
    with pytest.raises(InputError, match=message):
        synthetic.generate(**settings._asdict())
    with pytest.raises(InputError, match=message):
        synthetic.prepare_synthetic(settings, cache_dir=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_prepared_folder_is_cached(tmp_path):
    settings = SyntheticSettings(num_rows=5_000, num_users=100, num_items=200)
    folder = synthetic.prepare_synthetic(settings, cache_dir=tmp_path)
    stamp = (folder / "meta.json").stat().st_mtime_ns
    assert synthetic.prepare_synthetic(settings, cache_dir=tmp_path) == folder
    assert (folder / "meta.json").stat().st_mtime_ns == stamp
    assert json.loads((folder / "meta.json").read_text())["synthetic"] == settings._asdict()
    assert synthetic.prepare_synthetic(settings._replace(seed=1), cache_dir=tmp_path) != folder


@pytest.mark.parametrize("name", ["s.parquet", "s.csv", "s.tsv", "s.tsv.gz"])
def test_command_writes_a_raw_file(tmp_path, name):
    path = tmp_path / name
    assert synthetic.main(["--rows", "2000", "--users", "50", "--items", "80", "--seed", "7", "--out", str(path)]) == 0
    expected = synthetic.generate(2_000, 50, 80, seed=7)
    read = raw.read(path)
    assert read.to_numpy().tolist() == expected.to_numpy().tolist()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_command_refuses(tmp_path, capsys):
    assert synthetic.main(["--rows", "2000", "--out", str(tmp_path / "s.xlsx")]) == 2
    assert "allowed are names in .parquet" in capsys.readouterr().err
    assert synthetic.main(["--rows", "2000", "--out", str(tmp_path / "none" / "s.csv")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
