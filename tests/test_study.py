"""launch/study.py: what it plans, skips, runs and says, with processes that take no time; one real study is slow."""

import json
import pathlib
import runpy
import signal
import subprocess
import sys
import time
import types

import made_runs
import pytest

from jaxneg.run import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
study = types.SimpleNamespace(**runpy.run_path(str(ROOT / "launch/study.py")))
QUICK, BEAUTY = f"--config={ROOT}/configs/quickstart.py", f"--config={ROOT}/configs/beauty.py"


def test_a_plan_has_every_config_method_and_osf(tmp_path):
    workdir, runs = study.plan(
        [
            QUICK,
            BEAUTY,
            "--methods=uniform,mixed",
            "--osf=1,inf",
            f"--workdir={tmp_path}",
            "--config.num_seeds=3",
            "--beauty.data.path=a b.csv",
        ]
    )
    assert workdir == tmp_path and len(runs) == 8
    assert [run.name for run in runs[:3]] == [
        "quickstart uniform OSF 1",
        "quickstart uniform OSF inf",
        "quickstart mixed OSF 1",
    ]
    assert runs[0].folder == tmp_path / "quickstart/uniform/osf_1"
    assert (runs[1].settings["osf"], runs[0].settings["osf"]) == (None, 1.0)  # as JSON has them
    assert all(run.settings["num_seeds"] == 3 for run in runs)
    assert runs[-1].settings["data.path"] == "a b.csv" and runs[0].settings["data.path"] == ""
    assert runs[-1].command[1:] == (
        "-m",
        "jaxneg.main",
        f"{BEAUTY}:mixed",
        "--config.num_seeds=3",
        "--config.data.path=a b.csv",
        "--config.osf=inf",
        f"--workdir={tmp_path}/beauty/mixed/osf_inf",
    )


