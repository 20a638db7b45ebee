"""Checkpoints bring back what was saved, keys included, and never what was damaged."""

import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.errors import InputError
from jaxneg.run import checkpoint


class State(NamedTuple):
    weights: dict
    key: jax.Array
    step: int


def state(step):
    noise = np.random.default_rng(step).normal(size=(20, 30)).astype(np.float32)
    return State({"a": jnp.full((2, 3), step, jnp.float32), "noise": jnp.asarray(noise)}, jax.random.key(step), step)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 2 and 3, of three that were saved."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = checkpoint.Checkpoints(folder, 0.0)
    assert checkpoints.restore(state(0)) is None
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"of": "a run", "at": step})
    checkpoints.close()
    assert checkpoints.count == 3 and checkpoints.seconds > 0
    return folder


def restored(folder):
    checkpoints = checkpoint.Checkpoints(folder, 0.0)
    try:
        return checkpoints.restore(state(0))
    finally:
        checkpoints.close()


def test_the_newest_comes_back(saved):
    tree, about = restored(saved)
    assert isinstance(tree, State)
    assert np.array_equal(tree.weights["a"], np.full((2, 3), 3)) and tree.step == 3
    assert jax.random.uniform(tree.key) == jax.random.uniform(jax.random.key(3))
    assert about == {"of": "a run", "at": 3}
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]  # the last few only


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "gone"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_used(saved, tmp_path, capsys, damage):
    """Each file of the newest checkpoint in turn: what comes back is whole, of step 3 or of step 2."""
    used_before = 0
    for file in files_of(saved / "3"):
        folder = tmp_path / "checkpoints"
        shutil.copytree(saved, folder)
        path = folder / "3" / file
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x5A]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "flipped": flipped}.get(damage, b""))
        if damage == "gone":
            path.unlink()
        tree, about = restored(folder)
        expected = state(about["at"])
        np.testing.assert_array_equal(tree.weights["noise"], expected.weights["noise"])
        np.testing.assert_array_equal(tree.weights["a"], expected.weights["a"])
        assert tree.step == about["at"] and tree.key == expected.key
        warned = capsys.readouterr().err
        assert ("the checkpoint of step 3 is damaged" in warned) == (about["at"] == 2)
        assert warned.count("\n") == (about["at"] == 2)
        used_before += about["at"] == 2
        shutil.rmtree(folder)
    assert used_before >= 2  # at least the arrays and their index; some of orbax's files are not read


def test_every_checkpoint_damaged(saved, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for file in files_of(folder):
        (folder / file).write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint is damaged: remove"):
        restored(folder)


def test_host_and_device_sum_a_large_array_alike():
    array = np.random.default_rng(1).integers(2**32, size=3 * checkpoint.PIECE + 5, dtype=np.uint32)
    assert checkpoint.checksum({"a": array}) == checkpoint.checksum({"a": jnp.asarray(array)})


def test_a_bit_that_differs_changes_the_checksum():
    tree = jax.tree.map(np.asarray, {"a": np.arange(5.0), "b": np.int32(3)})
    other = {"a": np.nextafter(tree["a"], 9), "b": tree["b"]}
    assert checkpoint.checksum(tree) == checkpoint.checksum(dict(tree))
    for changed in (other, tree | {"b": np.int64(3)}, tree | {"a": tree["a"][None]}):
        assert checkpoint.checksum(changed) != checkpoint.checksum(tree)


def test_when_a_save_is_due(tmp_path, monkeypatch):
    clock = [3.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock[0])
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", 5.0)
    clock[0] = 4.0  # the first step is done
    assert not checkpoints.due()
    clock[0] = 4.9
    assert not checkpoints.due()
    clock[0] = 5.1
    assert checkpoints.due()
    checkpoints.save(1, state(1), {})
    checkpoints._manager.wait_until_finished()
    clock[0] = 6.1  # it took one second, so the next is due 20 seconds later
    assert not checkpoints.due()
    clock[0] = 26.0
    assert not checkpoints.due()
    clock[0] = 26.2
    assert checkpoints.due()
    checkpoints.close()
    assert (checkpoints.count, checkpoints.seconds) == (1, pytest.approx(1.0))


FULL_DISK = """
import pathlib, resource, signal, sys
import numpy as np
from jaxneg.errors import InputError
from jaxneg.run import checkpoint

checkpoints = checkpoint.Checkpoints(pathlib.Path(sys.argv[1]), 0.0)
tree = {"a": np.random.default_rng(0).normal(size=100_000)}
checkpoints.save(1, tree, {})
checkpoints._wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, tree, {})
    checkpoints.close()
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_the_last_good(tmp_path):
    folder = tmp_path / "checkpoints"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, folder], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1, done.stderr
    assert "cannot be written" in done.stdout and "File too large" in done.stdout
    assert "the last good one is of step 1" in done.stdout and done.stderr == ""
    assert [path.name for path in folder.iterdir()] == ["1"]  # nothing half-written
    checkpoints = checkpoint.Checkpoints(pathlib.Path(folder), 0.0)
    assert checkpoints.restore({"a": np.zeros(100_000)}) is not None
    checkpoints.close()
