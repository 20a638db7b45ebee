"""Selectors: which of the scored candidates become the negatives, where the hard ones are preferred.

(key, Negatives with N, positive_scores [B, L]) -> Negatives with K. The key is one for all, or [B, L], one for each
position: then what is chosen there does not depend on how a batch is cut. Gradients flow through the scores that are
kept and never through the choice. What is chosen by its score has no known probability, so `log_q` becomes NaN
[1, 1, K] then: a loss that reads it can not fail unseen.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxneg.errors import InputError
from jaxneg.samplers.draws import bits_of_each, multiply_wide
from jaxneg.samplers.exclude import count_at_most
from jaxneg.types import Negatives

# On a CPU a threshold is quicker than lax.top_k for at least so many of at most so many (measured for 6,400 pools).
LEAST_KEPT, LARGEST_POOL = 16, 128
POOLS_AT_A_TIME = 3200  # of 100 candidates they take 1.3 MB; fewer leave cores idle (measured on two)


def all(key: Key[Array, "..."], negatives: Negatives, positive_scores: Float[Array, "B L"] | None = None) -> Negatives:
    """Every candidate."""
    return negatives


def top_k(num_kept: int) -> Callable:
    """The K candidates with the highest scores at each position (the paper's ANS and AMNS).

    With a loss that takes the mean over negatives this is DNS(K, N) of Shi et al. (WWW 2023, arXiv 2302.03472), whose
    classic form has K = 1 (Zhang et al., SIGIR 2013). Of equal scores the lower place in the pool is taken. Masked
    candidates are taken only where nothing else is left, and stay masked. What is kept comes with the highest score
    first, or in the order of the pool where a threshold finds it (see `highest`): no loss depends on it. Raises
    InputError for K < 1 here, and for K > N when called.
    """
    check_kept(num_kept)

    def select(
        key: Key[Array, "..."], negatives: Negatives, positive_scores: Float[Array, "B L"] | None = None
    ) -> Negatives:
        if num_kept > negatives.scores.shape[-1]:
            raise InputError(f"sampler.num_kept is {num_kept}; allowed: at most the pool, {negatives.scores.shape[-1]}")
        ranked = jnp.where(negatives.mask, jax.lax.stop_gradient(negatives.scores), -jnp.inf)
        return chosen(negatives, highest(ranked, num_kept))

    return select


def highest(scores: Float[Array, "B L N"], num_kept: int) -> Int[Array, "B L K"]:
    """Places of the K highest scores; of equal ones the lower place. By `lax.top_k`, or `above_threshold` on a CPU.

    The set is the same either way, the order is not: highest first, or ascending places.
    """
    def by_top_k(scores):
        return jax.lax.top_k(scores, num_kept)[1]

    if num_kept < LEAST_KEPT or scores.shape[2] > LARGEST_POOL:
        return by_top_k(scores)
    return jax.lax.platform_dependent(scores, cpu=lambda scores: above_threshold(scores, num_kept), default=by_top_k)


def above_threshold(scores: Float[Array, "B L N"], num_kept: int) -> Int[Array, "B L K"]:
    """Places of the K highest scores, ascending; of equal scores the lower places.

    Some pools at a time, since their scores are looked at again and again: they stay in the cache.
    """
    pools = scores.reshape(-1, scores.shape[2])
    number = -(-len(pools) // POOLS_AT_A_TIME)
    size = -(-len(pools) // number)
    blocks = jnp.pad(pools, ((0, number * size - len(pools)), (0, 0))).reshape(number, size, -1)
    places = jax.lax.map(lambda block: above_threshold_of(block, num_kept), blocks)
    return places.reshape(-1, num_kept)[: len(pools)].reshape(*scores.shape[:2], num_kept)


def above_threshold_of(scores: Float[Array, "R N"], num_kept: int) -> Int[Array, "R K"]:
    """`above_threshold` of some pools.

    The K-th highest score is found bit by bit, from the highest bit on, by counting the scores that are as high.
    """
    ordered = order_bits(scores)
    columns = list(ordered.T)  # sums of whole columns use the CPU's vectors, sums within rows do not

    def lower_bit(bit, threshold):
        higher = threshold | jnp.uint32(1) << (31 - bit).astype(jnp.uint32)
        count = sum((column >= higher).astype(jnp.int32) for column in columns)
        return jnp.where(count >= num_kept, higher, threshold)

    threshold = jax.lax.fori_loop(0, 32, lower_bit, jnp.zeros(ordered.shape[:1], jnp.uint32))[:, None]
    above, tied = ordered > threshold, ordered == threshold
    num_tied = num_kept - jnp.sum(above, axis=1, keepdims=True, dtype=jnp.int32)
    kept = above | (tied & (running_count(tied) <= num_tied))
    # The place of the (j + 1)-th that is kept: so many places have a running count of j at most.
    return count_at_most(running_count(kept), jnp.arange(num_kept, dtype=jnp.int32)[None, None])[:, 0]


def order_bits(scores: Float[Array, "R N"]) -> UInt32[Array, "R N"]:
    """Whole numbers in the order of the float32 scores, as `lax.top_k` has it: -0.0 is below 0.0."""
    words = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    return jnp.where(words >> 31 == 1, ~words, words | jnp.uint32(1 << 31))


def running_count(marked: Bool[Array, "R N"]) -> Int[Array, "R N"]:
    """How many are marked up to each place, as a product with a triangle: on a CPU twice as quick as a cumsum."""
    triangle = jnp.triu(jnp.ones((marked.shape[1], marked.shape[1]), jnp.float32))
    return jnp.matmul(marked.astype(jnp.float32), triangle, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)


def random_of_top(num_top: int) -> Callable:
    """One of the M candidates with the highest scores at each position, each as likely as the others: K = 1.

    DNS(M, N) as a sampler: its expected loss is that of `top_k(M)` under a mean. Where fewer than M candidates are
    unmasked it is one of those. Raises InputError as `top_k` does.
    """
    hardest = top_k(num_top)

    def select(
        key: Key[Array, "..."], negatives: Negatives, positive_scores: Float[Array, "B L"] | None = None
    ) -> Negatives:
        kept = hardest(key, negatives)
        upto = jnp.cumsum(jnp.broadcast_to(kept.mask, kept.scores.shape), axis=2, dtype=jnp.int32)
        bound = jnp.maximum(upto[:, :, -1:], 1).astype(jnp.uint32)
        number = multiply_wide(words(key, bound.shape), bound)[0].astype(jnp.int32)  # among those that are not masked
        place = jnp.sum(upto <= number, axis=2, keepdims=True, dtype=jnp.int32)
        return chosen(kept, jnp.minimum(place, num_top - 1))

    return select


def softmax(num_kept: int, rho: float) -> Callable:
    """K draws, with replacement, from p_j ~ exp(l_j / tau) over the N candidates of each position: Softmax-v(rho, N).

    l_j = log(1 + exp(s_j - positive score)) is BPR's loss of candidate j, and tau = sqrt(Var_j(l) / (2 rho)), so rho is
    the hardness whatever the scale of the scores; 0 draws uniformly (Shi et al., WWW 2023, arXiv 2302.03472). The mean
    of a loss over the draws is an unbiased estimate of its sum weighted by p. Masked candidates are never drawn; where
    all are masked, so is what is kept. Raises InputError for K < 1, and for a rho that is negative or not finite.
    """
    check_kept(num_kept)
    if not 0 <= rho < float("inf"):
        raise InputError(f"sampler.rho is {rho}; allowed: finite and 0 or more")

    def select(key: Key[Array, "..."], negatives: Negatives, positive_scores: Float[Array, "B L"]) -> Negatives:
        num_rows, length, num_candidates = negatives.scores.shape
        difference = jax.lax.stop_gradient(negatives.scores - positive_scores[:, :, None])
        upto = jnp.cumsum(hardness_weights(jax.nn.softplus(difference), negatives.mask, rho), axis=2)
        fraction = (words(key, (num_rows, length, num_kept)) >> 9).astype(jnp.float32) * 2.0**-23  # in [0, 1)
        first_above = jax.vmap(lambda row, points: jnp.searchsorted(row, points, side="right", method="scan_unrolled"))
        points = (fraction * upto[:, :, -1:]).reshape(-1, num_kept)
        place = first_above(upto.reshape(-1, num_candidates), points).reshape(num_rows, length, num_kept)
        return chosen(negatives, jnp.minimum(place, num_candidates - 1).astype(jnp.int32))

    return select


def hardness_weights(
    pair_losses: Float[Array, "B L N"], mask: Bool[Array, "#B #L N"], rho: float
) -> Float[Array, "B L N"]:
    """exp((l - max l) / tau), tau = sqrt(Var(l) / (2 rho)) over the unmasked; 0 where masked, 1 where all are alike.

    Losses are scaled by their largest deviation first: the squares of those of pairs told apart well would underflow.
    """
    valid = jnp.broadcast_to(mask, pair_losses.shape)
    count = jnp.maximum(jnp.sum(valid, axis=2, keepdims=True), 1)

    def mean(values):
        return jnp.sum(jnp.where(valid, values, 0.0), axis=2, keepdims=True) / count

    deviation = jnp.where(valid, pair_losses - mean(pair_losses), 0.0)
    largest = jnp.max(jnp.abs(deviation), axis=2, keepdims=True)
    scaled = deviation / jnp.where(largest > 0, largest, 1.0)
    variance = mean(jnp.square(scaled))
    logits = scaled * jnp.sqrt(2 * rho / jnp.where(variance > 0, variance, 1.0))
    logits = jnp.where(valid, logits, -jnp.inf)
    peak = jnp.max(logits, axis=2, keepdims=True)
    return jnp.exp(logits - jnp.where(jnp.isfinite(peak), peak, 0.0))


def words(key: Key[Array, "..."], shape: tuple[int, int, int]) -> UInt32[Array, "B L n"]:
    """Random 32-bit words for each position, from one key for all or from one for each."""
    keys = jax.random.split(key, shape[:2]) if key.ndim == 0 else key
    return bits_of_each(keys, shape[2])


def chosen(negatives: Negatives, place: Int[Array, "B L K"]) -> Negatives:
    """The candidates at those places of each position's pool; their log q is not known."""
    shape = negatives.scores.shape

    def take(values):
        return jnp.take_along_axis(jnp.broadcast_to(values, shape), place, axis=2, mode="clip")

    log_q = jnp.full((1, 1, place.shape[2]), jnp.nan, jnp.float32)
    return Negatives(take(negatives.item_ids), take(negatives.scores), log_q, take(negatives.mask))


def check_kept(num_kept: int) -> None:
    """Raises InputError unless at least one candidate is kept."""
    if num_kept < 1:
        raise InputError(f"sampler.num_kept is {num_kept}; allowed: 1 or more")
