"""launch/tpu_vm.sh: the commands that it prints and runs, with a stand-in for gcloud; no TPU is needed."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TPU_VM = ["bash", str(ROOT / "launch/tpu_vm.sh"), "--name=jx", "--zone=us-west4-a"]
TRAIN = ["python", "-m", "jaxneg.main", "--config=configs/quickstart.py:mixed", "--config.dataset=a b"]
GCLOUD = """#!/usr/bin/env python3
import json, os, sys, shutil, time
folder = os.environ["CALLS"]
number = len([name for name in os.listdir(folder) if name.endswith(".json")])
json.dump(sys.argv[1:], open(f"{folder}/{number:03}.json", "w"))
if sys.argv[4] == "scp" and sys.argv[5].endswith(".gz"):
    shutil.copy(sys.argv[5], f"{folder}/packed.tar.gz")
if os.environ.get("WAITS") == sys.argv[4]:
    time.sleep(60)
sys.exit(sys.argv[4] in os.environ.get("FAILS", "").split())
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A gcloud on PATH that keeps what it is called with."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "calls").mkdir()
    (tmp_path / "bin/gcloud").write_text(GCLOUD)
    (tmp_path / "bin/gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for folder in ("launch", ".git", "runs/old", ".venv/bin", "jaxneg/runs"):
        (tmp_path / "checkout" / folder).mkdir(parents=True)
        (tmp_path / "checkout" / folder / "file").touch()
    shutil.copy(ROOT / "launch/setup.sh", tmp_path / "checkout/launch")

    def calls() -> list[list[str]]:
        return [json.loads(path.read_text()) for path in sorted((tmp_path / "calls").glob("*.json"))]

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [*TPU_VM, f"--repo={tmp_path}/checkout", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    return types.SimpleNamespace(run=run, calls=calls, verbs=lambda: [call[3] for call in calls()], folder=tmp_path)


def test_without_yes_nothing_is_called(cloud):
    done = cloud.run("--delete", "--", *TRAIN)
    assert done.returncode == 0 and cloud.calls() == [] and done.stdout.startswith("# nothing is done; --yes")
    # Beside the comment and gcloud's commands in one line each, only what prepares them here.
    printed = [shlex.split(line)[1] for line in done.stdout.splitlines()[1:] if line.startswith("+ ")]
    assert printed == ["gcloud", "tar", "gcloud", "rm", "gcloud", "gcloud", "mkdir", "gcloud", "gcloud"]
    assert not (cloud.folder / "jaxneg-jx.tar.gz").exists()


def test_all_steps(cloud, tmp_path):
    repo = tmp_path / "checkout"
    done = cloud.run(
        "--yes", "--delete", "--type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot", "--project=mine", "--", *TRAIN
    )
    assert done.returncode == 0, done.stderr
    where = ["--zone=us-west4-a", "--project=mine"]
    tpu_vm = ["compute", "tpus", "tpu-vm"]
    create, copy, install, train, fetch, delete = cloud.calls()
    made = ["--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot"]
    assert create == [*tpu_vm, "create", "jx", *where, *made]
    assert copy == [*tpu_vm, "scp", f"{tmp_path}/jaxneg-jx.tar.gz", "jx:jaxneg.tar.gz", *where, "--worker=all"]
    assert install[:-1] == train[:-1] == [*tpu_vm, "ssh", "jx", *where, "--worker=all"]
    assert "source launch/setup.sh; setup_jaxneg tpu" in install[-1]
    assert train[-1].startswith("--command=cd jaxneg && source .venv/bin/activate && ")
    assert shlex.split(train[-1].rpartition("&& ")[2]) == TRAIN
    assert fetch == [*tpu_vm, "scp", "--recurse", "jx:jaxneg/runs/*", f"{repo}/runs", *where, "--worker=0"]
    assert delete == [*tpu_vm, "delete", "jx", *where, "--quiet"]
    with tarfile.open(cloud.folder / "calls/packed.tar.gz") as packed:
        names = {name for name in packed.getnames() if name.endswith("file")}
    assert names == {"./launch/file", "./jaxneg/runs/file"} and not (tmp_path / "jaxneg-jx.tar.gz").exists()


def test_what_the_hosts_run_is_sound_bash(cloud):
    assert cloud.run("--yes", "install", "run", "--", *TRAIN).returncode == 0
    commands = [call[-1].removeprefix("--command=") for call in cloud.calls() if call[3] == "ssh"]
    assert len(commands) == 2
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0


@pytest.mark.parametrize(
    ("steps", "fails", "verbs", "code"),
    [
        (["--delete"], "ssh", ["create", "scp", "ssh", "delete"], 1),
        ([], "ssh", ["create", "scp", "ssh"], 1),
        (["--delete"], "create", ["create"], 1),  # it may be another's
        (["--delete", "run"], "ssh", ["ssh", "delete"], 1),
        (["--retries=2", "run"], "ssh", ["ssh", "ssh", "ssh"], 1),
        (["run", "delete", "--delete"], "", ["ssh", "delete"], 0),
        (["delete"], "", ["delete"], 0),
    ],
)
def test_it_ends_where_a_step_fails_and_deletes_if_asked_to(cloud, monkeypatch, steps, fails, verbs, code):
    monkeypatch.setenv("FAILS", fails)
    assert cloud.run("--yes", *steps, "--", *TRAIN).returncode == code
    assert cloud.verbs() == verbs


def test_stopped_by_a_signal_it_deletes(cloud, monkeypatch):
    monkeypatch.setenv("WAITS", "ssh")
    with subprocess.Popen(
        [*TPU_VM, "--yes", "--delete", "run", "--", *TRAIN], start_new_session=True, stdout=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 60
        while cloud.verbs() != ["ssh"]:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)  # as a terminal does
        process.wait(timeout=60)
    assert process.returncode == 143 and cloud.verbs() == ["ssh", "delete"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name="], "--name is empty"),
        (["--name=A_b"], "--name=A_b: small letters"),
        (["--retries=x"], "--retries=x is not a whole number"),
        (["--results=../x"], "--results=../x is no folder in the checkout"),
        (["--repo=/nowhere"], "--repo=/nowhere is no checkout"),
        (["creat"], "unexpected argument 'creat'"),
        (["run"], "what is to be run comes after --"),
        (["--yes"], "what is to be run comes after --"),
    ],
)
def test_bad_input_is_one_line(cloud, arguments, says):
    done = cloud.run(*arguments)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and says in done.stderr
    assert cloud.calls() == []


def test_no_gcloud(tmp_path):
    """With a PATH of its own, so that a real one is never called."""
    for tool in ("bash", "dirname", "sed"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    for arguments, code in ((["--yes", "delete"], 2), (["delete"], 0)):
        done = subprocess.run([*TPU_VM, *arguments], capture_output=True, text=True, env={"PATH": str(tmp_path)})
        assert done.returncode == code and ("there is no gcloud on PATH" in done.stderr) == (code == 2)


def test_help(cloud):
    done = cloud.run("--help")
    assert done.returncode == 0 and "--type=TYPE" in done.stdout and "set -euo" not in done.stdout
    assert not any(line.startswith("#") for line in done.stdout.splitlines())
