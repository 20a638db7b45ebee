"""BERT4Rec: the contract of every model, torch's numbers, and what is hidden from it."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.errors import InputError
from jaxneg.models import base, bert4rec, objectives

SETTINGS = {"width": 8, "num_blocks": 2, "num_heads": 2, "max_len": contract.MAX_LEN}


@pytest.mark.parametrize("check", [*contract.CHECKS, contract.check_dropout], ids=lambda check: check.__name__)
def test_contract(check):
    check(bert4rec, **SETTINGS)


def test_item_bias():
    contract.check_item_bias(bert4rec, **SETTINGS)


def test_equals_torch():
    """Two layers of torch.nn.TransformerEncoderLayer; the second sequence has pads."""
    reference = contract.reference("bert4rec")
    width, length = reference["embedded"].shape[-1], reference["embedded"].shape[1]

    def dense(name):
        return {"kernel": reference[f"{name}.weight"].T, "bias": reference[f"{name}.bias"]}

    def norm(name):
        return {"scale": reference[f"{name}.weight"], "bias": reference[f"{name}.bias"]}

    network = {name: reference[name] for name in ("positions", "mask")}
    network |= {name: norm(name) for name in ("embedding_norm", "projection_norm")}
    network["projection"] = dense("projection")
    for i in range(2):
        layer = f"encoder.layers.{i}"
        weights = jnp.split(reference[f"{layer}.self_attn.in_proj_weight"], 3)
        biases = jnp.split(reference[f"{layer}.self_attn.in_proj_bias"], 3)
        attention = zip(("query", "key", "value"), weights, biases, strict=True)
        network[f"block_{i}"] = {name: {"kernel": weight.T, "bias": bias} for name, weight, bias in attention} | {
            "attention_output": dense(f"{layer}.self_attn.out_proj"),
            "attention_norm": norm(f"{layer}.norm1"),
            "ffn_inner": dense(f"{layer}.linear1"),
            "ffn_outer": dense(f"{layer}.linear2"),
            "ffn_norm": norm(f"{layer}.norm2"),
        }
    model = bert4rec.make(bert4rec.Settings(width, 2, 2, length), 1)
    inputs = reference["inputs"].astype(jnp.int32)
    embedded = jnp.where(inputs[..., None] > 0, jnp.pad(reference["embedded"], ((0, 0), (0, 0), (0, 1))), 0)
    found = model.encode(network, [base.Piece(inputs, embedded, None, jnp.arange(len(inputs)))], None)[0]
    np.testing.assert_allclose(found[inputs != 0][:, :-1], reference["states"][inputs != 0], rtol=0, atol=1e-5)


def test_both_sides_are_seen_and_what_is_hidden_is_not():
    model, params = contract.build(bert4rec, **SETTINGS)
    window = contract.HISTORIES[1]

    def states_of(window):
        inputs, targets = model.objective.make(jax.random.key(1), jnp.asarray(window)[None])
        return contract.states(model, params, inputs, users=[1])[0], np.asarray(targets[0])

    before, targets = states_of(window)
    assert targets[-1] > 0 and 0 < np.sum(targets > 0) < contract.MAX_LEN
    for position in range(contract.MAX_LEN):
        after, _ = states_of(np.where(np.arange(contract.MAX_LEN) == position, 19, window))
        change = np.abs(after - before)[:, :-1].max(-1)
        assert np.all(change == 0) if targets[position] else np.all(change > 1e-5)


def test_queries_and_settings_reach_the_objective():
    model = bert4rec.make(bert4rec.Settings(mask_rate=0.0, last_only=0.5, max_len=7), 10)
    asked = model.objective.query(jnp.asarray(contract.HISTORIES))
    np.testing.assert_array_equal(asked[:, :-1], contract.HISTORIES[:, 1:])
    np.testing.assert_array_equal(asked[:, -1], objectives.MASK)
    inputs, _ = model.objective.make(jax.random.key(0), jnp.asarray(contract.HISTORIES[:3]))
    np.testing.assert_array_equal(inputs == objectives.MASK, np.arange(7)[None] == [[6]] * 3)


def test_neither_the_mask_nor_the_pad_is_ranked():
    """The MASK vector is the network's: the item table has a row for the pad and for each item, and no more."""
    model, params = contract.build(bert4rec, **SETTINGS)
    assert params["tables"]["item"].shape == (contract.NUM_ITEMS + 1, SETTINGS["width"] + 1)
    assert params["network"]["mask"].shape == (SETTINGS["width"],)
    moved = params | {"network": params["network"] | {"mask": 2 * params["network"]["mask"]}}
    assert np.abs(contract.states(model, moved) - contract.states(model, params)).max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({name: 0}, f"{name} is 0: it must be at least 1") for name in ("width", "num_blocks", "num_heads", "max_len")]
    + [
        ({"num_heads": 3}, "num_heads is 3: it must divide the width, 50"),
        ({"mask_rate": 1.5}, "mask_rate is 1.5: it must be from 0 to 1"),
        ({"last_only": -0.1}, "last_only is -0.1: it must be from 0 to 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        bert4rec.make(bert4rec.Settings(**settings), 10)
