"""Popularity-cohort negatives (PCNS): a negative's popularity follows that of the positive it stands against."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxneg.data import cohorts
from jaxneg.devices import sharded
from jaxneg.errors import InputError
from jaxneg.samplers import exclude as excluding
from jaxneg.samplers.base import Proposal, check_counts
from jaxneg.samplers.draws import hashed_bits, integers
from jaxneg.types import Batch, Candidates

NUM_COHORTS = len(cohorts.NAMES)


class CohortTables(NamedTuple):
    cohort: np.ndarray  # int32 [V+1]; -1 at the pad
    item_at: np.ndarray  # int32 [V]: the items, cohort after cohort, ascending in each
    place_of: np.ndarray  # int32 [V+1]: item_at[place_of[i]] == i; the pad's is not used
    start: np.ndarray  # int32 [4]: cohort c is item_at[start[c] : start[c + 1]]


class Room(NamedTuple):
    """What is left of each cohort for one user, and where."""

    excluded: excluding.Excluded  # the history as 1-based places in `item_at`
    left: Int[Array, "B 3"]  # items of the cohort outside the history
    left_before: Int[Array, "B 3"]  # the same in the cohorts before it


def cohort(num_items: int, num_samples: int, *, probabilities: tuple[float, ...] = (0.8, 0.1, 0.1)) -> Proposal:
    """N i.i.d. draws per position: the positive's cohort picks the negative's, then uniform in it, history excluded.

    `probabilities`: of the positive's own cohort, and of the other two in the order head, mid, tail. A cohort that is
    empty, or wholly in the user's history, hands its probability to the others in proportion. Masked where the
    target is a pad and where no item is left. Cohorts are `jaxneg.data.cohorts`'s. Raises InputError if `probabilities`
    is no distribution over three.
    """
    if len(probabilities) != NUM_COHORTS or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
        raise InputError(f"probabilities is {probabilities}; allowed: three numbers, not negative, of sum 1")
    own, *others = probabilities
    transition = np.array([np.insert(others, c, own) for c in range(NUM_COHORTS)], np.float32)

    def init(item_counts, target_counts=None) -> CohortTables:
        counts = check_counts("item_counts", item_counts, num_items)
        of_item = cohorts.cohorts(np.concatenate([[0], counts])).astype(np.int32)
        item_at = (np.argsort(of_item[1:], kind="stable") + 1).astype(np.int32)
        place_of = np.zeros(num_items + 1, np.int32)
        place_of[item_at] = np.arange(num_items, dtype=np.int32)
        start = np.searchsorted(of_item[item_at], np.arange(NUM_COHORTS + 1)).astype(np.int32)
        return CohortTables(of_item, item_at, place_of, start)

    def choice(tables: CohortTables, batch: Batch, room: Room) -> Float[Array, "B L 3"]:
        """Unnormalised probability of each cohort at each position; all 0 where nothing can be drawn."""
        of_target = sharded.take(tables.cohort, batch.targets)
        wanted = jnp.take(jnp.asarray(transition), of_target, axis=0, mode="clip")
        possible = (batch.targets > 0)[:, :, None] & (room.left > 0)[:, None]
        return jnp.where(possible, wanted, 0.0)

    def log_prob(tables: CohortTables, batch: Batch, item_ids: Int[Array, "#B #L N"]) -> Float[Array, "B L N"]:
        room = room_of(tables, batch, num_items)
        weight = choice(tables, batch, room)
        share = weight / jnp.maximum(jnp.sum(weight, axis=2, keepdims=True), jnp.finfo(jnp.float32).tiny)
        each = share / jnp.maximum(room.left, 1)[:, None]
        shape = (*batch.targets.shape, item_ids.shape[2])
        of_item = jnp.broadcast_to(sharded.take(tables.cohort, item_ids), shape)
        log_each = jnp.log(jnp.take_along_axis(each, of_item, axis=2, mode="clip"))
        own_item = excluding.contains(batch.history, item_ids)
        return jnp.where(own_item, -jnp.inf, log_each)

    def sample(key: Key[Array, ""], tables: CohortTables, batch: Batch) -> Candidates:
        cohort_key, item_key = jax.random.split(key)
        room = room_of(tables, batch, num_items)
        shape = (*batch.targets.shape, num_samples)
        upto = jnp.cumsum(choice(tables, batch, room), axis=2)
        point = (hashed_bits(cohort_key, shape) >> 9).astype(jnp.float32) * 2.0**-23 * upto[:, :, -1:]  # in [0, total)
        picked = sum((point >= upto[:, :, c : c + 1]).astype(jnp.int32) for c in range(NUM_COHORTS - 1))
        left, before = (_per_cohort(values, picked) for values in (room.left, room.left_before))
        index = before + integers(item_key, jnp.maximum(left, 1), shape, num_items)
        place = jnp.minimum(excluding.shift(room.excluded, index) - 1, num_items - 1)
        item_ids = sharded.take(tables.item_at, place)
        mask = jnp.broadcast_to(upto[:, :, -1:] > 0, shape)
        return Candidates(item_ids, jnp.where(mask, log_prob(tables, batch, item_ids), 0.0), mask)

    return Proposal(init, sample, log_prob, num_samples)


def room_of(tables: CohortTables, batch: Batch, num_items: int) -> Room:
    """Where each user's history lies in the cohort order, and what it leaves of each cohort."""
    places = sharded.take(tables.place_of, jnp.minimum(batch.history, num_items))
    ordered = jnp.sort(jnp.where(batch.history <= num_items, places, num_items), axis=1)
    start = jnp.asarray(tables.start)
    own_before = excluding.count_at_most(ordered, start[None, None] - 1)[:, 0]
    left_before = start[None] - own_before
    excluded = excluding.Excluded(ordered + 1, batch.history_length)
    return Room(excluded, jnp.diff(left_before, axis=1), left_before[:, :-1])


def _per_cohort(values: Int[Array, "B 3"], picked: Int[Array, "B L N"]) -> Int[Array, "B L N"]:
    """values[b, picked[b, l, n]], by selects: three columns are cheaper so than by a gather."""
    columns = [values[:, c][:, None, None] for c in range(NUM_COHORTS)]
    return jnp.where(picked == 0, columns[0], jnp.where(picked == 1, columns[1], columns[2]))
