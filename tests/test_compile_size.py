"""No program is exponentially longer for a compiler that fuses than it is written (see `recomputed`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recomputed import recomputed

from jaxneg import losses, models, samplers, settings
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.optim import adam as adam_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training
from jaxneg.types import Batch, Negatives

MOST = 1e8  # the unrolled rounds of the shuffling network came to 5.6e12, all that is here to 1e7 at most
V, B, L, H = 120, 8, 10, 12


def chained(rounds: int, barrier: bool):
    """A network of rounds, each of which uses both halves of the one before."""

    def network(high, low):
        for _ in range(rounds):
            if barrier:
                high, low = jax.lax.optimization_barrier((high, low))
            high, low = low ^ (high * 3 ^ high >> 5), high
        return high, low

    return network


def test_a_chain_of_reuses_is_seen():
    words = jnp.zeros(4, jnp.uint32)
    counts = [recomputed(jax.make_jaxpr(chained(rounds, False))(words, words)) for rounds in (12, 24, 36)]
    assert counts[1] > 100 * counts[0] and counts[2] > 100 * counts[1] > MOST
    assert recomputed(jax.make_jaxpr(chained(36, True))(words, words)) < 100
    # The same in a function that is called, and in a loop's body.
    assert recomputed(jax.make_jaxpr(jax.jit(chained(36, False)))(words, words)) > MOST
    looped = lambda a, b: jax.lax.fori_loop(0, 3, lambda _, halves: chained(36, False)(*halves), (a, b))  # noqa: E731
    assert recomputed(jax.make_jaxpr(looped)(words, words)) > MOST


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.integers(1, V + 1, (B, L)), jnp.int32)
    return Batch(
        targets, targets, jnp.sort(jnp.pad(targets, ((0, 0), (0, H - L)), constant_values=V + 1)), jnp.full(B, L)
    )


@pytest.mark.parametrize("scope", ["sequence", "position", "batch"])
@pytest.mark.parametrize("method", settings.METHODS)
def test_samplers(method, scope, batch):
    made = samplers.make(method, V, samplers.Settings(num_uniform=20, num_in_batch=5, num_popularity=10, scope=scope))
    tables = made.proposal.init(np.arange(V + 1))
    key = jax.random.key(0)
    assert recomputed(jax.make_jaxpr(made.proposal.sample)(key, tables, batch)) < MOST
    drawn = jax.eval_shape(made.proposal.sample, key, tables, batch)
    scores = jnp.zeros((B, L, drawn.item_ids.shape[-1]))
    ids, log_q, mask = (jnp.zeros(x.shape, x.dtype) for x in drawn)
    negatives = Negatives(ids, scores, log_q, ~mask)
    keys = jax.random.split(key, (B, L))
    assert recomputed(jax.make_jaxpr(made.selector)(keys, negatives, jnp.zeros((B, L)))) < MOST


@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name != "full_softmax"])
def test_losses(name):
    loss = losses.make(name, V)
    ids = jnp.ones((B, 1, 7), jnp.int32)

    def total(positive, scores):
        negatives = Negatives(ids, scores, jnp.zeros(ids.shape), jnp.ones(ids.shape, bool))
        return jnp.sum(loss(positive, negatives, negative_weight=1.0))

    gradient = jax.value_and_grad(total, argnums=(0, 1))
    assert recomputed(jax.make_jaxpr(gradient)(jnp.zeros((B, L)), jnp.zeros((B, L, 7)))) < MOST


@pytest.fixture(scope="module")
def dataset():
    arrays, meta = prepare.prepare_frame(synthetic.generate(3000, 150, V, seed=1))
    prepared = data.Prepared(**{name: arrays[name] for name in data.Prepared._fields if name != "meta"}, meta=meta)
    return prepared, jax.tree.map(jnp.asarray, data.training_set(prepared, with_rows_before=True, with_times=True))


@pytest.mark.parametrize("model", settings.MODELS)
def test_steps(model, dataset):
    """The whole step, with the default method."""
    prepared, feed = dataset
    made = models.make(model, {}, prepared.num_items)
    method = samplers.make("adaptive_mixed", prepared.num_items, samplers.Settings(num_uniform=20, num_in_batch=5))
    adam = adam_lib.adam()
    step = training.Step(
        made,
        method,
        losses.make("bce", V),
        adam,
        batch_size=16,
        num_items=prepared.num_items,
        history_size=data.longest_history(feed),
    )
    tables = method.proposal.init(np.asarray(prepared.item_counts))

    def run(key, tables, feed):
        hyper = training.HyperParams(1e-3, 0.2, 1.0)
        state = training.init_state(
            key, hyper, model=made, num_items=prepared.num_items, num_users=prepared.num_users, optimizer=adam
        )
        states = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
        return training_loop.run_steps(step, 2, states, tables, feed)

    assert recomputed(jax.make_jaxpr(run)(jax.random.key(0), tables, feed)) < MOST
