"""What a run will do, before it does it: the programs, the data, and the memory that they need."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxneg import losses, models, samplers
from jaxneg.data import dataset as data
from jaxneg.data import stream
from jaxneg.devices import hosts
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.evaluation import ranks as ranking
from jaxneg.models import base
from jaxneg.optim import adam as adam_lib
from jaxneg.optim import compressed, row_tables
from jaxneg.run import config as config_lib
from jaxneg.run import inputs as run_inputs
from jaxneg.run.inputs import Inputs, Split
from jaxneg.settings import distributions
from jaxneg.training import buckets
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training
from jaxneg.types import Dataset, HistoryRows

CHOSEN_AT_RANDOM = ("dns", "softmax_hard")  # or may be: each position has its own choice
BUCKET_OVERFLOW = 1e-3  # chance that a batch is too long for one of its buckets and has to be padded
MOST_STEPS = 2**31 - 1  # TrainState.step is int32
SCORES_BYTES = 8 * 2**20  # of candidates that a core works on at a time: more does not stay in its caches


class Programs(NamedTuple):
    """The compiled programs of a run, each for all seeds at once."""

    init: Any  # (keys, hyper) -> state
    advance: Any  # (number of steps, state, tables, dataset or stream.Prefetch) -> state
    weights: Any  # state's params -> {"tables": {"item": [S, V+1, D]}, "network": ...}, however they are kept
    evaluate: Any  # (weights, HistoryRows, cases) -> num_above [C], num_tied [C], exposure [K, V+1] (and fill)


class Plan(NamedTuple):
    """Everything about a run that does not change while it trains."""

    config: Any
    folder: pathlib.Path
    seeds: range  # those that this plan trains, together
    layout: mesh_lib.Layout
    programs: Programs
    dataset: Dataset | None  # None: batches are streamed
    stream: stream.Stream | None  # where they are
    history_rows: HistoryRows  # what the histories of the cases are windows of
    tables: Any
    splits: dict[str, Split]
    item_counts: np.ndarray
    hyper: training.HyperParams
    steps_per_epoch: int

    @property
    def last_step(self) -> int:
        return self.config.num_epochs * self.steps_per_epoch


class Parts(NamedTuple):
    """What a config names, made."""

    model: base.Model
    method: samplers.Method
    loss: Callable
    storage: row_tables.TableStorage
    optimizer: optax.GradientTransformation
    layout: mesh_lib.Layout


def make_plan(config, folder: pathlib.Path, prepared: data.Prepared, seeds: range) -> Plan:
    """The plan for these seeds, its data still on the host; compiles nothing yet. Raises InputError."""
    num_items, counts = prepared.num_items, np.asarray(prepared.item_counts)
    parts = make_parts(config, seed_layout(config, len(seeds)), num_items)
    steps_per_epoch = count_steps(config, parts.model, prepared)
    pool_size = None if math.isinf(config.osf) else max(1, math.floor(config.osf * steps_per_epoch))
    inputs = run_inputs.make_inputs(config, parts.layout, parts.model, prepared, pool_size)
    targets = count_targets(config, parts.model, inputs.rows, num_items)
    tables = split_by_item(parts.layout, parts.method.proposal.init(counts, targets), num_items)
    step = make_step(config, parts, inputs, num_items, len(seeds), steps_per_epoch, pool_size)
    seen = run_inputs.max_history(prepared, config.eval.rolling_history) if config.eval.filter_seen else 0
    programs = make_programs(config, parts, inputs, step, tables, prepared, seen)
    hyper = training.HyperParams(
        learning_rate=np.float32(config.learning_rate),
        dropout=np.float32(config.model.get("dropout", 0.0)),
        negative_weight=np.float32(config.loss.negative_weight),
    )
    return Plan(
        config,
        folder,
        seeds,
        parts.layout,
        programs,
        inputs.dataset,
        inputs.stream,
        inputs.history_rows,
        tables,
        inputs.splits,
        counts,
        hyper,
        steps_per_epoch,
    )


def count_steps(config, model: base.Model, prepared: data.Prepared) -> int:
    """Steps of an epoch: one for every batch_size users, or for every batch_size training rows that can be drawn.

    Raises InputError where those of all epochs are too many to count.
    """
    number = prepared.num_users
    if model.objective.unit == "interaction":
        number = int(data.rows_before(data.training_rows(prepared))[-1])
    steps_per_epoch = max(1, number // config.batch_size)
    if config.num_epochs * steps_per_epoch > MOST_STEPS:
        most = MOST_STEPS // steps_per_epoch
        raise InputError(
            f"config.num_epochs={config.num_epochs} is too many: {most} or fewer of {steps_per_epoch:,} "
            f"steps each, since steps are counted to {MOST_STEPS:,}"
        )
    return steps_per_epoch


def make_parts(config, layout: mesh_lib.Layout, num_items: int) -> Parts:
    """The components that a config names. Raises InputError where they do not go together."""
    method_settings = samplers.Settings(**{name: config.sampler[name] for name in samplers.Settings._fields})
    loss_settings = losses.Settings(**{name: config.loss[name] for name in losses.Settings._fields})
    model_settings = {name: value for name, value in config.model.items() if name != "name"}
    model = models.make(config.model.name, model_settings, num_items)
    method = samplers.make(config.method, num_items, method_settings)
    if method.num_candidates == 0 and model.score is not base.dot:
        raise InputError(
            f"config.model.name={config.model.name} scores by no dot product, which loss full_softmax needs: name a "
            "method that draws negatives"
        )
    unselected = method.num_candidates - method.num_kept if config.loss.keep_unselected else 0
    adam, form = config.optimizer, item_table_form(config, num_items)
    whole = {"loss.l2": config.loss.l2, "optimizer.weight_decay": adam.weight_decay}
    for name, value in whole.items():
        if value and form == "sparse":
            raise InputError(
                f"config.{name}={value:g} moves every row at each step, and optimizer.item_table is sparse: "
                "set it to dense"
            )
    return Parts(
        model=model,
        method=method,
        loss=losses.make(config.loss.name, num_items, loss_settings, unselected),
        storage=compressed.storage(form, adam.moments, functools.partial(mesh_lib.split, layout, "model")),
        optimizer=adam_lib.adam(adam.b1, adam.b2, adam.epsilon, adam.tensorflow_epsilon),
        layout=layout,
    )


def make_step(
    config,
    parts: Parts,
    inputs: Inputs,
    num_items: int,
    num_seeds: int,
    steps_per_epoch: int,
    pool_size: int | None,
) -> training.Step:
    """The training step of one seed."""
    model, layout = parts.model, parts.layout
    cut = make_buckets(config, model, inputs.rows, num_seeds, layout.devices_per_seed)
    num_microbatches = choose_microbatches(config, layout, model, cut, parts.method.num_candidates)
    return training.Step(
        model=model,
        method=parts.method,
        loss=parts.loss,
        optimizer=parts.optimizer,
        batch_size=config.batch_size,
        num_items=num_items,
        history_size=inputs.history_size,
        storage=parts.storage,
        shard=mesh_lib.batch_shard(layout),
        buckets=make_buckets(config, model, inputs.rows, num_seeds, layout.devices_per_seed * num_microbatches),
        num_microbatches=num_microbatches,
        pool_size=pool_size,
        half_life=config.learning_rate_half_life * steps_per_epoch,
        count_pads=config.loss.count_pads,
        streamed=inputs.stream is not None,
        l2=config.loss.l2,
        l2_rows=config.loss.l2_rows,
        weight_decay=config.optimizer.weight_decay,
    )


def score_of_pairs(model: base.Model, network: dict) -> Callable:
    """The model's `score` of every state [c, D] with every row [n, D], at full precision on every backend: [c, n]."""
    if model.score is base.dot:
        return ranking.dot

    def score(states, rows):
        with jax.default_matmul_precision("highest"):
            return model.score(network, states[None], rows[None, None])[0]

    return score


