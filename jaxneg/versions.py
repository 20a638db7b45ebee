"""The versions that a result depends on, told without importing what they are of."""

import importlib.metadata
import platform
import re

import jaxneg
from jaxneg.errors import InputError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
OLDEST_JAXLIB = "0.8.1"  # earlier ones do not know an option that the CPU's programs are compiled with


def versions() -> dict[str, str]:
    """{name: version} of Python, of the packages, and of jaxneg itself."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | packages | {"jaxneg": jaxneg.__version__}


def in_words() -> str:
    """What `--version` prints."""
    found = versions()
    return f"jaxneg {found['jaxneg']} (jax {found['jax']}, jaxlib {found['jaxlib']}, Python {found['python']})"


def refuse_bad_jaxlib() -> None:
    """Raises InputError for a jaxlib that is known not to work."""
    found = versions()["jaxlib"]
    if _numbers(found) < _numbers(OLDEST_JAXLIB):
        raise InputError(f"jaxlib {found} is too old for jaxneg: pip install 'jax>={OLDEST_JAXLIB}'")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
