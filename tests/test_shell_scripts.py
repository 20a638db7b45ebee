"""Every shell script, and the one that launch/slurm.py writes, passes shellcheck; every yaml file can be read."""

import pathlib
import runpy
import shutil
import subprocess
import sysconfig
import types

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = [path for pattern in ("launch/*.sh", "benchmarks/*.sh", ".ci/run") for path in sorted(ROOT.glob(pattern))]
YAML = sorted(ROOT.glob("launch/*.yaml"))


def shellcheck(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
    """With all that it knows, followed into sourced files."""
    program = shutil.which("shellcheck", path=sysconfig.get_path("scripts")) or shutil.which("shellcheck")
    return subprocess.run(
        [program, "--external-sources", "--shell=bash", *arguments],
        input=text,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path):
    done = shellcheck(str(path))
    assert done.returncode == 0, done.stdout


def test_shellcheck_of_the_script_for_slurm(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    slurm = types.SimpleNamespace(**runpy.run_path(str(ROOT / "launch/slurm.py")))
    for more in (
        [],
        [
            "--nodes=2",
            "--gpus-per-node=8",
            "--cpus-per-task=4",
            "--time=1-00",
            "--at-once=3",
            "--setup=module load cuda",
            "--config.data.path=it's here.csv",
        ],
    ):
        assert slurm.main(["slurm.py", f"--config={ROOT}/configs/ml1m.py", "--workdir=a b", *more]) == 0
        done = shellcheck("-", text=capsys.readouterr().out)
        assert done.returncode == 0, done.stdout


def test_shellcheck_of_the_script_for_gke():
    jobset = yaml.safe_load((ROOT / "launch/gke_jobset.yaml").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    *shell, script = pod["containers"][0]["command"]
    done = shellcheck("-", text=script)
    assert shell == ["bash", "-c"] and done.returncode == 0, done.stdout


def test_shellcheck_finds_what_is_wrong():
    assert "SC2086" in shellcheck("-", text="rm $1\n").stdout


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml(path):
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))
