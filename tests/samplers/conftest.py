"""A small world: users from no history to half the catalogue, frequencies with zeros, padded targets."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.types import Batch


class World(NamedTuple):
    num_items: int
    item_counts: np.ndarray  # [V+1]
    target_counts: np.ndarray  # [V+1]
    histories: list  # one NumPy array of items per user
    targets: np.ndarray  # [B, L]
    batch: Batch


def batch_of(histories, targets, num_items, padding=2) -> Batch:
    """A Batch from plain lists; the history is padded `padding` places beyond the longest."""
    width = max(map(len, histories)) + padding
    rows = np.full((len(histories), width), num_items + 1, np.int32)
    for row, items in zip(rows, histories, strict=True):
        row[: len(items)] = np.sort(items)
    targets = jnp.asarray(np.asarray(targets, np.int32))
    lengths = jnp.asarray([len(items) for items in histories], jnp.int32)
    return Batch(targets, targets, jnp.asarray(rows), lengths)


@pytest.fixture
def make_batch():
    return batch_of


@pytest.fixture(scope="session")
def world() -> World:
    num_items, length = 24, 6
    rng = np.random.default_rng(7)
    counts = np.concatenate([[0], [30, 22, 0, 16, 12, 9, 7, 6, 5, 4, 4, 3, 3, 2, 2, 2, 1, 1, 1, 1, 1, 0, 1, 1]])
    histories = [rng.choice(num_items, size, replace=False) + 1 for size in (0, 1, 3, 7, 12)]
    histories[4][:3] = 1, 2, 20  # one of each cohort among the targets
    histories[4] = np.unique(histories[4])
    targets = np.zeros((len(histories), length), np.int32)
    for row, items in zip(targets, histories, strict=True):
        drawn = items[:length] if len(items) != 3 else np.append(items, items[0])  # one repeat
        row[length - len(drawn) :] = drawn
    target_counts = np.bincount(targets.ravel(), minlength=num_items + 1) + counts
    return World(num_items, counts, target_counts, histories, targets, batch_of(histories, targets, num_items))
