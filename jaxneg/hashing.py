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
