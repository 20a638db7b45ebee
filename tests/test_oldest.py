"""The oldest packages that pyproject.toml allows: quickstart and the quick tests, in an environment of their own."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
QUICK = ["tests/samplers", "tests/models", "tests/training", "tests/optim", "tests/evaluation", "tests/test_losses.py"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_lower_bounds_hold(tmp_path):
    """Needs a package index: it installs each direct requirement in the oldest version that is allowed."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "uv"], check=True)
    subprocess.run([tmp_path / "uv" / "bin" / "pip", "install", "--quiet", "uv"], check=True)
    subprocess.run(["git", "clone", "--quiet", ROOT, tmp_path / "jaxneg"], check=True)
    python = tmp_path / "jaxneg" / ".venv" / "bin" / "python"
    uv = tmp_path / "uv" / "bin" / "uv"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, python.parents[1]], check=True)
    oldest = ["--resolution", "lowest-direct", "--python", python, "-e", f"{tmp_path / 'jaxneg'}[test]"]
    subprocess.run([uv, "pip", "install", "--quiet", *oldest], check=True)
    for command in (
        ["-m", "jaxneg.main", "--config=configs/quickstart.py:adaptive_mixed", f"--workdir={tmp_path / 'run'}"],
        ["-m", "pytest", "--quiet", "--numprocesses=2", *QUICK],
    ):
        done = subprocess.run([python, *command], cwd=tmp_path / "jaxneg", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
