"""launch/slurm.py: the script that it writes, run with stand-ins for SLURM's own commands; no SLURM is needed."""

import os
import pathlib
import runpy
import signal
import stat
import subprocess
import sys
import time
import types

import pytest

ROOT = pathlib.Path(__file__).parent.parent
QUICK = f"--config={ROOT}/configs/quickstart.py"


@pytest.fixture
def slurm(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    return types.SimpleNamespace(**runpy.run_path(str(ROOT / "launch/slurm.py")))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder on PATH for commands; what they are called with is in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def add(name: str, does: str):
        file = folder / name
        file.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{tmp_path}/calls\n{does}\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    def calls(name: str = "") -> list[str]:
        lines = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return [line for line in lines if line.startswith(name)]

    return types.SimpleNamespace(add=add, calls=calls)


def script_of(slurm, capsys, *arguments: str) -> str:
    assert slurm.main(["slurm.py", QUICK, *arguments]) == 0
    return capsys.readouterr().out


def options_of(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_a_task_for_each_data_set_and_method(slurm, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = script_of(
        slurm,
        capsys,
        f"--config={ROOT}/configs/beauty.py",
        "--methods=uniform,mixed",
        "--workdir=a b",
        "--beauty.data.path=my file.csv",
        "--time=1-08:00:00",
        "--partition=gpu",
        "--account=me",
        "--gpus-per-node=4",
        "--cpus-per-task=8",
        "--at-once=2",
        "--sbatch=--mem=64G",
        "--setup=module load cuda",
        "--python=/env/bin/python",
    )
    assert options_of(script) == [
        "--job-name=jaxneg",
        "--array=0-3%2",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=8",
        "--time=1-08:00:00",
        "--partition=gpu",
        "--account=me",
        "--requeue",
        "--signal=B:USR1@300",
        "--open-mode=append",
        f"--output='{tmp_path}/a b/slurm/%A_%a.log'",
        "--mem=64G",
    ]
    beauty = "'--config.data.path=my file.csv' '--workdir=a b/beauty/mixed') ;;"
    assert f"  3) run=(/env/bin/python -m jaxneg.main --config={ROOT}/configs/beauty.py:mixed {beauty}" in script
    assert "\nmodule load cuda\n" in script and "srun --kill-on-bad-exit=1 --cpus-per-task=8 " in script
    assert "--multihost" not in script  # one process uses all GPUs of its node
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "tasks", "multihost"),
    [
        ((), 1, False),
        (("--gpus-per-node=4",), 1, False),
        (("--nodes=2",), 1, True),
        (("--nodes=2", "--gpus-per-node=4"), 4, True),
        (("--nodes=2", "--gpus-per-node=4", "--tasks-per-node=1"), 1, True),
        (("--tasks-per-node=2",), 2, True),
    ],
)
def test_multihost_where_a_run_has_several_processes(slurm, capsys, arguments, tasks, multihost):
    script = script_of(slurm, capsys, "--methods=uniform", "--workdir=x", *arguments)
    assert f"--ntasks-per-node={tasks}" in options_of(script)
    assert ("/uniform --multihost) ;;" in script) == multihost


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--time=soon"], "--time: 'soon' is no time limit"),
        (["--time=5", "--notice=300"], "--time=5 leaves no time to train before the notice: more than 300 s"),
        (["--notice=70000"], "--notice: '70000' is not a whole number from 1 to 65535"),
        (["--nodes=0"], "--nodes: '0' is not a whole number from 1"),
        (["--gpus-per-node=many"], "--gpus-per-node: 'many' is not a whole number from 0"),
        (["--partition=a b"], "--partition: 'a b' is no name"),
        (["--sbatch=mem=3"], "--sbatch: 'mem=3' is no option of sbatch"),
        (["--setup=a\nb"], "is not one line of text"),
        (["--metods=uniform"], "unexpected argument '--metods=uniform'"),
        (["--methods=mixd"], "did you mean 'mixed'"),
        (["--submit"], "there is no sbatch on PATH"),
    ],
)
def test_bad_input_is_one_line(slurm, arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.main(["slurm.py", QUICK, "--workdir=x", *arguments]) == 2
    out, error = capsys.readouterr()
    line = error.splitlines()[-1]
    assert out == "" and line.startswith("jaxneg: ") and says in line and "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("limit", "in_seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("8:00:00", 28800),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-00:00:05", 172805),
    ],
)
def test_time_limits(slurm, limit, in_seconds):
    assert slurm.seconds(limit) == in_seconds


def test_submit(slurm, cluster, capsys, tmp_path):
    cluster.add("sbatch", 'echo "4711;cluster"')
    command = ["slurm.py", QUICK, "--methods=uniform", f"--workdir={tmp_path}/study", "--submit"]
    assert slurm.main(command) == 0
    out, error = capsys.readouterr()
    file = tmp_path / "study/slurm/study.sh"
    assert out == "4711\n" and cluster.calls() == [f"sbatch --parsable {file}"]
    assert "--array=0-0" in options_of(file.read_text()) and "jaxneg.report" in error and "4711_TASK.log" in error
    cluster.add("sbatch", "echo 'error: invalid partition' >&2; exit 1")
    assert slurm.main(command) == 1
    assert "sbatch refused" in (told := capsys.readouterr().err) and "error: invalid partition\n" in told


