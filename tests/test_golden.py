"""The model, its loss, its gradients and its steps against values from the released TensorFlow code.

What the files hold: tests/golden/README.md. A missing file fails these tests, it never skips them.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxneg import losses
from jaxneg.models import base, sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.samplers import select
from jaxneg.training import step as training
from jaxneg.types import Negatives

GOLDEN = Path(__file__).parent / "golden"
CASES = ["uniform_h1", "uniform_h2", "in-batch_h1", "mixed_h1", "mixed_h2", "adaptive_h1", "adaptive-only_h1"]
CASES += ["uniform-l2_h1"]
NUM_ITEMS, NUM_BLOCKS, LEARNING_RATE = 50, 2, 1e-3

# jaxneg's parameter -> TensorFlow's variable, after "SASRec/".
TOP_NAMES = {
    "tables/item": "input_embeddings/lookup_table",
    "network/positions": "dec_pos/lookup_table",
    "network/final_norm/offset": "ln/Variable",
    "network/final_norm/scale": "ln/Variable_1",
}
BLOCK_NAMES = {  # "network/block_I/..." -> "num_blocks_I/..."
    "attention_norm/offset": "ln/Variable",
    "attention_norm/scale": "ln/Variable_1",
    "query/kernel": "self_attention/dense/kernel",
    "query/bias": "self_attention/dense/bias",
    "key/kernel": "self_attention/dense_1/kernel",
    "key/bias": "self_attention/dense_1/bias",
    "value/kernel": "self_attention/dense_2/kernel",
    "value/bias": "self_attention/dense_2/bias",
    "ffn_norm/offset": "ln_1/Variable",
    "ffn_norm/scale": "ln_1/Variable_1",
    "ffn_inner/kernel": "multihead_attention/conv1d/kernel",  # [1, in, out]
    "ffn_inner/bias": "multihead_attention/conv1d/bias",
    "ffn_outer/kernel": "multihead_attention/conv1d_1/kernel",  # [1, in, out]
    "ffn_outer/bias": "multihead_attention/conv1d_1/bias",
}
NAMES = TOP_NAMES | {
    f"network/block_{i}/{ours}": f"num_blocks_{i}/{theirs}"
    for i in range(NUM_BLOCKS)
    for ours, theirs in BLOCK_NAMES.items()
}


class Golden(NamedTuple):
    """One file, and the model that reproduces it."""

    values: dict  # key -> array
    settings: dict
    model: base.Model
    num_kept: int  # K; the number of candidates where nothing is selected

    def params(self, prefix: str) -> dict:
        """The file's variables under "w0", "w1", "w3" or "grad" as jaxneg's parameters."""
        flat = {}
        for ours, theirs in NAMES.items():
            value = self.values[f"{prefix}/SASRec/{theirs}"]
            flat[ours] = jnp.asarray(value[0] if "conv1d" in theirs and "kernel" in theirs else value)
        return unflatten_dict(flat, sep="/")

    def evaluate(self, params: dict):
        """(loss, (hidden states, targets' scores [B, L], the negatives that the loss keeps)), gradient."""
        batch = [self.values[name] for name in ("seq", "pos", "neg")]
        (loss, found), gradient = evaluate(self.model, self.num_kept, params, *batch)
        loss, gradient = training.add_l2(self.step, params, loss, gradient)
        return (loss, found), gradient

    @property
    def step(self) -> training.Step:
        """A training step with the file's L2 term; of its parts only the model is made."""
        return training.Step(self.model, None, None, None, 5, NUM_ITEMS, 8, l2=self.settings["l2_emb"])

    def forward(self, params: dict):
        """Hidden states, the targets' scores [B, L], and the negatives that the loss keeps."""
        return self.evaluate(params)[0][1]


def score(model, params, hidden, ids):
    """Scores of items, [B, L, N]."""
    return model.score(params["network"], hidden, base.lookup(params["tables"]["item"], ids))


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.value_and_grad, argnums=2, has_aux=True)
def evaluate(model, num_kept, params, inputs, targets, candidates):
    """The release's loss: pads in both means, unselected candidates as zeros."""
    hidden = base.encode_inputs(model, params, inputs)
    positive = score(model, params, hidden, targets[..., None])[..., 0]
    ids = candidates[:, None]
    pool = Negatives(
        item_ids=ids,
        scores=score(model, params, hidden, ids),
        log_q=jnp.zeros(ids.shape),
        mask=jnp.ones(ids.shape, bool),
    )
    negatives = select.top_k(num_kept)(jax.random.key(0), pool)
    values = losses.bce(positive, negatives, num_unselected=candidates.shape[1] - num_kept)
    return losses.masked_mean(values, jnp.ones(values.shape, bool)), (hidden, positive, negatives)


@pytest.fixture(scope="module", params=CASES)
def golden(request) -> Golden:
    with np.load(GOLDEN / f"model_{request.param}.npz") as stored:
        values = {name: stored[name] for name in stored.files if name != "types"}
    settings = json.loads(str(values["args"]))
    assert settings["num_blocks"] == NUM_BLOCKS and settings["lr"] == LEARNING_RATE
    sizes = [settings[name] for name in ("hidden_units", "num_blocks", "num_heads", "maxlen")]
    model = sasrec.make(sasrec.Settings(*sizes), NUM_ITEMS)
    assert (settings["l2_emb"] > 0) == ("l2" in request.param)
    num_candidates = values["neg"].shape[1]
    num_kept = settings["num_adaptive_samples"] if request.param.startswith("adaptive") else num_candidates
    return Golden(values, settings, model, num_kept)


def without_key_bias(params: dict) -> dict:
    """Flat and without the attention keys' biases, whose true gradient is zero."""
    flat = flatten_dict(params, sep="/")
    return {name: value for name, value in flat.items() if not name.endswith("/key/bias")}


def assert_close(ours: dict, theirs: dict, atol: float):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=atol, err_msg=name)


