"""Tables in row-sparse form: LazyAdam in float64, dense Adam where they must agree, and nothing copied."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax.traverse_util import unflatten_dict

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import memory
from jaxneg.errors import InputError
from jaxneg.models import base, sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.optim import row_tables
from jaxneg.run import capacity, experiment, outputs
from jaxneg.run import config as config_lib
from jaxneg.run import programs as plan_lib
from jaxneg.training import buckets
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training

STORAGES = dict(row_tables.STORAGES)  # test_compressed adds its own
RATE, NUM_ITEMS, WIDTH = 3e-2, 12, 3


def numpy_lazy_adam(table, steps, *, b1, b2, eps, tensorflow_epsilon):
    """(table, moments) in float64, row by row, after the steps (ids [n], gradients [n, D]); the pad never moves."""
    table = np.float64(table)
    m, v = np.zeros_like(table), np.zeros_like(table)
    for t, (ids, gradients) in enumerate(steps, start=1):
        for item in set(ids.tolist()) - {0}:
            g = np.float64(gradients[ids == item]).sum(axis=0)
            m[item], v[item] = b1 * m[item] + (1 - b1) * g, b2 * v[item] + (1 - b2) * g**2
            if tensorflow_epsilon:
                change = np.sqrt(1 - b2**t) / (1 - b1**t) * m[item] / (np.sqrt(v[item]) + eps)
            else:
                change = m[item] / (1 - b1**t) / (np.sqrt(v[item] / (1 - b2**t)) + eps)
            table[item] -= RATE * change
    return table, m, v


def random_steps(choices, num_steps=6, scale=1.0, seed=0):
    """Ids with repeats, and a gradient for each place."""
    rng = np.random.default_rng(seed)
    return [
        (rng.choice(choices, 20).astype(np.int32), (scale * rng.normal(size=(20, WIDTH))).astype(np.float32))
        for _ in range(num_steps)
    ]


def run(storage, adam, table, steps):
    """(weights, kept params, kept optimizer state) after steps with a loss that is linear in the looked-up rows."""
    params = {"tables": {"item": jnp.asarray(table)}, "network": {"bias": jnp.ones(2)}}
    kept = storage.pack(params, adam.init(params))

    @jax.jit
    def step(kept, ids, gradients):
        gathered = storage.gather(*kept, {"item": (ids[:12].reshape(3, 4), ids[12:])})

        def loss(params):
            rows = [base.lookup(params["tables"]["item"], ids) for ids in gathered.ids["item"]]
            flat = jnp.concatenate([part.reshape(-1, WIDTH) for part in rows])
            return jnp.sum(flat * gradients) + jnp.sum(jnp.square(params["network"]["bias"]))

        direction, state = adam.update(jax.grad(loss)(gathered.params), gathered.opt_state)
        params = optax.apply_updates(gathered.params, jax.tree.map(lambda change: -RATE * change, direction))
        return storage.scatter(*kept, gathered._replace(params=params, opt_state=state))

    for ids, gradients in steps:
        kept = step(kept, ids, gradients)
    return storage.weights(kept[0]), *kept


@pytest.fixture(scope="module")
def table():
    rows = np.random.default_rng(1).normal(size=(NUM_ITEMS + 1, WIDTH)).astype(np.float32)
    rows[0] = 0
    return rows


@pytest.mark.parametrize("tensorflow_epsilon", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-6])  # the two forms differ where sqrt(v) is not far above eps
def test_equals_float64_lazy_adam(table, tensorflow_epsilon, scale):
    numbers = {"b1": 0.8, "b2": 0.98, "eps": 1e-7, "tensorflow_epsilon": tensorflow_epsilon}
    steps = random_steps([0, 1, 2, 5, 7, 8, 12], scale=scale)
    assert any(item not in ids for ids, _ in steps[1:] for item in (1, 2, 5, 7, 8, 12))  # some rest for a step
    weights, params, state = run(row_tables.SPARSE, adam_lib.adam(*numbers.values()), table, steps)
    for ours, expected in zip(
        jnp.split(params["tables"]["item"], 3, axis=1), numpy_lazy_adam(table, steps, **numbers), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-6 * scale)
    untouched = [0, 3, 4, 6, 9, 10, 11]
    np.testing.assert_array_equal(weights["tables"]["item"][np.array(untouched)], table[untouched])
    assert not np.any(np.asarray(params["tables"]["item"])[untouched, WIDTH:])
    assert int(state.network.count) == len(steps)


def test_equals_dense_adam_where_every_row_is_touched(table):
    steps = [
        (np.append(np.arange(NUM_ITEMS + 1), ids[:7]).astype(np.int32), gradients)
        for ids, gradients in random_steps([0, 4, 9])
    ]
    sparse, dense = (run(form, adam_lib.adam(), table, steps) for form in (row_tables.SPARSE, row_tables.DENSE))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), sparse[0], dense[0])
    jax.tree.map(np.testing.assert_array_equal, sparse[2].network.nu, {"network": dense[2].nu["network"]})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    made = synthetic.SyntheticSettings(num_rows=2000, num_users=100, num_items=400)
    folder = synthetic.prepare_synthetic(made, prepare.DEFAULT, cache_dir=tmp_path_factory.mktemp("cache"))
    return data.load(folder)


HYPER = training.HyperParams(np.float32(1e-2), np.float32(0.2), np.float32(1.0))
CUT = (buckets.Bucket(3, 20), buckets.Bucket(5, 18))


def parts(prepared, form, method="uniform", num_items=None, **others):
    """(init, run_steps for several seeds, tables, dataset) of a small model."""
    num_items = num_items or prepared.num_items
    settings = samplers.Settings(num_in_batch=3, num_uniform=3, num_popularity=3, num_kept=2)
    chosen, storage = samplers.make(method, num_items, settings), STORAGES[form]
    model = sasrec.make(sasrec.Settings(width=8, num_blocks=1, max_len=20), num_items)
    dataset = data.training_set(prepared)
    adam = adam_lib.adam(eps=1e-3)  # so that it does not make a step of a gradient that is rounding alone
    step = training.Step(
        model=model,
        method=chosen,
        loss=losses.make("bce", num_items),
        optimizer=adam,
        storage=storage,
        batch_size=8,
        num_items=num_items,
        history_size=data.longest_history(dataset),
        **others,
    )
    init = functools.partial(
        training.init_state,
        model=model,
        num_items=num_items,
        num_users=prepared.num_users,
        optimizer=adam,
        storage=storage,
    )
    counts = np.asarray(prepared.item_counts) if num_items == prepared.num_items else None
    advance = jax.jit(functools.partial(training_loop.run_steps, step), donate_argnums=1)
    return jax.jit(jax.vmap(init, in_axes=(0, None))), advance, chosen.proposal.init(counts), dataset


def keys(*seeds):
    return jnp.stack([jax.random.key(seed) for seed in seeds])


@pytest.mark.parametrize(
    "method, l2_rows",
    [
        ("adaptive_mixed", 0.0),
        ("popularity", 0.3),
        *(pytest.param(name, 0.0, marks=pytest.mark.slow) for name in ("uniform", "popularity")),
    ],
)
def test_the_first_step_is_that_of_the_dense_form(prepared, method, l2_rows):
    """Without moments of the past an item that is not touched rests in both forms; after that it does not."""
    found = {}
    for form in row_tables.STORAGES:
        init, advance, tables, dataset = parts(prepared, form, method, l2_rows=l2_rows)
        first = advance(np.int32(1), init(keys(3), HYPER), tables, dataset)
        loss, weights = np.asarray(first.loss_sum), jax.device_get(STORAGES[form].weights(first.params))
        later = advance(np.int32(1), first, tables, dataset)
        found[form] = loss, weights, np.asarray(STORAGES[form].weights(later.params)["tables"]["item"])
    for sparse, dense in zip(jax.tree.leaves(found["sparse"][:2]), jax.tree.leaves(found["dense"][:2]), strict=True):
        np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-6)
    moved = {
        form: np.any(later != weights["tables"]["item"], axis=2).sum() for form, (_, weights, later) in found.items()
    }
    assert 0 < moved["sparse"] < moved["dense"]
    assert not np.any(found["sparse"][2][:, 0])


def test_seeds_buckets_and_dispatches_change_nothing(prepared):
    init, whole, tables, dataset = parts(prepared, "sparse")
    cut = parts(prepared, "sparse", buckets=CUT)[1]
    together = whole(np.int32(6), init(keys(0, 1), HYPER), tables, dataset)
    alone = whole(np.int32(2), init(keys(1), HYPER), tables, dataset)
    alone = whole(np.int32(4), alone, tables, dataset)
    in_buckets = cut(np.int32(6), init(keys(0, 1), HYPER), tables, dataset)
    expected = np.asarray(together.params["tables"]["item"])
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    np.testing.assert_allclose(alone.params["tables"]["item"][0], expected[1], atol=1e-4)
    np.testing.assert_allclose(in_buckets.params["tables"]["item"], expected, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(together.params["tables"]["item"])[:, 0], 0)


def test_a_seed_that_is_not_finite_does_not_move(prepared):
    init, advance, tables, dataset = parts(prepared, "sparse")
    sound = advance(np.int32(4), init(keys(0, 1), HYPER), tables, dataset)
    state = init(keys(0, 1), HYPER)
    offset = state.params["network"]["final_norm"]["offset"]
    state.params["network"]["final_norm"]["offset"] = offset.at[1, 0].set(jnp.nan)
    before = np.asarray(row_tables.SPARSE.weights(state.params)["tables"]["item"][1])
    state = advance(np.int32(4), state, tables, dataset)
    assert np.asarray(state.failed_step).tolist() == [training.NOT_FAILED, 0]
    np.testing.assert_array_equal(row_tables.SPARSE.weights(state.params)["tables"]["item"][1], before)
    assert np.all(np.isfinite(state.params["tables"]["item"]))
    np.testing.assert_array_equal(state.params["tables"]["item"][0], sound.params["tables"]["item"][0])


@pytest.mark.parametrize("num_seeds, cut", [pytest.param(1, (), marks=pytest.mark.slow), (2, CUT)])
def test_no_copy_of_the_table_is_made(prepared, num_seeds, cut):
    """The compiled program's temporaries stay as they are while the catalogue grows, and its state is in place."""
    temporary = {}
    for num_items in (2_000, 200_000):
        init, advance, tables, dataset = parts(prepared, "sparse", num_items=num_items, buckets=cut)
        state = jax.eval_shape(init, keys(*range(num_seeds)), HYPER)
        report = advance.lower(np.int32(3), state, tables, dataset).compile().memory_analysis()
        kept = num_seeds * 4 * (num_items + 1) * (3 * 8 + 1)
        assert report.alias_size_in_bytes >= kept
        temporary[num_items] = report.temp_size_in_bytes
        estimate = memory.peak_bytes(jax.make_jaxpr(advance.__wrapped__)(np.int32(3), state, tables, dataset), True)
        assert estimate < 1.3 * report.argument_size_in_bytes + temporary[num_items]
    assert temporary[200_000] < temporary[2_000] + 0.01 * kept


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def small(cache, **others):
    settings = {
        "batch_size": 32,
        "num_epochs": 12,
        "eval_every": 4,
        "learning_rate": 1e-2,
        "model.width": 8,
        "num_seeds": 2,
        "model.num_blocks": 1,
        "model.max_len": 10,
        "data.format": "synthetic",
        "data.synthetic.num_rows": 3000,
        "data.synthetic.num_users": 150,
        "data.synthetic.num_items": 80,
        "sampler.num_uniform": 4,
        "optimizer.item_table": "sparse",
        "data.cache_dir": str(cache),
    }
    settings |= {name.replace("__", "."): value for name, value in others.items()}
    return config_lib.use_method(config_lib.base(), "uniform", settings)


