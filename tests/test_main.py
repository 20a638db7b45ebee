"""The command line: help, values that arrive, and one line with exit code 2 for whatever is wrong."""

import pathlib
import signal
import subprocess
import sys
import types

import pytest

from jaxneg import main, settings
from jaxneg.errors import InputError
from jaxneg.run import signals

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
QUICKSTART = f"--config={CONFIGS}/quickstart.py"


@pytest.fixture
def experiment(monkeypatch):
    """In place of jaxneg.run.experiment: `calls` holds what run was given; `error`, if set, is what it raises."""
    fake = types.SimpleNamespace(calls=[], error=None, extend=None)

    def run(resolved, workdir, extend, join_hosts):
        fake.calls.append((resolved, workdir))
        fake.extend = extend
        if fake.error:
            raise fake.error

    fake.run = run
    monkeypatch.setitem(sys.modules, "jaxneg.run.experiment", fake)
    monkeypatch.setattr("jaxneg.run.experiment", fake, raising=False)
    return fake


def run_main(*args):
    return main.main(["main.py", *args])


def test_values_reach_the_experiment(experiment):
    code = run_main(
        "--config.seed=7",
        "--config",
        f"{CONFIGS}/beauty.py:mixed",
        "--workdir=out",
        "--config.osf=inf",
        "--config.eval.ks=5,20",
        "--config.reference",
        "--noconfig.loss.count_pads",
        "--config.sampler.num_in_batch",
        "9",
        "--config.data.path=/a b.csv",
        "--config.learning_rate=1",
        "--config.sampler.mixed_exclude=history",
        "--config.optimizer.tensorflow_epsilon=false",
    )
    assert code == 0
    ((resolved, workdir),) = experiment.calls
    assert (workdir, resolved.method, resolved.seed, resolved.osf) == ("out", "mixed", 7, float("inf"))
    assert (resolved.eval.ks, resolved.learning_rate, resolved.sampler.num_in_batch) == ((5, 10, 20), 1.0, 9)
    assert (resolved.data.path, resolved.reference, resolved.sampler.pool) == ("/a b.csv", True, "in_batch")
    assert (resolved.loss.count_pads, resolved.sampler.mixed_exclude) == (False, "history")
    assert (resolved.optimizer.tensorflow_epsilon, resolved.loss.keep_unselected) == (False, True)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], ["--config is needed", "configs/quickstart.py"]),
        (["--config", "--workdir=x"], ["--config is needed"]),
        ([QUICKSTART], ["--workdir is needed"]),
        ([QUICKSTART, "--workdir="], ["--workdir is needed"]),
        ([f"--config={CONFIGS}/ml1.py", "--workdir=x"], ["no file", "ml1.py", "ml1m.py", "quickstart.py"]),
        (
            [QUICKSTART + ":mixd", "--workdir=x"],
            ["unknown method or model 'mixd'", "did you mean 'mixed'", "inverse_popularity"],
        ),
        ([QUICKSTART, "--workdir=x", "--config.batchsize=3"], ["'batchsize'", "did you mean 'batch_size'"]),
        ([QUICKSTART, "--workdir=x", "--config.sampler.num_kep", "3"], ["did you mean 'sampler.num_kept'"]),
        ([QUICKSTART, "--workdir=x", "--config.sampler={}"], ["group of fields", "sampler.scope"]),
        (
            [QUICKSTART, "--workdir=x", "--config.batch_size=many"],
            ["config.batch_size=many", "a whole number, 1 or more"],
        ),
        ([QUICKSTART, "--workdir=x", "--config.batch_size=1.5"], ["config.batch_size=1.5", "a whole number"]),
        ([QUICKSTART, "--workdir=x", "--config.reference=perhaps"], ["config.reference=perhaps", "true or false"]),
        ([QUICKSTART, "--workdir=x", "--config.batch_size=0"], ["config.batch_size=0", "1 or more"]),
        ([QUICKSTART, "--workdir=x", "--config.sampler.num_kept=200"], ["num_kept=200", "pool of 110"]),
        ([QUICKSTART, "--workdir=x", "--config.eval.ks=ten"], ["config.eval.ks=('ten',)", "whole numbers"]),
        ([QUICKSTART, "--workdir=x", "--config.seed"], ["--config.seed"]),
        ([QUICKSTART, "--wrokdir=x"], ["wrokdir", "workdir"]),
        ([QUICKSTART, "--workdir=x", "again"], ["unexpected argument 'again'"]),
    ],
)
def test_bad_flags_get_one_line_and_code_2(args, says, capsys, experiment):
    assert run_main(*args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("jaxneg: ") and err.count("\n") == 1
    for words in says:
        assert words in err
    assert not experiment.calls


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("x = 1\nraise RuntimeError('two\\nlines')\n", "RuntimeError in line 2: two lines"),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError in line 1"),
        (
            "from jaxneg import config\ndef get_config():\n    c = config.base()\n    c.batchsize = 3\n    return c\n",
            'Did you mean "batch_size"',
        ),
        (
            "from jaxneg import config\ndef get_config():\n    c = config.base()\n    c.batch_size = 'x'"
            "\n    return c\n",
            "TypeError in line 4",
        ),
        ("def get_config():\n    return {'seed': 1}\n", "made by jaxneg.config.base()"),
        ("seed = 1\n", "KeyError: get_config"),
    ],
)
def test_a_broken_config_file_gets_one_line(text, says, tmp_path, capsys, experiment):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert run_main(f"--config={path}", "--workdir=x") == 2
    err = capsys.readouterr().err
    assert str(path) in err and says in err and err.count("\n") == 1 and len(err) < 400


