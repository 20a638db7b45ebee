"""Batches that the host reads in blocks, against those that the device draws; and a run that is trained on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxneg import files
from jaxneg.data import dataset as data
from jaxneg.data import stream
from jaxneg.devices import memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.run import capacity, checkpoint, experiment, loop
from jaxneg.run import config as config_lib
from jaxneg.run import inputs as run_inputs
from jaxneg.run import programs as plan_lib
from jaxneg.training import step as training
from jaxneg.types import EvalCases, Window

SMALL = {
    "dataset": "small",
    "batch_size": 16,
    "num_epochs": 6,
    "eval_every": 3,
    "learning_rate": 1e-2,
    "num_seeds": 2,
    "model.width": 8,
    "model.num_blocks": 1,
    "model.max_len": 10,
    "data.format": "synthetic",
    "data.synthetic.num_rows": 3000,
    "data.synthetic.num_users": 150,
    "data.synthetic.num_items": 80,
    "data.drop_repeats": False,
    "sampler.num_in_batch": 4,
    "sampler.num_uniform": 4,
    "sampler.num_kept": 2,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few steps, so that a short run needs several."""
    monkeypatch.setattr(stream, "PREFETCH_BYTES", 4 * 2 * 16 * 60 * 7)


def config_of(cache, **others):
    settings = SMALL | {"data.cache_dir": str(cache)}
    settings |= {name.replace("__", "."): value for name, value in others.items()}
    return config_lib.use_method(config_lib.base(), "mixed", settings)


def made(cache, folder, **others):
    config = config_lib.resolve(config_of(cache, **others))
    prepared = data.load(experiment.prepare_data(config))
    return plan_lib.on_devices(plan_lib.make_plan(config, folder, prepared, range(config.num_seeds)))


