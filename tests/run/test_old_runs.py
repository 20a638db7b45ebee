"""Folders that commit e325983 made, before models and named tables: they stay what they are.

Made by `python -m jaxneg.main` with FLAGS there: `finished` with two seeds, `stopped` with seed 1 and SIGTERM after
step 15 of 24. Of the checkpoints the last one is kept.
"""

import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest

from jaxneg import main
from jaxneg.report import __main__ as report

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = [
    f"--config={ROOT}/configs/quickstart.py:mixed",
    "--config.dataset=old",
    "--config.data.synthetic.num_rows=2000",
    "--config.data.synthetic.num_users=100",
    "--config.data.synthetic.num_items=60",
    "--config.batch_size=16",
    "--config.model.width=4",
    "--config.model.max_len=8",
    "--config.sampler.num_uniform=5",
    "--config.sampler.num_in_batch=5",
    "--config.num_epochs=4",
    "--config.eval_every=2",
    "--config.checkpoint_seconds=0",
    "--config.steps_per_dispatch=3",
]


@pytest.fixture
def old(tmp_path):
    """A copy of the old folders."""
    return pathlib.Path(shutil.copytree(ROOT / "tests" / "old_runs", tmp_path / "old"))


def run(folder, tmp_path, *more):
    return main.main(["main.py", *FLAGS, f"--config.data.cache_dir={tmp_path}/cache", f"--workdir={folder}", *more])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_finished(old, tmp_path, capsys):
    before = contents(old / "finished")
    assert run(old / "finished", tmp_path, "--config.num_seeds=2") == 0
    printed = capsys.readouterr()
    assert "mixed                       2  0.1517" in printed.out and "step/s" not in printed.err
    assert contents(old / "finished") == before


def test_more_seeds_join_those_that_are_there(old, tmp_path):
    assert run(old / "finished", tmp_path, "--config.num_seeds=3", "--extend") == 0
    before, after = (pd.read_csv(path / "finished" / "results.csv") for path in (ROOT / "tests" / "old_runs", old))
    pd.testing.assert_frame_equal(before, after[before.columns].iloc[:2])
    assert after["seed"].tolist() == [0, 1, 2]
    with np.load(ROOT / "tests" / "old_runs" / "finished" / "model.npz") as file:
        table = file["item_table"]
    with np.load(old / "finished" / "model.npz") as file:
        np.testing.assert_array_equal(file["tables/item"][:2], table)
        assert file["seed"].tolist() == [0, 1, 2] and file["network/positions"].shape == (3, 8, 4)


@pytest.mark.parametrize(
    "name, more", [("stopped", ["--config.seed=1"]), ("finished", ["--config.num_seeds=2", "--config.num_epochs=6"])]
)
def test_old_checkpoints_are_refused_in_one_line(name, more, old, tmp_path, capsys):
    before = contents(old / name)
    assert run(old / name, tmp_path, *more, "--extend") == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith(f"jaxneg: {old / name}/checkpoints/") and "checkpoints of an older layout" in last
    assert contents(old / name) == before


def test_old_and_new_runs_are_one_variant(old, tmp_path):
    """Also where the new one is streamed, which changes no number."""
    assert run(old / "new", tmp_path, "--config.seed=7", "--config.data.stream=on") == 0
    shutil.rmtree(old / "stopped")
    report.write([old], tmp_path)
    table = pd.read_csv(tmp_path / "report.csv")
    assert set(table["variant"]) == {"mixed"}
    assert set(table.loc[table["metric"] == "ndcg@10", "n"]) == {3}