def make_programs(
    config,
    parts: Parts,
    inputs: Inputs,
    step: training.Step,
    tables,
    prepared: data.Prepared,
    max_seen: int,
) -> Programs:
    """The programs of all seeds together; `max_seen` is the longest history that is left out of a ranking, or 0."""
    model, layout, ks = parts.model, parts.layout, tuple(config.eval.ks)
    num_items, num_users = prepared.num_items, prepared.num_users
    budget = config.eval.memory_mb * 2**20
    chunks = ranking.choose_chunks(num_items, model.width, layout.seeds_per_device, budget, model.floats_per_score)

    def init(key, hyper):
        return training.init_state(
            key,
            hyper,
            model=model,
            num_items=num_items,
            num_users=num_users,
            optimizer=parts.optimizer,
            storage=parts.storage,
        )

    def rank(params, rows, cases):
        def encode(history, users, times):
            return base.encode_inputs(model, params, model.objective.query(history), users, times)

        hidden = ranking.encode_histories(
            encode,
            rows.items,
            cases,
            length=model.query_len or model.max_len,
            chunk_size=chunks.case_chunk,
            times=rows.times,
        )
        score = score_of_pairs(model, params["network"])
        ranked = ranking.rank_hidden(hidden, params["tables"]["item"], rows.items, cases, ks, chunks, max_seen, score)
        num_above, num_tied, exposure = ranked
        return num_above, num_tied, mesh_lib.total_over_data(layout, exposure)

    make_state = mesh_lib.made_on_devices(init, layout)
    state_specs = mesh_lib.specs(state_shapes(layout, make_state), mesh_lib.SEED)
    source = True if inputs.stream is not None else mesh_lib.specs(inputs.dataset)
    advance = mesh_lib.over_devices(
        functools.partial(training_loop.run_groups, step, mesh_lib.group_size(layout)),
        layout,
        (False, state_specs, mesh_lib.specs(tables), source),
        donate=(1,),
        out_specs=state_specs,
    )
    checked = functools.partial(training_loop.run_checked, training_loop.check_step(step), step.feed_axis)
    return Programs(
        init=make_state,
        advance=checked if config.debug else advance,
        weights=parts.storage.weights,
        evaluate=mesh_lib.over_seeds(
            rank,
            layout,
            (state_specs.params, mesh_lib.specs(inputs.history_rows), mesh_lib.DATA),
            out_specs=mesh_lib.EVALUATED,
            use="evaluate",
        ),
    )


