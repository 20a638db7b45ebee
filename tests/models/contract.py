"""What every model promises to the training step and the evaluation, as checks that the tests of each model run."""

import functools
import pathlib
from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jaxneg.models import base

NUM_ITEMS, NUM_USERS, MAX_LEN = 20, 5, 7
HISTORIES = np.asarray(
    [[0, 0, 4, 8, 15, 16, 3], [3, 1, 4, 1, 5, 9, 2], [0, 0, 0, 0, 0, 0, 7], [0, 0, 0, 0, 0, 0, 0]], np.int32
)
USERS = np.asarray([2, 5, 0, 1], np.int32)  # 0: one who is unknown
TIMES = np.cumsum([1, 3, 60, 7, 3600, 20, 86400, 400] * np.asarray([[1], [2], [5], [9]]), axis=1).astype(np.int32)
PIECES = ([2, 3], [1], [0])  # the sequences of each
DROPOUT = base.Dropout(jax.random.key(3), 0.4)

encode = jax.jit(base.encode_inputs, static_argnums=0)


def build(module: ModuleType, seed: int = 0, **settings) -> tuple[base.Model, dict]:
    """A model and parameters away from their start, so that no term hides behind a 0 or a 1; pads' rows stay 0."""
    model = module.make(module.Settings(**settings), NUM_ITEMS)
    leaves, structure = jax.tree.flatten(model.init(jax.random.key(seed), NUM_ITEMS, NUM_USERS))
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, leaves)
    tables = {name: table.at[0].set(0.0) for name, table in params["tables"].items()}
    return model, {"tables": tables, "network": params["network"]}


def reference(name: str) -> dict[str, jax.Array]:
    """Weights and results of code that is not jaxneg's, as benchmarks/torch_NAME.py wrote them."""
    with np.load(pathlib.Path(__file__).parent / f"reference_{name}.npz") as stored:
        return {key: jnp.asarray(array) for key, array in stored.items()}


def inputs_of(model: base.Model, histories: np.ndarray = HISTORIES) -> jax.Array:
    """What the model is given of histories."""
    return model.objective.query(jnp.asarray(histories))


def states(model: base.Model, params: dict, inputs=None, dropout=None, users=USERS, times=TIMES) -> np.ndarray:
    """Hidden states; of HISTORIES, if no inputs are named."""
    inputs = inputs_of(model) if inputs is None else jnp.asarray(inputs)
    times = jnp.asarray(times) if "times" in model.needs else None
    return np.asarray(encode(model, params, inputs, jnp.asarray(users), times, dropout))


def check_shapes(module: ModuleType, **settings) -> None:
    """Tables have a row for each id, the pad's is 0; all is float32 and finite, for an empty history too."""
    model = module.make(module.Settings(**settings), NUM_ITEMS)
    params = model.init(jax.random.key(0), NUM_ITEMS, NUM_USERS)
    assert params["tables"]["item"].shape == (NUM_ITEMS + 1, model.width)
    assert all(len(params["tables"][name]) == NUM_USERS + 1 for name in params["tables"] if name == "user")
    assert all(not np.any(np.asarray(table[0])) for table in params["tables"].values())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    for found in (states(model, params), states(*build(module, **settings))):
        assert found.shape == (*HISTORIES.shape, model.width) and found.dtype == np.float32
        assert np.all(np.isfinite(found))


def check_cut(module: ModuleType, **settings) -> None:
    """Pieces cut to lengths of their own have the states, and the dropout, of the padded batch."""
    model, params = build(module, **settings)
    inputs, tables = inputs_of(model), params["tables"]
    lengths = np.maximum(np.sum(inputs != 0, axis=1), 1)
    pieces, kept = [], []
    for rows in map(np.asarray, PIECES):
        cut = slice(MAX_LEN - max(lengths[rows]), None)
        ids, users = inputs[rows, cut], jnp.asarray(USERS[rows])
        user = base.lookup(tables["user"], users) if "user" in tables else None
        times = jnp.asarray(TIMES[rows, cut]) if "times" in model.needs else None
        pieces.append(base.Piece(ids, base.lookup(tables["item"], ids), user, jnp.asarray(rows), times))
        kept.append((rows, cut))
    encode_pieces = jax.jit(lambda pieces, dropout: model.encode(params["network"], pieces, dropout))
    for dropout in (None, DROPOUT):
        whole = states(model, params, dropout=dropout)
        for where, piece, own in zip(kept, pieces, encode_pieces(pieces, dropout), strict=True):
            is_item = np.asarray(piece.inputs) != 0
            np.testing.assert_allclose(own[is_item], whole[where][is_item], rtol=0, atol=1e-5)


def check_pads(module: ModuleType, **settings) -> None:
    """Neither the pad's row, nor positions and times at pads reach the state at an item; pads are as `pad_state` says.

    The row without pads does see those positions.
    """
    model, params = build(module, **settings)
    before, is_pad = states(model, params), np.asarray(inputs_of(model)) == 0
    network = dict(params["network"])
    if "positions" in network:
        network["positions"] = network["positions"].at[0].multiply(5.0)
    poisoned = {"tables": {name: x.at[0].set(1e6) for name, x in params["tables"].items()}, "network": network}
    times = np.where(np.pad(is_pad, ((0, 0), (0, 1))), 10**9, TIMES).astype(np.int32)
    after = states(model, poisoned, times=times)
    kept = ~is_pad & is_pad[:, :1]
    np.testing.assert_array_equal(after[kept], before[kept])
    assert ("positions" in network) == bool(np.abs(after[1] - before[1]).max() > 1e-3)
    if model.pad_state is not None:
        at_pads = np.broadcast_to(model.pad_state(params["network"]), before.shape)
        for found in (before, states(model, params, dropout=DROPOUT)):
            np.testing.assert_allclose(found[is_pad], at_pads[is_pad], rtol=0, atol=1e-6)


