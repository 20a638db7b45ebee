"""The benchmark of a large catalogue, from end to end at a tiny size."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import large  # noqa: E402


def test_the_generated_rows_have_every_item_and_whole_users(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "PART_USERS", 20)  # in several parts
    path = tmp_path / "rows.parquet"
    large.generate(path, num_items=300, num_rows=5000)
    rows = pd.read_parquet(path)
    lengths = rows.groupby("user").size()
    assert 5000 <= len(rows) < 5000 + large.ROWS_PER_USER[1]
    assert lengths.between(*large.ROWS_PER_USER).all() and rows["user"].is_monotonic_increasing
    assert lengths.index.tolist() == list(range(1, len(lengths) + 1))
    counts = np.bincount(rows["item"], minlength=301)
    assert counts[0] == 0 and (counts[1:] > 0).all() and counts.max() > 20 * counts.mean()
    assert (rows.groupby("user")["time"].apply(lambda times: times.is_monotonic_increasing)).all()


@pytest.mark.slow
def test_all_stages(tmp_path):
    sizes = {
        "items": 300,
        "rows": 6000,
        "small_items": 300,
        "width": 4,
        "length": 5,
        "batch": 16,
        "steps": 100,
        "users": 10,
    }
    out = tmp_path / "large.json"
    command = [sys.executable, ROOT / "benchmarks" / "large.py", *(f"--{name}={size}" for name, size in sizes.items())]
    subprocess.run([*command, "--stream=on", f"--folder={tmp_path}", f"--json={out}"], check=True)
    generate, prepare, train, evaluate = json.loads(out.read_text())["stages"]
    assert [stage["stage"] for stage in (generate, prepare, train, evaluate)] == list(large.STAGES)
    assert prepare["num_items"] == train["items"] == 300 and prepare["num_rows"] <= 6100
    assert train["steps"] == 100 and train["streamed"] is True and train["loss"] < 1.386
    assert evaluate["users"] == 10 and 0 < evaluate["median_rank"] < 300 and evaluate["hr@10"] > 10 / 300
    assert min(stage["peak_gib"] for stage in (prepare, train, evaluate)) > 0.1
    assert list(tmp_path.iterdir()) == [out]  # its files are gone
