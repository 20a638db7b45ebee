"""Several hosts: two processes on this machine, joined by JAX's own distributed runtime."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxneg import main
from jaxneg.devices import hosts
from jaxneg.errors import InputError

REPOSITORY = pathlib.Path(__file__).parents[2]
SETTINGS = {
    "num_seeds": 1,
    "num_epochs": 30,
    "eval_every": 10,
    "batch_size": 32,
    "steps_per_dispatch": 2,
    "checkpoint_seconds": 1,
    "data.synthetic.num_users": 600,
    "data.synthetic.num_rows": 12_000,
    "data.synthetic.num_items": 300,
    "model.width": 16,
    "model.num_blocks": 1,
    "model.max_len": 10,
    "optimizer.item_table": "sparse",
}


def command(folder, cache, *more):
    settings = SETTINGS | {"data.cache_dir": cache}
    return [
        sys.executable,
        "-m",
        "jaxneg.main",
        "--config=configs/quickstart.py:mixed",
        f"--workdir={folder}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
        *more,
    ]


def start_two(folder, cache, *more):
    """Two processes of one run; each one's output goes to a file of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    for number in range(2):
        joining = ["--multihost", f"--coordinator={coordinator}", "--num_processes=2", f"--process_id={number}"]
        with open(folder.with_suffix(f".{number}"), "w") as log:
            processes.append(
                subprocess.Popen(
                    command(folder, cache, *more, *joining), cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT
                )
            )
    return processes


def steps_saved(folder):
    return {int(path.name) for path in folder.glob("checkpoints/seeds_0_0/*") if path.name.isdigit()}


def wait_for_save(folder, processes, after=frozenset()):
    """Waits until a checkpoint is there that was not there before."""
    for _ in range(1200):
        if steps_saved(folder) - after:
            return
        assert all(process.poll() is None for process in processes), output(folder)
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


def output(folder):
    return [folder.with_suffix(f".{number}").read_text()[-2000:] for number in range(2)]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_hosts_train_die_resume_and_end_as_one_does(tmp_path):
    """Host 1 is killed; both start again, and are stopped by a signal to host 1; one process goes on to the end."""
    cache, folder, alone = tmp_path / "cache", tmp_path / "two", tmp_path / "one"
    done = subprocess.run(command(alone, cache), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    first = start_two(folder, cache, "--config.mesh.data=2")
    wait_for_save(folder, first)
    first[1].kill()
    first[1].wait()
    assert first[0].wait(timeout=120) == hosts.LOST_HOST, output(folder)
    told = folder.with_suffix(".0").read_text().splitlines()[-1]
    assert told.startswith("jaxneg: host 0 of 2 lost another host") and "goes on" in told
    assert not (folder / "results.csv").exists()

    saved = steps_saved(folder)
    second = start_two(folder, cache, "--config.mesh.model=2")  # another layout, too
    wait_for_save(folder, second, after=saved)
    second[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in second] == [143, 143], output(folder)
    assert "resuming after step" in folder.with_suffix(".0").read_text()
    assert "resuming" not in folder.with_suffix(".1").read_text()  # the first host speaks for all

    last = subprocess.run(command(folder, cache), cwd=REPOSITORY, capture_output=True, text=True)
    assert last.returncode == 0 and "resuming after step" in last.stderr, last.stderr
    mine, theirs = rows(folder), rows(alone)
    assert [(row["epoch"], row["split"], row["cohort"]) for row in mine] == [
        (row["epoch"], row["split"], row["cohort"]) for row in theirs
    ]
    losses = [np.array([row["loss"] for row in run]) for run in (mine, theirs)]
    first = [run[:4] for run in losses]  # of 180 steps, the first on two hosts: other draws would differ by percents
    np.testing.assert_allclose(*first, rtol=1e-5)
    np.testing.assert_allclose(*losses, rtol=1e-3)
    for split in ("valid", "test"):
        rates = [
            np.array([row["hr@10"] for row in run if (row["split"], row["cohort"]) == (split, "all")])
            for run in (mine, theirs)
        ]
        np.testing.assert_allclose(*rates, atol=0.02)  # a seed's own spread here


def test_hosts_that_do_not_come_are_told_of():
    with pytest.raises(InputError, match="--coordinator, --num_processes and --process_id go together"):
        main.take_host_flags(["x", "--multihost", "--process_id=0"])
    with pytest.raises(InputError, match="--process_id=2 must be below --num_processes=2"):
        main.take_host_flags(["x", "--multihost", "--coordinator=a:1", "--num_processes=2", "--process_id=2"])
    with pytest.raises(InputError, match="--process_id goes with --multihost only"):
        main.take_host_flags(["x", "--process_id=0"])
    for wrong in ("--coordinator=host", "--num_processes=two", "--process_id=-1", "--coordinator="):
        with pytest.raises(InputError, match=f"{wrong} is not allowed"):
            main.take_host_flags(["x", "--multihost", wrong])
    assert main.take_host_flags(["x", "--multihost", "--workdir=d"]) == (["x", "--workdir=d"], {})
    assert main.take_host_flags(["x", "--workdir=d"]) == (["x", "--workdir=d"], None)


def test_what_no_cluster_tells_is_asked_for():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxneg.main", "--config=configs/quickstart.py", "--workdir=unused", "--multihost"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "the hosts can not be joined" in done.stderr and "--coordinator=HOST:PORT" in done.stderr
