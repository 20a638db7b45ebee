"""One training step: draw, gather, gradient, scatter. It knows no model, method or loss by name."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxneg.data import dataset as data
from jaxneg.data import stream
from jaxneg.devices.mesh import WHOLE_BATCH, BatchShard, every
from jaxneg.models import base
from jaxneg.optim.row_tables import DENSE, Gathered, TableStorage
from jaxneg.samplers import Method
from jaxneg.training.buckets import Bucket, Cut, cut_batch
from jaxneg.types import Batch, Candidates, Dataset, Negatives

NOT_FAILED = -1


class HyperParams(NamedTuple):
    """Settings that change no shape, so they may differ between the seeds of one program."""

    learning_rate: Float[Array, ""]
    dropout: Float[Array, ""]
    negative_weight: Float[Array, ""]


class TrainState(NamedTuple):
    """Everything that a run carries from step to step."""

    params: dict  # as `TableStorage` keeps them: only its `weights` knows their layout
    opt_state: Any
    hyper: HyperParams
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
    objective: jax.Array


class Step(NamedTuple):
    """What the training step of one seed is made of; all of it is fixed when a program is traced."""

    model: base.Model
    method: Method
    # (positive_scores, Negatives, negative_weight=...) -> one value per position; for a method that draws nothing
    # (hidden, item_table, targets) -> the same, over the whole catalogue
    loss: Callable[..., Float[Array, "B L"]]
    optimizer: optax.GradientTransformation
    batch_size: int
    num_items: int
    history_size: int  # H, at least the longest history of the dataset
    storage: TableStorage = DENSE  # how tables are kept, and so which of their rows Adam moves
    # All devices of a seed draw the same batch and the same negatives, whose integers are cheap, and share the rest.
    shard: BatchShard = WHOLE_BATCH
    # How to cut a batch so that few pads are computed; (): not at all. Rows are multiples of `shares`, as `batch_size`.
    buckets: tuple[Bucket, ...] = ()
    num_microbatches: int = 1  # in how many parts a device works out its gradient: fewer activations are alive
    pool_size: int | None = None  # number of distinct batches that the run sees, or None (see `pooled_keys`)
    half_life: float = math.inf  # steps in which the learning rate halves
    count_pads: bool = False  # whether pads stay in the mean, as in the released code
    streamed: bool = False  # whether windows come ready in a `stream.Prefetch`, and are not drawn from a Dataset
    l2: float = 0.0  # see `add_l2`
    l2_rows: float = 0.0  # see `batch_loss`
    weight_decay: float = 0.0  # see `add_l2`

    @property
    def shares(self) -> int:
        """Into how many parts a batch is divided: among devices, and by each of them."""
        return self.shard.number * self.num_microbatches

    @property
    def padded(self) -> tuple[Bucket, ...]:
        """The one bucket of a part that is not cut."""
        return (Bucket(self.batch_size // self.shares, self.model.max_len),)

    @property
    def cut(self) -> tuple[Bucket, ...]:
        """The buckets of a part; () where a cut leaves nothing out."""
        return tuple(Bucket(rows // self.shares, length) for rows, length in self.buckets) if self.buckets[1:] else ()

    @property
    def feed_axis(self) -> int | None:
        """The axis of the seeds in what `draw` draws from; None: all draw from the same Dataset."""
        return 0 if self.streamed else None


class LossInputs(NamedTuple):
    """What the loss takes, of one device's share of a batch. Ids are rows of these params' tables."""

    params: dict
    batch: Batch
    candidates: Candidates
    hyper: HyperParams
    keys: StepKeys
    count: Int[Array, ""]  # positions of the whole batch that its mean is over


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
    return keys._replace(batch=pooled.batch, objective=pooled.objective, proposal=pooled.proposal)


def init_state(
    key: jax.Array,
    hyper: HyperParams,
    *,
    model: base.Model,
    num_items: int,
    num_users: int,
    optimizer: optax.GradientTransformation,
    storage: TableStorage = DENSE,
) -> TrainState:
    """The state before the first step: initial weights from one half of the key, the run from the other."""
    init_key, run_key = jax.random.split(key)
    params = model.init(init_key, num_items, num_users)
    params, opt_state = storage.pack(params, optimizer.init(params))
    zero = jnp.zeros((), jnp.float32)
    first = jnp.zeros((), jnp.int32)
    return TrainState(params, opt_state, hyper, run_key, first, zero, jnp.full((), NOT_FAILED, jnp.int32))


def draw(step: Step, state: TrainState, feed: Dataset | stream.Prefetch) -> tuple[StepKeys, Batch]:
    """The step's keys, and its batch: windows of items, and what the model is to learn from them."""
    keys = pooled_keys(state.key, state.step, step.pool_size)
    objective = step.model.objective
    if step.streamed:
        window = stream.window_at(feed, state.step)
    else:
        window = data.DRAW[objective.unit](
            keys.batch,
            feed,
            batch_size=step.batch_size,
            length=step.model.max_len + objective.extra,
            num_items=step.num_items,
            history_size=step.history_size,
        )
    inputs, targets = objective.make(keys.objective, window.items)
    return keys, Batch(inputs, targets, *window[1:])


