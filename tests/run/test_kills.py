"""Whatever moment SIGKILL comes at, the run ends as one that was left alone."""

import signal
import subprocess

import kills
import pytest


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_two_kills(cache, tmp_path):
    """One while a checkpoint is written, one just after rows were."""
    others = {"num_epochs": 24, "eval_every": 4}
    kills.survive(tmp_path / "alone", cache, [("never", 0.0)], **others)
    happened = kills.survive(tmp_path / "killed", cache, [("checkpoint", 0.0), ("rows", 0.0)], **others)
    assert happened["kills"] == 2 and happened["killed_while"].keys() == {"checkpoint", "rows"}
    assert kills.same(tmp_path / "killed", tmp_path / "alone")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_process_told_to_stop_says_so_in_one_line(cache, tmp_path, number):
    """And a second process in its folder is refused while it works."""
    command = kills.command(tmp_path / "run", cache, num_epochs=100_000)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not kills.activity(tmp_path / "run", 0) == "checkpoint":
        assert process.poll() is None, process.stderr.read()
    second = subprocess.run(command, capture_output=True, text=True)
    assert (second.returncode, second.stderr.count("\n")) == (2, 1)
    assert "is in use by another process" in second.stderr
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"jaxneg: stopped by {number.name} after step") and "is saved" in last
    assert "Traceback" not in err


@pytest.mark.slow
def test_many_kills(cache, tmp_path):
    others = {"num_epochs": 1000, "eval_every": 25}
    kills.survive(tmp_path / "alone", cache, [("never", 0.0)], **others)
    waits = [(kills.MOMENTS[i % 3], 3.0 + i % 7) for i in range(24)]
    assert kills.survive(tmp_path / "killed", cache, waits, **others)["kills"] >= 20
    assert kills.same(tmp_path / "killed", tmp_path / "alone")
