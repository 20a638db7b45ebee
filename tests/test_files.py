"""Files that appear whole or not at all, and rows that only grow."""

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from jaxneg import files
from jaxneg.errors import InputError


def test_json_has_null_for_what_is_not_finite(tmp_path):
    files.write_json(tmp_path / "a.json", {"x": np.float64("nan"), "y": (math.inf, np.int32(3)), "z": {"w": 0.1}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [None, 3], "z": {"w": 0.1}}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(TypeError):
        files.write_json(path, object())
    assert path.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_rows_grow_and_unwanted_ones_go_with_a_line_cut_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.read_rows(path) == []
    files.keep_rows(path, lambda row: False)
    assert not path.exists()
    files.append_rows(path, [{"a": 1, "b": 0.1}])
    files.append_rows(path, [{"a": 2, "b": math.nan}, {"a": 3, "b": 1e-300}])
    before = path.read_text()
    path.write_text(before + '{"a": 4')
    assert [row["a"] for row in files.read_rows(path)] == [1, 2, 3]
    files.keep_rows(path, lambda row: True)
    assert path.read_text() == before
    files.keep_rows(path, lambda row: row["a"] != 2)
    assert path.read_text() == "".join(before.splitlines(keepends=True)[::2])
    path.write_text('{"a": 1\n{"a": 2}\n')
    with pytest.raises(InputError, match="line 1 is not JSON"):
        files.read_rows(path)


@pytest.mark.parametrize("damage", [b"", b"PK", b"no zip at all", "cut"])
def test_damaged_arrays_are_told_of(tmp_path, damage):
    path = tmp_path / "a.npz"
    files.write_arrays(path, x=np.arange(1000))
    assert files.read_arrays(path)["x"].sum() == 499500
    path.write_bytes(path.read_bytes()[:700] if damage == "cut" else damage)
    with pytest.raises(InputError, match=r"a\.npz is damaged"):
        files.read_arrays(path)


def test_a_folder_is_for_one_process(tmp_path):
    claim = "import sys; from jaxneg import files\nwith files.claimed(sys.argv[1]): pass"
    other = [sys.executable, "-c", claim, tmp_path]
    with files.claimed(tmp_path):
        refused = subprocess.run(other, capture_output=True, text=True)
    assert f"workdir {tmp_path} is in use by another process" in refused.stderr
    assert subprocess.run(other, capture_output=True).returncode == 0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "number, words", [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system")]
)
def test_a_disk_that_turns_full_is_one_line(tmp_path, number, words):
    with pytest.raises(InputError, match=f"cannot be written any more .{words}"), files.claimed(tmp_path):
        raise OSError(number, os.strerror(number))


def test_arrays_need_no_pickle(tmp_path):
    files.write_arrays(tmp_path / "a.npz", x=np.arange(3))
    assert np.load(tmp_path / "a.npz", allow_pickle=False)["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError):
        files.write_arrays(tmp_path / "b.npz", x=np.array([object()]))
    assert os.listdir(tmp_path) == ["a.npz"]


@pytest.mark.parametrize("make", ["file", "below a file"])
def test_a_workdir_that_cannot_be_one(tmp_path, make):
    (tmp_path / "taken").touch()
    path = tmp_path / "taken" if make == "file" else tmp_path / "taken" / "below"
    with pytest.raises(InputError, match="taken.*cannot be written"), files.claimed(path):
        pass


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_workdir_that_no_file_system_takes(tmp_path, name):
    with pytest.raises(InputError, match="cannot be written") as refused, files.claimed(tmp_path / name):
        pass
    assert len(str(refused.value)) < 300 and str(refused.value).isprintable()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", None])
def test_json_that_is_none_is_told_of(tmp_path, content):
    path = tmp_path / "config.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match="config.json is not JSON"):
        files.read_json(path)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_pickle_is_loaded(tmp_path):
    np.savez(tmp_path / "cases.npz", x=np.array([Trap(tmp_path / "sprung")], dtype=object))
    with pytest.raises(InputError, match="cases.npz is damaged"):
        files.read_arrays(tmp_path / "cases.npz")
    assert not (tmp_path / "sprung").exists()


def test_a_workdir_in_which_nothing_was_done_is_unmade(tmp_path):
    for name in ("empty", "used"):
        with pytest.raises(InputError, match="why"), files.claimed(tmp_path / name) as folder:
            if name == "used":
                (folder / "file").touch()
            raise InputError("why")
    assert os.listdir(tmp_path) == ["used"]
