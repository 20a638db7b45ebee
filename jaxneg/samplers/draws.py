"""Random integers without modulo bias, and the first N permitted items of a random stream."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt32

from jaxneg.hashing import hashed, multiply_wide
from jaxneg.samplers.exclude import count_at_most

SMALL_BOUND = 1 << 16  # below it, one 32-bit word leaves a bias under 2**-16


def bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """`jax.random.bits(key, shape)`, drawn flat: the same numbers, but several axes take XLA 3 s to compile on CPU."""
    return jax.random.bits(key, (math.prod(shape),), jnp.uint32).reshape(shape)


def hashed_bits(key: Key[Array, ""], shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Random words, each a hash of its number and of the key: on a CPU a seventh of threefry's time.

    No two words of one draw are equal; a draw of n words, if independent, would have n**2 / 2**33 equal pairs.
    """
    first, second = jax.random.key_data(key)[:2]
    return hashed(jnp.arange(math.prod(shape), dtype=jnp.uint32), first, second).reshape(shape)


def bits_of_each(keys: Key[Array, "*S"], number: int) -> UInt32[Array, "*S n"]:
    """`number` words from each of several keys."""
    words = jax.vmap(lambda key: jax.random.bits(key, (number,), jnp.uint32))(keys.reshape(-1))
    return words.reshape(*keys.shape, number)


def integers_and_fraction(key: Key[Array, ""], bound: Int[Array, "*#S"], shape: tuple[int, ...]):
    """Integers int32 [*shape] in [0, bound), and an independent fraction of 1 in units of 2**-32, uint32 [*shape].

    Both come from one 64-bit random number x: x * bound / 2**64 has the integer before the point and the fraction
    after it (Lemire 2019, arXiv 1805.10941). An integer's relative bias is below bound / 2**64; `jax.random.randint`
    reduces 32 bits by modulo, which at a bound of 1e8 prefers some items by 2%.
    """
    return scaled(bits(key, (2, *shape)), jnp.broadcast_to(bound, shape).astype(jnp.uint32))


def scaled(words: UInt32[Array, "2 *S"], bound: UInt32[Array, "*S"]) -> tuple[Int[Array, "*S"], UInt32[Array, "*S"]]:
    """The integers and the fractions of x * bound / 2**64, x being the 64 bits of the two words."""
    high, low = multiply_wide(words[0], bound)
    carried, _ = multiply_wide(words[1], bound)
    fraction = low + carried
    return (high + (fraction < low)).astype(jnp.int32), fraction


def integers(key: Key[Array, ""], bound: Int[Array, "*#S"], shape: tuple[int, ...], largest: int):
    """Integers int32 [*shape], uniform in [0, bound); `largest` is a static limit of every bound (bounds are >= 1)."""
    bound = jnp.broadcast_to(bound, shape).astype(jnp.uint32)
    if largest > SMALL_BOUND:
        return scaled(hashed_bits(key, (2, *shape)), bound)[0]
    return multiply_wide(hashed_bits(key, shape), bound)[0].astype(jnp.int32)


def first_permitted(
    window: Callable, shape: tuple[int, int], num_samples: int, num_windows: int | Int[Array, ""]
) -> tuple[Int[Array, "B P N"], Bool[Array, "B P N"]]:
    """The first `num_samples` permitted items of each of [B, P] streams, and which places were filled.

    `window(round) -> (item_ids [B, P, W], permitted [B, P, W])` yields the streams piece by piece. Stops as soon as
    every stream has given enough, at the latest after `num_windows`; places left over hold item 1. Taking the first
    permitted ones of a stream keeps its law, given what is permitted, and a stream that is refused often borrows
    from the whole window, not from one redraw per place.
    """
    rows = shape[0] * shape[1]
    place = jnp.arange(num_samples)[None]

    def unfinished(state):
        done, filled, _ = state
        return (done < num_windows) & (jnp.min(filled) < num_samples)

    def fill(state):
        done, filled, item_ids = state
        drawn, permitted = (part.reshape(rows, -1) for part in window(done))
        upto = jnp.cumsum(permitted, axis=1, dtype=jnp.int32)
        wanted = place - filled[:, None]  # how many permitted ones come before the one that this place takes
        source = count_at_most(upto, wanted[:, None])[:, 0]
        found = jnp.take_along_axis(drawn, source, axis=1, mode="clip")
        is_new = (wanted >= 0) & (wanted < upto[:, -1:])
        return done + 1, filled + upto[:, -1], jnp.where(is_new, found, item_ids)

    start = (jnp.int32(0), jnp.zeros(rows, jnp.int32), jnp.ones((rows, num_samples), jnp.int32))
    _, filled, item_ids = jax.lax.while_loop(unfinished, fill, start)
    return item_ids.reshape(*shape, num_samples), (place < filled[:, None]).reshape(*shape, num_samples)
