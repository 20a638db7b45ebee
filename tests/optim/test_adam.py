"""Adam's directions against optax.adam, NumPy in float64, and hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.optim import adam as adam_lib

RATE = 3e-3


def gradients(num_steps: int, scale: float = 1.0):
    rng = np.random.default_rng(0)
    return [
        {"a": (scale * rng.normal(size=(4, 3))).astype(np.float32), "b": np.float32(scale * rng.normal())}
        for _ in range(num_steps)
    ]


def run(transform, grads, params):
    state = transform.init(params)
    update = jax.jit(transform.update)
    for grad in grads:
        direction, state = update(jax.tree.map(jnp.asarray, grad), state)
        params = jax.tree.map(lambda p, d: p - RATE * d, params, direction)
    return params, state


def numpy_adam(grads, param, *, b1, b2, eps, tensorflow_epsilon):
    """In float64, from the paper's formulas (Kingma & Ba 2015, algorithm 1 and the end of section 2)."""
    param, m, v = np.float64(param), 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        g = np.float64(g)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if tensorflow_epsilon:
            param = param - RATE * np.sqrt(1 - b2**t) / (1 - b1**t) * m / (np.sqrt(v) + eps)
        else:
            param = param - RATE * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return param


def test_equals_optax_adam():
    params = {"a": jnp.ones((4, 3)), "b": jnp.asarray(2.0)}
    grads = gradients(5)
    ours, _ = run(adam_lib.adam(), grads, params)
    reference, theirs = optax.adam(RATE, b1=0.9, b2=0.98, eps=1e-8), params
    state = reference.init(theirs)
    for grad in grads:
        updates, state = reference.update(jax.tree.map(jnp.asarray, grad), state)
        theirs = optax.apply_updates(theirs, updates)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


@pytest.mark.parametrize("tensorflow_epsilon", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-6])  # the two forms differ where sqrt(v) is not far above eps
@pytest.mark.parametrize("betas", [(0.9, 0.98), (0.8, 0.999)])
def test_equals_float64_steps(tensorflow_epsilon, scale, betas):
    grads = gradients(6, scale)
    params = {"a": jnp.zeros((4, 3)), "b": jnp.asarray(0.0)}
    b1, b2 = betas
    ours, _ = run(adam_lib.adam(b1, b2, 1e-8, tensorflow_epsilon), grads, params)
    for name in ours:
        expected = numpy_adam(
            [g[name] for g in grads],
            np.zeros(np.shape(ours[name])),
            b1=b1,
            b2=b2,
            eps=1e-8,
            tensorflow_epsilon=tensorflow_epsilon,
        )
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("tensorflow_epsilon", "expected"),
    # g = 1, b1 = 0, b2 = 0.75, eps = 0.5, so m = 1 and v = 0.25. Corrected: sqrt(v / 0.25) = 1, so 1 / 1.5.
    # TensorFlow: sqrt(0.25) / 1 * 1 / (0.5 + 0.5) = 0.5.
    [(False, 1 / 1.5), (True, 0.5)],
)
def test_first_direction_by_hand(tensorflow_epsilon, expected):
    adam = adam_lib.adam(0.0, 0.75, 0.5, tensorflow_epsilon)
    direction, _ = adam.update(jnp.asarray(1.0), adam.init(jnp.asarray(0.0)))
    np.testing.assert_allclose(direction, expected, rtol=1e-6)


@pytest.mark.parametrize("tensorflow_epsilon", [False, True])
def test_no_gradient_no_step_and_no_nan(tensorflow_epsilon):
    adam = adam_lib.adam(tensorflow_epsilon=tensorflow_epsilon)
    zeros = {"a": jnp.zeros((4, 3))}
    direction, _ = adam.update(zeros, adam.init(zeros))
    np.testing.assert_array_equal(direction["a"], 0.0)


def test_both_forms_share_one_state():
    """A checkpoint of one form can be read by the other."""
    grads, params = gradients(3), {"a": jnp.zeros((4, 3)), "b": jnp.asarray(0.0)}
    _, corrected = run(adam_lib.adam(), grads, params)
    _, tensorflow = run(adam_lib.adam(tensorflow_epsilon=True), grads, params)
    assert jax.tree.structure(corrected) == jax.tree.structure(tensorflow)
    for ours, theirs in zip(jax.tree.leaves(corrected), jax.tree.leaves(tensorflow), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
