"""LiGR: the contract of every model, and torch's numbers."""

import contract
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.errors import InputError
from jaxneg.models import base, ligr

SETTINGS = {"width": 8, "num_blocks": 2, "num_heads": 2, "max_len": contract.MAX_LEN, "expansion": 2}


@pytest.mark.parametrize("check", contract.CAUSAL, ids=lambda check: check.__name__)
def test_contract(check):
    check(ligr, **SETTINGS)


def test_equals_torch():
    """Two blocks of torch's MultiheadAttention, Linear and LayerNorm; the second sequence has pads."""
    reference = contract.reference("ligr")
    width, length = reference["embedded"].shape[-1], reference["embedded"].shape[1]

    def dense(name):
        found = {"kernel": reference[f"{name}.weight"].T}
        return found | ({"bias": reference[f"{name}.bias"]} if f"{name}.bias" in reference else {})

    def norm(name):
        return {"scale": reference[f"{name}.weight"], "offset": reference[f"{name}.bias"]}

    network = {"positions": reference["positions"], "final_norm": norm("final_norm")}
    for i in range(2):
        block = {name: norm(f"blocks.{i}.{name}") for name in ("attention_norm", "ffn_norm")}
        weights = jnp.split(reference[f"blocks.{i}.attention.in_proj_weight"], 3)
        biases = jnp.split(reference[f"blocks.{i}.attention.in_proj_bias"], 3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            block[name] = {"kernel": weight.T, "bias": bias}
        block["attention_output"] = dense(f"blocks.{i}.attention.out_proj")
        for name in ("attention_gate", "ffn_gate", "ffn_silu", "ffn_linear", "ffn_output"):
            block[name] = dense(f"blocks.{i}.{name}")
        network[f"block_{i}"] = block
    model = ligr.make(ligr.Settings(width, 2, 2, length), 1)
    inputs = reference["is_item"].astype(jnp.int32)
    piece = base.Piece(inputs, reference["embedded"] * inputs[..., None], None, jnp.arange(len(inputs)))
    found = model.encode(network, [piece], None)[0]
    np.testing.assert_allclose(found[inputs > 0], reference["states"][inputs > 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({name: 0}, f"{name} is 0: it must be at least 1") for name in ligr.Settings._fields[:-1]]
    + [({"num_heads": 3}, "num_heads is 3: it must divide the width, 50")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        ligr.make(ligr.Settings(**settings), 10)
