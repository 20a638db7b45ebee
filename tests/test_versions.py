"""Versions are told without JAX, recorded with a run, and an older record that lacks one is not another run's."""

import json
import subprocess
import sys

import flax
import jax
import jaxlib
import numpy as np
import optax
import pytest

import jaxneg
from jaxneg import main, versions
from jaxneg.errors import InputError
from jaxneg.run import workdir

RECORD = {"config": {"method": "mixed"}, "data": {"fingerprint": "f"}}


def test_they_are_those_of_the_modules():
    found = versions.versions()
    for module in (jax, jaxlib, flax, optax, np, jaxneg):
        assert found[module.__name__] == module.__version__
    assert found["python"] == sys.version.split()[0]


def test_the_flag_prints_them_without_jax():
    code = "import sys; from jaxneg import main; main.main(['main.py', '--version']); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    for version in (jax.__version__, jaxlib.__version__, jaxneg.__version__, sys.version.split()[0]):
        assert version in done.stdout


def test_a_version_that_an_older_record_lacks_is_not_a_changed_one(tmp_path):
    before = {name: version for name, version in versions.versions().items() if name != "jaxlib"}
    (tmp_path / "config.json").write_text(json.dumps(RECORD | {"versions": before, "device": "d"}))
    record = RECORD | {"versions": versions.versions(), "device": "d"}
    assert workdir.compare_record(tmp_path, record, extend=False) == []
    (tmp_path / "config.json").write_text(json.dumps(RECORD | {"versions": before | {"jax": "0.1"}, "device": "d"}))
    assert workdir.compare_record(tmp_path, record, extend=False) == [f"jax was 0.1 and is {jax.__version__}"]


@pytest.mark.parametrize(
    "jaxlib_version, fits", [("0.8.0", False), ("0.7.2", False), ("0.8.1", True), ("0.12.0.1", True)]
)
def test_a_jaxlib_that_does_not_work_is_named_when_a_run_starts(jaxlib_version, fits, monkeypatch, capsys, tmp_path):
    real = versions.importlib.metadata.version
    monkeypatch.setattr(
        versions.importlib.metadata, "version", lambda name: jaxlib_version if name == "jaxlib" else real(name)
    )
    if fits:
        versions.refuse_bad_jaxlib()
        return
    with pytest.raises(InputError, match=f"jaxlib {jaxlib_version} is too old"):
        versions.refuse_bad_jaxlib()
    assert main.main(["main.py", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
