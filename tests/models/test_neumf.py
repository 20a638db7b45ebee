"""NeuMF: the contract of every model, torch's numbers, and how users are served."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.errors import InputError
from jaxneg.models import base, neumf

SETTINGS = {"gmf_width": 3, "layers": (8, 6, 4), "max_len": contract.MAX_LEN}


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(neumf, **SETTINGS)


def test_equals_torch():
    """Every pair of user and item, written in torch with embeddings of their own for each half."""
    reference = contract.reference("neumf")
    users, items = (
        jnp.concatenate([reference[f"gmf_{name}"], reference[f"mlp_{name}"]], axis=1) for name in ("user", "item")
    )
    layers = {"layer_0": "mlp.0", "layer_1": "mlp.2", "layer_2": "mlp.4", "output": "output"}
    network = {
        name: {"kernel": reference[f"{own}.weight"].T, "bias": reference[f"{own}.bias"]} for name, own in layers.items()
    }
    model = neumf.make(neumf.Settings(gmf_width=4, layers=(12, 8, 6, 4)), len(items))
    assert (model.width, model.floats_per_score) == (10, 18)
    piece = base.Piece(jnp.ones((len(users), 1), jnp.int32), items[None, None, 0], users, jnp.arange(len(users)))
    (hidden,) = model.encode(network, [piece._replace(embedded=jnp.tile(piece.embedded, (len(users), 1, 1)))], None)
    scores = model.score(network, hidden, items[None, None])
    np.testing.assert_allclose(scores[:, 0], reference["scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("unit", "positions"), [("interaction", 1), ("user", contract.MAX_LEN)])
def test_windows_and_queries(unit, positions):
    model, _ = contract.build(neumf, **SETTINGS, unit=unit)
    assert (model.objective.unit, model.max_len, model.query_len) == (unit, positions, contract.MAX_LEN)


def test_an_unknown_user_is_the_mean_of_the_historys_items():
    model, params = contract.build(neumf, **SETTINGS)
    found = contract.states(model, params, users=np.zeros(4, np.int32))[:, -1]
    items = np.asarray(params["tables"]["item"])
    expected = [items[row[row > 0]].mean(axis=0) if row.any() else np.zeros(7) for row in contract.HISTORIES]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_items_half_of_the_first_layer_is_worked_out_once_for_each_row():
    """Of rows that all positions share, the first product is [N, half] x [half, first], whatever B and L are."""
    model, params = contract.build(neumf, **SETTINGS)
    hidden, rows = jnp.zeros((4, 7, 7)), params["tables"]["item"][None, None]
    program = jax.make_jaxpr(model.score)(params["network"], hidden, rows)
    shapes = [eqn.outvars[0].aval.shape for eqn in program.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert (1, 1, contract.NUM_ITEMS + 1, 6) in shapes and (4, 7, contract.NUM_ITEMS + 1, 6) not in shapes


def test_the_start():
    model = neumf.make(neumf.Settings(), 2000)
    tables = model.init(jax.random.key(0), 2000, 1000)["tables"]
    assert [tables[name].shape for name in ("item", "user")] == [(2001, 40), (1001, 40)]
    assert all(abs(float(jnp.std(table[1:])) - 0.01) < 2e-4 for table in tables.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gmf_width": 0}, "gmf_width is 0: it must be at least 1"),
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"unit": "item"}, "unit is 'item': it must be interaction or user"),
    ]
    + [
        ({"layers": sizes}, "layers is .*: it must be 2 whole numbers or more, 1 or more each, the first one even")
        for sizes in ((), (64,), (63, 32), (64, 0))
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        neumf.make(neumf.Settings(**settings), 10)