def seed_layout(config, num_seeds: int) -> mesh_lib.Layout:
    """The mesh of a config. Raises InputError where the devices or the batch do not go with it."""
    data_axis = 1 if config.debug else config.mesh.data
    return mesh_lib.seed_layout(num_seeds, data=data_axis, model=config.mesh.model, batch_size=config.batch_size)


def split_by_item(layout: mesh_lib.Layout, tables: Any, num_items: int) -> Any:
    """A sampler's tables, those with a row for each item split as the item table is."""

    def part(table):
        return mesh_lib.split(layout, "model", table) if len(table) in (num_items, num_items + 1) else table

    return jax.tree.map(part, tables)


def count_targets(config, model: base.Model, rows: data.Rows, num_items: int) -> np.ndarray | None:
    """How often each item is a training target, where a sampler asks for it; each host counts for some users."""
    if "in_batch" not in distributions(config_lib.flatten(config)):
        return None
    own = rows._replace(train_users=rows.train_users[hosts.own_share(len(rows.train_users))])
    objective = model.objective
    length = model.max_len if objective.unit == "user" else len(rows.items)  # a single interaction may be any row
    return hosts.total(data.target_counts(own, length, num_items, objective.extra))


def drawn_from(plan: Plan, state: training.TrainState, step: int) -> Iterator[tuple[int, Any]]:
    """What the steps from `step` on draw from: (one past the last of them, what `advance` takes), in their order."""
    if plan.stream is None:
        yield plan.last_step, plan.dataset
    else:
        put = functools.partial(mesh_lib.put_per_seed, plan.layout)
        keys = jax.random.wrap_key_data(jnp.asarray(hosts.fetched(jax.random.key_data(state.key))))
        yield from stream.load(plan.stream, keys, step, plan.last_step, put)


