"""What every test runs under: the CPU, no silent broadcasting of ranks, and shapes checked as annotated."""

import atexit
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# In the environment, so that the subprocesses of tests have them too; before JAX is imported, which reads them then.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

# Tests run each program once or twice: what they wait for is the compiler, up to five times less without optimisations.
QUICK_COMPILER = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
]


def known(xla_flags: str) -> bool:
    """Whether this XLA knows the flags: it stops the process at one that it does not know."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(start, env=os.environ | {"XLA_FLAGS": xla_flags}, capture_output=True).returncode == 0


if "XLA_FLAGS" not in os.environ:
    tried = [" ".join(QUICK_COMPILER), " ".join(QUICK_COMPILER[:2])]
    os.environ["XLA_FLAGS"] = next((xla_flags for xla_flags in tried if known(xla_flags)), "")

# A program that several tests run is compiled once, whichever process it is in: the first one makes the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxneg-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

CHECKED = ["jaxneg.samplers", "jaxneg.losses", "jaxneg.evaluation.metrics", "jaxneg.models"]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")
pytest.register_assert_rewrite("refusals")  # whose asserts tell what they saw, as those of a test do


@pytest.fixture
def public_folder():
    """A folder that every user may enter: the parents of pytest's own are closed."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real files: NAME/NAME_full.tsv.gz. Without JAXNEG_DATA the test is skipped."""
    if not os.environ.get("JAXNEG_DATA"):
        pytest.skip("JAXNEG_DATA is not set: it names the folder with the real files")
    return pathlib.Path(os.environ["JAXNEG_DATA"])