def check_causal(module: ModuleType, **settings) -> None:
    """An item changes the states from its own position on, and none before it."""
    model, params = build(module, **settings)
    before = states(model, params)[1]
    for position in range(MAX_LEN):
        changed = HISTORIES.copy()
        changed[1, position] = 19
        after = states(model, params, changed)[1]
        np.testing.assert_array_equal(after[:position], before[:position])
        assert np.abs(after[position:] - before[position:]).max(-1).min() > 1e-5


def check_gradients(module: ModuleType, **settings) -> None:
    """Gradients of states and scores are those of finite differences."""
    model, params = build(module, **settings)
    inputs, times = inputs_of(model), jnp.asarray(TIMES) if "times" in model.needs else None

    def loss(params):
        hidden = base.encode_inputs(model, params, inputs, jnp.asarray(USERS), times, DROPOUT)
        scores = model.score(params["network"], hidden, params["tables"]["item"][None, None, 1:])
        return jnp.mean(jnp.sin(jnp.where(inputs[..., None] != 0, scores, 0)))

    check_grads(jax.jit(loss), (params,), order=1, modes=["rev"], eps=2e-4, rtol=2e-2, atol=2e-3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def check_vmap(module: ModuleType, **settings) -> None:
    """Networks side by side, each with a dropout rate of its own, are as each alone; the rate is traced."""
    model, first = build(module, **settings)
    _, second = build(module, seed=1, **settings)
    rates = jnp.asarray([0.1, 0.6])

    def run(params, rate):
        times = jnp.asarray(TIMES) if "times" in model.needs else None
        dropout = base.Dropout(DROPOUT.key, rate)
        return base.encode_inputs(model, params, inputs_of(model), jnp.asarray(USERS), times, dropout)

    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, second)
    together = jax.jit(jax.vmap(run))(both, rates)
    for params, rate, found in zip((first, second), rates, together, strict=True):
        alone = states(model, params, dropout=base.Dropout(DROPOUT.key, float(rate)))
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5)


def check_dropout(module: ModuleType, **settings) -> None:
    """Without Dropout none is traced; at rate 0 it changes nothing; the key decides what is dropped."""
    model, params = build(module, **settings)
    times = jnp.asarray(TIMES) if "times" in model.needs else None
    traced = jax.make_jaxpr(functools.partial(base.encode_inputs, model))
    plain, dropped = (
        str(traced(params, inputs_of(model), jnp.asarray(USERS), times, dropout)) for dropout in (None, DROPOUT)
    )
    assert "random_bits" not in plain and "random_bits" in dropped
    np.testing.assert_allclose(
        states(model, params, dropout=base.Dropout(DROPOUT.key, 0.0)), states(model, params), rtol=0, atol=1e-6
    )
    other = base.Dropout(jax.random.key(4), DROPOUT.rate)
    assert np.abs(states(model, params, dropout=DROPOUT) - states(model, params, dropout=other)).max() > 1e-2


def check_scores(module: ModuleType, **settings) -> None:
    """Scores are the same whoever shares the items' rows: all, a sequence, a position of all sequences, nobody."""
    model, params = build(module, **settings)
    hidden, rows = states(model, params), params["tables"]["item"][None, None, 1:]
    score = jax.jit(model.score)
    shared = score(params["network"], hidden, rows)
    assert shared.shape == (*HISTORIES.shape, NUM_ITEMS)
    for batch, length in ((4, 1), (1, MAX_LEN), (4, MAX_LEN)):
        own = jnp.broadcast_to(rows, (batch, length, *rows.shape[2:]))
        np.testing.assert_allclose(score(params["network"], hidden, own), shared, rtol=1e-5, atol=1e-5)
        one = score(params["network"], hidden, own[:, :, :1])
        np.testing.assert_allclose(one, shared[..., :1], rtol=1e-5, atol=1e-5)


def check_item_bias(module: ModuleType, **settings) -> None:
    """The last column of an item's row joins its score, and no state."""
    model, params = build(module, **settings)
    assert model.width == settings["width"] + 1
    table = params["tables"]["item"]
    added = jnp.arange(NUM_ITEMS + 1, dtype=np.float32)
    other = params | {"tables": params["tables"] | {"item": table.at[:, -1].add(added)}}
    hidden = states(model, params)
    np.testing.assert_array_equal(states(model, other), hidden)
    before, after = (jax.jit(base.dot)({}, hidden, rows[None, None]) for rows in (table, other["tables"]["item"]))
    np.testing.assert_allclose(after - before, np.broadcast_to(added, before.shape), rtol=0, atol=1e-4)
    assert model.score is base.dot


CHECKS: tuple[Callable, ...] = (check_shapes, check_cut, check_pads, check_gradients, check_vmap, check_scores)
CAUSAL = (*CHECKS, check_dropout, check_causal)
