"""One training step, and many of them in one dispatch: draw, propose, score, select, loss, update."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from jaxneg.data import dataset as data
from jaxneg.data import stream
from jaxneg.devices import mesh as mesh_lib
from jaxneg.devices.mesh import WHOLE, Part
from jaxneg.models import sasrec
from jaxneg.optim.row_tables import DENSE, Borrowed, ItemTable
from jaxneg.samplers import Method
from jaxneg.training import buckets as buckets_lib
from jaxneg.training.buckets import Bucket, Piece
from jaxneg.types import Batch, Candidates, Dataset, Negatives

NOT_FAILED = -1


class Hyper(NamedTuple):
    """Settings that change no shape, so they may differ between the seeds of one program."""

    learning_rate: Float[Array, ""]
    dropout: Float[Array, ""]
    negative_weight: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a run carries from step to step."""

    params: dict  # as `ItemTable` keeps them: only its `weights` knows their layout
    opt_state: Any
    hyper: Hyper
    key: jax.Array  # the run's key; step t's keys are folded from it, so a resumed run draws the same
    step: Int[Array, ""]
    loss_sum: Float[Array, ""]  # over the steps since the last evaluation
    failed_step: Int[Array, ""]  # the step whose loss or gradient was not finite; NOT_FAILED for none


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
    """The keys of one step under an oversampling factor (arXiv 2410.17276, OSF): a pool of `pool_size` keys.

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
    key: jax.Array,
    hyper: Hyper,
    *,
    model: sasrec.SASRec,
    num_items: int,
    optimizer: optax.GradientTransformation,
    item_table: ItemTable = DENSE,
) -> TrainState:
    """The state before the first step: initial weights from one half of the key, the run from the other."""
    init_key, run_key = jax.random.split(key)
    params = sasrec.init(init_key, model, num_items)
    params, opt_state = item_table.keep(params, optimizer.init(params))
    zero = jnp.zeros((), jnp.float32)
    first = jnp.zeros((), jnp.int32)
    return TrainState(params, opt_state, hyper, run_key, first, zero, jnp.full((), NOT_FAILED, jnp.int32))


class LossInputs(NamedTuple):
    """What `batch_loss` takes, of one part of a batch. Item ids are rows of these params' item table."""

    params: dict
    batch: Batch
    candidates: Candidates
    hyper: Hyper
    keys: StepKeys
    count: Int[Array, ""]  # positions of the whole batch that its mean is over


class Step(NamedTuple):
    """One training step of one seed, in the parts that `run_steps` puts together."""

    draw: Callable  # (state, feed) -> (keys, Batch)
    borrow: Callable  # (state, keys, batch, tables) -> (LossInputs, Borrowed)
    padded: Callable  # LossInputs -> (loss, gradient)
    update: Callable  # (state, Borrowed, loss, gradient) -> state
    in_buckets: Callable | None = None  # like `padded`, for a batch that fits; None without buckets
    fits: Callable | None = None  # Batch -> whether the buckets hold it
    feed_axis: int | None = None  # of the seeds, in what `draw` draws from; None: all draw from the same Dataset


