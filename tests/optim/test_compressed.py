"""Moments in fewer bytes: right on average, never divided by nothing, and a run that is trained with them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_row_tables as plain
from test_row_tables import CUT, cache, prepared, table  # noqa: F401  (fixtures)

from jaxneg.devices import memory
from jaxneg.errors import InputError
from jaxneg.optim import adam, compressed, row_tables
from jaxneg.run import config as config_lib
from jaxneg.run import experiment, outputs


def rows(seed=0, number=4, width=6):
    """Moments of rows whose numbers differ by up to a factor of a thousand; row 1 is all zeros."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-3, 0, (number, width))
    mean, root = (sizes * rng.normal(size=sizes.shape)).astype(np.float32), sizes.astype(np.float32)
    mean[1] = root[1] = 0
    return 1e-3 * mean, 1e-3 * root


@pytest.mark.parametrize("name", compressed.CODES)
def test_rounding_is_to_a_neighbouring_code_and_right_on_average(name):
    code, (mean, root) = compressed.CODES[name], rows()
    number = 20_000
    words = jax.random.bits(jax.random.key(0), (number, mean.shape[0], 2 * mean.shape[1]))
    decoded = jax.jit(jax.vmap(lambda own: code.decode(code.encode(mean, root, own))))(words)
    for found, exact, levels in zip(map(np.float64, decoded), (mean, root), (127, 255), strict=True):
        step = (
            np.abs(exact) * 2.0**-7
            if name == "bfloat16"
            else np.broadcast_to(np.abs(exact).max(axis=1, keepdims=True) / levels, exact.shape)
        )
        small = (levels == 255) & (name == "int8") & (exact < step)  # rounded up, always
        np.testing.assert_array_less(np.abs(found - exact).max(axis=0), step * 1.001 + 1e-30)
        error = np.abs(found.mean(axis=0) - exact)
        assert np.all((error <= 5 * step / np.sqrt(number) + 1e-6 * np.abs(exact)) | small)
        assert not found[:, 1].any()
    found = np.asarray(decoded[1])
    assert found.min() >= 0 and np.all(found[:, [0, 2, 3]] > 0)


def test_the_words_differ_by_item_step_weight_and_place():
    def words(scale=1.0, first=0, step=3):
        values = scale * jnp.arange(1, 1201, dtype=jnp.float32).reshape(200, 6)
        return np.asarray(compressed.rounding_words(values, first + jnp.arange(200), jnp.int32(step)))

    one = words()
    assert one.shape == (200, 12) and len(np.unique(one)) > 2390
    for other in (words(scale=1.5), words(first=1), words(step=4)):
        assert (one == other).mean() < 0.01
        correlation = np.corrcoef(one.ravel() / 2.0**32, other.ravel() / 2.0**32)[0, 1]
        assert abs(correlation) < 0.1
    assert abs((one / 2.0**32).mean() - 0.5) < 0.03


@pytest.mark.parametrize("name, allowed", [("bfloat16", 0.01), ("int8", 0.1)])
def test_the_steps_are_near_those_with_float32_moments(table, name, allowed):  # noqa: F811
    """Of every weight, after six steps; items that no step looks up keep theirs, and so does the pad."""
    coded = compressed.storage("sparse", name)
    steps = plain.random_steps([0, 1, 2, 5, 7, 8, 12])
    weights, params, state = plain.run(coded, adam.adam(), table, steps)
    expected, _, exact = plain.run(row_tables.SPARSE, adam.adam(), table, steps)
    moved = np.abs(expected["tables"]["item"] - table).max()
    assert np.abs(weights["tables"]["item"] - expected["tables"]["item"]).max() < allowed * moved
    untouched = np.array([0, 3, 4, 6, 9, 10, 11])
    np.testing.assert_array_equal(weights["tables"]["item"][untouched], table[untouched])
    assert all(not np.any(np.asarray(part, np.float32)[untouched]) for part in jax.tree.leaves(state.coded))
    assert int(state.network.count) == len(steps)
    jax.tree.map(np.testing.assert_array_equal, state.network, exact.network)


@pytest.mark.parametrize("name", compressed.CODES)
def test_changes_below_a_codes_distance_add_up(name):
    """b2 = 0.999 moves the root by a 2000th of the distance to its end: rounding to the nearest would never move it."""
    code, width, b2 = compressed.CODES[name], 64, 0.999
    goal = np.float32(1.0)
    coded = code.encode(jnp.zeros((1, width)), jnp.full((1, width), 0.5), jnp.zeros((1, 2 * width), jnp.uint32))

    @jax.jit
    def steps(coded, key):
        def step(coded, key):
            mean, root = code.decode(coded)
            square = b2 * root**2 + (1 - b2) * goal**2
            return code.encode(mean, jnp.sqrt(square), jax.random.bits(key, (1, 2 * width))), None

        return jax.lax.scan(step, coded, jax.random.split(key, 1000))[0]

    found = np.asarray(code.decode(steps(coded, jax.random.key(1)))[1])
    expected = np.sqrt(0.25 * b2**1000 + 1 - b2**1000)
    assert expected > 0.8
    np.testing.assert_allclose(found.mean(), expected, rtol=0.02)


@pytest.mark.parametrize(
    "name, of_moments",
    [
        ("bfloat16", 2 * 8 * 2),
        pytest.param("int8", 2 * 8 + 8, marks=pytest.mark.slow),
    ],
)
def test_no_copy_of_the_table_is_made(prepared, monkeypatch, name, of_moments):  # noqa: F811
    """The compiled program's temporaries stay as they are while the catalogue grows, and its state is in place."""
    monkeypatch.setitem(plain.STORAGES, name, compressed.storage("sparse", name))
    temporary = {}
    for num_items in (2_000, 200_000):
        init, advance, tables, dataset = plain.parts(prepared, name, num_items=num_items, buckets=CUT)
        state = jax.eval_shape(init, plain.keys(0), plain.HYPER)
        report = advance.lower(np.int32(3), state, tables, dataset).compile().memory_analysis()
        kept = (num_items + 1) * (4 * 8 + 4 + of_moments)
        assert report.alias_size_in_bytes >= kept > 0.8 * memory.tree_bytes(state)
        temporary[num_items] = report.temp_size_in_bytes
    assert temporary[200_000] < temporary[2_000] + 0.01 * kept


@pytest.mark.parametrize("name", ["int8", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_run_is_resumed_and_learns(cache, tmp_path, monkeypatch, name):  # noqa: F811
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    config = {"optimizer__moments": name, "num_seeds": 1}
    experiment.run(plain.small(cache, **config), whole)
    with monkeypatch.context() as patched:
        patched.setattr(outputs, "write_results", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            experiment.run(plain.small(cache, num_epochs=8, **config), resumed)
    experiment.run(plain.small(cache, **config), resumed, extend=True)
    weights, others = (np.load(folder / "model.npz", allow_pickle=False) for folder in (whole, resumed))
    jax.tree.map(np.testing.assert_array_equal, dict(weights), dict(others))
    losses = [json.loads(row)["loss"] for row in (whole / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(
    "others",
    [
        {"optimizer__item_table": "dense"},
        {"optimizer__item_table": None, "reference": True},
        {"optimizer__item_table": None, "method": "catalogue", "loss__name": "full_softmax"},
    ],
)
def test_a_dense_table_keeps_float32(cache, others):  # noqa: F811
    with pytest.raises(InputError, match="config.optimizer.moments=int8 is for a sparse item table"):
        config_lib.resolve(plain.small(cache, optimizer__moments="int8", **others))
