"""HSTU: the contract of every model, torch's numbers, its buckets of time, and its cosine."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.errors import InputError
from jaxneg.models import base, hstu

SETTINGS = {"width": 8, "num_blocks": 2, "max_len": contract.MAX_LEN, "temperature": 0.5}


@pytest.mark.parametrize("check", contract.CAUSAL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("times", [False, True])
def test_contract(check, times):
    check(hstu, **SETTINGS, times=times)


def test_equals_torch():
    """Two blocks written in torch, one query and one key at a time; the second sequence has pads."""
    reference = contract.reference("hstu")
    (_, length, width), inputs = reference["embedded"].shape, reference["is_item"].astype(jnp.int32)
    network = {"positions": reference["positions"]}
    for i in range(2):
        network[f"block_{i}"] = {
            "projected": {"kernel": reference[f"blocks.{i}.projected.weight"].T},
            "output": {
                "kernel": reference[f"blocks.{i}.output.weight"].T,
                "bias": reference[f"blocks.{i}.output.bias"],
            },
            "position_bias": reference[f"blocks.{i}.position_bias"],
            "time_bias": reference[f"blocks.{i}.time_bias"],
        }
    model = hstu.make(hstu.Settings(width, 2, 2, length, times=True), 1)
    times = reference["times"].astype(jnp.int32)
    piece = base.Piece(inputs, reference["embedded"] * inputs[..., None], None, jnp.arange(2), times)
    (found,) = model.encode(network, [piece], None)
    np.testing.assert_allclose(found[inputs > 0], reference["states"][inputs > 0], rtol=0, atol=1e-5)
    scores = model.score(network, found, reference["items"][None, None])
    np.testing.assert_allclose(scores[inputs > 0], reference["scores"][inputs > 0], rtol=0, atol=1e-4)


def test_time_buckets():
    """Steps of 0.301 in the natural logarithm of the seconds, up to the longest that an int32 holds."""
    passed = np.asarray([0, 1, 2, 3, 10, 86400, 31_536_000, 2**31 - 1])
    times = jnp.asarray(np.stack([np.zeros_like(passed), passed], axis=1), jnp.int32)
    expected = np.floor(np.log(np.maximum(passed, 1)) / 0.301)
    found = hstu.time_buckets(times)
    np.testing.assert_array_equal(found[:, 0, 0], expected)
    np.testing.assert_array_equal(hstu.time_buckets(times[:, ::-1])[:, 0, 0], expected)  # as far in the other direction
    assert int(found.max()) == hstu.NUM_TIME_BUCKETS - 1


def test_the_time_of_what_is_asked_counts_and_the_time_of_later_items_does_not():
    """The query at position i knows the times up to that of the item behind it."""
    model, params = contract.build(hstu, **SETTINGS, times=True)
    before = contract.states(model, params)[1]
    for position in range(contract.MAX_LEN + 1):
        times = contract.TIMES.copy()
        times[1, position] += 10**6
        after = contract.states(model, params, times=times)[1]
        change = np.abs(after - before).max(-1)
        first = max(position - 1, 0)
        assert np.all(change[:first] == 0) and change[first] > 1e-5


@pytest.mark.parametrize("times", [False, True])
def test_times_are_asked_for_only_where_they_are_used(times):
    model, params = contract.build(hstu, **SETTINGS, times=times)
    assert model.needs == (("times",) if times else ())
    assert ("time_bias" in params["network"]["block_0"]) == times


def test_a_score_is_a_cosine_over_the_temperature():
    model, params = contract.build(hstu, **SETTINGS)
    hidden, items = contract.states(model, params), params["tables"]["item"]
    found = np.asarray(model.score({}, jnp.asarray(hidden), items[None, None])) * SETTINGS["temperature"]
    lengths = np.linalg.norm(hidden, axis=-1)[..., None] * np.linalg.norm(items, axis=-1)
    expected = np.where(lengths > 0, hidden @ np.asarray(items).T / np.where(lengths > 0, lengths, 1), 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    longer = model.score({}, jnp.asarray(7 * hidden), 3 * items[None, None])
    np.testing.assert_allclose(longer * SETTINGS["temperature"], found, rtol=0, atol=1e-5)


def test_rows_of_zeros_have_finite_gradients():
    gradient = jax.grad(lambda x: jnp.sum(hstu.normalise(x)))(jnp.asarray([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(gradient, [[1, 1], [0.2 - 3 * 1.4 / 25, 0.2 - 4 * 1.4 / 25]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({name: 0}, f"{name} is 0: it must be at least 1") for name in ("width", "num_blocks", "num_heads", "max_len")]
    + [
        ({"num_heads": 3}, "num_heads is 3: it must divide the width, 50"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        hstu.make(hstu.Settings(**settings), 10)
