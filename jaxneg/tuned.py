"""Settings per method, for config files: a door to `jaxneg.run.tuned`."""

from jaxneg.run.tuned import BEAUTY, DEFAULT, ML10M, RETAILROCKET, settings, tuned_file

__all__ = ["BEAUTY", "DEFAULT", "ML10M", "RETAILROCKET", "settings", "tuned_file"]
