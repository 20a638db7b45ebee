"""What config files are written with: a door to `jaxneg.run.config` and `jaxneg.settings`."""

from jaxneg.run.config import base, flatten, parse_arg, split_arg, use_method
from jaxneg.settings import BY_SCORE, DISTRIBUTIONS, distributions

__all__ = [
    "BY_SCORE",
    "DISTRIBUTIONS",
    "base",
    "distributions",
    "flatten",
    "parse_arg",
    "split_arg",
    "use_method",
]
