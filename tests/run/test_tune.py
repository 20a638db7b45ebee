"""The search: its values are those of real runs, it resumes, and the configs take what it finds."""

import json
import math
import pathlib
import runpy
import shutil
import sys
import types

import pandas as pd
import pytest

import jaxneg.run
from jaxneg import main
from jaxneg.data import dataset as data
from jaxneg.errors import InputError
from jaxneg.run import config as config_lib
from jaxneg.run import experiment, tune, tuned

REPOSITORY = pathlib.Path(__file__).parents[2]
launcher = types.SimpleNamespace(**runpy.run_path(str(REPOSITORY / "launch/tune.py")))
SMALL = {
    "dataset": "small",
    "batch_size": 32,
    "num_epochs": 12,
    "eval_every": 6,
    "model.width": 8,
    "model.num_blocks": 1,
    "model.max_len": 10,
    "data.format": "synthetic",
    "data.synthetic.num_rows": 3000,
    "data.synthetic.num_users": 150,
    "data.synthetic.num_items": 80,
    "sampler.num_uniform": 4,
}
TRIED = tune.CHOICES | {
    "batch_size": (32, 64),
    "sampler.num_uniform": (4, 8),
    "sampler.num_in_batch": (4,),
    "sampler.num_kept": (2, 10),
    "learning_rate": (1e-3, 1e-2),
    "model.dropout": (0.2, 0.5),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def small(cache, method="uniform", **others):
    settings = SMALL | {"data.cache_dir": str(cache)} | {name.replace("__", "."): x for name, x in others.items()}
    return config_lib.resolve(config_lib.use_method(config_lib.base(), method, settings))


def test_a_points_value_is_that_of_a_run_alone(cache, tmp_path):
    """The second of two points, in one program with the first, against a run of those settings and that seed."""
    config = small(cache)
    prepared = data.load(experiment.prepare_data(config))
    values = tune.validation_hit_rates(
        config,
        {"osf": 3.0},
        prepared,
        [{"learning_rate": 1e-4, "model.dropout": 0.5}, {"learning_rate": 1e-2, "model.dropout": 0.2}],
    )
    alone = small(cache, seed=tune.ROOT, learning_rate=1e-2, model__dropout=0.2, osf=3.0)
    experiment.run(alone, tmp_path)
    row = pd.read_csv(tmp_path / "results.csv").squeeze()
    assert values[1] == pytest.approx(row["valid_hr@10"], abs=1.5 / row["valid_cases"])  # one case may fall otherwise
    assert values[0] < values[1]


@pytest.fixture
def score(monkeypatch):
    """In place of training: a value for each point; `score.calls` lists the shapes."""
    fake = types.SimpleNamespace(calls=[], error=None)

    def rates(config, shape, prepared, points):
        fake.calls.append(shape)
        if fake.error:
            raise fake.error
        size = 0.1 * (shape["batch_size"] == 64) + 0.01 * math.isinf(shape["osf"])
        return [size + point["learning_rate"] + 0.001 * point["model.dropout"] for point in points]

    monkeypatch.setattr(tune, "validation_hit_rates", rates)
    return fake


def test_a_search_finds_the_best_and_goes_on_where_it_stopped(cache, tmp_path, score, capsys):
    found = tune.search(small(cache), tmp_path, 4, TRIED)
    assert found["trials"] == 4 and found["repeats"] == 1
    begun = len(score.calls)
    score.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        while True:
            tune.search(small(cache), tmp_path, 1000, TRIED)
    score.error = None
    found = tune.search(small(cache), tmp_path, 60, TRIED)
    assert found["trials"] == 60 and begun <= 4
    distinct = {tuple(sorted(shape.items())) for shape in score.calls[:begun] + score.calls[begun + 1 :]}
    assert len(distinct) == len(score.calls) - 1  # a shape is never trained twice
    assert found["combinations"] >= 4 * len(distinct)
    assert found["settings"]["batch_size"] == 64 and found["settings"]["learning_rate"] == 1e-2
    assert math.isinf(found["settings"]["osf"]) and found["settings"]["model.dropout"] == 0.5
    assert set(found["settings"]) == {"batch_size", "osf", "sampler.num_uniform", "learning_rate", "model.dropout"}
    score.calls.clear()
    assert tune.search(small(cache), tmp_path, 60, TRIED) == found and not score.calls
    assert "60 of 60 trials, best validation HR@10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "tried", "words"),
    [
        ({"num_epochs": 13}, {}, "num_epochs was 12 and is 13"),
        ({}, {"batch_size": (16,)}, "values of batch_size was [32, 64] and is [16]"),
        ({"data__synthetic__seed": 1}, {}, "data fingerprint was"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(cache, tmp_path, score, others, tried, words):
    tune.search(small(cache), tmp_path, 1, TRIED)
    with pytest.raises(InputError, match="holds another search") as refused:
        tune.search(small(cache, **others), tmp_path, 1, TRIED | tried)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_what_cannot_be_drawn_is_not_tried(cache, tmp_path, score):
    space = tune.search_space(small(cache, "adaptive_mixed"), 80, tune.CHOICES)
    assert space["sampler.num_uniform"] == (5, 10, 50) and "sampler.num_popularity" not in space
    assert tune.search_space(small(cache, "popularity"), 80, TRIED).keys() >= {"sampler.num_popularity"}
    with pytest.raises(InputError, match="more than the 80 items"):
        tune.search_space(small(cache), 80, TRIED | {"sampler.num_uniform": (100, 200)})
    with pytest.raises(InputError, match="more than is ever drawn"):
        tune.search_space(small(cache, "adaptive", sampler__num_kept=2), 80, TRIED | {"sampler.num_kept": (50,)})
    tune.search(small(cache, "adaptive_mixed", sampler__num_in_batch=4, sampler__num_kept=2), tmp_path, 20, TRIED)
    assert {(shape["sampler.num_uniform"], shape["sampler.num_kept"]) for shape in score.calls} <= {
        (4, 2),
        (8, 2),
        (8, 10),
    }  # never 10 of 8


def test_configs_take_the_tuned_settings(tmp_path):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("tuned"))
    source = tmp_path / "configs/beauty.py"
    path = tuned.tuned_file(source, "beauty")
    assert path == tmp_path / "configs/tuned/beauty.json"
    settings = {
        "batch_size": 256,
        "learning_rate": 1e-2,
        "model.dropout": 0.5,
        "osf": math.inf,
        "sampler.num_uniform": 7,
    }
    tune.write_tuned(path, "beauty", "uniform", {"settings": settings, "valid_hr@10": 0.1})
    tune.write_tuned(path, "beauty", "mixed", {"settings": {"batch_size": 64}, "valid_hr@10": 0.1})
    tune.write_tuned(path, "beauty", "mixed", {"settings": {"batch_size": 32}, "valid_hr@10": 0.2})
    assert set(json.loads(path.read_text())["methods"]) == {"uniform", "mixed"}

    def load(method, *flags):
        return main.parse_flags(["main", f"--config={source}:{method}", "--workdir=x", *flags])[0]

    found = load("uniform")
    assert {name: config_lib.flatten(found)[name] for name in settings} == settings
    assert load("uniform", "--config.batch_size=16").batch_size == 16  # a flag wins
    assert (load("mixed").batch_size, load("mixed").learning_rate) == (32, 1e-3)  # the rest is the paper's
    assert (load("in_batch").batch_size, load("in_batch").osf) == (128, 30.0)
    for broken in ("{", "[]", '{"methods": {"uniform": 3}}'):
        path.write_text(broken)
        with pytest.raises(InputError, match="is not a file of tuned settings"):
            load("uniform")
        if broken != '{"methods": {"uniform": 3}}':
            with pytest.raises(InputError, match="move it away"):
                tune.write_tuned(path, "beauty", "mixed", {"settings": {}})


def test_the_command_writes_the_file_that_the_config_reads(cache, tmp_path, score, capsys):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("tuned"))
    flags = [
        f"--config.{name}={value}" for name, value in SMALL.items() if name not in ("batch_size", "sampler.num_uniform")
    ]
    command = [
        "tune.py",
        f"--config={tmp_path}/configs/quickstart.py",
        "--methods=uniform,mixed",
        "--trials=2",
        f"--workdir={tmp_path}/work",
        f"--config.data.cache_dir={cache}",
        *flags,
        "--try.batch_size=64",
        "--try.learning_rate=1e-3,1e-2",
    ]
    assert launcher.main(command) == 0
    written = json.loads((tmp_path / "configs/tuned/quickstart.json").read_text())["methods"]
    assert set(written) == {"uniform", "mixed"} and written["mixed"]["settings"]["batch_size"] == 64
    resolved = main.parse_flags(["main", f"--config={tmp_path}/configs/quickstart.py:mixed", "--workdir=x"])[0]
    assert resolved.batch_size == 64 and resolved.learning_rate == 1e-2
    assert (tmp_path / "work/small/mixed/optuna.jsonl").exists()
    score.error = KeyboardInterrupt()
    assert launcher.main([*command, "--trials=9"]) == 130


QUICK = f"--config={REPOSITORY}/configs/quickstart.py"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "--config is needed"),
        ([QUICK], "--workdir is needed"),
        ([QUICK, "--workdir=x", "--trials=0"], "--trials=0 is not allowed"),
        ([QUICK, "--workdir=x", "--trials"], "expected one argument"),
        ([QUICK, "--workdir=x", "--methods=mixd"], "did you mean 'mixed'"),
        ([QUICK + ":mixed", "--workdir=x"], "name the methods with --methods"),
        ([QUICK, "--workdir=x", "--config.batch_size=64"], "--try.batch_size=VALUE fixes it"),
        ([QUICK, "--workdir=x", "--try.batch_size=64,none"], "'none' is not a whole number, 1 or more"),
        ([QUICK, "--workdir=x", "--try.batch_size=0"], "'0' is not a whole number, 1 or more"),
        ([QUICK, "--workdir=x", "--try.model.width=8"], "model.width is not searched"),
        ([QUICK, "--workdir=x", "--try.nonsense=8"], "no field 'nonsense'"),
        ([QUICK, "--workdir=x", "again"], "unexpected argument 'again'"),
    ],
)
def test_bad_flags_are_one_line(args, says, capsys):
    assert launcher.main(["tune.py", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxneg: ") and error.count("\n") == 1 and says in error


def test_without_optuna(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "jaxneg.run.tune")
    monkeypatch.delattr(jaxneg.run, "tune")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert launcher.main(["tune.py", QUICK, "--workdir=x"]) == 2
    assert capsys.readouterr().err == (
        "jaxneg: launch/tune.py needs optuna, which is not installed: pip install -e '.[tune]'\n"
    )
