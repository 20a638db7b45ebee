"""Several proposals as one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxneg.errors import InputError
from jaxneg.samplers.base import Proposal
from jaxneg.types import Batch, Candidates


def concatenate(*proposals: Proposal) -> Proposal:
    """The candidates of all proposals side by side along N, in the order given.

    log q is the mixture's: the sum over proposals of (its share of the candidates) x (its probability of the item),
    whichever of them drew it. In `sample` a share counts the candidates that the masks leave at that place, so a
    pool that ran dry weighs less; `log_prob`, which sees no masks, takes `num_samples` for it.
    Raises InputError without a proposal.
    """
    if not proposals:
        raise InputError("concatenate got no proposal; allowed: one or more")

    def init(item_counts, target_counts=None) -> tuple:
        return tuple(proposal.init(item_counts, target_counts) for proposal in proposals)

    def each_log_prob(tables: tuple, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> list:
        return [p.log_prob(t, batch, item_ids) for p, t in zip(proposals, tables, strict=True)]

    def log_prob(tables: tuple, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> Float[Array, "#B #L N"]:
        counts = [jnp.full((1, 1, 1), proposal.num_samples) for proposal in proposals]
        return mixture(each_log_prob(tables, batch, item_ids), counts)

    def sample(key: Key[Array, ""], tables: tuple, batch: Batch) -> Candidates:
        part_keys = jax.random.split(key, len(proposals))
        parts = [p.sample(k, t, batch) for p, k, t in zip(proposals, part_keys, tables, strict=True)]
        item_ids, mask = joined([part.item_ids for part in parts]), joined([part.mask for part in parts])
        counts = [jnp.sum(part.mask, axis=2, keepdims=True) for part in parts]
        log_q = mixture(each_log_prob(tables, batch, item_ids), counts)
        return Candidates(item_ids, jnp.where(mask, log_q, 0.0), mask)

    return Proposal(init, sample, log_prob, sum(proposal.num_samples for proposal in proposals))


def mixture(log_probs: list, counts: list) -> Float[Array, "#B #L N"]:
    """log(sum_c count_c * p_c / sum_c count_c), from log p_c [#B, #L, N] and counts [#B, #L, 1]."""
    terms = [log_p + jnp.log(count.astype(jnp.float32)) for log_p, count in zip(log_probs, counts, strict=True)]
    total = jnp.maximum(sum(counts), 1).astype(jnp.float32)
    return jax.nn.logsumexp(jnp.stack(jnp.broadcast_arrays(*terms)), axis=0) - jnp.log(total)


def joined(parts: list) -> Int[Array, "#B #L N"] | Bool[Array, "#B #L N"]:
    """Concatenate [#B, #L, N_c] along the last axis, the first two broadcast to what they have in common."""
    lead = jnp.broadcast_shapes(*(part.shape[:2] for part in parts))
    return jnp.concatenate([jnp.broadcast_to(part, (*lead, part.shape[2])) for part in parts], axis=2)
