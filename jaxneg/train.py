"""One training step, and many of them in one dispatch: draw, propose, score, select, loss, update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxneg import losses
from jaxneg.data import dataset as data
from jaxneg.models import sasrec
from jaxneg.samplers import Method
from jaxneg.types import Dataset, Negatives


class Hyper(NamedTuple):
    """Settings that change no shape, so they may differ between the seeds of one program."""

    learning_rate: Float[Array, ""]
    dropout: Float[Array, ""]
    negative_weight: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a run carries from step to step."""

    params: dict
    opt_state: optax.OptState
    hyper: Hyper
    key: jax.Array  # the run's key; step t's keys are folded from it, so a resumed run draws the same
    step: Int[Array, ""]
    loss_sum: Float[Array, ""]  # over the steps since the last evaluation


class StepKeys(NamedTuple):
    """One key for each purpose within a step."""

    batch: jax.Array
    proposal: jax.Array
    selector: jax.Array
    dropout: jax.Array
    replay: jax.Array


def step_keys(key: jax.Array, step: Int[Array, ""]) -> StepKeys:
    """The keys of one step of the run with this key."""
    return StepKeys(*jax.random.split(jax.random.fold_in(key, step), len(StepKeys._fields)))


def pooled_keys(key: jax.Array, step: Int[Array, ""], pool_size: int | None) -> StepKeys:
    """The keys of one step under an oversampling factor (PAPER, "OSF"): a pool of `pool_size` keys.

    The first `pool_size` steps bring fresh batches and candidates in order; every later one replays those of a
    step drawn uniformly from the pool. Dropout and the selector stay fresh. None: fresh draws for ever.
    """
    keys = step_keys(key, step)
    if pool_size is None:
        return keys
    replayed = jax.random.randint(keys.replay, (), 0, pool_size)
    pooled = step_keys(key, jnp.where(step < pool_size, step, replayed))
    return keys._replace(batch=pooled.batch, proposal=pooled.proposal)


def init_state(
    key: jax.Array, hyper: Hyper, *, model: sasrec.SASRec, num_items: int, optimizer: optax.GradientTransformation
) -> TrainState:
    """The state before the first step: initial weights from one half of the key, the run from the other."""
    init_key, run_key = jax.random.split(key)
    params = sasrec.init(init_key, model, num_items)
    zero = jnp.zeros((), jnp.float32)
    return TrainState(params, optimizer.init(params), hyper, run_key, jnp.zeros((), jnp.int32), zero)


def make_step(
    *,
    model: sasrec.SASRec,
    method: Method,
    loss: Callable[..., Float[Array, "B L"]],
    optimizer: optax.GradientTransformation,
    batch_size: int,
    num_items: int,
    history_size: int,
    pool_size: int | None = None,
    count_pads: bool = False,
) -> Callable:
    """The training step: (state, tables, dataset) -> (state, {"loss": ...}), pure and for one seed.

    Args:
      loss: (positive_scores, Negatives, negative_weight=...) -> one value per position.
      history_size: H, at least the longest history of the dataset.
      pool_size: number of distinct batches that the run sees, or None (see `pooled_keys`).
      count_pads: whether pads stay in the mean, as in the released code.
    """

    def batch_loss(params, batch, candidates, hyper: Hyper, keys: StepKeys):
        table = params["item_table"]
        hidden = sasrec.encode(model, params, batch.inputs, hyper.dropout, keys.dropout)
        positive_scores = sasrec.score(hidden, table, batch.targets[..., None])[..., 0]
        scores = sasrec.score(hidden, table, candidates.item_ids)
        negatives = method.selector(
            keys.selector, Negatives(candidates.item_ids, scores, candidates.log_q, candidates.mask)
        )
        values = loss(positive_scores, negatives, negative_weight=hyper.negative_weight)
        counted = jnp.ones_like(values, bool) if count_pads else batch.targets > 0
        return losses.masked_mean(values, counted)

    def step(state: TrainState, tables, dataset: Dataset) -> tuple[TrainState, dict]:
        keys = pooled_keys(state.key, state.step, pool_size)
        batch = data.draw_batch(
            keys.batch,
            dataset,
            batch_size=batch_size,
            max_len=model.max_len,
            num_items=num_items,
            history_size=history_size,
        )
        candidates = method.proposal.sample(keys.proposal, tables, batch)
        value, gradient = jax.value_and_grad(batch_loss)(state.params, batch, candidates, state.hyper, keys)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        scaled = jax.tree.map(lambda update: -state.hyper.learning_rate * update, updates)
        params = optax.apply_updates(state.params, scaled)
        new = TrainState(params, opt_state, state.hyper, state.key, state.step + 1, state.loss_sum + value)
        return new, {"loss": value}

    return step


def run_steps(step: Callable, num_steps: Int[Array, ""], state: TrainState, tables, dataset: Dataset) -> TrainState:
    """`num_steps` steps in one program; the number is traced, so one compilation serves every interval."""
    return jax.lax.fori_loop(0, num_steps, lambda _, carried: step(carried, tables, dataset)[0], state)
