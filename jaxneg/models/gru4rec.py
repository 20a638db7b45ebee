"""GRU4Rec (Hidasi et al., ICLR 2016), as an encoder of histories: small and quick; for short sessions above all.

In the form of Klenitskiy & Vasilev (RecSys 2023): a GRU reads a user's items, its state at each of them predicts the
next one, and one table embeds and scores items. It takes any sampler and loss, and batches as the other models do.

The official GRU4Rec (Hidasi & Karatzoglou, CIKM 2018) trains in another way. A batch is one item of each of B sessions
that run side by side in the order of time; no gradient goes back in time, and a state is zeroed when its session ends.
Negatives are the other B - 1 targets and 2,048 shared items, drawn by frequency^alpha, with logQ in the softmax; the
loss may be BPR-max with a score penalty, and the optimizer is Adagrad with momentum.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt32

from jaxneg.errors import InputError
from jaxneg.fields import ANY, BELOW_ONE, at_least
from jaxneg.models import layers, objectives
from jaxneg.models.base import Dropout, Model, Piece


class Settings(NamedTuple):
    width: Annotated[int, at_least(1, 10**4), "width of the embeddings and of the GRU's state"] = 50
    num_layers: Annotated[int, at_least(1, 100), "GRUs, each of which reads the states of the one before"] = 1
    max_len: Annotated[int, at_least(1, 10**5), "last items of a history that the model sees"] = 50
    item_bias: Annotated[bool, ANY, "true: each item has a bias, which its score gains"] = False
    dropout: Annotated[float, BELOW_ONE, "dropout of embeddings and of the last states"] = 0.2


def make(settings: Settings, num_items: int) -> Model:
    """The model of these sizes; with `item_bias` an item's row has its bias as the last column."""
    for name in ("width", "num_layers", "max_len"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    width, with_bias = settings.width, int(settings.item_bias)

    def init(key: PRNGKeyArray, num_items: int, num_users: int) -> dict:
        """Table: N(0, 1 / width), whatever the number of items; biases of items 0; GRU: as torch starts it."""
        table_key, *keys = jax.random.split(key, 1 + settings.num_layers)
        items = width**-0.5 * jax.random.normal(table_key, (num_items + 1, width))
        network = {f"layer_{i}": init_layer(key, width) for i, key in enumerate(keys)}
        return {"tables": {"item": jnp.pad(items.at[0].set(0.0), ((0, 0), (0, with_bias)))}, "network": network}

    def encode(network: dict, pieces: Sequence[Piece], dropout: Dropout | None) -> list[Float[Array, "_ _ D"]]:
        """The last GRU's states. Rows are scaled to unit variance for the first one, which hardly learns from less."""
        rate = 0.0 if dropout is None else dropout.rate
        of_inputs, of_outputs = (None, None) if dropout is None else layers.dropout_words(dropout.key, 2)
        places = [layers.places(piece.number, piece.inputs.shape[1], settings.max_len) for piece in pieces]

        def drop(words: UInt32[Array, "2"] | None, states: list[Float[Array, "_ _ H"]]) -> list[Float[Array, "_ _ H"]]:
            return [layers.dropout(words, x, rate, own.of_width(width)) for x, own in zip(states, places, strict=True)]

        states = drop(of_inputs, [piece.embedded[..., :width] * math.sqrt(width) for piece in pieces])
        for i in range(settings.num_layers):
            states = run_layer(network[f"layer_{i}"], states, [piece.inputs > 0 for piece in pieces])
        return [jnp.pad(x, ((0, 0), (0, 0), (0, with_bias)), constant_values=1.0) for x in drop(of_outputs, states)]

    def pad_state(network: dict) -> Float[Array, "D"]:
        """Before the first item the state is 0."""
        return jnp.pad(jnp.zeros(width), (0, with_bias), constant_values=1.0)

    return Model(width + with_bias, settings.max_len, objectives.next_item(), init, encode, pad_state=pad_state)


def init_layer(key: PRNGKeyArray, width: int) -> dict:
    """The weights of one GRU, uniform within 1 / sqrt(width); columns: reset gate, update gate, new state."""
    shapes = {"input": (width, 3 * width), "state": (width, 3 * width), "input_bias": (3 * width,)}
    shapes["state_bias"] = shapes["input_bias"]
    bound = width**-0.5
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.uniform(own, shape, minval=-bound, maxval=bound)
        for own, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def run_layer(
    layer: dict, inputs: Sequence[Float[Array, "_ _ H"]], is_item: Sequence[Bool[Array, "_ _"]]
) -> list[Float[Array, "_ _ H"]]:
    """The states of one GRU after each position of each piece; a pad leaves the state as it is.

    All pieces end together, so they share a scan: a longer one starts alone, and a shorter one joins where it begins.
    Thus no pad is computed that a piece leaves out, and there are as many steps as the longest piece has positions.
    """
    shapes = [valid.shape for valid in is_item]
    projected = layers.unjoined(layers.joined(inputs) @ layer["input"] + layer["input_bias"][None], shapes)
    states = [jnp.zeros((number, len(layer["state"]))) for number, _ in shapes]
    found = [[] for _ in shapes]

    def scan(state, at):
        state = step(layer, state, *at)
        return state, state

    joins = sorted({0, *(length for _, length in shapes)}, reverse=True)  # counted from the end
    for start, end in zip(joins, joins[1:], strict=False):
        running = [i for i, (_, length) in enumerate(shapes) if length >= start]
        at = stretch(projected, start, end), stretch(is_item, start, end)
        _, after = jax.lax.scan(scan, jnp.concatenate([states[i] for i in running]), at)
        bounds = np.cumsum([shapes[i][0] for i in running])[:-1]
        for i, own in zip(running, jnp.split(after, bounds, axis=1), strict=True):
            states[i] = own[-1]
            found[i].append(own)
    return [jnp.concatenate(parts).swapaxes(0, 1) for parts in found]


def stretch(parts: Sequence[Shaped[Array, "..."]], start: int, end: int) -> Shaped[Array, "l b ..."]:
    """[l, b, ...] of the pieces that begin `start` positions before the end, or earlier: the positions up to `end`."""
    own = [part[:, part.shape[1] - start : part.shape[1] - end] for part in parts if part.shape[1] >= start]
    return jnp.concatenate(own).swapaxes(0, 1)


def step(
    layer: dict, state: Float[Array, "b H"], projected: Float[Array, "b 3*H"], is_item: Bool[Array, "b"]
) -> Float[Array, "b H"]:
    """The next state, by torch's equations: the reset gate acts on the projected state, its bias included."""
    of_state = state @ layer["state"] + layer["state_bias"][None]
    (reset, keep, new), (reset_by, keep_by, new_by) = jnp.split(projected, 3, axis=1), jnp.split(of_state, 3, axis=1)
    keep = jax.nn.sigmoid(keep + keep_by)
    new = jnp.tanh(new + jax.nn.sigmoid(reset + reset_by) * new_by)
    return jnp.where(is_item[:, None], (1 - keep) * new + keep * state, state)
