"""Random words by hashing numbers: on a CPU a fraction of threefry's cost, and the same whatever the sharding."""

import jax.numpy as jnp
from jaxtyping import Array, UInt32


def hashed(
    number: UInt32[Array, "*shape"], first: UInt32[Array, ""], second: UInt32[Array, ""]
) -> UInt32[Array, "*shape"]:
    """A random word for each number, by two words of a key; distinct numbers give distinct words.

    The mixer is Wellons's `lowbias32` (github.com/skeeto/hash-prospector), once with each word of the key.
    """
    return mixed(mixed(number ^ first) + second)


def mixed(words: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32-bit words in which every input bit moves every output bit."""
    words = (words ^ words >> 16) * jnp.uint32(0x21F0AAAD)
    words = (words ^ words >> 15) * jnp.uint32(0xD35A2D97)
    return words ^ words >> 15


def multiply_wide(words: UInt32[Array, "*S"], bound: UInt32[Array, "*#S"]) -> tuple[Array, Array]:
    """The high and the low 32 bits of the 64-bit product, in 16-bit halves (jax has no 64-bit integers by default)."""
    low_word, high_word = words & 0xFFFF, words >> 16
    low_bound, high_bound = bound & 0xFFFF, bound >> 16
    middle = high_word * low_bound + (low_word * low_bound >> 16)
    other_middle = low_word * high_bound + (middle & 0xFFFF)
    return high_word * high_bound + (middle >> 16) + (other_middle >> 16), words * bound
