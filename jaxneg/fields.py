"""One setting: its type, its default, what it may hold, and what it means; a component's `Settings` is made of them.

A component (a model, the samplers, the losses, the data) writes each of its settings once, as a field of a NamedTuple:

    class Settings(NamedTuple):
        width: Annotated[int, at_least(1, 10**4), "width of the embeddings and of every layer"] = 50

`declared` reads them from the source file. Nothing here imports JAX, so `--help` and a refused flag are quick.
"""

import ast
import math
import pathlib
import re
import typing
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a field may hold: words for the message, and the test of a value of the right type."""

    text: str
    holds: Callable[[Any], bool]


class Release(NamedTuple):
    """A default that the code released with arXiv 2410.17276 has another value of."""

    value: Any


class Field(NamedTuple):
    """One config field, with its default value here."""

    default: Any
    kind: type
    rule: Rule
    text: str
    release: Release | None = None  # the released code's default: the field is unset, and follows `reference`
    changes_result: bool = True  # False: it says where or how a run works, and its numbers stay the same


def at_least(low: float, high: float = 2**31 - 1) -> Rule:
    """From `low` to `high`, which is beyond what makes sense: it keeps a slip from exhausting the machine."""
    return Rule(f"{low} or more, {high} at most", lambda value: low <= value <= high)


def up_to(high: float) -> Rule:
    """From 0 to `high`."""
    return Rule(f"0 or more, {high} at most", lambda value: 0 <= value <= high)


def one_of(*names: str) -> Rule:
    """One of these names."""
    return Rule("one of " + ", ".join(names), lambda value: value in names)


def each(text: str, holds: Callable[[Any], bool]) -> Rule:
    """One value or more, for each of which `holds` is true."""
    return Rule(text, lambda values: len(values) > 0 and all(holds(value) for value in values))


def is_number(value: Any) -> bool:
    """Whether the value is a whole or a real number, and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


ANY = Rule("any value", lambda value: True)
POSITIVE = Rule("finite and above 0 (from 1e-30 to 1e30)", lambda value: 1e-30 <= value <= 1e30)  # float32 holds it
NOT_NEGATIVE = Rule("finite and 0 or more (1e30 at most)", lambda value: 0 <= value <= 1e30)
FRACTION = Rule("above 0 and below 1", lambda value: 0 < value < 1)
BELOW_ONE = Rule("0 or more and below 1", lambda value: 0 <= value < 1)
SHARES = Rule(
    "numbers above 0, at most 1, as in (0.01, 0.1)",
    lambda values: all(is_number(value) and 0 < value <= 1 for value in values),
)
OR_ENDLESS = Rule("above 0, or inf (a finite one: 1e6 at most)", lambda value: 0 < value <= 1e6 or value == math.inf)
KS = each(
    "whole numbers of 1 or more, 1000000 at most, as in (5, 10)",
    lambda value: type(value) is int and 1 <= value <= 10**6,
)
NAME = Rule(
    "1 to 60 letters, digits, '_', '-' and '.', the first one a letter, a digit or '_'",
    lambda value: re.fullmatch(r"\w[\w.-]{0,59}", value) is not None,
)
FROM_0_TO_1 = Rule("from 0 to 1", lambda value: 0 <= value <= 1)


def each_of_once(names: typing.Collection[str], example: str) -> Rule:
    """Some of these names, each once."""
    text = f"some of {', '.join(names)}, each once, as in {example}"
    return Rule(text, lambda values: 0 < len(values) == len(set(values)) and all(value in names for value in values))


def read_names(path: pathlib.Path, *names: str) -> dict[str, Any]:
    """What a source file assigns to some of its top-level names, or the classes so named, without importing it.

    They may refer to each other, in their order, and to what this module has; so a file that needs JAX tells its
    settings to a program that does not wait for JAX.
    """
    body = [node for node in ast.parse(path.read_text()).body if _names_of(node) & set(names)]
    namespace = globals() | {"Annotated": typing.Annotated}
    exec(compile(ast.Module(body, []), str(path), "exec"), namespace)
    return {name: namespace[name] for name in names}


def declared(path: pathlib.Path, name: str = "Settings", *needs: str) -> dict[str, Field]:
    """The fields of a source file's NamedTuple of settings, which refers to the file's names `needs`."""
    return fields_of(read_names(path, *needs, name)[name])


def fields_of(settings: type) -> dict[str, Field]:
    """The fields of a NamedTuple whose annotations are `Annotated[type, Rule, words, ...]`; others are none.

    Behind the words may stand a `Release`.
    """
    found = {}
    for name, hint in typing.get_type_hints(settings, include_extras=True).items():
        if hasattr(hint, "__metadata__"):
            rule, text, *marks = hint.__metadata__
            kind = typing.get_origin(hint.__origin__) or hint.__origin__
            found[name] = Field(settings._field_defaults[name], kind, rule, text, *marks)
    return found


def about(path: pathlib.Path) -> str:
    """The first line of a source file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def _names_of(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef):
        return {node.name}
    return {target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)}
