"""Selectors: which of the scored candidates become the negatives, where the hard ones are preferred.

(key, Negatives with N, positive_scores [B, L]) -> Negatives with K, or with all N of which K are not masked: losses see
no difference. The key is one for all, or [B, L], one for each position: then what is chosen there does not depend on
how a batch is cut. Gradients flow through the scores that are kept and never through the choice. What is chosen by its
score has no known probability, so `log_q` becomes NaN then: a loss that reads it can not fail unseen.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jaxneg.errors import InputError
from jaxneg.hashing import multiply_wide
from jaxneg.samplers.draws import bits_of_each
from jaxneg.types import Negatives

# Masks instead of places, for at least so many of at most so many: on a CPU their threshold is quicker than lax.top_k
# (measured for 6,400 pools), and gathers of what is kept cost more than the others' share of the loss.
LEAST_KEPT, LARGEST_POOL = 16, 128
POOLS_AT_A_TIME = 3200  # of 100 candidates they take 1.3 MB; fewer leave cores idle (measured on two)


def all(key: Key[Array, "..."], negatives: Negatives, positive_scores: Float[Array, "B L"] | None = None) -> Negatives:
    """Every candidate."""
    return negatives


def top_k(num_kept: int) -> Callable:
    """The K candidates with the highest scores at each position (the paper's ANS and AMNS).

    With a loss that takes the mean over negatives this is DNS(K, N) of Shi et al. (WWW 2023, arXiv 2302.03472), whose
    classic form has K = 1 (Zhang et al., SIGIR 2013). Of equal scores the lower place in the pool is taken. Masked
    candidates are taken only where nothing else is left, and stay masked. K >= LEAST_KEPT of a small pool come as the
    whole pool with the others masked; fewer come alone, the highest score first. Raises InputError for K < 1 here, and
    for K > N when called.
    """
    check_kept(num_kept)

    def select(
        key: Key[Array, "..."], negatives: Negatives, positive_scores: Float[Array, "B L"] | None = None
    ) -> Negatives:
        num_candidates = negatives.scores.shape[-1]
        if num_kept > num_candidates:
            raise InputError(f"sampler.num_kept is {num_kept}; allowed: at most the pool, {num_candidates}")
        ranked = jnp.where(negatives.mask, jax.lax.stop_gradient(negatives.scores), -jnp.inf)
        if num_kept < LEAST_KEPT or num_candidates > LARGEST_POOL:
            return chosen(negatives, jax.lax.top_k(ranked, num_kept)[1])
        mask = negatives.mask & highest(ranked, num_kept)
        return negatives._replace(mask=mask, log_q=jnp.full((1, 1, num_candidates), jnp.nan, jnp.float32))

    return select


def highest(scores: Float[Array, "B L N"], num_kept: int) -> Bool[Array, "B L N"]:
    """Which are the K highest scores of each pool; of equal ones the lower places. The order is that of `lax.top_k`."""
    by_top_k = functools.partial(marked_by_top_k, num_kept=num_kept)
    by_bits = functools.partial(marked_by_bits, num_kept=num_kept)
    return jax.lax.platform_dependent(scores, cpu=by_bits, default=by_top_k)


def marked_by_top_k(scores: Float[Array, "B L N"], num_kept: int) -> Bool[Array, "B L N"]:
    """`highest` by `lax.top_k`, the K-th of which is the threshold."""
    ordered = order_bits(scores)
    least = jax.lax.top_k(scores, num_kept)[0][..., -1:]
    return marked(ordered, order_bits(least), num_kept)


def marked_by_bits(scores: Float[Array, "B L N"], num_kept: int) -> Bool[Array, "B L N"]:
    """`highest` by `threshold`, for some pools at a time: their scores are looked at again and again, in the cache."""
    pools = scores.reshape(-1, scores.shape[2])
    number = -(-len(pools) // POOLS_AT_A_TIME)
    size = -(-len(pools) // number)
    blocks = jnp.pad(pools, ((0, number * size - len(pools)), (0, 0))).reshape(number, size, -1)

    def of_block(block):
        ordered = order_bits(block)
        return marked(ordered, threshold(ordered, num_kept), num_kept)

    return jax.lax.map(of_block, blocks).reshape(-1, scores.shape[2])[: len(pools)].reshape(scores.shape)


def threshold(ordered: UInt32[Array, "R N"], num_kept: int) -> UInt32[Array, "R 1"]:
    """The K-th highest of each row, found bit by bit from the highest bit on, by counting those that are as high."""
    columns = list(ordered.T)  # sums of whole columns use the CPU's vectors, sums within rows do not

    def lower_bit(bit, found):
        higher = found | jnp.uint32(1) << (31 - bit).astype(jnp.uint32)
        count = sum((column >= higher).astype(jnp.int32) for column in columns)
        return jnp.where(count >= num_kept, higher, found)

    return jax.lax.fori_loop(0, 32, lower_bit, jnp.zeros(ordered.shape[:1], jnp.uint32))[:, None]


def marked(ordered: UInt32[Array, "... N"], least: UInt32[Array, "... 1"], num_kept: int) -> Bool[Array, "... N"]:
    """Those above the K-th highest, and of those equal to it the lower places until there are K."""
    above, tied = ordered > least, ordered == least
    num_tied = num_kept - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
    return above | (tied & (running_count(tied) <= num_tied))


def order_bits(scores: Float[Array, "... N"]) -> UInt32[Array, "... N"]:
    """Whole numbers in the order of the float32 scores, as `lax.top_k` has it: -0.0 is below 0.0."""
    words = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    return jnp.where(words >> 31 == 1, ~words, words | jnp.uint32(1 << 31))


def running_count(flags: Bool[Array, "... N"]) -> Int[Array, "... N"]:
    """How many are set up to each place, as a product with a triangle: on a CPU twice as quick as a cumsum."""
    triangle = jnp.triu(jnp.ones((flags.shape[-1], flags.shape[-1]), jnp.float32))
    return jnp.matmul(flags.astype(jnp.float32), triangle, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32)


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
        return chosen(kept, jnp.minimum(place, kept.scores.shape[2] - 1))

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
