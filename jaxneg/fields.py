"""One config field: its type, its default, what it may hold, and what it means.

Nothing here imports JAX, so that `--help` and a refused flag are quick.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a field may hold: words for the message, and the test of a value of the right type."""

    text: str
    holds: Callable[[Any], bool]


class Field(NamedTuple):
    """One config field. `default` None: unset, the field follows `reference` (see `BY_REFERENCE`)."""

    default: Any
    kind: type
    rule: Rule
    text: str


def at_least(low: float, high: float = 2**31 - 1) -> Rule:
    """From `low` to `high`, which is beyond what makes sense: it keeps a slip from exhausting the machine."""
    return Rule(f"{low} or more, {high} at most", lambda value: low <= value <= high)


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
