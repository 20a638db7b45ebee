"""Settings per method: the paper's tuned table (arXiv 2410.17276), and defaults for other data.

One column per data set, {method: {config field: value}}; `configs/` applies them. The paper gives no row for
inverse_popularity and popularity_cohort: they take popularity's. dns and softmax_hard, which it does not have, take
adaptive's, and catalogue the default batch size and learning rate, with the one loss that it goes with.
"""

from typing import Any


def _row(batch_size: int, learning_rate: float, **numbers: int) -> dict[str, Any]:
    return {"batch_size": batch_size, "learning_rate": learning_rate} | {
        f"sampler.num_{name}": number for name, number in numbers.items()}


def _column(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    others = {method: rows["popularity"] for method in ("inverse_popularity", "popularity_cohort")}
    others |= {method: rows["adaptive"] for method in ("dns", "softmax_hard")}
    return rows | others | {"catalogue": _row(128, 1e-3) | {"loss.name": "full_softmax"}}


# adaptive names its pool's size twice, because `sampler.pool` chooses which of the two is drawn.
ML10M = _column({
    "uniform": _row(64, 1e-2, uniform=50),
    "popularity": _row(64, 1e-4, popularity=50),
    "in_batch": _row(128, 1e-2, in_batch=5),
    "mixed": _row(128, 1e-2, in_batch=50, uniform=50),
    "adaptive": _row(128, 1e-2, in_batch=100, uniform=100, kept=5),
    "adaptive_mixed": _row(64, 1e-2, in_batch=10, uniform=100, kept=25),
})
BEAUTY = _column({
    "uniform": _row(128, 1e-4, uniform=5),
    "popularity": _row(128, 1e-4, popularity=5),
    "in_batch": _row(128, 1e-4, in_batch=50),
    "mixed": _row(64, 1e-3, in_batch=5, uniform=5),
    "adaptive": _row(128, 1e-4, in_batch=100, uniform=100, kept=25),
    "adaptive_mixed": _row(64, 1e-3, in_batch=10, uniform=100, kept=5),
})
RETAILROCKET = _column({
    "uniform": _row(256, 1e-3, uniform=5),
    "popularity": _row(256, 1e-2, popularity=5),
    "in_batch": _row(128, 1e-4, in_batch=50),
    "mixed": _row(256, 1e-3, in_batch=5, uniform=5),
    "adaptive": _row(256, 1e-2, in_batch=100, uniform=100, kept=5),
    "adaptive_mixed": _row(128, 1e-3, in_batch=10, uniform=100, kept=5),
})
# Not from the paper: one batch size and learning rate for all, so that methods differ by their negatives only.
DEFAULT = _column({
    "uniform": _row(128, 1e-3, uniform=50),
    "popularity": _row(128, 1e-3, popularity=50),
    "in_batch": _row(128, 1e-3, in_batch=50),
    "mixed": _row(128, 1e-3, in_batch=50, uniform=50),
    "adaptive": _row(128, 1e-3, in_batch=100, uniform=100, kept=5),
    "adaptive_mixed": _row(128, 1e-3, in_batch=10, uniform=100, kept=5),
})
