"""Checkpoints of a run by orbax: written in the background, whole or not at all, the last few kept."""

import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

KEEP = 2  # the one before the last is there should the last turn out to be damaged


def open_folder(folder: pathlib.Path) -> ocp.CheckpointManager:
    """The checkpoints in this folder, which is made if need be. Close it at the end: a save may be under way."""
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells every step of its own work
    options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, tree: Any) -> None:
    """Saves the tree under its step. The arrays are copied first, so their buffers may be donated at once."""
    manager.save(step, args=ocp.args.StandardSave(jax.tree.map(_stored, tree)))


def restore(manager: ocp.CheckpointManager, like: Any) -> Any | None:
    """The newest tree, in the structure of `like` and as NumPy arrays (keys as keys); None where there is none."""
    if manager.latest_step() is None:
        return None
    stored = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(jax.tree.map(_stored, like)))
    return jax.tree.map(lambda leaf, model: jax.random.wrap_key_data(leaf) if _is_key(model) else leaf, stored, like)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> np.ndarray:
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
