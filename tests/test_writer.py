"""Files that appear whole or not at all, and rows that only grow."""

import json
import math
import os

import numpy as np
import pytest

from jaxneg import writer
from jaxneg.errors import InputError


def test_json_has_null_for_what_is_not_finite(tmp_path):
    writer.write_json(tmp_path / "a.json", {"x": np.float64("nan"), "y": (math.inf, np.int32(3)), "z": {"w": 0.1}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [None, 3], "z": {"w": 0.1}}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    writer.write_json(path, 1)
    with pytest.raises(TypeError):
        writer.write_json(path, object())
    assert path.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_rows_grow_and_are_cut_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    size = writer.append_rows(path, [{"a": 1}])
    assert writer.append_rows(path, [{"a": 2}]) == 2 * size
    writer.cut(path, size)
    assert path.read_text() == '{"a": 1}\n'


def test_arrays_need_no_pickle(tmp_path):
    writer.write_arrays(tmp_path / "a.npz", x=np.arange(3))
    assert np.load(tmp_path / "a.npz", allow_pickle=False)["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError):
        writer.write_arrays(tmp_path / "b.npz", x=np.array([object()]))
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("make", ["file", "below a file"])
def test_a_workdir_that_cannot_be_one(tmp_path, make):
    (tmp_path / "taken").touch()
    path = tmp_path / "taken" if make == "file" else tmp_path / "taken" / "below"
    with pytest.raises(InputError, match="taken.*cannot be written"), writer.claimed(path):
        pass


def test_a_workdir_in_which_nothing_was_done_is_unmade(tmp_path):
    for name in ("empty", "used"):
        with pytest.raises(InputError, match="why"), writer.claimed(tmp_path / name) as folder:
            if name == "used":
                (folder / "file").touch()
            raise InputError("why")
    assert os.listdir(tmp_path) == ["used"]
