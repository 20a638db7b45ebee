"""What config files are written with: a door to `jaxneg.run.config`."""

from jaxneg.run.config import BY_SCORE, DISTRIBUTIONS, base, distributions, flatten, parse_arg, use_method

__all__ = ["BY_SCORE", "DISTRIBUTIONS", "base", "distributions", "flatten", "parse_arg", "use_method"]