@pytest.mark.parametrize("osf", [float("inf"), 0.7])
def test_the_windows_are_those_that_the_device_draws(cache, tmp_path, small_blocks, osf):
    """Of every step and seed, bit for bit, across blocks, with a pool of keys that is used up and without."""
    there, streamed = made(cache, tmp_path, osf=osf), made(cache, tmp_path, osf=osf, data__stream="on")
    assert streamed.dataset is None and there.stream is None
    keys = mesh_lib.seed_keys(there.layout, 0)
    state = there.programs.init(keys, mesh_lib.repeat(there.layout, there.hyper))
    history_size, pool_size = data.longest_history(there.dataset), None if osf > 1 else int(osf * there.steps_per_epoch)
    assert streamed.stream.history_size == history_size

    @jax.jit
    def draw(key, step):
        keys = training.pooled_keys(key, step, pool_size)
        return data.draw_users(
            keys.batch, there.dataset, batch_size=16, length=11, num_items=80, history_size=history_size
        )

    first = 5
    step, distinct = first, set()
    for stop, block in plan_lib.drawn_from(streamed, state, first):
        assert stop - step <= streamed.stream.num_steps
        while step < min(stop, there.last_step):
            for seed in range(2):
                mine = stream.window_at(jax.tree.map(lambda x, seed=seed: x[seed], block), jnp.int32(step))
                assert mine.times is None
                for one, other in zip(mine[:4], draw(state.key[seed], step)[:4], strict=True):
                    assert one.dtype == other.dtype
                    np.testing.assert_array_equal(one, other)
                distinct.add(np.asarray(mine.items).tobytes())
            step += 1
    assert step == there.last_step == 6 * (150 // 16)
    assert streamed.stream.num_steps < 20  # so there were blocks enough
    assert (len(distinct) == 2 * (step - first)) == (pool_size is None)


def test_windows_with_times_are_those_that_the_device_draws(cache, tmp_path):
    prepared = data.load(experiment.prepare_data(config_lib.resolve(config_of(cache))))
    dataset = data.training_set(prepared, with_times=True)
    rows = data.training_rows(prepared, with_times=True)
    sizes = {"num_items": prepared.num_items, "history_size": data.longest_history(dataset)}
    for length in (1, 12):
        keys = jax.random.split(jax.random.key(length), 3)
        drawn = np.stack([data.draw_places(key, 20, len(rows.train_users)) for key in keys])
        windows = stream.read_windows(rows, drawn, length=length, **sizes)
        assert np.ptp(windows.times[windows.items > 0]) > 0 and not windows.times[windows.items == 0].any()
        for place, key in enumerate(keys):
            theirs = data.draw_users(key, dataset, batch_size=20, length=length, **sizes)
            for one, other in zip(windows, theirs, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one[place], other)
    told = stream.Stream(rows, None, 2, 16, 12, **sizes)
    assert stream.shapes(told).windows.times.shape == (2, told.num_steps, 16, 12)
    assert memory.tree_bytes(stream.shapes(told)) <= stream.PREFETCH_BYTES + 16


def without_times(path):
    frame = pd.read_csv(path)
    return frame[[name for name in frame if "second" not in name and "time" not in name]]


def assert_same_results(folder, other):
    for name in ("results.csv", "baselines.csv"):
        pd.testing.assert_frame_equal(without_times(folder / name), without_times(other / name), rtol=1e-5)
    for name in ("cases.npz", "model.npz"):
        mine, theirs = files.read_arrays(folder / name), files.read_arrays(other / name)
        assert mine.keys() == theirs.keys()
        for key in mine:
            if "key/bias" not in key:  # moves by rounding alone: a softmax over keys does not feel it
                np.testing.assert_allclose(mine[key], theirs[key], atol=1e-5 if mine[key].dtype.kind == "f" else 0)


OTHERS = {"osf": 0.7, "eval__filter_seen": True, "eval__rolling_history": True}


@pytest.fixture(scope="module")
def in_memory(cache, tmp_path_factory):
    """The folder of a finished run whose data was on the device."""
    folder = tmp_path_factory.mktemp("run")
    experiment.run(config_of(cache, data__stream="off", **OTHERS), folder)
    return folder


def test_a_streamed_run_has_the_results_of_one_in_memory(cache, tmp_path, in_memory, small_blocks, monkeypatch):
    """Of two seeds, with a pool of batches; also where it is killed in the midst of a block, whose rest is read again.

    The blocks end at no evaluation, nor where a dispatch would.
    """
    words, told = loop.loss_in_words, []

    def die_at_the_tenth(*arguments):
        told.append(words(*arguments))
        if len(told) == 10:
            raise MemoryError
        return told[-1]

    monkeypatch.setattr(checkpoint, "COST", 0)
    monkeypatch.setattr(loop, "loss_in_words", die_at_the_tenth)
    with pytest.raises(MemoryError):
        experiment.run(
            config_of(cache, data__stream="on", checkpoint_seconds=0.0, steps_per_dispatch=2, **OTHERS), tmp_path
        )
    assert list((tmp_path / "checkpoints" / "seeds_0_1").iterdir())
    experiment.run(config_of(cache, data__stream="on", **OTHERS), tmp_path)
    assert_same_results(tmp_path, in_memory)


def test_auto_streams_what_would_take_a_quarter_of_the_memory(cache, tmp_path, monkeypatch, capsys):
    config = config_lib.resolve(config_of(cache))
    prepared = data.load(experiment.prepare_data(config))
    size = data.training_bytes(prepared)
    assert sum(array.nbytes for array in data.training_set(prepared)[:7]) <= size
    for there, wanted in ((5 * size, False), (3 * size, True), (None, False)):
        monkeypatch.setattr(memory, "device_bytes", lambda device, there=there: there)
        layout = plan_lib.seed_layout(config, 1)
        model = plan_lib.make_parts(config, layout, prepared.num_items).model
        assert run_inputs.is_streamed(config, prepared, layout, model) is wanted
    monkeypatch.undo()
    plans = []
    for share in (run_inputs.STREAM_SHARE, 0.0):
        monkeypatch.setattr(run_inputs, "STREAM_SHARE", share)
        plans.append(plan_lib.make_plan(config, tmp_path, prepared, range(2)))
    assert plans[0].stream is None and plans[1].dataset is None
    blocks = memory.tree_bytes(stream.shapes(plans[1].stream))
    data_bytes = memory.tree_bytes(plans[0].dataset)
    more = capacity.needed_bytes(plans[1]).training - capacity.needed_bytes(plans[0]).training
    of_turn = blocks / 2  # a seed that takes its turn has a copy of its own rows
    held = (1 + stream.AHEAD) * blocks + of_turn
    assert held - 1.2 * data_bytes < more < held * 1.05


def test_histories_without_those_of_the_whole_data(monkeypatch):
    """In chunks of any size: each user's distinct items, and the longest of them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 30, 200)
    lengths[7] = 100
    end = np.cumsum(lengths).astype(np.int32)
    start = (end - lengths).astype(np.int32)
    items = rng.integers(1, 40, end[-1]).astype(np.int32)
    items[start[7] : end[7]] = rng.integers(1, 4, 100)  # the most rows, and few items
    rows = data.Rows(items, start, end, np.flatnonzero(lengths >= 2).astype(np.int32))
    expected = [np.unique(items[a:b]) for a, b in zip(start, end, strict=True)]
    for chunk_rows in (1, 50, 1 << 22):
        monkeypatch.setattr(data, "CHUNK_ROWS", chunk_rows)
        bounds, found = data.distinct_histories(items, start, end, 40)
        for own, low, high in zip(expected, bounds, bounds[1:], strict=False):
            np.testing.assert_array_equal(found[low:high], own)
        assert data.longest_history_of_rows(rows, 40) == max(map(len, expected))


@pytest.mark.parametrize("most", [None, 3])
def test_the_evaluated_rows_hold_what_the_cases_look_at(most):
    items = np.arange(100, 140, dtype=np.int32)
    first = EvalCases(*(np.array(x, np.int32) for x in ([10, 2, 0], [14, 7, 0], [0, 1], [1, 2], [0, 1])))
    second = first._replace(history_start=np.array([10, 30, 0], np.int32), history_end=np.array([16, 32, 0], np.int32))
    (kept, of_kept), cases = stream.evaluated_rows([items, -3 * items], [first, second], most)
    assert len(kept) < 20
    np.testing.assert_array_equal(of_kept, -3 * kept)
    for old, new in zip((first, second), cases, strict=True):
        for low, high, new_low, new_high in zip(*old[:2], *new[:2], strict=True):
            own = items[low:high][-(most or 100) :]
            np.testing.assert_array_equal(kept[new_low:new_high][-(most or 100) :], own)
            assert (new_high > new_low) == (high > low)
    empty = EvalCases(*5 * [np.zeros(0, np.int32)])
    assert [len(column) for column in stream.evaluated_rows([items, items], [empty], most)[0]] == [1, 1]


def test_a_reader_that_fails_is_heard(cache, tmp_path, monkeypatch):
    def damaged(*_, **__):
        raise OSError("the file is gone")

    monkeypatch.setattr(stream, "read_windows", damaged)
    with pytest.raises(OSError, match="the file is gone"):
        experiment.run(config_of(cache, data__stream="on"), tmp_path)
    with pytest.raises(InputError, match="config.data.stream"):
        config_lib.resolve(config_of(cache, data__stream="maybe"))


@pytest.mark.slow
def test_debug_can_be_streamed(cache, tmp_path, small_blocks):
    config = config_of(cache, data__stream="on", debug=True, num_epochs=1, eval_every=1, learning_rate=1e25)
    with pytest.raises(InputError, match="config.debug: step .*, seed . of its chunk"):
        experiment.run(config, tmp_path)


def test_a_block_has_the_stated_shapes(cache, tmp_path, small_blocks):
    streamed = made(cache, tmp_path, data__stream="on").stream
    blocks = stream.Prefetches(streamed, jax.random.split(jax.random.key(0), 2), last_step=50)
    assert len(blocks) == -(-50 // streamed.num_steps)
    block = blocks[1]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), block) == jax.tree.map(
        lambda x: (x.shape, x.dtype), stream.shapes(streamed)
    )
    assert isinstance(block.windows, Window) and memory.tree_bytes(block) <= stream.PREFETCH_BYTES + 16
