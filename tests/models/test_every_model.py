"""What every model does in a run: the same draws and numbers however it is run, and it learns what can be learnt."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxneg import settings
from jaxneg.data import dataset as data
from jaxneg.errors import InputError
from jaxneg.evaluation import metrics
from jaxneg.models import base, objectives
from jaxneg.run import checkpoint, experiment, loop
from jaxneg.run import config as config_lib
from jaxneg.run import programs as plan_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training
from jaxneg.training.buckets import Bucket

METHODS = tuple(settings.METHODS)[:8]  # the eight of the release
BY_USER = [name for name in settings.MODELS if name not in ("mf", "neumf")]
SMALL = {"width": 8, "num_blocks": 1, "num_heads": 2, "max_len": 12, "gmf_width": 4, "layers": (8, 4)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def small(cache, model, method="mixed", **values):
    """The config of a run that takes a second; `model__width=8` names a field of a group."""
    config = config_lib.base(model)
    own = {f"model.{name}": value for name, value in SMALL.items() if f"model.{name}" in settings.FIELDS[model]}
    fixed = {
        "dataset": "small",
        "method": method,
        "data.format": "synthetic",
        "data.cache_dir": str(cache),
        "data.synthetic.num_rows": 2000,
        "data.synthetic.num_users": 100,
        "data.synthetic.num_items": 60,
        "batch_size": 16,
        "num_epochs": 4,
        "eval_every": 2,
        "learning_rate": 1e-2,
        "sampler.num_uniform": 6,
        "sampler.num_in_batch": 4,
        "sampler.num_popularity": 6,
        "sampler.num_kept": 3,
    }
    values = {name.replace("__", "."): value for name, value in values.items()}
    config.update_from_flattened_dict(own | fixed | values)
    return config_lib.resolve(config)


def plan_of(config, num_seeds=1):
    """A run's plan on one device, ready to train."""
    prepared = data.load(experiment.prepare_data(config))
    config = experiment.with_item_table(config, prepared.num_items)
    return plan_lib.on_devices(plan_lib.make_plan(config, pathlib.Path(), prepared, range(num_seeds)))


def step_of(config, plan):
    """The training step of one seed, and what it draws from."""
    prepared = data.load(experiment.prepare_data(config))
    parts = plan_lib.make_parts(config, plan.layout, prepared.num_items)
    inputs = plan_lib.run_inputs.make_inputs(config, plan.layout, parts.model, prepared, None)
    step = plan_lib.make_step(config, parts, inputs, prepared.num_items, 1, plan.steps_per_epoch, None)
    tables = parts.method.proposal.init(np.asarray(prepared.item_counts))
    state = training.init_state(
        jax.random.key(3),
        training.HyperParams(jnp.float32(1e-2), jnp.float32(0.2), jnp.float32(1.0)),
        model=parts.model,
        num_items=prepared.num_items,
        num_users=prepared.num_users,
        optimizer=parts.optimizer,
        storage=parts.storage,
    )
    return step, state, tables, jax.tree.map(jnp.asarray, inputs.dataset)


@pytest.mark.parametrize("model", settings.MODELS)
def test_one_key_one_draw_and_jit_changes_nothing(model, cache):
    config = small(cache, model)
    step, state, _, dataset = step_of(config, plan_of(config))

    def run(state):
        keys, batch = training.draw(step, state, dataset)
        dropout = base.Dropout(keys.dropout, 0.2)
        return batch, base.encode_inputs(
            step.model, state.params, batch.inputs, batch.users, batch.times, dropout=dropout
        )

    (batch, hidden), (again, jitted) = run(state), jax.jit(run)(state)
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    np.testing.assert_allclose(hidden, jitted, atol=1e-5)
    assert hidden.shape[:2] == batch.targets.shape and np.isfinite(hidden).all()
    other = jax.jit(run)(state._replace(step=state.step + 1))[0]
    assert not np.array_equal(batch.inputs, other.inputs)
    assert (np.asarray(batch.targets) > 0).any(axis=1).all()


