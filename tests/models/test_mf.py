"""Matrix factorisation: the contract of every model, and how users are served."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.errors import InputError
from jaxneg.models import mf

SETTINGS = {"width": 6, "max_len": contract.MAX_LEN}


@pytest.mark.parametrize("check", contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("item_bias", [False, True])
def test_contract(check, item_bias):
    check(mf, **SETTINGS, item_bias=item_bias)


def test_item_bias():
    contract.check_item_bias(mf, **SETTINGS, item_bias=True)


@pytest.mark.parametrize(("unit", "positions"), [("interaction", 1), ("user", contract.MAX_LEN)])
def test_windows_and_queries(unit, positions):
    model, _ = contract.build(mf, **SETTINGS, unit=unit)
    assert (model.objective.unit, model.max_len, model.query_len) == (unit, positions, contract.MAX_LEN)


def test_a_score_is_the_product_of_the_users_and_the_items_vector():
    model, params = contract.build(mf, **SETTINGS)
    items, users = (np.asarray(params["tables"][name], np.float64) for name in ("item", "user"))
    hidden = contract.states(model, params)
    found = model.score({}, jnp.asarray(hidden), params["tables"]["item"][None, None])
    known = contract.USERS > 0
    expected = np.broadcast_to((users[contract.USERS] @ items.T)[:, None], found.shape)
    np.testing.assert_allclose(found[known], expected[known], rtol=0, atol=1e-5)


def test_an_unknown_user_is_the_mean_of_the_historys_items():
    model, params = contract.build(mf, **SETTINGS, item_bias=True)
    unknown = np.zeros(4, np.int32)
    found = contract.states(model, params, users=unknown)[:, -1]
    items = np.asarray(params["tables"]["item"])[:, :-1]
    expected = [items[row[row > 0]].mean(axis=0) if row.any() else np.zeros(6) for row in contract.HISTORIES]
    np.testing.assert_allclose(found[:, :-1], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[:, -1], 1)


def test_the_start():
    model = mf.make(mf.Settings(), 2000)
    tables = model.init(jax.random.key(0), 2000, 1000)["tables"]
    assert [tables[name].shape for name in ("item", "user")] == [(2001, 64), (1001, 64)]
    assert all(abs(float(jnp.std(table[1:])) - 0.1) < 1e-3 for table in tables.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width is 0: it must be at least 1"),
        ({"max_len": -1}, "max_len is -1: it must be at least 1"),
        ({"unit": "item"}, "unit is 'item': it must be interaction or user"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        mf.make(mf.Settings(**settings), 10)
