"""The training step: what it draws, what it learns, and that nothing but the key decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import base, sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import buckets
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training

HYPER = training.HyperParams(np.float32(1e-2), np.float32(0.2), np.float32(1.0))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    made = synthetic.SyntheticSettings(num_rows=2000, num_users=100, num_items=60)
    folder = synthetic.prepare_synthetic(made, prepare.DEFAULT, cache_dir=tmp_path_factory.mktemp("cache"))
    return data.load(folder)


def advance_alone(step):
    """run_steps for one seed, compiled."""

    def advance(count, state, tables, dataset):
        states = training_loop.run_steps(step, count, jax.tree.map(lambda x: x[None], state), tables, dataset)
        return jax.tree.map(lambda x: x[0], states)

    return jax.jit(advance)


def gradient_of(step, form):
    """(LossInputs) -> (loss, gradient), the batch cut in these buckets; compiled."""
    return jax.jit(functools.partial(training.gradient, step, form))


def parts(prepared, method="uniform", max_len=6, loss="bce", scope="sequence", optimizer=None, **others):
    """(init, step, tables, dataset) of a small run."""
    loss = "full_softmax" if method == "catalogue" else loss
    settings = samplers.Settings(num_in_batch=3, num_uniform=3, num_popularity=3, num_kept=2, scope=scope)
    chosen = samplers.make(method, prepared.num_items, settings)
    model = sasrec.make(sasrec.Settings(width=8, num_blocks=1, max_len=max_len), prepared.num_items)
    adam = optimizer or adam_lib.adam()
    dataset = data.training_set(prepared)
    step = training.Step(
        model=model,
        method=chosen,
        loss=losses.make(loss, prepared.num_items),
        optimizer=adam,
        batch_size=16,
        num_items=prepared.num_items,
        history_size=data.longest_history(dataset),
        **others,
    )
    init = functools.partial(
        training.init_state,
        model=model,
        num_items=prepared.num_items,
        num_users=prepared.num_users,
        optimizer=adam,
        storage=step.storage,
    )
    tables = chosen.proposal.init(np.asarray(prepared.item_counts))
    return init, step, tables, jax.tree.map(jnp.asarray, dataset)


# Each loss but bce with a method that it suits, so that one test serves all methods and all losses.
LOSS_WITH = {
    "popularity": "gbce",
    "in_batch": "top1_max",
    "mixed": "sampled_softmax",
    "adaptive_mixed": "infonce",
    "dns": "bpr",
    "softmax_hard": "bpr_max",
    "catalogue": "full_softmax",
}


@pytest.mark.parametrize("method", samplers.METHODS)
def test_every_method_and_every_loss_learns(prepared, method):
    assert {*LOSS_WITH.values(), "bce"} == set(losses.LOSSES)
    init, step, tables, dataset = parts(prepared, method, loss=LOSS_WITH.get(method, "bce"))
    advance = advance_alone(step)
    state = advance(10, init(jax.random.key(0), HYPER), tables, dataset)
    first = state.loss_sum / 10
    state = advance(80, state, tables, dataset)
    state = advance(10, state._replace(loss_sum=jnp.zeros(())), tables, dataset)
    assert int(state.step) == 100
    assert state.loss_sum / 10 < first - 0.01
    assert not np.any(np.asarray(state.params["tables"]["item"])[0])  # the pad's row never moves


def test_the_split_of_steps_into_dispatches_changes_nothing(prepared):
    init, step, tables, dataset = parts(prepared)
    advance = advance_alone(step)
    whole = advance(7, init(jax.random.key(0), HYPER), tables, dataset)
    pieces = init(jax.random.key(0), HYPER)
    for count in (1, 4, 2):
        pieces = advance(count, pieces, tables, dataset)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        assert np.array_equal(
            *(np.asarray(jax.random.key_data(x) if x.dtype == whole.key.dtype else x) for x in (one, other))
        )


def test_a_seed_alone_is_its_copy_among_others(prepared):
    """Side by side with another one, in the second of two groups that take turns."""
    init, step, tables, dataset = parts(prepared, "adaptive_mixed")
    states = []
    for num_seeds, first, group_size in ((1, 3, 1), (4, 0, 2)):
        layout = mesh_lib.seed_layout(num_seeds)
        start = mesh_lib.over_seeds(init, layout, (True, True))
        advance = mesh_lib.over_devices(
            functools.partial(training_loop.run_groups, step, group_size),
            layout,
            (False, True, False, False),
            donate=(1,),
        )
        keys = mesh_lib.seed_keys(layout, 5, first)
        states.append(advance(np.int32(20), start(keys, mesh_lib.repeat(layout, HYPER)), tables, dataset))
    alone, together = (state.params["tables"]["item"] for state in states)
    np.testing.assert_allclose(alone[0], together[3], atol=1e-4)
    assert all(np.abs(np.asarray(together[3] - together[other])).max() > 1e-2 for other in range(3))
    assert states[1].step.tolist() == [20] * 4


def test_learning_rates_differ_within_one_program(prepared):
    init, step, tables, dataset = parts(prepared)
    layout = mesh_lib.seed_layout(2)
    hyper = HYPER._replace(
        learning_rate=np.array([0, 1e-2], np.float32),
        dropout=np.zeros(2, np.float32),
        negative_weight=np.ones(2, np.float32),
    )
    states = jax.vmap(init)(mesh_lib.seed_keys(layout, 0), hyper)
    before = np.asarray(states.params["tables"]["item"])
    advance = mesh_lib.over_devices(
        functools.partial(training_loop.run_steps, step), layout, (False, True, False, False)
    )
    moved = np.abs(np.asarray(advance(np.int32(3), states, tables, dataset).params["tables"]["item"]) - before)
    assert moved[0].max() == 0 and moved[1].max() > 1e-3


@pytest.mark.parametrize("half_life, share", [(4.0, 0.25), (np.inf, 1.0)])
def test_the_learning_rate_halves(prepared, half_life, share):
    """The same gradient at step 8 and at step 0."""
    init, step, tables, dataset = parts(prepared, half_life=half_life)
    state = init(jax.random.key(0), HYPER)
    given, gathered = training.gather(step, state, *training.draw(step, state, dataset), tables)
    found = gradient_of(step, step.padded)(given)
    first, later = (
        training.update(step, state._replace(step=jnp.int32(t)), gathered, *found).params["tables"]["item"]
        - state.params["tables"]["item"]
        for t in (0, 8)
    )
    assert np.abs(first).max() > 1e-3
    np.testing.assert_allclose(later, share * first, atol=1e-7)


def test_a_pool_replays_batches_and_candidates_only():
    key, pool_size = jax.random.key(3), 4
    fresh = [training.step_keys(key, t) for t in range(40)]
    pooled = [training.pooled_keys(key, t, pool_size) for t in range(40)]

    def same(one, other):
        return np.array_equal(jax.random.key_data(one), jax.random.key_data(other))

    replayed = []
    for t in range(40):
        assert same(pooled[t].dropout, fresh[t].dropout) and same(pooled[t].selector, fresh[t].selector)
        source = [s for s in range(pool_size) if same(pooled[t].batch, fresh[s].batch)]
        assert len(source) == 1 and same(pooled[t].proposal, fresh[source[0]].proposal)
        assert same(pooled[t].objective, fresh[source[0]].objective)
        replayed += source
    assert replayed[:4] == [0, 1, 2, 3]  # first each once, in order
    assert set(replayed[4:]) == {0, 1, 2, 3}
    assert all(same(*pair) for pair in zip(training.pooled_keys(key, 9, None), fresh[9], strict=True))


def test_no_pad_counts_unless_told(prepared):
    values = {}
    for count_pads in (False, True):
        init, step, tables, dataset = parts(prepared, count_pads=count_pads, max_len=40)
        state = init(jax.random.key(0), HYPER)
        values[count_pads] = float(advance_alone(step)(1, state, tables, dataset).loss_sum)
    # At a pad the first state is 0, so its terms are log 2 each: the mean over mostly pads is near 2 log 2.
    assert abs(values[True] - 2 * np.log(2)) < abs(values[False] - 2 * np.log(2))


CUT = (buckets.Bucket(5, 40), buckets.Bucket(6, 30), buckets.Bucket(5, 25))


MORE = (("uniform", True), ("in_batch", True), ("adaptive_mixed", False))  # slow ones: the others have each half of it


# A left-out pad of popularity_cohort would need negatives of its own: the run does not cut such batches.
@pytest.mark.parametrize(
    "method, count_pads, scope",
    [
        *(
            pytest.param(method, pads, "sequence", marks=pytest.mark.slow if (method, pads) in MORE else ())
            for method in ("uniform", "in_batch", "adaptive_mixed")
            for pads in (False, True)
        ),
        ("popularity_cohort", False, "sequence"),
        ("catalogue", False, "sequence"),
        ("softmax_hard", False, "sequence"),
        ("uniform", True, "batch"),
    ],
)
def test_buckets_give_what_the_padded_batch_gives(prepared, method, count_pads, scope):
    settings = {"count_pads": count_pads, "max_len": 40, "buckets": CUT, "scope": scope}
    init, step, tables, dataset = parts(prepared, method, **settings)
    state = init(jax.random.key(0), HYPER)
    keys, batch = training.draw(step, state, dataset)
    assert bool(training.fits(step, batch)) and np.any(np.asarray(batch.inputs) == 0)
    given, _ = training.gather(step, state, keys, batch, tables)
    (cut, cut_gradient), (padded, gradient) = (gradient_of(step, form)(given) for form in (step.cut, step.padded))
    np.testing.assert_allclose(cut, padded, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(cut_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "method, count_pads",
    [
        ("softmax_hard", False),
        pytest.param("adaptive_mixed", True, marks=pytest.mark.slow),
    ],
)
def test_a_gradient_in_microbatches_is_that_of_the_whole_batch(prepared, method, count_pads):
    """With every bucket cut in two, and padded; dropout and what is chosen at random included."""
    cut = (buckets.Bucket(6, 40), buckets.Bucket(6, 30), buckets.Bucket(4, 25))
    settings = {"count_pads": count_pads, "max_len": 40, "buckets": cut}
    init, step, tables, dataset = parts(prepared, method, **settings)
    in_two = parts(prepared, method, num_microbatches=2, **settings)[1]
    state = init(jax.random.key(0), HYPER)
    given, _ = training.gather(step, state, *training.draw(step, state, dataset), tables)
    wanted, gradient = gradient_of(step, step.padded)(given)
    for form in (in_two.cut, in_two.padded):
        found, other = gradient_of(in_two, form)(given)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), other, gradient)


def test_a_batch_that_does_not_fit_is_padded(prepared):
    tight = (buckets.Bucket(2, 40), buckets.Bucket(14, 3))
    init, step, tables, dataset = parts(prepared, max_len=40, buckets=tight)
    state = init(jax.random.key(0), HYPER)
    _, batch = training.draw(step, state, dataset)
    assert not bool(training.fits(step, batch))
    whole = parts(prepared, max_len=40)[1]
    one, other = (advance_alone(s)(3, state, tables, dataset) for s in (step, whole))
    np.testing.assert_allclose(one.params["tables"]["item"], other.params["tables"]["item"], atol=1e-6)


def sum_of_squares(rows, mask=None):
    squares = jnp.square(rows).sum(axis=-1)
    return jnp.sum(squares if mask is None else jnp.where(mask, squares, 0))


def assert_trees_close(ours, theirs, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=atol, rtol=1e-5), ours, theirs)


ONE_ROW = (buckets.Bucket(2, 40), buckets.Bucket(12, 38), buckets.Bucket(2, 30))


@pytest.mark.parametrize(
    "method, scope, others",
    [
        ("uniform", "sequence", {}),
        ("uniform", "position", {}),
        ("uniform", "sequence", {"num_microbatches": 2, "buckets": ONE_ROW}),  # in each cut of a microbatch but one
        ("in_batch", "batch", {"num_microbatches": 2}),
        ("popularity_cohort", "sequence", {}),
        ("catalogue", "sequence", {}),
    ],
)
def test_l2_of_the_batchs_rows_is_the_plain_formula(prepared, method, scope, others):
    """Half of it times the squares of each target's row, each valid negative's and each user's, per target.

    Padded, cut by length and in microbatches; negatives of a position count where it has a target.
    """
    weight, cut = 0.3, (buckets.Bucket(6, 40), buckets.Bucket(6, 30), buckets.Bucket(4, 25))
    settings = {"max_len": 40, "buckets": cut, "scope": scope} | others
    init, step, tables, dataset = parts(prepared, method, l2_rows=weight, **settings)
    without = step._replace(l2_rows=0.0)
    state = init(jax.random.key(0), HYPER)
    given, _ = training.gather(step, state, *training.draw(step, state, dataset), tables)
    given = given._replace(params=jax.tree.map(lambda x: x + 0.1, given.params))

    def plain(params):
        rows = functools.partial(base.lookup, params["tables"]["item"])
        targets, offered = given.batch.targets, given.candidates
        mask = offered.mask & (targets > 0)[..., None] if offered.mask.shape[1] > 1 else offered.mask
        squares = sum_of_squares(rows(targets))
        squares += sum_of_squares(rows(offered.item_ids), mask) if offered.item_ids.size else 0
        return 0.5 * weight * squares / jnp.sum(targets > 0)

    assert np.any(np.asarray(given.batch.targets) == 0)
    term, gradient = jax.value_and_grad(plain)(given.params)
    assert term > 1e-3
    for name in ("padded", "cut"):
        value, found = gradient_of(step, getattr(step, name))(given)
        value_without, found_without = gradient_of(without, getattr(without, name))(given)
        np.testing.assert_allclose(value - value_without, term, rtol=1e-4)
        assert_trees_close(jax.tree.map(jnp.subtract, found, found_without), gradient, atol=2e-6)


@pytest.mark.parametrize("has_users, has_positions", [(True, True), (False, True), (True, False)])
def test_l2_of_all_embeddings_is_the_plain_formula(prepared, has_users, has_positions):
    """Of every table and of the positions, and of no other weight."""
    _, step, _, _ = parts(prepared, l2=0.2)
    keys = iter(jax.random.split(jax.random.key(0), 9))

    def made():
        tables = {"item": (7, 4)} | ({"user": (5, 3)} if has_users else {})
        network = {"dense": (4, 4)} | ({"positions": (6, 4)} if has_positions else {})
        shapes = {"tables": tables, "network": network}
        return jax.tree.map(
            lambda shape: jax.random.normal(next(keys), shape), shapes, is_leaf=lambda x: type(x) is tuple
        )

    params, sums = made(), made()

    def plain(params):
        embeddings = [*params["tables"].values(), params["network"].get("positions", jnp.zeros(()))]
        return 0.5 * 0.2 * sum(jnp.sum(jnp.square(x)) for x in embeddings)

    term, gradient = jax.value_and_grad(plain)(params)
    value, found = training.add_l2(step, params, jnp.float32(1.5), sums)
    np.testing.assert_allclose(value, 1.5 + term, rtol=1e-6)
    assert_trees_close(found, jax.tree.map(jnp.add, sums, gradient))
    np.testing.assert_array_equal(found["network"]["dense"], sums["network"]["dense"])


def test_weight_decay_is_that_of_optax(prepared):
    """`optax.add_decayed_weights` before Adam, over three steps of every weight; the loss does not tell it."""
    both = []
    for others in ({"weight_decay": 0.5}, {"optimizer": optax.chain(optax.add_decayed_weights(0.5), adam_lib.adam())}):
        init, step, tables, dataset = parts(prepared, **others)
        state = init(jax.random.key(0), HYPER)
        both.append(advance_alone(step)(3, state, tables, dataset))
    ours, theirs = both
    for (path, one), other in zip(jax.tree.leaves_with_path(ours.params), jax.tree.leaves(theirs.params), strict=True):
        if "['key']['bias']" not in jax.tree_util.keystr(path):  # a softmax does not feel it: rounding moves it
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))
    np.testing.assert_allclose(ours.loss_sum, theirs.loss_sum, rtol=1e-6)
    init, step, tables, dataset = parts(prepared)
    plain = advance_alone(step)(3, init(jax.random.key(0), HYPER), tables, dataset)
    differ = jax.tree.map(lambda x, y: np.abs(np.asarray(x - y)).max(), plain.params, ours.params)
    assert differ["tables"]["item"] > 1e-3 and differ["network"]["positions"] > 1e-3
