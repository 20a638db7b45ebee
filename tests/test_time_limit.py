"""A test that hangs in native code, as a compiler may, is ended, and is a failure."""

import pathlib
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent

HANGS = """
import ctypes

def test_hangs():
    ctypes.CDLL(None).poll(None, 0, 600_000)  # releases the interpreter, as XLA does while it compiles
"""


@pytest.mark.parametrize("workers", [[], ["--numprocesses=1"]])
def test_a_hang_in_native_code_fails(workers, tmp_path):
    """With the settings of pyproject.toml, but for the limit."""
    (tmp_path / "test_hangs.py").write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, "--timeout=3"]
    begun = time.monotonic()
    done = subprocess.run([*command, *workers, tmp_path], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode != 0 and time.monotonic() - begun < 100
    told = done.stdout + done.stderr
    assert "Timeout" in told or "crashed while running" in told, told
