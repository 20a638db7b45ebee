"""The estimate of memory against what the compiler reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.data import dataset as data
from jaxneg.devices import memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.run import capacity, experiment
from jaxneg.run import config as config_lib
from jaxneg.run import programs as plan_lib
from jaxneg.training import buckets


def test_bytes_of_a_tree():
    tree = {"a": np.zeros((3, 4), np.float32), "b": jax.ShapeDtypeStruct((5,), jnp.int8), "c": jax.random.key(0)}
    assert memory.tree_bytes(tree) == 48 + 5 + 8


def test_the_peak_counts_what_is_alive_together():
    def one_after_the_other(x):  # x, and at any time one array of 1000 and what it is made from
        for _ in range(4):
            x = jnp.outer(x, x).sum(axis=1)
        return x

    def all_at_once(x):
        return sum(jnp.outer(x, x) * k for k in range(1, 5)).sum()

    x = jnp.zeros(1000, jnp.float32)
    assert memory.peak_bytes(jax.make_jaxpr(one_after_the_other)(x)) == pytest.approx(4e6, rel=0.01)
    assert 8e6 <= memory.peak_bytes(jax.make_jaxpr(all_at_once)(x)) <= 12.1e6


def test_loops_and_choices_count_what_is_inside():
    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: jnp.outer(y, y).sum(axis=1), x)

    def choice(x):
        return jax.lax.cond(x[0] > 0, lambda: jnp.outer(x, x).sum(), lambda: x.sum())

    x = jnp.zeros(1000, jnp.float32)
    for function in (loop, choice):
        assert memory.peak_bytes(jax.make_jaxpr(function)(x)) == pytest.approx(4e6, rel=0.01)


def test_a_new_shape_takes_no_memory_where_the_old_one_is_not_used_again():
    def moved(table):
        return table.reshape(-1).at[3].set(1.0).reshape(table.shape)

    def kept(table):
        return table.reshape(-1).at[3].set(1.0).reshape(table.shape) + table

    jaxprs = [jax.make_jaxpr(function)(jnp.zeros((1000, 10))) for function in (moved, kept)]
    assert memory.peak_bytes(jaxprs[0], donated=True) == pytest.approx(4e4, rel=0.01)
    assert memory.peak_bytes(jaxprs[1], donated=True) >= 8e4


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(a function of overrides to a resolved config, its prepared data)."""
    base = {
        "data.format": "synthetic",
        "data.synthetic.num_rows": 20_000,
        "data.synthetic.num_users": 800,
        "data.synthetic.num_items": 400,
        "data.cache_dir": str(tmp_path_factory.mktemp("cache")),
        "model.max_len": 20,
        "num_seeds": 3,
        "num_buckets": 2,
    }

    def make(**others):
        settings = base | {name.replace("__", "."): value for name, value in others.items()}
        return config_lib.resolve(config_lib.use_method(config_lib.base(), "mixed", settings))

    return make, data.load(experiment.prepare_data(make()))


def test_the_estimate_is_near_what_the_compiler_reports(small, tmp_path):
    make, prepared = small
    made = plan_lib.make_plan(make(), tmp_path, prepared, range(3))
    keys = mesh_lib.seed_keys(made.layout, 0)
    state = jax.eval_shape(made.programs.init, keys, mesh_lib.repeat(made.layout, made.hyper))
    arguments = (np.int32(1), state, made.tables, made.dataset)
    report = made.programs.advance.lower(*arguments).compile().memory_analysis()
    real = report.argument_size_in_bytes + report.temp_size_in_bytes
    needed = capacity.needed_bytes(made)
    assert 0.6 * real < needed.training < 1.7 * real
    item_tables = 3 * 3 * 4 * (prepared.num_items + 1) * 50  # of three seeds: the weights and two moments
    assert item_tables < needed.states < 3 * item_tables


def test_seeds_that_do_not_fit_train_in_chunks(small, tmp_path, monkeypatch, capsys):
    make, prepared = small
    config = make(batch_size=8)  # what seeds that take turns share, a step's activations, is not the most
    whole = capacity.needed_bytes(plan_lib.make_plan(config, tmp_path, prepared, range(3)))
    monkeypatch.setattr(memory, "device_bytes", lambda device: int(0.8 * whole.total))
    fitting = capacity.fitting_plan(config, tmp_path, prepared, range(3))
    assert fitting.seeds == range(2)
    assert "2 seeds together need about" in capsys.readouterr().err
    config = make(batch_size=8, seeds_per_chunk=1)
    assert capacity.fitting_plan(config, tmp_path, prepared, range(1, 3)).seeds == range(1, 2)


@pytest.mark.parametrize(
    "others, num_candidates, number",
    [
        ({}, 50, 1),
        ({}, 320, 4),
        ({}, 1500, 16),
        ({}, 0, 1),
        ({"batch_size": 44}, 1500, 4),
        ({"batch_size": 7}, 1500, 1),
        ({"sampler__scope": "position"}, 1500, 1),
    ],
)
def test_scores_of_many_candidates_are_worked_on_in_microbatches(small, others, num_candidates, number):
    config = small[0](**{"batch_size": 128, "model__max_len": 200} | others)
    cut = (buckets.Bucket(config.batch_size, 50),)
    layout = mesh_lib.seed_layout(1)
    model = plan_lib.make_parts(config, layout, 5000).model
    assert plan_lib.choose_microbatches(config, layout, model, (), num_candidates) == number
    assert 1 <= plan_lib.choose_microbatches(config, layout, model, cut, num_candidates) <= number
    # A score that holds several numbers at once fills the caches with so many fewer candidates.
    wide = model._replace(floats_per_score=4)
    assert plan_lib.choose_microbatches(config, layout, wide, (), num_candidates // 4) == number


@pytest.mark.parametrize(
    "others, there, words",
    [
        ({}, 2**20, "config.batch_size"),
        ({"seeds_per_chunk": 3}, 2**20, "config.seeds_per_chunk"),
        ({"model__width": 512, "batch_size": 1, "num_seeds": 1}, 2**20, "config.model.width"),
        ({"batch_size": 1, "num_seeds": 1, "model__width": 4, "data__stream": "off"}, 2**19, "config.eval.memory_mb"),
    ],
)
def test_what_does_not_fit_is_refused(small, tmp_path, monkeypatch, others, there, words):
    make, prepared = small
    monkeypatch.setattr(memory, "device_bytes", lambda device: there)
    config = make(**others)
    with pytest.raises(InputError, match=f"lower {words}") as refused:
        capacity.fitting_plan(config, tmp_path, prepared, range(config.num_seeds))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_the_host_has_memory():
    assert 2**28 < memory.device_bytes(jax.devices("cpu")[0]) < 2**44
    assert memory.in_words(850 * 2**20) == "850 MiB" and memory.in_words(3.25 * 2**30) == "3.2 GiB"
