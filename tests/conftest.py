"""What every test runs under: the CPU, no silent broadcasting of ranks, and shapes checked as annotated."""

import os
import pathlib

# In the environment, so that the subprocesses of tests have them too; before JAX is imported, which reads them then.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import jaxtyping
import pytest

CHECKED = ["jaxneg.samplers", "jaxneg.losses", "jaxneg.metrics", "jaxneg.models"]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real files: NAME/NAME_full.tsv.gz. Without JAXNEG_DATA the test is skipped."""
    if not os.environ.get("JAXNEG_DATA"):
        pytest.skip("JAXNEG_DATA is not set: it names the folder with the real files")
    return pathlib.Path(os.environ["JAXNEG_DATA"])
