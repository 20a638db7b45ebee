"""Adam without the learning rate, which belongs to the training state: each seed may have its own."""

import jax
import jax.numpy as jnp
import optax


def adam(
    b1: float = 0.9, b2: float = 0.98, eps: float = 1e-8, tensorflow_epsilon: bool = False
) -> optax.GradientTransformation:
    """Adam's direction: the step is `params - learning_rate * direction` (Kingma & Ba 2015, algorithm 1).

    The direction is not negated, as in `optax.scale_by_adam`. With `tensorflow_epsilon`, eps is added to
    sqrt(v) before the bias correction (the end of their section 2, and TensorFlow v1), not after it:
    sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps). The state is an `optax.ScaleByAdamState` either way.
    """
    standard = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    if not tensorflow_epsilon:
        return standard

    def update(grads, state, params=None):
        _, state = standard.update(grads, state, params)
        step = state.count.astype(jnp.float32)
        correction = jnp.sqrt(1.0 - b2**step) / (1.0 - b1**step)
        direction = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), state.mu, state.nu)
        return direction, state

    return optax.GradientTransformation(standard.init, update)