def test_input_errors_of_the_run(experiment, capsys):
    experiment.error = InputError("data.path=x.csv: no such file")
    assert run_main(QUICKSTART, "--workdir=x") == 2
    assert capsys.readouterr().err == "jaxneg: data.path=x.csv: no such file\n"


@pytest.mark.parametrize(("args", "extend"), [([], False), (["--extend"], True), (["--noextend"], False)])
def test_extend(experiment, args, extend):
    assert run_main(QUICKSTART, "--workdir=x", *args) == 0
    assert experiment.extend is extend


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_one_line_and_its_code(experiment, capsys, number, code):
    experiment.error = signals.Stopped(number, " after step 7 of 9")
    assert run_main(QUICKSTART, "--workdir=x") == code
    assert capsys.readouterr().err == f"jaxneg: stopped by {number.name} after step 7 of 9\n"


def test_an_interrupt_is_one_line(experiment, capsys):
    experiment.error = KeyboardInterrupt()
    assert run_main(QUICKSTART, "--workdir=x") == 130
    assert capsys.readouterr().err == "jaxneg: interrupted\n"


def test_a_bug_is_not_hidden(experiment):
    experiment.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        run_main(QUICKSTART, "--workdir=x")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_field_method_and_config(flag, capsys):
    assert run_main(QUICKSTART, flag) == 0
    out = capsys.readouterr().out
    for name, field in settings.FIELDS[settings.DEFAULT_MODEL].items():
        line = next(line for line in out.splitlines() if line.startswith(f"  {name}="))
        assert field.text in line
    for model in settings.MODELS:
        own = out[out.rindex(f"own fields for {model}:") :] if model != settings.DEFAULT_MODEL else out
        for name, field in list(settings.of_model(model).items())[1:]:
            assert f"  {name}={field.default!r}" in own and field.text in own
    assert "  batch_size=128 " in out and "  sampler.pool=as reference " in out
    for name in [*settings.METHODS, *settings.MODELS, *settings.LOSSES, *(path.stem for path in CONFIGS.glob("*.py"))]:
        assert f"\n  {name}" in out


def test_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "jaxneg.main", QUICKSTART, "--config.osf=-1", "--workdir=x"],
        capture_output=True,
        text=True,
        cwd=CONFIGS.parent,
    )
    assert (done.returncode, done.stdout) == (2, "")
    allowed = "a number, above 0, or inf (a finite one: 1e6 at most)"
    assert done.stderr == f"jaxneg: config.osf=-1.0 is not allowed: {allowed}\n"
