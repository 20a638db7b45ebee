"""Throughput of a run whose batches the host streams from the prepared files, beside the same run in memory.

    python benchmarks/stream.py --config=configs/quickstart.py:uniform [--config.data.path=PATH]

Any config of jaxneg will do. Both see the same batches. They take turns, warm; a turn is --blocks blocks of --block_mb
MiB, and streaming it begins with a reader that has read nothing yet. The median of the repeats is printed, and what the
reader does alone: a device that trains slower than that does not wait for it.
"""

import pathlib
import tempfile
import time
from contextlib import closing

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jaxneg.data import dataset as data
from jaxneg.data import stream
from jaxneg.devices import mesh as mesh_lib
from jaxneg.run import config as config_lib
from jaxneg.run import experiment
from jaxneg.run import programs as plan_lib

CONFIG = config_flags.DEFINE_config_file("config", None, "the run to time")
BLOCKS = flags.DEFINE_integer("blocks", 4, "blocks of one turn", lower_bound=1)
BLOCK_MB = flags.DEFINE_float("block_mb", 1.0, "size of a block", lower_bound=0.0)
REPEATS = flags.DEFINE_integer("repeats", 7, "turns of each", lower_bound=1)


def compiled(config, prepared: data.Prepared, steps: int, how: str):
    """(a call that makes `steps` steps and waits for them, the states it moves) of the run, "on" or "off"."""
    changed = config_lib.changed(config, {"data.stream": how, "num_epochs": 10**4})  # of which few are run
    folder = pathlib.Path(tempfile.gettempdir())  # nothing is written
    made = plan_lib.on_devices(
        plan_lib.make_plan(config_lib.resolve(changed), folder, prepared, range(config.num_seeds))
    )
    keys = mesh_lib.seed_keys(made.layout, config.seed)
    states = [made.programs.init(keys, mesh_lib.repeat(made.layout, made.hyper))]

    def run():
        step = int(np.asarray(states[0].step)[0])
        until = step + steps
        with closing(plan_lib.drawn_from(made, states[0], step)) as feeds:
            while step < until:
                held, feed = next(feeds)
                count = min(held, until) - step
                states[0] = made.programs.advance(np.int32(count), states[0], made.tables, feed)
                jax.block_until_ready(states[0])  # as a run does
                step += count

    run()
    return made, run, states


def seconds_of(run) -> np.ndarray:
    """[wall, CPU] seconds of a call."""
    start = np.array([time.perf_counter(), time.process_time()])
    run()
    return np.array([time.perf_counter(), time.process_time()]) - start


def main(_):
    config = config_lib.resolve(CONFIG.value)
    prepared = data.load(experiment.prepare_data(config))
    stream.PREFETCH_BYTES = int(BLOCK_MB.value * 2**20)
    rows = data.training_rows(prepared)
    numbers = config.model.max_len + 1 + data.longest_history_of_rows(rows, prepared.num_items) + 2
    steps = BLOCKS.value * max(1, stream.PREFETCH_BYTES // (4 * config.num_seeds * config.batch_size * numbers))
    plans = {"in memory": compiled(config, prepared, steps, "off"), "streamed": compiled(config, prepared, steps, "on")}
    made = plans["streamed"][0]
    assert steps == BLOCKS.value * made.stream.num_steps
    blocks = stream.Prefetches(made.stream, plans["streamed"][2][0].key, made.last_step)
    calls = {name: run for name, (_, run, _) in plans.items()}
    calls["reading alone"] = lambda: [blocks[index] for index in range(BLOCKS.value)]
    spent = {name: [] for name in calls}
    for _ in range(REPEATS.value):
        for name, call in calls.items():
            spent[name].append(seconds_of(call))
    losses = [float(np.mean(np.asarray(states[0].loss_sum / states[0].step))) for _, _, states in plans.values()]
    size = data.training_bytes(prepared) / 2**20
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {config.dataset}: {len(prepared.items):,} rows, "
        f"{size:,.0f} MiB of training data; {config.num_seeds} seeds, batches of {config.batch_size} x "
        f"{config.model.max_len}, {made.stream.num_steps} steps a block; mean losses {losses[0]:.5f} and "
        f"{losses[1]:.5f}"
    )
    print("| batches | sequences/s | x in memory | sequences per CPU second | x in memory |")
    print("|---|---|---|---|---|")
    for name, own in spent.items():
        wall, cpu = steps * config.batch_size * config.num_seeds / np.median(own, axis=0)
        gain = np.median(np.divide(spent["in memory"], own), axis=0)
        print(f"| {name} | {wall:,.0f} | {gain[0]:.2f} | {cpu:,.0f} | {gain[1]:.2f} |")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