def fits(step: Step, batch: Batch) -> Bool[Array, ""]:
    """Whether the buckets hold a batch, whose sequences come by falling length."""
    lengths = jnp.sum(batch.inputs != 0, axis=1)
    first = np.cumsum([0, *(bucket.rows for bucket in step.buckets)])[:-1]
    return jnp.all(lengths[first] <= np.array([bucket.length for bucket in step.buckets]))


def gather(step: Step, state: TrainState, keys: StepKeys, batch: Batch, tables) -> tuple[LossInputs, Gathered]:
    """Draws the candidates, and gathers the rows that the batch looks up; of the batch, this device's share."""
    candidates = step.method.proposal.sample(keys.proposal, tables, batch)
    ids = {"item": (jnp.maximum(batch.inputs, 0), batch.targets, candidates.item_ids), "user": (batch.users,)}
    ids = {name: ids[name] for name in state.params["tables"]}
    gathered = step.storage.gather(state.params, state.opt_state, ids)
    inputs, targets, item_ids = gathered.ids["item"]
    (users,) = gathered.ids.get("user", (None,))
    count = jnp.int32(batch.targets.size) if step.count_pads else jnp.sum(batch.targets > 0)
    inputs = jnp.where(batch.inputs < 0, batch.inputs, inputs)  # what is hidden has no row
    batch = batch._replace(inputs=inputs, targets=targets, users=users)
    batch = jax.tree.map(step.shard.take, batch)
    candidates = candidates._replace(item_ids=item_ids)
    candidates = Candidates(*(step.shard.take(rows) if rows.shape[0] > 1 else rows for rows in candidates))
    return LossInputs(gathered.params, batch, candidates, state.hyper, keys, count), gathered


def gradient(step: Step, buckets: tuple[Bucket, ...], given: LossInputs) -> tuple[Float[Array, ""], dict]:
    """The loss of this device's share of a batch, cut in these buckets, and its gradient."""
    number = step.shard.take(jnp.arange(step.batch_size))
    selector_keys = step.shard.take(jax.random.split(given.keys.selector, (step.batch_size, step.model.max_len)))

    def add(index, total):
        def own(rows):
            return every(step.num_microbatches, index, rows) if rows.shape[0] > 1 else rows

        batch, candidates, *rest = jax.tree.map(own, (given.batch, given.candidates, number, selector_keys))
        cuts = list(cut_batch(batch, candidates, buckets))
        return add_gradient(step, given, cuts, *rest, total)

    nothing = jnp.zeros(()), jax.tree.map(jnp.zeros_like, given.params)
    return add(0, nothing) if step.num_microbatches == 1 else lax.fori_loop(0, step.num_microbatches, add, nothing)


