"""Models: each is one file of this folder, with its `Settings` and `make(settings, num_items)`."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxneg.errors import InputError

PARTS = ("__init__", "base", "layers", "objectives")  # what models are made of
NAMES = tuple(sorted(path.stem for path in pathlib.Path(__file__).parent.glob("*.py") if path.stem not in PARTS))


def make(name: str, settings: Mapping[str, Any], num_items: int) -> Any:
    """The `base.Model` of that name for items 1..num_items; what `settings` lacks is at its default.

    Raises InputError for an unknown name and for settings that the model does not have.
    """
    if name not in NAMES:
        raise InputError(f"model.name is {name!r}; allowed: {', '.join(NAMES)}")
    module = importlib.import_module(f"{__name__}.{name}")
    unknown = sorted(settings.keys() - set(module.Settings._fields))
    if unknown:
        raise InputError(f"{name} has no model.{unknown[0]}; it has {', '.join(module.Settings._fields)}")
    return module.make(module.Settings(**settings), num_items)