@pytest.mark.parametrize("model", settings.MODELS)
def test_a_seed_among_others_is_the_seed_alone(model, cache):
    config = small(cache, model)
    step, state, tables, dataset = step_of(config, plan_of(config))
    keys = jax.random.split(jax.random.key(9), 3)
    states = jax.tree.map(lambda x: jnp.stack([x] * 3), state)._replace(key=keys)
    advance = jax.jit(functools.partial(training_loop.run_steps, step))
    for number, tolerance in ((1, 1e-5), (20, 1e-4)):
        together = advance(jnp.int32(number), states, tables, dataset)
        alone = advance(jnp.int32(number), jax.tree.map(lambda x: x[1:2], states), tables, dataset)
        mine = jax.tree.map(lambda x: x[1:2], together.params)
        for (path, one), other in zip(jax.tree.leaves_with_path(alone.params), jax.tree.leaves(mine), strict=True):
            if "key" not in jax.tree_util.keystr(path):  # a softmax does not feel a key's bias: rounding moves it
                np.testing.assert_allclose(one, other, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("model", BY_USER)
def test_cut_in_buckets_is_padded(model, cache):
    config = small(cache, model, num_buckets=1)
    step, state, tables, dataset = step_of(config, plan_of(config))
    keys, batch = jax.jit(functools.partial(training.draw, step))(state, dataset)
    lengths = np.sum(np.asarray(batch.inputs) != 0, axis=1)
    assert lengths[8] < step.model.max_len, "a batch with pads"
    cut = step._replace(buckets=(Bucket(8, step.model.max_len), Bucket(8, int(lengths[8:].max()))))

    @functools.partial(jax.jit, static_argnums=0)
    def found(buckets):
        given, _ = training.gather(step, state, keys, batch, tables)
        return training.gradient(cut, buckets, given)

    assert jax.jit(functools.partial(training.fits, cut))(batch)
    padded, in_buckets = found(step.padded), found(cut.cut)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), padded, in_buckets)


def learning(cache, model, method="uniform", **values):
    """The config of a run on data with transitions and tastes."""
    values = {
        "dataset": "learnt",
        "data.split": "leave_one_out",
        "data.synthetic.num_rows": 12_000,
        "data.synthetic.num_users": 400,
        "data.synthetic.num_items": 100,
        "data.synthetic.zipf_exponent": 0.5,
        "batch_size": 64,
        "num_epochs": 60,
        "eval_every": 20,
        "sampler.num_uniform": 20,
        "loss.name": "infonce",
        "model.max_len": 20,
    } | {name.replace("__", "."): value for name, value in values.items()}
    if model not in BY_USER:  # an epoch is of all rows
        values |= {"num_epochs": 6, "eval_every": 2, "batch_size": 128}
    if "model.width" in settings.FIELDS[model]:
        values |= {"model.width": 16}
    return small(cache, model, method, **values)


def beats_popularity(folder):
    """Whether the mean over users of the difference in HR@10 is above 0 by its 95% interval."""
    baseline = pd.read_csv(folder / "baselines.csv").set_index("method")["hr@10"]["popularity_baseline"]
    with np.load(folder / "cases.npz") as cases:
        hits = metrics.hit_rate(cases["num_above"][0], cases["num_tied"][0], 10)
    error = 1.96 * hits.std(ddof=1) / np.sqrt(len(hits))
    return bool(hits.mean() - error > baseline), hits.mean(), error, baseline


@pytest.mark.parametrize("model", settings.MODELS)
def test_it_learns(model, cache, tmp_path):
    experiment.run(learning(cache, model), tmp_path)
    beats, *told = beats_popularity(tmp_path)
    assert beats, told
    with np.load(tmp_path / "cases.npz") as cases:
        assert (cases["num_above"] < 100).all() and (cases["num_tied"] < 5).mean() > 0.9  # items, not pads or ties


def shuffled(objective):
    """Targets of other rows."""

    def make(key, window):
        inputs, targets = objective.make(key, window)
        return inputs, jnp.where(
            targets > 0, jax.random.permutation(key, targets.reshape(-1)).reshape(targets.shape), 0
        )

    return objective._replace(make=make)


def seen(objective):
    """Masked items that are not masked."""

    def make(key, window):
        inputs, targets = objective.make(key, window)
        return jnp.where(inputs == objectives.MASK, targets, inputs), targets

    return objective._replace(make=make)


# Uniform negatives leave out the user's own items, and so tell of them without any target; those of the batch do not.
@pytest.mark.parametrize("model, method, spoil", [("sasrec", "in_batch", shuffled), ("bert4rec", "uniform", seen)])
def test_what_can_not_learn_fails_that_test(model, method, spoil, cache, tmp_path, monkeypatch):
    make = plan_lib.models.make

    def spoilt(*args):
        made = make(*args)
        return made._replace(objective=spoil(made.objective))

    monkeypatch.setattr(plan_lib.models, "make", spoilt)
    experiment.run(learning(cache, model, method), tmp_path)
    assert not beats_popularity(tmp_path)[0]


def test_a_frozen_network_fails_that_test(cache, tmp_path):
    experiment.run(learning(cache, "sasrec", learning_rate=1e-12), tmp_path)
    assert not beats_popularity(tmp_path)[0]


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    """The folder of a small run of each model, made when it is asked for."""
    folders = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def folder_of(model):
        experiment.run(small(cache, model), folders / model)
        return folders / model

    return folder_of


