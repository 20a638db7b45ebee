"""benchmarks/rivals.py: what is not installed is left out with a line, and the turns are counted as they were."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxneg.data import synthetic

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"

LIBRARY = """
import sys, time
sys.path.insert(0, sys.argv[1])
from turns import Turns
turns = Turns()
print("what a library prints must not reach the parent")
turns.describe(["numpy"], [8, 1, turns.settings["negatives"]], "per sequence")
while True:
    time.sleep(0.01)
    if not turns.stepped(1, 8, 0.5):
        break
turns.evaluate(lambda: 20)
"""


@pytest.mark.slow
def test_without_the_other_libraries_jaxneg_is_measured_alone(tmp_path):
    file = tmp_path / "rows.parquet"
    columns = {"user": "SessionId", "item": "ItemId", "time": "Time"}
    synthetic.generate(6_000, 300, 200, seed=0).rename(columns=columns).to_parquet(file)
    nobody = [f"--python={name}=no/such/python" for name in ("rectools", "replay", "recbole")]
    command = [
        sys.executable,
        BENCHMARKS / "rivals.py",
        f"--data={file}",
        *nobody,
        "--lengths=8",
        "--negatives=3",
        "--rounds=1",
        "--seconds=0.01",
        "--warm_up=1",
        "--no_variants",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("rectools", "replay", "recbole"):
        assert f"{name}: not installed, left out (see rivals/{name}.txt)" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("| 8 |")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    training, recommending = rows
    assert training[2:4] == ["jaxneg", "per sequence: 128 x 1 x 3"]
    assert float(training[4].replace(",", "")) > 0
    assert 0 < float(training[6].split(",")[0]) < 2
    assert recommending[1] == "jaxneg" and float(recommending[2].replace(",", "")) > 0


def test_a_turn_holds_whole_steps_and_at_least_the_asked_seconds():
    lines = [json.dumps({"warm_up_steps": 3, "negatives": 5}), "train 0.05", "train 0.001", "evaluate", "end"]
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, BENCHMARKS / "rivals"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    about, long, short, evaluation = map(json.loads, done.stdout.splitlines())
    assert about["negatives"] == [8, 1, 5] and about["versions"] == {"numpy": np.__version__}
    assert long["seconds"] >= 0.05 and 8 <= long["sequences"] <= 8 * 5 and long["loss"] == 0.5
    assert short["sequences"] == 8 and short["seconds"] >= 0.01
    assert evaluation["users"] == 20
    assert "must not reach the parent" in done.stderr


@pytest.mark.parametrize(
    "argument, told",
    [
        ("--python=surprise=python", "'surprise' names no library; allowed are jaxneg, recbole, rectools, replay"),
        ("--rounds=1", "no/such/file"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(argument, told):
    command = [sys.executable, BENCHMARKS / "rivals.py", "--data=no/such/file", argument]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
