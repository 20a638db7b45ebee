"""The cache's own business: leftovers of processes that died, processes that live, and a race between them."""

import functools
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from jaxneg.data import prepare, store

# Another process that prepares: it tells when it is in the middle of it, and then waits.
PREPARE = """
import sys
import numpy as np, pandas as pd
from jaxneg.data import prepare, store
write = store._write
def slowly(folder, arrays, meta):
    np.save(folder / "items.npy", np.zeros(9))
    print("preparing", flush=True)
    sys.stdin.readline()
    write(folder, arrays, meta)
store._write = slowly
n = np.arange(90)
build = lambda: prepare.prepare_frame(pd.DataFrame({"user": n % 5, "item": n % 7, "time": n}))
print(store.cached(sys.argv[1], "n", {"of": sys.argv[2]}, build), flush=True)
"""


@pytest.fixture
def other(tmp_path):
    """Starts other processes that prepare data of a key in `tmp_path`, and are in the middle of it."""
    started = []

    def start(key: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", PREPARE, tmp_path, key], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "preparing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def build():
    n = np.arange(90)
    return prepare.prepare_frame(pd.DataFrame({"user": n % 5, "item": n % 7, "time": n}))


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(tmp_path, other):
    dead, living = other("a"), other("b")
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 4 and all(name.startswith(".n-") for name in left)  # a folder and its lock, of each
    folder = store.cached(tmp_path, "n", {"of": "c"}, build)
    assert len(os.listdir(tmp_path)) == 3  # this folder, and what the living process has
    living.stdin.write("\n")
    living.stdin.flush()
    theirs = living.stdout.readline().strip()
    assert sorted(map(str, tmp_path.iterdir())) == sorted([theirs, str(folder)])
    assert living.wait() == 0
    for path in tmp_path.iterdir():
        store.read(path)


def test_two_living_processes_that_prepare_the_same_data_both_succeed(tmp_path, other):
    one, two = other("a"), other("a")
    folders = set()
    for process in (one, two):
        process.stdin.write("\n")
        process.stdin.flush()
        folders.add(process.stdout.readline().strip())
        assert process.wait() == 0
    assert folders == {str(path) for path in tmp_path.iterdir()} and len(folders) == 1


def test_a_broken_folder_that_was_moved_away_goes_with_its_lock(tmp_path, other):
    """A process killed while it replaces a damaged folder leaves that one, too."""
    dead = other("a")
    dead.kill()
    dead.wait()
    (lock,) = tmp_path.glob(".*.lock")
    lock.with_suffix(".broken").mkdir()
    (lock.with_suffix(".broken") / "items.npy").touch()
    assert len(os.listdir(tmp_path)) == 3
    store.cached(tmp_path, "n", {"of": "b"}, build)
    assert len(os.listdir(tmp_path)) == 1


def test_only_our_own_leftovers_are_removed(tmp_path):
    """The cache may be any folder of the user's."""
    names = [".profile", ".git", "n-0123456789abcdef", ".n-0123456789abcdef", ".lock", ".n-x.0123456789abcdef.lock"]
    for name in names:
        (tmp_path / name).mkdir() if name == ".git" else (tmp_path / name).touch()
    folder = store.cached(tmp_path, "n", {}, build)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, folder.name])


def test_a_lock_taken_for_a_leftover_is_taken_anew(tmp_path, monkeypatch):
    """Another process finds the lock file after it is made and before it is locked, and removes it."""
    locked, flock = [], store.fcntl.flock

    def late(file, how):
        if not locked:
            os.unlink(file.name)
        locked.append(file.name)
        flock(file, how)

    monkeypatch.setattr(store.fcntl, "flock", late)
    folder = store.cached(tmp_path, "n", {}, build)
    assert len(locked) == 2 and locked[0] != locked[1] and os.listdir(tmp_path) == [folder.name]


def test_a_file_system_without_locks_keeps_what_it_cannot_tell(tmp_path, monkeypatch, other):
    dead = other("a")
    dead.kill()
    dead.wait()

    def refuse(file, how):
        raise OSError("no locks here")

    monkeypatch.setattr(store.fcntl, "flock", refuse)
    store.cached(tmp_path, "n", {"of": "b"}, build)
    assert len(os.listdir(tmp_path)) == 3


def test_verifying_is_cheap(tmp_path):
    """10 million rows, 120 MB, take well under a second; 1 million, a tenth of that. CPU time, with room to spare."""
    rows = 1_000_000
    frame = pd.DataFrame({"user": np.arange(rows) % 20_000, "item": np.arange(rows) % 5003, "time": np.arange(rows)})
    folder = store.cached(tmp_path, "n", {}, functools.partial(prepare.prepare_frame, frame))
    start = os.times()
    store.read(folder)
    end = os.times()
    assert end.user + end.system - start.user - start.system < 0.3