def test_finished_runs_are_left_out(slurm, capsys, monkeypatch):
    monkeypatch.setattr(slurm.study, "is_finished", lambda run: run.folder.name == "uniform")
    script = script_of(slurm, capsys, "--methods=uniform,mixed", "--workdir=x")
    assert "--array=0-0" in options_of(script) and "quickstart.py:mixed" in script
    assert script_of(slurm, capsys, "--methods=uniform", "--workdir=x") == ""


def start(slurm, capsys, cluster, tmp_path, run: str) -> subprocess.Popen:
    """The script that SLURM would start, with `run`, lines of bash, in place of the Python that trains."""
    python = cluster.add("fake_python", run)
    return start_task(slurm, capsys, cluster, tmp_path, "--workdir=x", f"--python={python}", "--retries=1")


def start_task(slurm, capsys, cluster, tmp_path, *arguments: str) -> subprocess.Popen:
    """The second task of an array over uniform and mixed."""
    cluster.add("srun", f'while [[ $1 == --* ]]; do shift; done; echo $$ >{tmp_path}/pid; exec "$@"')
    cluster.add("scontrol", "")
    (tmp_path / "study.sh").write_text(script_of(slurm, capsys, "--methods=uniform,mixed", *arguments))
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77"}
    return subprocess.Popen(["bash", str(tmp_path / "study.sh")], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("run", "tries", "code"), [("exit 0", 1, 0), ("exit 2", 1, 2), ("exit 7", 2, 7)])
def test_what_fails_is_tried_again_but_not_bad_input(slurm, cluster, capsys, tmp_path, run, tries, code):
    with start(slurm, capsys, cluster, tmp_path, run) as process:
        error = process.communicate(timeout=60)[1]
    assert process.returncode == code and len(cluster.calls("fake_python")) == tries
    assert all("quickstart.py:mixed" in call for call in cluster.calls("fake_python"))
    assert ("goes on from the last checkpoint" in error) == (tries > 1) and not cluster.calls("scontrol")


def test_a_run_that_fails_as_its_time_ends_is_queued_again(slurm, cluster, capsys, tmp_path):
    cluster.add("scancel", "exit 1")  # there is no step any more
    with start(slurm, capsys, cluster, tmp_path, "kill -USR1 $PPID; exit 7") as process:
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "out of time" in error and len(cluster.calls("fake_python")) == 1
    assert cluster.calls("scontrol") == ["scontrol requeue 77"]


TRAINS = """trap 'sleep 0.2; touch {folder}/saved; exit {code}' TERM
touch {folder}/begun
while true; do sleep 0.05; done"""


@pytest.mark.parametrize(("code", "queued_again"), [(143, True), (0, False)])
def test_out_of_time_it_saves_and_is_queued_again(slurm, cluster, capsys, tmp_path, code, queued_again):
    """A run that comes to its end all the same, code 0, is not."""
    cluster.add("scancel", f'kill -TERM "$(cat {tmp_path}/pid)"')
    with start(slurm, capsys, cluster, tmp_path, TRAINS.format(folder=tmp_path, code=code)) as process:
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=60)
    assert process.returncode == 0 and (tmp_path / "saved").exists()
    assert cluster.calls("scancel") == ["scancel --signal=TERM 77"] and len(cluster.calls("fake_python")) == 1
    assert cluster.calls("scontrol") == ["scontrol requeue 77"] * queued_again


@pytest.mark.slow
def test_a_real_run_saves_is_queued_again_and_goes_on(slurm, cluster, capsys, tmp_path):
    cluster.add("scancel", f'kill -TERM "$(cat {tmp_path}/pid)"')
    small = {
        "num_epochs": 200,
        "eval_every": 100,
        "batch_size": 32,
        "model.width": 8,
        "model.max_len": 10,
        "steps_per_dispatch": 20,
        "data.synthetic.num_rows": 3000,
        "data.synthetic.num_users": 150,
        "data.synthetic.num_items": 200,
        "data.cache_dir": tmp_path / "cache",
    }
    arguments = [f"--workdir={tmp_path}/study", *(f"--config.{name}={value}" for name, value in small.items())]
    folder = tmp_path / "study/quickstart/mixed"
    with start_task(slurm, capsys, cluster, tmp_path, *arguments) as process:
        while not list(folder.glob("checkpoints/*/*")):  # it trains
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        error = process.communicate(timeout=300)[1]
    assert process.returncode == 0 and cluster.calls("scontrol") == ["scontrol requeue 77"]
    assert "stopped by SIGTERM" in error and not (folder / "results.csv").exists()
    with start_task(slurm, capsys, cluster, tmp_path, *arguments) as process:
        process.communicate(timeout=600)
    assert process.returncode == 0 and (folder / "results.csv").exists() and len(cluster.calls("scontrol")) == 1


def test_help_and_no_jax_in_the_launcher():
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch/slurm.py"), "--help"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert done.returncode == 0 and "--gpus-per-node=N" in done.stdout and "| jax\n" not in done.stderr