def item_table_form(config, num_items: int) -> str:
    """ "dense" or "sparse", what `optimizer.item_table` comes to for a catalogue of this size.

    auto looks at the catalogue only, so that all methods on one data set are trained alike; but a loss over the whole
    catalogue, and the released code's form, are always dense, and a table that is split over devices is sparse.
    """
    form = config.optimizer.item_table
    if form != "auto":
        return form
    large = num_items >= row_tables.SPARSE_FROM or config.mesh.model > 1
    return "sparse" if large and config.method != "catalogue" and not config.reference else "dense"


def with_item_table(config, num_items: int):
    """The config with auto replaced by the form it comes to, so that a run's record tells which one it was."""
    form = item_table_form(config, num_items)
    return config_lib.resolve(config_lib.changed(config, {"optimizer.item_table": form}))


def drawn_per_position(config) -> bool:
    """Whether positions have candidates of their own, and do not share those of their sequence or batch."""
    drawn = distributions(config_lib.flatten(config))
    return "popularity_cohort" in drawn or config.sampler.scope == "position"


def choose_microbatches(
    config, layout: mesh_lib.Layout, model: base.Model, cut: tuple[buckets.Bucket, ...], num_candidates: int
) -> int:
    """In how many parts a device works out the gradient of its share of a batch.

    On a CPU scores of thousands of shared candidates are worked on while they are in its caches; an accelerator is
    given all at once. Candidates of a position's own are slower in parts.
    """
    if layout.mesh.devices.flat[0].platform != "cpu" or drawn_per_position(config):
        return 1
    positions = sum(rows * length for rows, length in cut) or config.batch_size * model.max_len
    own_rows = config.batch_size // layout.devices_per_seed
    score_bytes = 4 * model.floats_per_score
    wanted = score_bytes * positions * num_candidates / layout.devices_per_seed / SCORES_BYTES
    number = 1
    while number < 0.75 * wanted and own_rows % (2 * number) == 0:
        number *= 2
    return number


def make_buckets(
    config, model: base.Model, dataset: Dataset | data.Rows, num_seeds: int, parts: int = 1
) -> tuple[buckets.Bucket, ...]:
    """How batches are cut so that few pads are computed; () where every sequence is to be padded to max_len."""
    if model.objective.unit != "user":
        return ()
    # A pad that is left out needs negatives of its own, or has a state of its own.
    pads_differ = drawn_per_position(config) or config.method in CHOSEN_AT_RANDOM or model.pad_state is None
    if config.loss.count_pads and pads_differ:
        return ()
    overflow = BUCKET_OVERFLOW / num_seeds
    lengths = data.train_lengths(dataset) - model.objective.extra
    return buckets.choose_buckets(lengths, config.batch_size, model.max_len, config.num_buckets, overflow, parts)


def state_shapes(layout: mesh_lib.Layout, make_state: Any) -> training.TrainState:
    """The shapes of the state that `Programs.init` makes."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), layout.num_rows))
    number = jax.ShapeDtypeStruct((layout.num_rows,), np.float32)
    return jax.eval_shape(make_state, keys, training.HyperParams(number, number, number))


def on_devices(plan: Plan) -> Plan:
    """The plan with its data on the devices."""
    put = functools.partial(mesh_lib.put, plan.layout)
    splits = {name: split._replace(cases=put(split.cases, mesh_lib.DATA)) for name, split in plan.splits.items()}
    dataset = put(plan.dataset)
    rows = put(plan.history_rows) if dataset is None else HistoryRows(dataset.items, dataset.times)
    return plan._replace(dataset=dataset, history_rows=rows, tables=put(plan.tables), splits=splits)
