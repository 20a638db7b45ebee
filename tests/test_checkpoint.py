"""Checkpoints bring back what was saved, keys included."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import checkpoint


class State(NamedTuple):
    weights: dict
    key: jax.Array
    step: int


def state(step):
    return State({"a": jnp.full((2, 3), step, jnp.float32)}, jax.random.key(step), step)


def test_the_newest_comes_back(tmp_path):
    manager = checkpoint.open_folder(tmp_path / "checkpoints")
    assert checkpoint.restore(manager, state(0)) is None
    for step in (1, 2, 3):
        checkpoint.save(manager, step, state(step))
    manager.close()
    manager = checkpoint.open_folder(tmp_path / "checkpoints")
    restored = checkpoint.restore(manager, state(0))
    assert isinstance(restored, State)
    assert np.array_equal(restored.weights["a"], np.full((2, 3), 3)) and restored.step == 3
    assert jax.random.uniform(restored.key) == jax.random.uniform(jax.random.key(3))
    assert manager.all_steps() == [2, 3]  # the last few only
    manager.close()
