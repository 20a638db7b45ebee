"""GRU4Rec: the contract of every model, torch's numbers, and what a GRU has of its own."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.errors import InputError
from jaxneg.models import base, gru4rec

SETTINGS = {"width": 6, "num_layers": 2, "max_len": contract.MAX_LEN}


@pytest.mark.parametrize("check", contract.CAUSAL, ids=lambda check: check.__name__)
def test_contract(check):
    check(gru4rec, **SETTINGS, item_bias=True)


def test_equals_torch():
    """Two layers of torch.nn.GRU."""
    reference = contract.reference("gru4rec")
    width = reference["embedded"].shape[-1]
    network = {
        f"layer_{i}": {
            "input": reference[f"weight_ih_l{i}"].T,
            "state": reference[f"weight_hh_l{i}"].T,
            "input_bias": reference[f"bias_ih_l{i}"],
            "state_bias": reference[f"bias_hh_l{i}"],
        }
        for i in range(2)
    }
    model = gru4rec.make(gru4rec.Settings(width, 2, reference["embedded"].shape[1]), 1)
    inputs = jnp.ones(reference["embedded"].shape[:2], jnp.int32)
    piece = base.Piece(inputs, reference["embedded"] / width**0.5, None, jnp.arange(len(inputs)))
    np.testing.assert_allclose(model.encode(network, [piece], None)[0], reference["states"], rtol=0, atol=1e-5)


def test_pads_hold_the_state():
    """Pads between items, too: what follows them does not know of them."""
    model, params = contract.build(gru4rec, **SETTINGS)
    spread = contract.states(model, params, [[0, 4, 8, 0, 0, 15, 16]], users=[1])[0]
    dense = contract.states(model, params, [[0, 0, 0, 4, 8, 15, 16]], users=[1])[0]
    np.testing.assert_allclose(spread[[1, 2, 5, 6]], dense[3:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(spread[[3, 4]], spread[[2, 2]])


def test_item_bias():
    contract.check_item_bias(gru4rec, **SETTINGS, item_bias=True)


@pytest.mark.parametrize("name", ["width", "num_layers", "max_len"])
def test_bad_sizes_are_named(name):
    with pytest.raises(InputError, match=f"^{name} is 0: it must be at least 1$"):
        gru4rec.make(gru4rec.Settings(**{name: 0}), 10)


def test_a_batch_in_pieces_takes_as_many_steps_as_its_longest_piece():
    model, params = contract.build(gru4rec, **SETTINGS)
    pieces = [
        base.Piece(jnp.ones((2, length), jnp.int32), jnp.ones((2, length, 6)), None, jnp.arange(2))
        for length in (3, 7, 4)
    ]
    program = str(jax.make_jaxpr(model.encode)(params["network"], pieces, None))
    assert sorted(int(text.split()[0]) for text in program.split("length=")[1:]) == [1, 1, 3, 3, 3, 3]