@pytest.mark.slow
def test_a_run_is_resumed_and_its_weights_are_plain(cache, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    experiment.run(small(cache), whole)
    with monkeypatch.context() as patched:
        patched.setattr(outputs, "write_results", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            experiment.run(small(cache, num_epochs=8), resumed)
    experiment.run(small(cache), resumed, extend=True)
    weights, others = (np.load(folder / "model.npz", allow_pickle=False) for folder in (whole, resumed))
    jax.tree.map(np.testing.assert_array_equal, dict(weights), dict(others))
    assert pd.read_csv(resumed / "results.csv")["status"].tolist() == ["ok", "ok"]
    config = config_lib.resolve(small(cache))
    loaded = data.load(experiment.prepare_data(config))
    assert weights["tables/item"].shape == (2, loaded.num_items + 1, 8)
    made = capacity.fitting_plan(config, tmp_path, loaded, range(2))
    params = unflatten_dict({name: array for name, array in weights.items() if name != "seed"}, sep="/")
    num_above = made.programs.evaluate(params, made.history_rows, made.splits["test"].cases)[0]
    np.testing.assert_array_equal(num_above, np.load(whole / "cases.npz")["num_above"])


@pytest.mark.slow
def test_debug_goes_with_it(cache, tmp_path):
    experiment.run(small(cache, num_epochs=1, num_seeds=1, debug=True), tmp_path)
    assert pd.read_csv(tmp_path / "results.csv")["status"].tolist() == ["ok"]
    with pytest.raises(InputError, match="config.debug: step"):
        experiment.run(small(cache, num_epochs=40, learning_rate=1e30, debug=True), tmp_path / "wild")


@pytest.mark.parametrize(
    "others, num_items, form",
    [
        ({}, row_tables.SPARSE_FROM - 1, "dense"),
        ({}, row_tables.SPARSE_FROM, "sparse"),
        ({"reference": True}, 10**7, "dense"),
        ({"reference": True, "optimizer__item_table": "auto"}, 10**7, "dense"),
        ({"method": "catalogue", "loss__name": "full_softmax"}, 10**7, "dense"),
        ({"optimizer__item_table": "sparse"}, 10, "sparse"),
        ({"optimizer__item_table": "dense"}, 10**7, "dense"),
    ],
)
def test_auto_is_dense_for_a_small_catalogue(cache, others, num_items, form):
    settled = plan_lib.with_item_table(
        config_lib.resolve(small(cache, **{"optimizer__item_table": None} | others)), num_items
    )
    assert settled.optimizer.item_table == form
    assert plan_lib.item_table_form(settled, num_items) == form


@pytest.mark.parametrize("name", ["loss.l2", "optimizer.weight_decay"])
@pytest.mark.parametrize("form, num_items", [("sparse", 80), ("auto", row_tables.SPARSE_FROM)])
def test_what_moves_every_row_is_refused_by_the_sparse_form(cache, name, form, num_items):
    config = config_lib.changed(small(cache), {name: 0.01, "optimizer.item_table": form})
    layout = plan_lib.seed_layout(config, 1)
    with pytest.raises(InputError, match=f"config.{name}=0.01 moves every row .* set it to dense"):
        plan_lib.make_parts(config_lib.resolve(config), layout, num_items)
    dense = config_lib.changed(config, {"optimizer.item_table": "dense", "loss.l2_rows": 0.1})
    plan_lib.make_parts(config_lib.resolve(dense), layout, num_items)
    rows_only = config_lib.changed(small(cache), {"loss.l2_rows": 0.1, "optimizer.item_table": form})
    plan_lib.make_parts(config_lib.resolve(rows_only), layout, num_items)


def test_the_record_tells_the_form(cache, tmp_path):
    experiment.run(small(cache, num_epochs=1, optimizer__item_table=None), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config"]["optimizer.item_table"] == "dense"


@pytest.mark.parametrize(
    "others, words",
    [
        ({"reference": True}, "item_table=sparse can not go with config.reference=True"),
        ({"method": "catalogue", "loss__name": "full_softmax"}, "item_table=sparse can not go with method catalogue"),
        ({"optimizer__item_table": "lazy"}, "auto, dense, sparse"),
    ],
)
def test_what_it_can_not_go_with_is_refused(cache, others, words):
    with pytest.raises(InputError, match=words) as refused:
        config_lib.resolve(small(cache, **others))
    assert "\n" not in str(refused.value)