def test_methods_by_group(tmp_path):
    for text, names in (("all", config_lib.METHODS), ("paper", config_lib.PAPER_METHODS), ("mixed, uniform", "mu")):
        runs = study.plan([QUICK, f"--methods={text}", f"--workdir={tmp_path}"])[1]
        assert len(runs) == len(names)
    assert len(study.plan([QUICK, f"--workdir={tmp_path}"])[1]) == len(config_lib.METHODS)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--workdir=x"], "--config is needed"),
        ([QUICK], "--workdir is needed"),
        ([QUICK, "--workdir=x", "--workdir=y"], "--workdir is given 2 times"),
        ([QUICK, "--workdir=x", "--methods=mixd"], "did you mean 'mixed'"),
        ([QUICK, "--workdir=x", "--methods=mixed,,uniform"], "unknown method \"''\""),
        ([QUICK, "--workdir=x", "--methods=mixed,mixed"], "quickstart mixed is named twice"),
        ([QUICK + ":mixed", "--workdir=x"], "name the methods with --methods"),
        ([QUICK, "--workdir=x", "--config.method=mixed", "--methods=uniform"], "name the methods with --methods"),
        ([QUICK, "--workdir=x", "--osf=1,-3"], "'-3' is not above 0"),
        ([QUICK, "--workdir=x", "--osf=some"], "'some' is not above 0"),
        ([QUICK, "--workdir=x", "--config.batchsize=3"], "did you mean 'batch_size'"),
        ([QUICK, "--workdir=x", "--config.batch_size=0"], "config.batch_size=0 is not allowed"),
        ([QUICK, "--workdir=x", "--beauty.seed=3"], "names no config of this study: config, quickstart"),
        ([QUICK, "--workdir=x", "again"], "unexpected argument 'again'"),
        ([QUICK, "--workdir=x", "--method=mixed"], "unexpected argument '--method=mixed'"),
        ([f"--config={ROOT}/configs/none.py", "--workdir=x"], "there is no file"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(args, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study.main(["study.py", *args]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("jaxneg: ") and error.count("\n") == 1 and says in error
    assert not list(tmp_path.iterdir())


def planned(workdir, methods="uniform,mixed,in_batch"):
    return study.plan([QUICK, f"--methods={methods}", f"--workdir={workdir}", "--config.num_seeds=2"])[1]


def finish(run):
    """Makes the files of that run, as if it had just ended."""
    method = run.folder.name
    made_runs.write_run(run.folder, run.dataset, method, num_seeds=2)
    record = made_runs.read_config(run.folder)
    (run.folder / "config.json").write_text(json.dumps(record | {"config": run.settings}))


@pytest.fixture
def processes(monkeypatch):
    """In place of the real processes: `codes` {method: exit code}; `started` lists the methods; 0 makes the files."""
    fake = types.SimpleNamespace(codes={}, started=[])

    class Process:
        def __init__(self, command, process_group):
            self.folder = pathlib.Path(command[-1].removeprefix("--workdir="))
            fake.started.append(self.folder.name)

        def wait(self):
            code = fake.codes.get(self.folder.name, 0)
            if code == 0:
                finish(next(run for run in planned(self.folder.parent.parent) if run.folder == self.folder))
            return code

    monkeypatch.setitem(study.run_all.__globals__, "subprocess", types.SimpleNamespace(Popen=Process))
    return fake


def test_finished_runs_are_skipped_and_failed_ones_tried_again(tmp_path, processes, capsys):
    processes.codes = {"mixed": -signal.SIGKILL}
    command = ["study.py", QUICK, "--methods=uniform,mixed,in_batch", f"--workdir={tmp_path}", "--config.num_seeds=2"]
    assert study.main(command) == 1
    assert processes.started == ["uniform", "mixed", "in_batch"]
    out, error = capsys.readouterr()
    assert "[1/3] quickstart uniform: starts; 0 s so far, time left not known before the first run is done" in error
    assert "[3/3] quickstart in_batch: starts; 0 s so far, about" in error
    assert "quickstart mixed failed (killed by SIGKILL, perhaps for its memory); this runs it alone: " in error
    assert "2 of 3 runs are finished" in error and "1 of 3 runs failed" in error
    assert "report.html" in out and "2 finished runs" in (tmp_path / "report.md").read_text()
    processes.codes, processes.started[:] = {}, []
    assert study.main(command) == 0 and processes.started == ["mixed"]
    assert capsys.readouterr().err.count("already finished") == 2
    assert "3 finished runs" in (tmp_path / "report.md").read_text()


def test_nothing_finished_gives_no_report(tmp_path, processes):
    processes.codes = {"uniform": 2}
    assert study.main(["study.py", QUICK, "--methods=uniform", f"--workdir={tmp_path}", "--config.num_seeds=2"]) == 1
    assert not (tmp_path / "report.md").exists()


def test_other_settings_are_not_taken_for_finished(tmp_path):
    """The run itself then says what differs."""
    run, *_ = planned(tmp_path)
    assert not study.is_finished(run)
    finish(run)
    assert study.is_finished(run)
    assert not study.is_finished(run._replace(settings=run.settings | {"num_epochs": 3}))
    assert study.past_seconds(run) == 2 * (12.5 + 1.5)
    (run.folder / "config.json").write_text("{")
    assert not study.is_finished(run)


def test_time_left_is_by_data_set(tmp_path):
    runs = study.plan([QUICK, BEAUTY, "--methods=uniform,mixed", f"--workdir={tmp_path}"])[1]
    known = {"quickstart uniform": 60.0}
    assert study.time_left(runs[1:], runs, known) == "about 3 min left"
    assert study.time_left(runs[3:], runs, known | {"beauty uniform": 7200.0}) == "about 2 h 00 min left"


STOPPED = """
import pathlib, runpy, sys
study = runpy.run_path(sys.argv[1])
child = "import pathlib, signal, sys, time\\n" \\
        "def stop(number, frame): pathlib.Path(sys.argv[1] + '.got').write_text(str(number)); sys.exit(143)\\n" \\
        "signal.signal(signal.SIGTERM, stop)\\n" \\
        "pathlib.Path(sys.argv[1] + '.begun').touch()\\n" \\
        "time.sleep(600)\\n"
folder = pathlib.Path(sys.argv[2])
runs = [study["Run"]("toy", name, folder / name, (sys.executable, "-c", child, str(folder / name)), {})
        for name in "ab"]
study["main"].__globals__["plan"] = lambda arguments: (folder, runs)
sys.exit(study["main"](["study.py"]))
"""


def test_a_signal_goes_on_to_the_run_and_stops_the_study(tmp_path):
    command = [sys.executable, "-c", STOPPED, str(ROOT / "launch/study.py"), str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            until = time.monotonic() + 300  # far more than a start takes on a busy machine
            while not (tmp_path / "a.begun").exists():
                assert time.monotonic() < until and process.poll() is None
                time.sleep(0.05)
            process.terminate()
            error = process.communicate(timeout=300)[1]
        finally:
            process.kill()
    assert process.returncode == 143 and "stopped; the same command goes on from here" in error
    assert (tmp_path / "a.got").read_text() == str(int(signal.SIGTERM)) and not (tmp_path / "b.begun").exists()


def test_help_and_no_jax_in_the_launcher():
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch/study.py"), "--help"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"},
    )
    assert done.returncode == 0 and "--osf=LIST" in done.stdout and "Exit codes: 0" in done.stdout
    assert "jaxneg.report" in done.stderr and "| jax\n" not in done.stderr


@pytest.mark.slow
def test_a_real_study(tmp_path):
    small = {
        "num_epochs": 4,
        "eval_every": 2,
        "batch_size": 32,
        "model.width": 8,
        "model.max_len": 10,
        "num_seeds": 2,
        "data.synthetic.num_rows": 3000,
        "data.synthetic.num_users": 150,
        "data.synthetic.num_items": 80,
        "data.cache_dir": tmp_path / "cache",
    }
    command = [
        sys.executable,
        "launch/study.py",
        QUICK,
        "--methods=uniform",
        "--osf=1,inf",
        f"--workdir={tmp_path}/study",
        *(f"--config.{name}={value}" for name, value in small.items()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "study/report.md").read_text()
    assert "osf_quickstart.png" in text and "curves_quickstart.png" in text and "popularity_quickstart.png" in text
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0 and again.stderr.count("already finished") == 2
