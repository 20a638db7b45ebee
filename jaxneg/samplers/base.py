"""What every proposal and every method is made of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxneg.errors import InputError

SCOPES = ("sequence", "position", "batch")


class Proposal(NamedTuple):
    """A distribution over items from which negatives are drawn; it never sees a score. V is fixed in the closures.

    `init(item_counts, target_counts=None) -> tables`: NumPy arrays, made once on the host and passed to jit as an
        argument, never closed over. Both counts are [V+1] with index 0 ignored: how many distinct users have the
        item in training, and how often it is a training target (None: like item_counts).
    `sample(key, tables, batch) -> Candidates`: pure, for jit and vmap. `log_q` is `log_prob` of what was drawn, and
        0 where the mask is False; under jit it costs nothing when nobody reads it.
    `log_prob(tables, batch, item_ids) -> Float[#B #L N]`: the exact log probability with which one unmasked draw is
        each of `item_ids` [#B, #L, N] at that place of the batch; -inf for what can not be drawn there.
    `num_samples`: N, the candidates of each place.
    """

    init: Callable
    sample: Callable
    log_prob: Callable
    num_samples: int


class Method(NamedTuple):
    """A named way to choose negatives: propose `num_candidates` of them, keep `num_kept`."""

    proposal: Proposal
    selector: Callable  # (key, Negatives with N, positive_scores) -> Negatives with K, or with N of which K count
    num_candidates: int  # N
    num_kept: int  # K


def check_scope(scope: str) -> str:
    """Return the scope, or raise InputError with the list of known ones."""
    if scope not in SCOPES:
        raise InputError(f"sampler.scope is {scope!r}; allowed: {', '.join(SCOPES)}")
    return scope


def check_counts(name: str, counts: np.ndarray | Sequence, num_items: int) -> np.ndarray:
    """Return `counts` [V+1] as float64 [V], the pad dropped, or raise InputError if they can not be frequencies."""
    counts = np.asarray(counts)
    if counts.shape != (num_items + 1,):
        raise InputError(f"{name} has shape {counts.shape}; allowed: ({num_items + 1},), one per item and the pad")
    values = counts[1:].astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise InputError(f"{name} must be finite, not negative, and positive for one item at least")
    return values


def normalised(weights: np.ndarray) -> np.ndarray:
    """Probabilities float32 [V+1], 0 at the pad, from float64 weights [V]."""
    return np.concatenate([[0.0], weights / weights.sum()]).astype(np.float32)
