"""Checkpoints of a run by orbax: written in the background, whole or not at all, the last few kept, and checked."""

import functools
import json
import logging
import pathlib
import shutil
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg.errors import InputError

LAYOUT = 2  # of what is saved: raise it when a training state's parts change
KEEP = 2  # the one before the last is there should the last turn out to be damaged
FIRST_SECONDS = 1.0  # of training before a process saves for the first time: it may be killed soon
PIECE = 2**20  # elements that are summed at a time
COST = 20  # the least time between saves, in times of what the last one took


_others = sys.unraisablehook


def _hook(unraisable) -> None:
    """Hides what a failed read or write leaves behind: late callbacks that find their event loop closed."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        _others(unraisable)


class Checkpoints:
    """The checkpoints in one folder: when the next is due, saving, and bringing back the newest that is sound.

    A save copies the arrays at once, so their buffers may be donated, and writes them in the background. What goes
    wrong there is raised, as InputError, by the next `due`, `save` or `close`. Of several hosts all save together, each
    its part of the arrays that are split among them, and any number of hosts may restore.
    """

    def __init__(self, folder: pathlib.Path, least_seconds: float):
        """`least_seconds`: the least time between two saves."""
        self.folder = folder
        self.seconds = 0.0  # spent on saves so far, in the background too
        self.count = 0
        self._least_seconds, self._pause = least_seconds, min(least_seconds, FIRST_SECONDS)
        self._finished: float | None = None  # of the last save; before the first, when training began
        self._started: float | None = None  # of the save under way
        self._saved_step: int | None = None

    @functools.cached_property
    def _orbax(self) -> Any:
        """The library, which is imported when there is something to read or to write: it takes a fifth of a second."""
        import orbax.checkpoint

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs all of its work, and each error many times
        sys.unraisablehook = _hook
        return orbax.checkpoint

    @functools.cached_property
    def _manager(self) -> Any:
        options = self._orbax.CheckpointManagerOptions(max_to_keep=KEEP, cleanup_tmp_directories=True)
        return self._orbax.CheckpointManager(self.folder.absolute(), options=options)

    def due(self) -> bool:
        """Whether it is time to save: none is under way, and the last one (or the first call) is long enough ago."""
        self._look()
        self._finished = self._finished or time.perf_counter()
        return self._started is None and time.perf_counter() - self._finished > self._pause

    def save(self, step: int, tree: Any, about: dict) -> None:
        """Saves the tree under its step, with `about` (JSON) to tell what it belongs to. Waits for the last save.

        An array may have more rows in an axis than what is restored in its place: they fill up its last ones.
        """
        if step == self._saved_step:
            return
        self._wait()
        stored, kinds = jax.tree.map(_stored, tree), self._orbax.args
        self._started, self._saved_step = time.perf_counter(), step
        self._call(
            lambda: self._manager.save(
                step,
                args=kinds.Composite(
                    state=kinds.StandardSave(stored),
                    about=kinds.JsonSave(
                        about
                        | {
                            "layout": LAYOUT,
                            "checksum": checksum(stored),
                            "shapes": [np.shape(leaf) for leaf in jax.tree.leaves(stored)],
                        }
                    ),
                ),
            )
        )

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """The newest sound (tree, about); the tree has the structure and the shapes of `like`: NumPy arrays and keys.

        None where there is no checkpoint. A damaged one is told of on stderr and deleted, and the one before it used.
        Raises InputError if all are damaged, or if one is of another layout.
        """
        if jax.process_count() == 1 and not self.folder.is_dir():
            return None
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self._read(step, like)
            except InputError:
                raise
            except Exception as error:  # whatever damaged files make of the libraries that read them
                reason = " ".join(str(error).split())[:120]
                print(
                    f"jaxneg: the checkpoint of step {step:,} is damaged ({reason}); using the one before it",
                    file=sys.stderr,
                )
                self._manager.delete(step)
        if steps:
            raise InputError(f"{self.folder}: every checkpoint is damaged: remove this folder to train from the start")
        return None

    def close(self) -> None:
        """Waits until the last save is on disk."""
        self._wait()
        if "_manager" in vars(self):
            self._manager.close()

    def _read(self, step: int, like: Any) -> tuple[Any, dict]:
        kinds, about = self._orbax.args, self._about(step)
        wanted, structure = jax.tree.flatten(like)
        found = [
            np.broadcast_to(np.zeros((), _stored_type(leaf)), shape)
            for leaf, shape in zip(wanted, about.pop("shapes"), strict=True)
        ]
        args = kinds.Composite(state=kinds.StandardRestore(structure.unflatten(found)))
        state = self._manager.restore(step, args=args).state
        if checksum(state) != about.pop("checksum"):
            raise ValueError("its arrays are not those that were saved")
        tree = jax.tree.map(_as_wanted, state, like)
        self._saved_step = step
        return tree, about

    def _about(self, step: int) -> dict:
        """What was saved beside the state. Raises InputError for another layout than today's."""
        kinds = self._orbax.args
        about = dict(self._manager.restore(step, args=kinds.Composite(about=kinds.JsonRestore())).about)
        _refuse_layout(self.folder, about.pop("layout", 1))
        return about

    def _look(self) -> None:
        """Books the save under way once it is finished."""
        if self._started is not None and not self._manager.is_saving_in_progress():
            self._wait()

    def _wait(self) -> None:
        if self._started is None:
            return
        started, self._started = self._started, None
        self._call(self._manager.wait_until_finished)
        self._finished = time.perf_counter()
        took = self._finished - started
        self.seconds, self.count = self.seconds + took, self.count + 1
        self._pause = max(self._least_seconds, COST * took)

    def _call(self, function) -> None:
        try:
            function()
        except (OSError, ValueError) as error:  # a full disk comes as either, from the writing library
            self._started = None
            for unfinished in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(unfinished, ignore_errors=True)
            steps = self._manager.all_steps(read=True) if "_manager" in vars(self) else []
            left = f"the last good one is of step {max(steps):,}" if steps else "there is none yet"
            reason = " ".join(str(error).split())[-160:]
            raise InputError(f"{self.folder}: a checkpoint cannot be written ({reason}); {left}") from error


