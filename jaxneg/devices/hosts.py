"""Several hosts as one run: joining them, agreeing on what to do next, and what only the first of them does."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxneg.errors import InputError

LOST_HOST = 75  # the exit code of a host that lost another: EX_TEMPFAIL, try again
HEARTBEAT_SECONDS = 30  # after so long without a word a host counts as gone
# What the runtime says when another host has gone.
LOST = re.compile(
    r"closed by peer|connection reset|connection refused|broken pipe|heartbeat|unavailable|disconnect|"
    r"timed out|timeout|deadline|gloo|preempt|coordination service|task .* (failed|died)",
    re.IGNORECASE,
)


class Hosts(NamedTuple):
    """How the hosts of a run find each other; None: the cluster tells (SLURM, TPU pods, GKE, MPI)."""

    coordinator: str | None = None  # HOST:PORT of the first one
    num_processes: int | None = None
    process_id: int | None = None


def join(found: Hosts) -> None:
    """Waits for the other hosts. Raises InputError where they can not be found, or do not come."""
    try:
        jax.distributed.initialize(
            found.coordinator, found.num_processes, found.process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except (ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"--multihost: the hosts can not be joined ({reason}); without a cluster that tells, give "
            "--coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this host is the one that writes files and talks."""
    return jax.process_index() == 0


def on_first(function: Callable[[], Any]) -> Any:
    """What the first host's `function` returns (as JSON holds it), on all hosts; no other host calls it.

    Its InputError is raised on all of them.
    """
    if jax.process_count() == 1:
        return function()
    told = {}
    if is_first():
        try:
            told = {"value": function()}
        except InputError as error:
            told = {"error": str(error)}
    told = json.loads(_from_first(json.dumps(told)))
    if "error" in told:
        raise InputError(told["error"])
    return told["value"]


def agreed(signal: int, save: bool, count: int) -> tuple[int, bool, int]:
    """What all hosts do after a dispatch: any one's signal (0: none), and the first one's other answers."""
    if jax.process_count() == 1:
        return signal, save, count
    answers = multihost_utils.process_allgather(np.array([signal, save, count], np.int32))
    return int(answers[:, 0].max()), bool(answers[0, 1]), int(answers[0, 2])


def least(number: int | None) -> int | None:
    """The smallest of all hosts' numbers; None where one has none."""
    if jax.process_count() == 1:
        return number
    numbers = multihost_utils.process_allgather(np.float64(-1 if number is None else number))
    return None if numbers.min() < 0 else int(numbers.min())


def total(counts: np.ndarray) -> np.ndarray:
    """The sums of all hosts' counts, below 2**31."""
    if jax.process_count() == 1:
        return counts
    return multihost_utils.process_allgather(counts.astype(np.int32)).sum(axis=0, dtype=np.int64)


def largest(numbers: np.ndarray) -> np.ndarray:
    """The largest of all hosts' numbers, below 2**31, place by place."""
    if jax.process_count() == 1:
        return numbers
    return multihost_utils.process_allgather(numbers.astype(np.int32)).max(axis=0)


def own_share(number: int) -> slice:
    """What this host works on of so many things that the hosts share out."""
    first, end = (number * (jax.process_index() + one) // jax.process_count() for one in (0, 1))
    return slice(first, end)


def fetched(array: jax.Array) -> jax.Array | np.ndarray:
    """The array, fetched from the other hosts where this one does not see all of it."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return array
    return multihost_utils.process_allgather(array, tiled=True)


@contextlib.contextmanager
def exit_on_lost_host() -> Iterator[None]:
    """Within, a run of several hosts ends with one line and the exit code LOST_HOST where another host has gone.

    At once, without the runtime's own end, which would wait for the host that has gone.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not LOST.search(str(error)):
            raise
        reason = " ".join(str(error).split())[:160]
        which = f"host {jax.process_index()} of {jax.process_count()}"
        print(
            f"jaxneg: {which} lost another host ({reason}); what was saved is good: the same command, started on all "
            "hosts again, goes on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(LOST_HOST)


def _from_first(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: len(data[:size])] = data[:size]
    return multihost_utils.broadcast_one_to_all(padded).tobytes().decode()
