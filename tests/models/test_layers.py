"""The encoder's layers against plain forms, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxneg.models import layers

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def plain_standardise(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + layers.LAYER_NORM_EPSILON)


PAIRS = {
    "matmul": (layers.matmul, lambda a, b: jnp.matmul(a, b), (normal(3, 4, 5), normal(3, 5, 2))),
    "matmul_shared": (
        layers.matmul_shared,
        lambda hidden, rows: hidden @ rows.T,
        (normal(3, 4, 5), normal(6, 5)),
    ),
    "standardise": (layers.standardise, plain_standardise, (normal(3, 4, 7),)),
    "standardise, far from 0": (layers.standardise, plain_standardise, (100 + normal(5, 50),)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_plain_form(name):
    function, plain, arguments = PAIRS[name]
    out, pull = jax.vjp(function, *arguments)
    expected, pull_plain = jax.vjp(plain, *arguments)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=5e-5)
    gradient = normal(*out.shape)
    for one, other in zip(pull(gradient), pull_plain(gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("name", ["matmul", "matmul_shared", "standardise"])
def test_gradients_are_those_of_finite_differences(name):
    function, _, arguments = PAIRS[name]
    check_grads(jax.jit(function), arguments, order=1, modes=["rev"], rtol=2e-2, atol=2e-2)


def test_a_constant_row_has_no_gradient_that_is_not_finite():
    value, gradient = jax.value_and_grad(lambda x: layers.standardise(x).sum())(jnp.full((2, 8), 3.0))
    assert value == 0 and np.isfinite(gradient).all()


def test_seeds_side_by_side_are_each_alone():
    x = normal(3, 2, 4, 6)
    both = jax.vmap(lambda x: layers.matmul(layers.standardise(x), layers.transpose(x)))(x)
    for one, alone in zip(both, x, strict=True):
        np.testing.assert_allclose(one, layers.matmul(layers.standardise(alone), layers.transpose(alone)), rtol=1e-5)