@pytest.mark.parametrize("model", settings.MODELS)
def test_streamed_is_in_memory(model, undisturbed, cache, tmp_path):
    config = small(cache, model, data__stream="on")
    if model not in BY_USER:
        with pytest.raises(InputError, match="data.stream is on.*config.model.unit=user"):
            experiment.run(config, tmp_path)
        return
    experiment.run(config, tmp_path)
    for ours, theirs in zip(rows_of(tmp_path), rows_of(undisturbed(model)), strict=True):
        # Another program rounds otherwise: a loss by its last digits, and so now and then a rank by one.
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["hr@10"] == pytest.approx(theirs["hr@10"], abs=0.03)


@pytest.mark.parametrize("model", settings.MODELS)
def test_killed_and_resumed_is_undisturbed(model, undisturbed, cache, tmp_path, monkeypatch):
    words, told = loop.loss_in_words, []

    def die_at_the_third(*arguments):
        told.append(words(*arguments))
        if len(told) == 3:
            raise MemoryError
        return told[-1]

    monkeypatch.setattr(checkpoint, "COST", 0)
    monkeypatch.setattr(loop, "loss_in_words", die_at_the_third)
    with pytest.raises(MemoryError):
        experiment.run(small(cache, model, checkpoint_seconds=0.0, steps_per_dispatch=4), tmp_path)
    assert list((tmp_path / "checkpoints" / "seeds_0_0").iterdir())
    experiment.run(small(cache, model), tmp_path)
    assert rows_of(tmp_path) == rows_of(undisturbed(model))


def run_once(cache, model, method, folder):
    """One epoch; the loss is a number and the ranks are ranks."""
    experiment.run(small(cache, model, method, num_epochs=1, eval_every=1), folder)
    rows = [row for row in rows_of(folder) if row["cohort"] == "all"]
    assert all(np.isfinite(row["loss"]) and 0 <= row["hr@10"] <= 1 for row in rows) and len(rows) == 2
    label = method if model == "sasrec" else f"{model}/{method}"
    results = pd.read_csv(folder / "results.csv")
    assert (results["method"].tolist(), results["model"].tolist()) == ([label], [model])


ONCE = [(list(settings.MODELS)[index % len(settings.MODELS)], method) for index, method in enumerate(METHODS)]


@pytest.mark.parametrize("model, method", ONCE)
def test_each_method_with_one_model(model, method, cache, tmp_path):
    run_once(cache, model, method, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "dns", "softmax_hard"])
@pytest.mark.parametrize("model", settings.MODELS)
def test_every_method_with_every_model(model, method, cache, tmp_path):
    run_once(cache, model, method, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [name for name in settings.LOSSES if name != "full_softmax"])
@pytest.mark.parametrize("model", settings.MODELS)
def test_every_loss_with_every_model(model, loss, cache, tmp_path):
    experiment.run(small(cache, model, "uniform", num_epochs=1, eval_every=1, loss__name=loss), tmp_path)
    assert all(np.isfinite(row["loss"]) for row in rows_of(tmp_path))


@pytest.mark.parametrize("model", settings.MODELS)
def test_the_full_softmax_goes_with_dot_products(model, cache, tmp_path):
    config = small(cache, model, "catalogue", num_epochs=1, eval_every=1, loss__name="full_softmax")
    if model in ("neumf", "hstu"):
        with pytest.raises(InputError, match=f"model.name={model} scores by no dot product"):
            experiment.run(config, tmp_path)
        return
    experiment.run(config, tmp_path)
    assert all(np.isfinite(row["loss"]) for row in rows_of(tmp_path))


@pytest.mark.parametrize("model", settings.MODELS)
def test_sparse_tables(model, cache, tmp_path):
    """Row-sparse Adam on all tables, with moments of a byte; with float32 it is split over devices below."""
    values = {"num_epochs": 2, "optimizer__item_table": "sparse", "optimizer__moments": "int8"}
    experiment.run(small(cache, model, "uniform", **values), tmp_path)
    rows = [row for row in rows_of(tmp_path) if row["cohort"] == "all"]
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize(
    "model", [name for name in settings.MODELS if name != "sasrec"]
)  # it has more layouts, elsewhere
def test_split_over_devices_is_one_device(model, monkeypatch):
    """Seeds, batches, users and items over eight devices: the same draws, nearly the same weights."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    monkeypatch.setenv("XLA_FLAGS", flags)
    script = pathlib.Path(__file__).parent.parent / "on_mesh.py"
    done = subprocess.run([sys.executable, script, model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