def add_gradient(
    step: Step,
    given: LossInputs,
    cuts: Sequence[Cut],
    number: Int[Array, "R"],
    selector_keys: Key[Array, "R L"],
    total: tuple[Float[Array, ""], dict],
) -> tuple[Float[Array, ""], dict]:
    """`total` and the loss and gradient of one microbatch. Each table is looked up once: one gather and one scatter."""
    ids = {"item": [ids for cut in cuts for ids in cut.item_ids], "user": [cut.users for cut in cuts]}
    tables = given.params["tables"]
    ids = {name: jnp.concatenate([own.reshape(-1) for own in ids[name]]) for name in tables}
    rows = {name: base.lookup(tables[name], ids[name]) for name in tables}
    loss_of = functools.partial(batch_loss, step, cuts, number, selector_keys, given)
    found, (of_params, of_rows) = jax.value_and_grad(loss_of, argnums=(0, 1))(given.params, rows)
    value, sums = total
    sums = jax.tree.map(jnp.add, sums, of_params)
    for name in tables:
        own = jnp.where(ids[name][:, None] > 0, of_rows[name], 0)
        sums["tables"][name] = sums["tables"][name].at[jnp.maximum(ids[name], 0)].add(own)
    return value + found, sums


def batch_loss(
    step: Step,
    cuts: Sequence[Cut],
    number: Int[Array, "R"],
    selector_keys: Key[Array, "R L"],
    given: LossInputs,
    params: dict,
    rows: dict[str, Float[Array, "n D"]],
) -> Float[Array, ""]:
    """The sum of the loss over the positions of a microbatch, pads with `count_pads`, over the `count` of all.

    All pads of a sequence have the same state, so those that a bucket leaves out count as one position with a weight:
    the result is that of the padded batch. With `l2_rows`, half that times the sum of squares of the rows of the
    targets, the valid negatives and the users joins the sum (Rendle et al., UAI 2009, section 4.1).

    Args:
      number: of each sequence in the whole batch, on which its dropout depends.
      params: ids are rows of its tables, which may hold the batch's own rows only (`row_tables.Gathered`).
      rows: those that the cuts look up, one after another.
    """
    item_rows = iter(base.cut_rows(rows["item"], [ids for cut in cuts for ids in cut.item_ids]))
    looked_up = [(next(item_rows), next(item_rows), next(item_rows)) for _ in cuts]
    user_rows = base.cut_rows(rows["user"], [cut.users for cut in cuts]) if "user" in rows else [None] * len(cuts)
    numbers = jnp.split(number, [cut.first_row for cut in cuts[1:]])
    pieces = [
        base.Piece(cut.inputs, inputs, user, own_number, cut.times)
        for cut, (inputs, _, _), user, own_number in zip(cuts, looked_up, user_rows, numbers, strict=True)
    ]
    dropout = base.Dropout(given.keys.dropout, given.hyper.dropout)
    states = step.model.encode(params["network"], pieces, dropout)
    total, negative_rows = jnp.zeros(()), looked_up[0][-1]
    for cut, hidden, (_, targets, own_rows), user in zip(cuts, states, looked_up, user_rows, strict=True):
        negative_rows = own_rows if own_rows.size else negative_rows
        values = functools.partial(position_losses, step, given, params, cut, selector_keys)
        counted = jnp.ones_like(cut.targets, bool) if step.count_pads else cut.targets > 0
        total += jnp.sum(jnp.where(counted, values(hidden, targets, negative_rows), 0))
        num_cut = step.model.max_len - cut.inputs.shape[1]
        if step.count_pads and num_cut:
            at_pad = jnp.broadcast_to(step.model.pad_state(params["network"]), (len(hidden), 1, hidden.shape[-1]))
            total += num_cut * jnp.sum(values(at_pad, jnp.zeros_like(targets[:, :1]), negative_rows))
        if step.l2_rows:
            total += 0.5 * step.l2_rows * squares_of_rows(step, given, cut, targets, negative_rows, user)
    return total / jnp.maximum(given.count, 1)


def position_losses(
    step: Step,
    given: LossInputs,
    params: dict,
    cut: Cut,
    selector_keys: Key[Array, "R L"],
    hidden: Float[Array, "b l D"],
    target_rows: Float[Array, "b l D"],
    negative_rows: Float[Array, "#b #l N D"],
) -> Float[Array, "b l"]:
    """The loss at each position of a cut: score, select, compare."""
    if step.method.num_candidates == 0:
        return step.loss(hidden, params["tables"]["item"], cut.targets)
    end = cut.first_row + cut.inputs.shape[0]
    own_keys = selector_keys[cut.first_row : end, -hidden.shape[1] :]
    score = functools.partial(step.model.score, params["network"], hidden)
    offered = cut.candidates
    negatives = Negatives(offered.item_ids, score(negative_rows), offered.log_q, offered.mask)
    positive_scores = score(target_rows[:, :, None])[..., 0]
    chosen = step.method.selector(own_keys, negatives, positive_scores)
    return step.loss(positive_scores, chosen, negative_weight=given.hyper.negative_weight)