def test_every_variable_has_one_place(golden):
    ours = flatten_dict(golden.model.init(jax.random.key(0), NUM_ITEMS, 1), sep="/")
    mapped = flatten_dict(golden.params("w0"), sep="/")
    assert {n: v.shape for n, v in ours.items()} == {n: v.shape for n, v in mapped.items()}
    stored = {name.removeprefix("w0/SASRec/") for name in golden.values if name.startswith("w0/")}
    assert stored == set(NAMES.values())


def test_hidden_states(golden):
    hidden, _, _ = golden.forward(golden.params("w0"))
    np.testing.assert_allclose(hidden, golden.values["seq_out"], rtol=0, atol=1e-5)


def test_hidden_states_at_pads_are_the_offset(golden):
    params = golden.params("w3")  # its offset is no longer zero
    hidden, _, _ = golden.forward(params)
    pads = golden.values["seq"] == 0
    assert pads.any()
    offset = np.asarray(params["network"]["final_norm"]["offset"])
    assert np.abs(offset).max() > 1e-4
    np.testing.assert_allclose(np.asarray(hidden)[pads], np.tile(offset, (pads.sum(), 1)), rtol=0, atol=1e-7)


def test_positive_scores(golden):
    _, positive, _ = golden.forward(golden.params("w0"))
    np.testing.assert_allclose(positive.reshape(-1), golden.values["pos_logits"], rtol=0, atol=1e-5)


def test_negative_scores(golden):
    """Sorted per position, because equal candidates may tie at the K-th place; the unselected are zeros."""
    _, _, negatives = golden.forward(golden.params("w0"))
    theirs = golden.values["neg_logits"].transpose(0, 2, 1)
    unselected = np.zeros((*theirs.shape[:2], theirs.shape[2] - golden.num_kept), np.float32)
    ours = np.concatenate([np.asarray(negatives.scores), unselected], axis=-1)
    np.testing.assert_allclose(np.sort(ours), np.sort(theirs), rtol=0, atol=1e-5)


def test_negative_scores_in_place(golden):
    """Candidate by candidate, whichever of two equal ones was selected."""
    params = golden.params("w0")
    hidden, _, _ = golden.forward(params)
    ours = np.asarray(score(golden.model, params, hidden, jnp.asarray(golden.values["neg"])[:, None]))
    theirs = golden.values["neg_logits"].transpose(0, 2, 1)
    kept = theirs != 0
    if golden.num_kept == theirs.shape[-1]:  # a score may be exactly 0 where nothing is left out
        kept = np.ones_like(kept)
    assert (kept.sum(-1) == golden.num_kept).all()
    np.testing.assert_allclose(ours[kept], theirs[kept], rtol=0, atol=1e-5)


def test_scores_of_all_items_at_the_last_position(golden):
    params = golden.params("w0")
    hidden, _, _ = golden.forward(params)
    items = jnp.asarray(golden.values["item_idx"], jnp.int32)[None, None]
    ours = score(golden.model, params, hidden[:, -1:], items)[:, 0]
    np.testing.assert_allclose(ours, golden.values["test_logits"], rtol=0, atol=1e-5)


def test_loss(golden):
    (loss, _), _ = golden.evaluate(golden.params("w0"))
    np.testing.assert_allclose(loss, golden.values["loss"], rtol=1e-6)


def test_gradients(golden):
    _, ours = golden.evaluate(golden.params("w0"))
    assert_close(flatten_dict(ours, sep="/"), flatten_dict(golden.params("grad"), sep="/"), atol=1e-6)
    # The pad has no gradient but that of the L2 term, which the release takes of row 0 too.
    pad = golden.settings["l2_emb"] * golden.values["w0/SASRec/input_embeddings/lookup_table"][0]
    np.testing.assert_allclose(ours["tables"]["item"][0], pad, rtol=1e-6, atol=0)


def test_adam_steps(golden):
    """Weights after 1 and 3 steps, the loss at each, and a bound on what rounding does to the key bias."""
    adam = adam_lib.adam(tensorflow_epsilon=True)
    start = golden.params("w0")
    params, state, step_losses = start, adam.init(start), []
    for step in (1, 2, 3):
        (loss, _), gradient = golden.evaluate(params)
        step_losses.append(loss)
        direction, state = adam.update(gradient, state)
        params = jax.tree.map(lambda p, d: p - LEARNING_RATE * d, params, direction)
        for i in range(NUM_BLOCKS):
            before, after = (p["network"][f"block_{i}"]["key"]["bias"] for p in (start, params))
            assert np.abs(after - before).max() <= step * LEARNING_RATE * 1.01
        if step in (1, 3):
            assert_close(without_key_bias(params), without_key_bias(golden.params(f"w{step}")), atol=1e-5)
    np.testing.assert_allclose(step_losses, golden.values["losses"], rtol=2e-6)
    (last, _), _ = golden.evaluate(params)
    np.testing.assert_allclose(last, golden.values["loss_after3"], rtol=5e-6)