def make_step(
    *,
    model: sasrec.SASRec,
    method: Method,
    loss: Callable[..., Float[Array, "B L"]],
    optimizer: optax.GradientTransformation,
    item_table: ItemTable = DENSE,
    part: Part = WHOLE,
    batch_size: int,
    num_items: int,
    history_size: int,
    buckets: tuple[Bucket, ...] = (),
    turns: int = 1,
    pool_size: int | None = None,
    half_life: float = math.inf,
    count_pads: bool = False,
    streamed: bool = False,
) -> Step:
    """The training step of one seed: pure, and the same whatever the buckets.

    Args:
      loss: (positive_scores, Negatives, negative_weight=...) -> one value per position; for a method that draws
        nothing (hidden, item_table, targets) -> the same, over the whole catalogue.
      item_table: how the item table is kept, and so which of its rows Adam moves (see `jaxneg.optim.row_tables`).
      part: what of each batch this device works on. All draw the same batch and the same negatives, whose integers
        are cheap, and share what comes after.
      history_size: H, at least the longest history of the dataset.
      buckets: how to cut a batch so that few pads are computed (see `jaxneg.training.buckets`); (): not at all. Rows
        are multiples of `part.number` times `turns`, as `batch_size` is.
      turns: in how many parts, one after another, this device works out its gradient: fewer activations are alive.
      pool_size: number of distinct batches that the run sees, or None (see `pooled_keys`).
      half_life: steps in which the learning rate halves.
      count_pads: whether pads stay in the mean, as in the released code.
      streamed: whether batches come ready in a `stream.Block`, and are not drawn from a Dataset.
    """
    padded = (Bucket(batch_size // (part.number * turns), model.max_len),)
    own_buckets = tuple(Bucket(rows // (part.number * turns), length) for rows, length in buckets)
    loss_of = functools.partial(batch_loss, model=model, method=method, loss=loss, count_pads=count_pads)

    def draw(state: TrainState, feed: Dataset | stream.Block) -> tuple[StepKeys, Batch]:
        keys = pooled_keys(state.key, state.step, pool_size)
        if streamed:
            return keys, stream.batch_at(feed, state.step)
        return keys, data.draw_batch(
            keys.batch,
            feed,
            batch_size=batch_size,
            max_len=model.max_len,
            num_items=num_items,
            history_size=history_size,
        )

    def fits(batch: Batch) -> Bool[Array, ""]:
        lengths = jnp.sum(batch.inputs > 0, axis=1)
        first = np.cumsum([0, *(bucket.rows for bucket in buckets)])[:-1]
        return jnp.all(lengths[first] <= np.array([bucket.length for bucket in buckets]))

    def borrow(state: TrainState, keys: StepKeys, batch: Batch, tables) -> tuple[LossInputs, Borrowed]:
        candidates = method.proposal.sample(keys.proposal, tables, batch)
        ids = (batch.inputs, batch.targets, candidates.item_ids)
        borrowed = item_table.borrow(state.params, state.opt_state, ids)
        inputs, targets, item_ids = borrowed.item_ids
        count = jnp.int32(batch.targets.size) if count_pads else jnp.sum(batch.targets > 0)
        batch = Batch(*(part.own(rows) for rows in batch._replace(inputs=inputs, targets=targets)))
        candidates = candidates._replace(item_ids=item_ids)
        candidates = Candidates(*(part.own(rows) if rows.shape[0] > 1 else rows for rows in candidates))
        return LossInputs(borrowed.params, batch, candidates, state.hyper, keys, count), borrowed

    def gradient_of(cut: tuple[Bucket, ...], inputs: LossInputs) -> tuple[Float[Array, ""], dict]:
        params, number = inputs.params, part.own(jnp.arange(batch_size))
        selector_keys = part.own(jax.random.split(inputs.keys.selector, (batch_size, model.max_len)))

        def add_turn(turn, total):
            value, gradient = total

            def own(tree):
                return jax.tree.map(lambda rows: mesh_lib.every(turns, turn, rows) if rows.shape[0] > 1 else rows, tree)

            pieces = list(buckets_lib.cut_batch(own(inputs.batch), own(inputs.candidates), cut))
            # One gather for all, so that the item table's gradient is one scatter.
            ids = jnp.concatenate([ids.reshape(-1) for piece in pieces for ids in piece.looked_up])
            rows = sasrec.lookup(params["item_table"], ids)
            of_batch = (pieces, own(number), own(selector_keys), inputs.keys.dropout, inputs.hyper, inputs.count)
            found, (of_params, of_rows) = jax.value_and_grad(loss_of, argnums=(0, 1))(params, rows, *of_batch)
            gradient = jax.tree.map(jnp.add, gradient, of_params)
            table = gradient["item_table"].at[ids].add(jnp.where(ids[:, None] != 0, of_rows, 0))
            return value + found, gradient | {"item_table": table}

        nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return add_turn(0, nothing) if turns == 1 else lax.fori_loop(0, turns, add_turn, nothing)

    update = functools.partial(
        update_state, optimizer=optimizer, item_table=item_table, total=part.total, half_life=half_life
    )
    step = Step(draw, borrow, functools.partial(gradient_of, padded), update, feed_axis=0 if streamed else None)
    in_buckets = functools.partial(gradient_of, own_buckets)
    return step._replace(in_buckets=in_buckets, fits=fits) if len(buckets) > 1 else step


def update_state(
    state: TrainState,
    borrowed: Borrowed,
    value: Float[Array, ""],
    gradient: dict,
    *,
    optimizer: optax.GradientTransformation,
    item_table: ItemTable,
    total: Callable,
    half_life: float,
) -> TrainState:
    """The state after one step along a gradient, of which each device has its part; `total` sums the parts.

    A seed whose loss or gradient is not finite keeps its weights from then on.
    """
    value, gradient = total((value, gradient))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((value, gradient))]))
    failed_step = jnp.where((state.failed_step == NOT_FAILED) & ~finite, state.step, state.failed_step)
    alive = failed_step == NOT_FAILED
    # A seed that failed keeps its last finite weights for ever: no gradient, and no step along the old ones.
    gradient = jax.tree.map(lambda g: jnp.where(alive, g, 0), gradient)
    updates, opt_state = optimizer.update(gradient, borrowed.opt_state, borrowed.params)
    rate = jnp.where(alive, state.hyper.learning_rate * jnp.exp2(-state.step / half_life), 0)
    params = optax.apply_updates(borrowed.params, jax.tree.map(lambda change: -rate * change, updates))
    moved = borrowed._replace(params=params, opt_state=opt_state)
    params, opt_state = item_table.give_back(state.params, state.opt_state, moved)
    loss_sum = state.loss_sum + jnp.where(alive, value, 0)
    return TrainState(params, opt_state, state.hyper, state.key, state.step + 1, loss_sum, failed_step)


def batch_loss(
    params: dict,
    rows: Float[Array, "n D"],
    pieces: Sequence["Piece"],
    number: Int[Array, "R"],
    selector_keys: Key[Array, "R L"],
    dropout_key: PRNGKeyArray,
    hyper: Hyper,
    count: Int[Array, ""],
    *,
    model: sasrec.SASRec,
    method: Method,
    loss: Callable[..., Float[Array, "B L"]],
    count_pads: bool,
) -> Float[Array, ""]:
    """The sum of the loss over the positions of a part of a batch, pads with `count_pads`, over the `count` of all.

    All pads of a sequence have the same state, so those that a bucket leaves out count as one position with a
    weight: the result is that of the padded batch.

    Args:
      params: item ids are rows of its item table, which may hold the batch's own items only (`row_tables.Borrowed`).
      rows: those of the item table that the pieces look up, one after another.
      number: of each sequence in the whole batch, on which its dropout depends.
    """
    ids = [ids for piece in pieces for ids in piece.looked_up]
    embedded = iter(sasrec.cut_rows(rows, ids))
    encode = functools.partial(model.apply, {"params": params["encoder"]})
    total = jnp.zeros(())

    def values(hidden, piece: Piece, targets, negative_rows):
        if method.num_candidates == 0:
            return loss(hidden, params["item_table"], piece.targets)
        offered, end = piece.candidates, piece.first_row + piece.inputs.shape[0]
        own_keys = selector_keys[piece.first_row : end, -hidden.shape[1] :]
        negatives = Negatives(offered.item_ids, sasrec.dot(hidden, negative_rows), offered.log_q, offered.mask)
        positive_scores = jnp.sum(hidden * targets, axis=-1)
        chosen = method.selector(own_keys, negatives, positive_scores)
        return loss(positive_scores, chosen, negative_weight=hyper.negative_weight)

    looked_up = [(next(embedded), next(embedded), next(embedded)) for _ in pieces]
    is_item = [piece.inputs > 0 for piece in pieces]
    states = encode([inputs for inputs, _, _ in looked_up], is_item, hyper.dropout, dropout_key, number)
    negative_rows = looked_up[0][-1]
    for piece, hidden, (inputs, targets, own_rows) in zip(pieces, states, looked_up, strict=True):
        negative_rows = own_rows if own_rows.size else negative_rows
        counted = jnp.ones_like(piece.targets, bool) if count_pads else piece.targets > 0
        total += jnp.sum(jnp.where(counted, values(hidden, piece, targets, negative_rows), 0))
        num_cut = model.max_len - piece.inputs.shape[1]
        if count_pads and num_cut:
            nothing = jnp.zeros_like(inputs[:, :1])
            (at_pad,) = encode([nothing], [jnp.zeros(nothing.shape[:2], bool)])
            total += num_cut * jnp.sum(values(at_pad, piece, nothing, negative_rows))
    return total / jnp.maximum(count, 1)


def draw_users(
    key_data: Array, steps: Int[Array, "K"], *, batch_size: int, num_users: int, pool_size: int | None
) -> Int[Array, "S K B"]:
    """The users that these steps of the seeds with these run keys draw (see `stream.Stream`)."""

    def one(key, step):
        return data.draw_users(pooled_keys(key, step, pool_size).batch, batch_size, num_users)

    keys = jax.random.wrap_key_data(key_data)
    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(keys, steps)
