"""The training step: what it draws, what it learns, and that nothing but the key decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import losses, optimizer, parallel, samplers, train
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.models import sasrec

HYPER = train.Hyper(np.float32(1e-2), np.float32(0.2), np.float32(1.0))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    made = synthetic.SyntheticSettings(num_rows=2000, num_users=100, num_items=60)
    folder = synthetic.prepare_synthetic(made, prepare.DEFAULT, cache_dir=tmp_path_factory.mktemp("cache"))
    return data.load(folder)


def parts(prepared, method="uniform", **others):
    """(init, step, tables, dataset) of a small run."""
    settings = samplers.Settings(num_in_batch=3, num_uniform=3, num_popularity=3, num_kept=2)
    chosen = samplers.make(method, prepared.num_items, settings)
    model, adam = sasrec.SASRec(1, 1, 8, 6), optimizer.adam()
    dataset = data.training_set(prepared)
    step = train.make_step(
        model=model, method=chosen, loss=losses.bce, optimizer=adam, batch_size=16, num_items=prepared.num_items,
        history_size=data.longest_history(dataset), **others,
    )  # fmt: skip
    init = functools.partial(train.init_state, model=model, num_items=prepared.num_items, optimizer=adam)
    tables = chosen.proposal.init(np.asarray(prepared.item_counts))
    return init, step, tables, jax.tree.map(jnp.asarray, dataset)


@pytest.mark.parametrize("method", samplers.METHODS)
def test_every_method_learns(prepared, method):
    init, step, tables, dataset = parts(prepared, method)
    advance = jax.jit(functools.partial(train.run_steps, step))
    state = advance(10, init(jax.random.key(0), HYPER), tables, dataset)
    first = state.loss_sum / 10
    state = advance(80, state, tables, dataset)
    state = advance(10, state._replace(loss_sum=jnp.zeros(())), tables, dataset)
    assert int(state.step) == 100
    assert state.loss_sum / 10 < first - 0.01
    assert not np.any(np.asarray(state.params["item_table"])[0])  # the pad's row never moves


def test_the_split_of_steps_into_dispatches_changes_nothing(prepared):
    init, step, tables, dataset = parts(prepared)
    advance = jax.jit(functools.partial(train.run_steps, step))
    whole = advance(7, init(jax.random.key(0), HYPER), tables, dataset)
    pieces = init(jax.random.key(0), HYPER)
    for count in (1, 4, 2):
        pieces = advance(count, pieces, tables, dataset)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        assert np.array_equal(*(np.asarray(jax.random.key_data(x) if x.dtype == whole.key.dtype else x)
                                for x in (one, other)))  # fmt: skip


def test_a_seed_alone_is_its_copy_among_others(prepared):
    init, step, tables, dataset = parts(prepared, "adaptive_mixed")
    states = []
    for num_seeds in (1, 3):
        layout = parallel.seed_layout(num_seeds)
        start = parallel.over_seeds(init, layout, (True, True))
        advance = parallel.over_seeds(
            functools.partial(train.run_steps, step), layout, (False, True, False, False), donate=(1,)
        )
        keys = parallel.seed_keys(layout, 5)
        states.append(advance(np.int32(20), start(keys, parallel.repeat(layout, HYPER)), tables, dataset))
    alone, together = (state.params["item_table"] for state in states)
    np.testing.assert_allclose(alone[0], together[0], atol=1e-4)
    assert np.abs(np.asarray(together[1] - together[0])).max() > 1e-2


def test_learning_rates_differ_within_one_program(prepared):
    init, step, tables, dataset = parts(prepared)
    layout = parallel.seed_layout(2)
    hyper = HYPER._replace(learning_rate=np.array([0, 1e-2], np.float32), dropout=np.zeros(2, np.float32),
                           negative_weight=np.ones(2, np.float32))  # fmt: skip
    states = jax.vmap(init)(parallel.seed_keys(layout, 0), hyper)
    before = np.asarray(states.params["item_table"])
    advance = parallel.over_seeds(functools.partial(train.run_steps, step), layout, (False, True, False, False))
    moved = np.abs(np.asarray(advance(np.int32(3), states, tables, dataset).params["item_table"]) - before)
    assert moved[0].max() == 0 and moved[1].max() > 1e-3


def test_a_pool_replays_batches_and_candidates_only():
    key, pool_size = jax.random.key(3), 4
    fresh = [train.step_keys(key, t) for t in range(40)]
    pooled = [train.pooled_keys(key, t, pool_size) for t in range(40)]

    def same(one, other):
        return np.array_equal(jax.random.key_data(one), jax.random.key_data(other))

    replayed = []
    for t in range(40):
        assert same(pooled[t].dropout, fresh[t].dropout) and same(pooled[t].selector, fresh[t].selector)
        source = [s for s in range(pool_size) if same(pooled[t].batch, fresh[s].batch)]
        assert len(source) == 1 and same(pooled[t].proposal, fresh[source[0]].proposal)
        replayed += source
    assert replayed[:4] == [0, 1, 2, 3]  # first each once, in order
    assert set(replayed[4:]) == {0, 1, 2, 3}
    assert all(same(*pair) for pair in zip(train.pooled_keys(key, 9, None), fresh[9], strict=True))


def test_no_pad_counts_unless_told(prepared):
    init, _, tables, dataset = parts(prepared)
    initial = init(jax.random.key(0), HYPER._replace(learning_rate=np.float32(0)))
    values = {}
    for count_pads in (False, True):
        step = parts(prepared, count_pads=count_pads)[1]
        values[count_pads] = float(jax.jit(step)(initial, tables, dataset)[1]["loss"])
    # With near-zero initial scores every term is about log 2, so the means agree only roughly.
    assert values[False] != values[True]
    assert abs(values[True] - 2 * np.log(2)) < abs(values[False] - 2 * np.log(2))