def squares_of_rows(step: Step, given: LossInputs, cut: Cut, target_rows, negative_rows, user_rows) -> Float[Array, ""]:
    """The sum of squares of the rows of a cut; what all parts of a batch share counts once for all of them.

    A sequence's negatives count once, those of a position where it has a target.
    """
    mask = cut.candidates.mask
    mask = mask & (cut.targets > 0)[..., None] if mask.shape[1] > 1 else mask
    negatives = jnp.sum(jnp.where(mask, jnp.sum(jnp.square(negative_rows), axis=-1), 0))
    # A cut of one row has a mask of one row too, so the whole share tells whether it is of no sequence's own.
    if given.candidates.mask.shape[0] == 1 and step.batch_size > step.shard.number:
        negatives = negatives / step.shares if cut.first_row == 0 else jnp.zeros(())
    users = jnp.zeros(()) if user_rows is None else jnp.sum(jnp.square(user_rows))
    return jnp.sum(jnp.square(target_rows)) + negatives + users


def add_l2(step: Step, params: dict, value: Float[Array, ""], sums: dict) -> tuple[Float[Array, ""], dict]:
    """The loss and the gradient with their L2 terms.

    `l2`: the loss gains half that times the sum of squares of all tables and of the positions (the `l2_emb` of the code
    released with arXiv 2410.17276). `weight_decay`: the gradient gains that times the weights, as in torch's Adam.
    """
    if step.l2:
        embeddings = {"tables": params["tables"]}
        if "positions" in params["network"]:
            embeddings |= {"network": {"positions": params["network"]["positions"]}}
        squares = sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(embeddings))
        value += 0.5 * step.l2 * squares
        of_tables = jax.tree.map(lambda g, w: g + step.l2 * w, sums["tables"], params["tables"])
        of_network = dict(sums["network"])
        for name, w in embeddings.get("network", {}).items():
            of_network[name] = of_network[name] + step.l2 * w
        sums = {"tables": of_tables, "network": of_network}
    if step.weight_decay:
        sums = jax.tree.map(lambda g, w: g + step.weight_decay * w, sums, params)
    return value, sums


def update(step: Step, state: TrainState, gathered: Gathered, value: Float[Array, ""], sums: dict) -> TrainState:
    """The state after one step along a gradient, of which each device has its part.

    A seed whose loss or gradient is not finite keeps its weights from then on.
    """
    value, sums = add_l2(step, gathered.params, *step.shard.psum((value, sums)))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((value, sums))]))
    failed_step = jnp.where((state.failed_step == NOT_FAILED) & ~finite, state.step, state.failed_step)
    alive = failed_step == NOT_FAILED
    # A seed that failed keeps its last finite weights for ever: no gradient, and no step along the old ones.
    sums = jax.tree.map(lambda g: jnp.where(alive, g, 0), sums)
    updates, opt_state = step.optimizer.update(sums, gathered.opt_state, gathered.params)
    rate = jnp.where(alive, state.hyper.learning_rate * jnp.exp2(-state.step / step.half_life), 0)
    params = optax.apply_updates(gathered.params, jax.tree.map(lambda change: -rate * change, updates))
    moved = gathered._replace(params=params, opt_state=opt_state)
    params, opt_state = step.storage.scatter(state.params, state.opt_state, moved)
    loss_sum = state.loss_sum + jnp.where(alive, value, 0)
    return TrainState(params, opt_state, state.hyper, state.key, state.step + 1, loss_sum, failed_step)


def draw_places(
    key_data: Array, steps: Int[Array, "K"], *, batch_size: int, num_users: int, pool_size: int | None
) -> Int[Array, "S K B"]:
    """The users that these steps of the seeds with these run keys draw (see `stream.Stream`)."""

    def one(key, step):
        return data.draw_places(pooled_keys(key, step, pool_size).batch, batch_size, num_users)

    keys = jax.random.wrap_key_data(key_data)
    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(keys, steps)
