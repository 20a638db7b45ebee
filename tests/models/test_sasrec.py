"""SASRec: structure, masks, initial values and dropout. Parity with the release: tests/test_golden.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy import stats

from jaxneg import hashing
from jaxneg.errors import InputError
from jaxneg.models import base, layers, objectives, sasrec

NUM_ITEMS, WIDTH, MAX_LEN = 30, 12, 7
SHAPES = [(1, 1), (2, 1), (2, 3), (3, 4), (1, 12)]  # blocks, heads
INPUTS = np.asarray(
    [[0, 0, 4, 8, 15, 16, 23], [3, 1, 4, 1, 5, 9, 2], [0, 0, 0, 0, 0, 0, 7], [0, 0, 0, 0, 0, 0, 0]], np.int32
)


def make(num_blocks=2, num_heads=1, width=WIDTH, max_len=MAX_LEN, **others):
    return sasrec.make(sasrec.Settings(width, num_blocks, num_heads, max_len, **others), NUM_ITEMS)


def encode_inputs(model, params, inputs, rate=0.0, key=None):
    dropout = None if key is None else base.Dropout(key, rate)
    return base.encode_inputs(model, params, inputs, dropout=dropout)


encode = jax.jit(encode_inputs, static_argnums=0)


def build(num_blocks=2, num_heads=1, width=WIDTH, max_len=MAX_LEN, seed=0):
    """A model with every parameter away from its initial value, so that no term hides behind a 0 or a 1."""
    model = make(num_blocks, num_heads, width, max_len)
    params = model.init(jax.random.key(seed), NUM_ITEMS, 1)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(structure, noisy)


def numpy_sasrec(num_blocks, num_heads, params, inputs):
    """The forward pass in float64, one sequence and one query position at a time."""
    encoder = jax.tree.map(lambda x: np.asarray(x, np.float64), params["network"])
    table = np.asarray(params["tables"]["item"], np.float64)
    width = table.shape[1]
    head_width = width // num_heads

    def norm(x, p):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-8) * p["scale"] + p["offset"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    out = []
    for row in inputs:
        item = row != 0
        x = table[row] * np.sqrt(width) + encoder["positions"]
        x = x * item[:, None]
        for i in range(num_blocks):
            p, new = encoder[f"block_{i}"], np.zeros_like(x)
            for t in np.flatnonzero(item):
                query_input = norm(x[t], p["attention_norm"])
                seen = [s for s in range(t + 1) if item[s]]
                query = dense(query_input, p["query"])
                keys = np.stack([dense(x[s], p["key"]) for s in seen])
                values = np.stack([dense(x[s], p["value"]) for s in seen])
                attended = []
                for h in range(num_heads):
                    part = slice(h * head_width, (h + 1) * head_width)
                    logits = keys[:, part] @ query[part] / np.sqrt(head_width)
                    weights = np.exp(logits - logits.max())
                    attended.append(weights / weights.sum() @ values[:, part])
                y = norm(query_input + np.concatenate(attended), p["ffn_norm"])
                new[t] = y + dense(np.maximum(dense(y, p["ffn_inner"]), 0), p["ffn_outer"])
            x = new
        out.append([norm(x[t], encoder["final_norm"]) for t in range(len(row))])
    return np.asarray(out)


@pytest.mark.parametrize(("num_blocks", "num_heads"), SHAPES)
def test_equals_a_plain_float64_forward_pass(num_blocks, num_heads):
    model, params = build(num_blocks, num_heads)
    hidden = encode(model, params, INPUTS)
    assert hidden.shape == (*INPUTS.shape, WIDTH) and hidden.dtype == jnp.float32
    np.testing.assert_allclose(hidden, numpy_sasrec(num_blocks, num_heads, params, INPUTS), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("num_blocks", "num_heads"), [(2, 1), (2, 3)])
def test_the_future_does_not_change_the_past(num_blocks, num_heads):
    model, params = build(num_blocks, num_heads)
    row = INPUTS[1:2]
    before = encode(model, params, row)
    for position in range(MAX_LEN):
        changed = row.copy()
        changed[0, position] = 29
        after = encode(model, params, changed)
        np.testing.assert_array_equal(after[0, :position], before[0, :position])
        assert np.abs(after[0, position:] - before[0, position:]).max(-1).min() > 1e-4  # and changes the rest


def test_a_shorter_window_gives_the_same_states():
    """Positions count from the right, so pads on the left can be cut off."""
    model, params = build()
    whole = encode(model, params, INPUTS[:1])
    for cut in (1, 2):
        short = encode(model, params, INPUTS[:1, cut:])
        np.testing.assert_allclose(short, whole[:, cut:], rtol=0, atol=1e-6)


def test_pads_have_no_influence():
    """Neither the pad's row of the table nor the positions beneath the pads reach an item's state."""
    model, params = build()
    before = encode(model, params, INPUTS)
    poisoned = {
        "tables": {"item": params["tables"]["item"].at[0].set(1e6)},
        "network": params["network"] | {"positions": params["network"]["positions"].at[:2].add(1e3)},
    }
    after = encode(model, poisoned, INPUTS)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[2:], before[2:])
    assert np.abs(after[1] - before[1]).max() > 1e-2  # the row without pads does use those positions


def test_pads_give_the_offset_and_never_nan():
    model, params = build(2, 3)

    def total(params):
        hidden = encode(model, params, INPUTS, 0.3, jax.random.key(0))
        return jnp.sum(hidden**2), hidden

    (_, hidden), gradient = jax.value_and_grad(total, has_aux=True)(params)
    offset = np.asarray(params["network"]["final_norm"]["offset"])
    pads = np.asarray(hidden)[INPUTS == 0]
    np.testing.assert_allclose(pads, np.tile(offset, (len(pads), 1)), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((hidden, gradient)))
    np.testing.assert_array_equal(gradient["tables"]["item"][0], 0.0)


def test_lookup_makes_the_pad_and_what_is_hidden_zero():
    table = jnp.arange(8.0).reshape(4, 2) + 1.0
    rows = base.lookup(table, jnp.asarray([[0, 3], [1, 0]]))
    np.testing.assert_array_equal(rows, [[[0, 0], [7, 8]], [[3, 4], [0, 0]]])
    gradient = jax.grad(lambda t: base.lookup(t, jnp.asarray([0, objectives.MASK, 2, 2])).sum())(table)
    np.testing.assert_array_equal(gradient, [[0, 0], [0, 0], [2, 2], [0, 0]])


@pytest.mark.parametrize("ids_shape", [(1, 1, 5), (3, 1, 5), (1, 4, 5), (3, 4, 5)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("num_candidates", [5, 1])
def test_scores_are_dot_products(ids_shape, batch, num_candidates):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(batch, 4, 6)).astype(np.float32)
    table = rng.normal(size=(11, 6)).astype(np.float32)
    ids = rng.integers(0, 11, (min(ids_shape[0], batch), ids_shape[1], num_candidates)).astype(np.int32)
    ours = base.dot({}, jnp.asarray(hidden), base.lookup(jnp.asarray(table), jnp.asarray(ids)))
    table[0] = 0
    whole = np.broadcast_to(ids, (batch, 4, num_candidates))
    np.testing.assert_allclose(ours, (hidden[:, :, None] * table[whole]).sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ids_shape", [(1, 1, 50), (64, 1, 50)])
def test_shared_ids_never_make_a_row_per_position(ids_shape):
    batch, length, width = 64, 20, 16
    traced = jax.make_jaxpr(lambda hidden, table, ids: base.dot({}, hidden, base.lookup(table, ids)))(
        jnp.zeros((batch, length, width)), jnp.zeros((99, width)), jnp.zeros(ids_shape, jnp.int32)
    )
    largest = max(var.aval.size for eqn in traced.eqns for var in eqn.outvars)
    assert largest <= batch * 50 * max(length, width)


# Initial values


def test_initial_values():
    """Glorot uniform within each limit, biases 0, scales 1; a Kolmogorov-Smirnov test for each matrix."""
    num_items, width, max_len = 400, 50, 60
    model = make(2, 1, width, max_len)
    params = flatten_dict(model.init(jax.random.key(3), num_items, 1), sep="/")
    np.testing.assert_array_equal(params["tables/item"][0], 0.0)
    limits = {"tables/item": 6 / (num_items + 1 + width), "network/positions": 6 / (max_len + width)}
    matrices = {name for name in params if name.endswith("kernel")} | set(limits)
    assert len(matrices) == 2 + 2 * 5
    for name, value in params.items():
        assert value.dtype == jnp.float32
        if name in matrices:
            limit = np.sqrt(limits.get(name, 6 / (2 * width)))
            drawn = np.asarray(value[1:] if name == "tables/item" else value).ravel()
            assert np.abs(drawn).max() <= limit
            assert stats.kstest(drawn, stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-4, name
        else:
            np.testing.assert_array_equal(value, 1.0 if name.endswith("scale") else 0.0)


def test_initial_values_differ_between_matrices_and_seeds():
    model = make(2, 1)
    first, second = (flatten_dict(model.init(jax.random.key(s), NUM_ITEMS, 1), sep="/") for s in (0, 1))
    kernels = [name for name in first if name.endswith("kernel")]
    drawn = [np.asarray(p[name]).ravel() for p in (first, second) for name in kernels]
    correlations = np.corrcoef(np.stack(drawn)) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 0.5  # 144 values each: six standard errors


# Dropout


def numbers(*shape):
    """A number of its own for each element."""
    return jnp.arange(np.prod(shape), dtype=jnp.uint32).reshape(shape)


def words_of(seed):
    """The randomness of one dropout."""
    return layers.dropout_words(jax.random.key(seed), 1)[0]


def test_without_a_key_no_dropout_is_traced():
    model, params = build()
    trace = jax.make_jaxpr(encode_inputs, static_argnums=0)
    plain = str(trace(model, params, jnp.asarray(INPUTS)))
    dropped = str(trace(model, params, jnp.asarray(INPUTS), 0.0, jax.random.key(0)))
    assert "random_bits" not in plain and "shift_right_logical" not in plain
    assert "random_bits" in dropped and "shift_right_logical" in dropped


def test_rate_zero_is_the_exact_identity():
    values = jax.random.normal(jax.random.key(1), (50, 40))
    arguments = (words_of(0), values, 0.0, numbers(50, 40))
    np.testing.assert_array_equal(layers.dropout(*arguments), values)
    np.testing.assert_array_equal(jax.jit(layers.dropout)(*arguments), values)
    model, params = build()
    with_key = encode(model, params, INPUTS, 0.0, jax.random.key(0))
    np.testing.assert_allclose(with_key, encode(model, params, INPUTS), rtol=0, atol=1e-6)  # another program


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_stated_share_and_scales_it(rate):
    count = 200_000
    dropped = np.asarray(layers.dropout(words_of(7), jnp.full((count,), 3.0), rate, numbers(count)))
    kept = dropped != 0
    assert stats.binomtest(int(kept.sum()), count, 1 - rate).pvalue > 1e-4
    np.testing.assert_allclose(dropped[kept], 3.0 / (1 - rate), rtol=1e-6)


def test_dropout_gradient_passes_where_it_kept():
    values = jnp.ones((100,))
    gradient = jax.grad(lambda v: layers.dropout(words_of(7), v, 0.25, numbers(100)).sum())(values)
    np.testing.assert_array_equal(gradient, layers.dropout(words_of(7), values, 0.25, numbers(100)))


@pytest.mark.parametrize("of", ["keys", "dropouts"])
def test_hashed_words_are_uniform_and_unrelated(of):
    """Every bit, neighbours along each axis, and the same place under keys, or in dropouts of one key, side by side."""
    shape, num_keys = (64, 128), 64
    if of == "keys":
        keys = jax.random.split(jax.random.key(5), num_keys)
        pairs = jax.vmap(lambda key: layers.dropout_words(key, 1)[0])(keys)
    else:
        pairs = layers.dropout_words(jax.random.key(5), num_keys)
    words = np.asarray(jax.vmap(lambda pair: hashing.hashed(numbers(*shape), *pair))(pairs))
    count = words.size
    for bit in range(32):
        ones = int(((words >> bit) & 1).sum())
        assert abs(ones - count / 2) < 5 * np.sqrt(count / 4), f"bit {bit}"
    uniform = words / 2.0**32
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-4
    per_place = uniform.mean(0)  # the same place over the keys: variance 1/12 over num_keys
    assert stats.kstest((per_place.ravel() - 0.5) * np.sqrt(12 * num_keys), "norm").pvalue > 1e-4
    flat = uniform.reshape(num_keys, -1) - 0.5
    pairs = {
        "next": (flat[:, :-1], flat[:, 1:]),
        "next row": (flat[:, :-128], flat[:, 128:]),
        "half": (flat[:, : 32 * 128], flat[:, 32 * 128 :]),
        "next key": (flat[:-1], flat[1:]),
    }
    for name, (left, right) in pairs.items():
        correlation = 12 * np.mean(left * right)
        assert abs(correlation) < 5 / np.sqrt(left.size), name
    assert len(np.unique(words[0])) > words[0].size - 20  # a permutation, up to the two mixers


def test_the_key_decides():
    model, params = build()
    first, again, other = (encode(model, params, INPUTS, 0.5, jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


def test_dropout_reaches_every_site(monkeypatch):
    """Embedding, and in each block attention weights and both feed-forward layers, each with words of its own."""
    model, params = build(2, 3)
    seen = []

    def record(words, values, rate, index):
        assert index.shape == values.shape and len(np.unique(index)) == index.size
        seen.append((tuple(np.asarray(words).tolist()), values.shape))
        return values

    monkeypatch.setattr(layers, "dropout", record)
    encode_inputs(model, params, jnp.asarray(INPUTS), 0.5, jax.random.key(0))
    batch = len(INPUTS)
    states, weights = (batch * MAX_LEN, WIDTH), (batch * 3, MAX_LEN, MAX_LEN)
    assert [shape for _, shape in seen] == [states] + 2 * [weights, states, states]
    assert len({words for words, _ in seen}) == len(seen)


def test_a_piece_of_a_batch_has_the_dropout_of_the_whole():
    """Rows from the third on, without their first pad: each number is the one it has in the padded batch."""
    whole = layers.places(jnp.arange(5), MAX_LEN, MAX_LEN)
    piece = layers.places(jnp.arange(2, 5), MAX_LEN - 1, MAX_LEN)
    np.testing.assert_array_equal(piece.of_width(4), whole.of_width(4)[2:, 1:])
    pairs = whole.of_pairs(2, 0, MAX_LEN)
    assert len(np.unique(pairs)) == pairs.size == 5 * 2 * MAX_LEN * MAX_LEN
    np.testing.assert_array_equal(piece.of_pairs(2, 0, MAX_LEN - 1), pairs[2:, :, 1:, 1:])
    np.testing.assert_array_equal(whole.of_pairs(2, 2, 5), pairs[:, :, :5, 2:5])


def test_attention_in_chunks_is_that_of_the_whole(monkeypatch):
    """States, gradients and dropout, also where the last chunk is short; pads see whatever they like."""
    model, params = build(2, 3)

    def loss(params, size):
        monkeypatch.setattr(layers, "QUERY_CHUNK", size)
        return jnp.sum(jnp.sin(encode(model, params, INPUTS, 0.3, jax.random.key(0))))

    plain, chunked = (jax.value_and_grad(loss)(params, size) for size in (MAX_LEN, 3))
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_rates_may_differ_between_vmapped_seeds():
    rates = jnp.asarray([0.0, 0.2, 0.7])
    words = layers.dropout_words(jax.random.key(2), 3)
    values = jnp.ones((50_000,))
    place = numbers(50_000)
    dropped = np.asarray(jax.jit(jax.vmap(layers.dropout, in_axes=(0, None, 0, None)))(words, values, rates, place))
    for own, rate, row in zip(words, rates, dropped, strict=True):
        np.testing.assert_array_equal(row, layers.dropout(own, values, rate, place))
        assert stats.binomtest(int((row != 0).sum()), row.size, 1 - float(rate)).pvalue > 1e-4


def test_vmapped_seeds_equal_single_ones():
    model = make(2, 2)
    keys = jax.random.split(jax.random.key(0), 3)
    rates = jnp.asarray([0.1, 0.3, 0.5])

    @jax.jit
    def run(key, rate):
        params = model.init(key, NUM_ITEMS, 1)
        return encode_inputs(model, params, jnp.asarray(INPUTS), rate, jax.random.fold_in(key, 1))

    together = jax.vmap(run)(keys, rates)
    for i in range(3):
        np.testing.assert_allclose(together[i], run(keys[i], rates[i]), rtol=0, atol=2e-6)


# Bad sizes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 3, 10, 5), "num_heads is 3: it must divide the width, 10"),
        ((0, 1, 10, 5), "num_blocks is 0"),
        ((2, 0, 10, 5), "num_heads is 0"),
        ((2, 1, 10, 0), "max_len is 0"),
    ],
)
def test_bad_sizes_are_named(sizes, message):
    with pytest.raises(InputError, match=message):
        sasrec.SASRec(*sizes)


def test_a_sequence_that_is_too_long_is_named():
    model, params = build()
    with pytest.raises(InputError, match="sequence length is 8: it must be at most max_len, 7"):
        encode_inputs(model, params, jnp.ones((2, 8), jnp.int32))


def test_bfloat16_is_near_and_keeps_float32_weights():
    """Rounding to 8 bits of mantissa moves a state by some hundredths of its size."""
    model, params = build(2, 3)
    half = make(2, 3, compute="bfloat16")
    fresh = half.init(jax.random.key(0), 20, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {np.dtype("float32")}

    def states(model):
        return encode_inputs(model, params, jnp.asarray(INPUTS), 0.3, jax.random.key(1))

    exact, near = states(model), states(half)
    assert near.dtype == exact.dtype == np.float32
    at_items = INPUTS > 0
    difference = np.abs(np.asarray(near - exact))[at_items]
    assert 1e-4 < difference.max() < 0.1 * np.abs(exact).max()
