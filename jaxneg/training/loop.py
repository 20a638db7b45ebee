"""Many training steps in one device program, of one seed or of several."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import checkify
from jaxtyping import Array, Int

from jaxneg.training.step import Step, TrainState, draw, fits, gather, gradient, update


def run_groups(step: Step, group_size: int, num_steps: Int[Array, ""], states: TrainState, tables, feed) -> TrainState:
    """`run_steps` for `group_size` seeds at a time, one group after another; it divides the number of seeds.

    A processor's cache may hold what a step of one seed works on, and not what the steps of all do.
    """
    number = len(states.step) // group_size
    if number == 1:
        return run_steps(step, num_steps, states, tables, feed)

    def one_group(index, states):
        def part(tree):
            return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, index * group_size, group_size), tree)

        own_feed = feed if step.feed_axis is None else part(feed)
        moved = run_steps(step, num_steps, part(states), tables, own_feed)
        return jax.tree.map(
            lambda x, rows: lax.dynamic_update_slice_in_dim(x, rows, index * group_size, 0), states, moved
        )

    return lax.fori_loop(0, number, one_group, states)


def run_steps(step: Step, num_steps: Int[Array, ""], states: TrainState, tables, feed) -> TrainState:
    """`num_steps` steps of several seeds in one program: every leaf of `states` has a seed axis.

    The number is traced, so that one compilation serves every interval. The seeds take the padded form together,
    when one of them has a batch that its buckets do not hold: a choice made per seed would compute both.
    `feed` is the Dataset, or a `stream.Prefetch` that has all these steps.
    """
    is_one = len(states.step) == 1  # which needs no vmap: the same steps, traced in half the time
    each = _as_it_is if is_one else jax.vmap

    def of(function, *first):
        return functools.partial(function, step, *first)

    def body(_, states):
        keys, batches = each(of(draw), in_axes=(0, step.feed_axis))(states, feed)
        given, gathered = each(of(gather), in_axes=(0, 0, 0, None))(states, keys, batches, tables)
        padded = each(of(gradient, step.padded))
        if step.cut:
            fit = jnp.all(each(of(fits))(batches))
            # Only gradients come out of the choice: a table that went through it would be copied.
            found = lax.cond(fit, each(of(gradient, step.cut)), padded, given)
        else:
            found = padded(given)
        return each(of(update))(states, gathered, *found)

    if not is_one:
        return lax.fori_loop(0, num_steps, body, states)
    feed = feed if step.feed_axis is None else _only_row(feed)
    state = lax.fori_loop(0, num_steps, body, _only_row(states))
    return jax.tree.map(lambda x: x.reshape(1, *x.shape), state)


def _as_it_is(function: Callable, in_axes: Any = 0) -> Callable:
    return function


def _only_row(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.reshape(x.shape[1:]), tree)


def check_step(step: Step) -> Callable:
    """One padded step of one seed, compiled with a check of each operation's result: (error, state)."""

    def one(state: TrainState, tables, feed) -> TrainState:
        keys, batch = draw(step, state, feed)
        given, gathered = gather(step, state, keys, batch, tables)
        return update(step, state, gathered, *gradient(step, step.padded, given))

    return jax.jit(checkify.checkify(one, errors=checkify.float_checks))


def run_checked(
    checked: Callable, feed_axis: int | None, num_steps: int, states: TrainState, tables, feed
) -> TrainState:
    """`run_steps` for debugging: slow, one seed and one step at a time, with `checked` of `check_step`.

    `feed_axis` is the step's.

    Raises FloatingPointError that names the first operation whose result is not a number, and the seed and the step.
    """
    for _ in range(num_steps):
        moved = []
        for seed in range(len(states.step)):
            own = feed if feed_axis is None else jax.tree.map(lambda x, seed=seed: x[seed], feed)
            state = jax.tree.map(lambda x, seed=seed: x[seed], states)
            error, state = checked(state, tables, own)
            if error.get():
                what = " ".join(error.get().split()).rstrip(".")
                raise FloatingPointError(f"step {int(state.step):,}, seed {seed} of its chunk: {what}{source(error)}")
            moved.append(state)
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *moved)
    return states


def source(error: checkify.Error) -> str:
    """Where in jaxneg the operation of an error is, as in ", in models/sasrec.py:137 (Block.__call__)"."""
    traceback = str(getattr(error.get_exception(), "traceback_info", ""))  # from the operation outwards
    package = f"{pathlib.Path(__file__).parent.parent}{os.sep}"
    lines = [line.removeprefix(package) for line in traceback.splitlines() if line.startswith(package)]
    return f", in {lines[0]}" if lines else ""