def check_layout(folder: pathlib.Path) -> None:
    """Raises InputError if the newest checkpoint of a folder is of another layout than today's; reads nothing else."""
    steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
    try:
        layout = json.loads((folder / str(max(steps)) / "about" / "metadata").read_text()).get("layout", 1)
    except (OSError, ValueError, AttributeError):  # there is none, or `restore` tells of damage
        return
    _refuse_layout(folder, layout)


def _refuse_layout(folder: pathlib.Path, layout: int) -> None:
    if layout != LAYOUT:
        how = "an older" if layout < LAYOUT else "a newer"
        raise InputError(
            f"{folder} holds checkpoints of {how} layout than this version of jaxneg reads: finish the run with the "
            "version that began it, or name another --workdir"
        )


def checksum(tree: Any) -> list[str]:
    """For each array its type, shape and the sum of its elements' bits, each place with an odd weight, modulo 2**32.

    So a change of any one element shows, and of any others but for one chance in 2**32. An array that is split among
    hosts has the sum that it has in one piece.
    """
    leaves = [leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return [
        f"{leaf.dtype}{list(leaf.shape)}:{int(weigh(leaf)):08x}"
        for leaf in leaves
        for weigh in [_weighed_on_devices if isinstance(leaf, jax.Array) else _weighed]
    ]


def _weighed(array: Any, numpy: Any = np) -> Any:
    """The sum of one array's checksum, by NumPy or by jax.numpy."""
    size = min(array.dtype.itemsize, 4)
    total, flat = numpy.zeros(1, "uint32"), array.reshape(-1).view(f"uint{8 * size}")
    step = PIECE if numpy is np else max(len(flat), 1)
    for first in range(0, len(flat), step):
        piece = flat[first : first + step].astype("uint32")
        weight = 2 * (numpy.arange(len(piece), dtype="uint32") + numpy.uint32(first % 2**32)) + numpy.uint32(1)
        total = total + (piece * weight).sum(dtype="uint32")  # NumPy would warn of a scalar that wraps around
    return total[0]


@jax.jit
def _weighed_on_devices(array: jax.Array) -> jax.Array:
    return _weighed(array, jnp)


def _as_wanted(saved: np.ndarray, like: Any) -> Any:
    """What was saved as what is wanted: a key, or without the rows that fill up."""
    if _is_key(like):
        return jax.random.wrap_key_data(saved)
    return saved[tuple(slice(size) for size in np.shape(like))]


def _stored_type(leaf: Any) -> np.dtype:
    if _is_key(leaf):
        return np.dtype(np.uint32)
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> np.ndarray | jax.Array:
    data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    split = isinstance(data, jax.Array) and not data.is_fully_addressable
    return data if split else np.array(data)


class Progress(NamedTuple):
    """How far a run is; with the training state, all that a checkpoint holds."""

    evaluated_step: int  # the step of the last evaluation, 0 before the first
    best_valid: np.ndarray  # [S] best validation HR@10 so far
    num_above: np.ndarray  # [S, C] of the test cases at each seed's best epoch
    num_tied: np.ndarray  # [S, C]
    best_params: dict  # [S, ...] the weights at each seed's best epoch, on the host
    train_seconds: float
    eval_seconds: float
