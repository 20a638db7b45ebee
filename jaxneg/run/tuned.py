"""Settings per method: what launch/tune.py found, the paper's tuned table (arXiv 2410.17276), defaults for other data.

One column per data set, {method: {config field: value}}; `configs/` applies them. The paper gives no row for
inverse_popularity and popularity_cohort: they take popularity's. dns and softmax_hard, which it does not have, take
adaptive's, and catalogue the default batch size and learning rate, with the one loss that it goes with.
"""

import json
import math
import pathlib
from typing import Any

from jaxneg.errors import InputError
from jaxneg.settings import DEFAULT_MODEL


def tuned_file(config_file: str | pathlib.Path, dataset: str) -> pathlib.Path:
    """Where the tuned settings of a data set are kept: tuned/DATASET.json beside its config file."""
    return pathlib.Path(config_file).parent / "tuned" / f"{dataset}.json"


def key(method: str, model: str) -> str:
    """What a method's row is called in a file of tuned settings: "mixed", or "gru4rec/mixed"."""
    return method if model == DEFAULT_MODEL else f"{model}/{method}"


def settings(
    config_file: str, dataset: str, method: str, default: dict[str, Any], model: str = DEFAULT_MODEL
) -> dict[str, Any]:
    """The method's settings as tuned for this data set and model, where `tuned_file` has them; else `default`.

    {config field: value}. What the file does not name stays at its default. Raises InputError for a broken file.
    """
    path = tuned_file(config_file, dataset)
    if not path.exists():
        return default
    try:
        methods = json.loads(path.read_text())["methods"]
        name = key(method, model)
        found = dict(methods[name]["settings"]) if name in methods else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not a file of tuned settings ({error!r}); launch/tune.py makes one") from error
    return default | {name: math.inf if value is None else value for name, value in found.items()}  # JSON has no inf


def _row(batch_size: int, learning_rate: float, **numbers: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "learning_rate": learning_rate} | {
        f"sampler.num_{name}": number for name, number in numbers.items()
    }


def _column(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    others = {method: rows["popularity"] for method in ("inverse_popularity", "popularity_cohort")}
    others |= {method: rows["adaptive"] for method in ("dns", "softmax_hard")}
    return rows | others | {"catalogue": _row(128, 1e-3) | {"loss.name": "full_softmax"}}


# adaptive names its pool's size twice, because `sampler.pool` chooses which of the two is drawn.
ML10M = _column(
    {
        "uniform": _row(64, 1e-2, uniform=50),
        "popularity": _row(64, 1e-4, popularity=50),
        "in_batch": _row(128, 1e-2, in_batch=5),
        "mixed": _row(128, 1e-2, in_batch=50, uniform=50),
        "adaptive": _row(128, 1e-2, in_batch=100, uniform=100, kept=5),
        "adaptive_mixed": _row(64, 1e-2, in_batch=10, uniform=100, kept=25),
    }
)
BEAUTY = _column(
    {
        "uniform": _row(128, 1e-4, uniform=5),
        "popularity": _row(128, 1e-4, popularity=5),
        "in_batch": _row(128, 1e-4, in_batch=50),
        "mixed": _row(64, 1e-3, in_batch=5, uniform=5),
        "adaptive": _row(128, 1e-4, in_batch=100, uniform=100, kept=25),
        "adaptive_mixed": _row(64, 1e-3, in_batch=10, uniform=100, kept=5),
    }
)
RETAILROCKET = _column(
    {
        "uniform": _row(256, 1e-3, uniform=5),
        "popularity": _row(256, 1e-2, popularity=5),
        "in_batch": _row(128, 1e-4, in_batch=50),
        "mixed": _row(256, 1e-3, in_batch=5, uniform=5),
        "adaptive": _row(256, 1e-2, in_batch=100, uniform=100, kept=5),
        "adaptive_mixed": _row(128, 1e-3, in_batch=10, uniform=100, kept=5),
    }
)
# Not from the paper: one batch size and learning rate for all, so that methods differ by their negatives only.
DEFAULT = _column(
    {
        "uniform": _row(128, 1e-3, uniform=50),
        "popularity": _row(128, 1e-3, popularity=50),
        "in_batch": _row(128, 1e-3, in_batch=50),
        "mixed": _row(128, 1e-3, in_batch=50, uniform=50),
        "adaptive": _row(128, 1e-3, in_batch=100, uniform=100, kept=5),
        "adaptive_mixed": _row(128, 1e-3, in_batch=10, uniform=100, kept=5),
    }
)
