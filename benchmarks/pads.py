"""Sequences per second with batches cut by length, and with padded batches, on a real file.

    python benchmarks/pads.py --config=configs/beauty.py:uniform --config.data.path=PATH/ratings_Beauty.csv
    python benchmarks/pads.py --config=configs/ml1m.py:uniform --config.data.path=PATH/ratings.dat

Any config of jaxneg will do; the same run is planned with its own num_buckets and with 1, which pads every sequence to
max_len. Both see the same batches and give the same losses. They take turns, warm, --steps steps at a time, and the
median of the repeats is printed.
"""

import pathlib
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jaxneg.data import dataset as data
from jaxneg.devices import mesh as mesh_lib
from jaxneg.run import config as config_lib
from jaxneg.run import experiment
from jaxneg.run import programs as plan_lib

CONFIG = config_flags.DEFINE_config_file("config", None, "the run to time")
STEPS = flags.DEFINE_integer("steps", 8, "steps of one turn", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 7, "turns of each", lower_bound=1)


def compiled(config, prepared: data.Prepared, folder: pathlib.Path):
    """(the plan, a call that makes --steps steps and waits for them, the states it moves)."""
    made = plan_lib.on_devices(plan_lib.make_plan(config, folder, prepared, range(config.num_seeds)))
    keys = mesh_lib.seed_keys(made.layout, config.seed)
    states = [made.programs.init(keys, mesh_lib.repeat(made.layout, made.hyper))]

    def run():
        states[0] = made.programs.advance(np.int32(STEPS.value), states[0], made.tables, made.dataset)
        jax.block_until_ready(states[0])

    run()
    return made, run, states


def main(_):
    config = config_lib.resolve(CONFIG.value)
    prepared = data.load(experiment.prepare_data(config))
    folder = pathlib.Path(tempfile.gettempdir())  # nothing is written
    padded = CONFIG.value.copy_and_resolve_references()
    padded.num_buckets = 1
    runs = {"cut by length": config, "padded": config_lib.resolve(padded)}
    plans = {name: compiled(run, prepared, folder) for name, run in runs.items()}
    seconds = {name: [] for name in plans}
    for _ in range(REPEATS.value):
        for name, (_, run, _) in plans.items():
            start = np.array([time.perf_counter(), time.process_time()])
            run()
            seconds[name].append(np.array([time.perf_counter(), time.process_time()]) - start)
    states = [made[2][0] for made in plans.values()]
    losses = [float(np.mean(state.loss_sum / state.step)) for state in states]
    rows = data.training_rows(prepared)
    model = plan_lib.make_parts(config, plan_lib.seed_layout(config, config.num_seeds), prepared.num_items).model
    lengths = np.minimum(data.train_lengths(rows) - model.objective.extra, model.max_len)
    sequences = STEPS.value * config.batch_size * config.num_seeds
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {config.dataset}: {prepared.num_users:,} users, "
        f"batches of {config.batch_size} x {config.model.max_len}, {lengths.mean() / config.model.max_len:.0%} of "
        f"which are items; mean losses {losses[0]:.4f} and {losses[1]:.4f}"
    )
    buckets = plan_lib.make_buckets(config, model, rows, config.num_seeds)
    print("pieces (rows x length): " + ", ".join(f"{rows} x {length}" for rows, length in buckets))
    print("| batches | positions computed | sequences/s | x padded | sequences per CPU second | x padded |")
    print("|---|---|---|---|---|---|")
    for name, spent in seconds.items():
        wall, cpu = np.median(spent, axis=0)
        gain = np.median(np.divide(seconds["padded"], spent), axis=0)
        positions = sum(rows * length for rows, length in buckets)
        positions = positions if name != "padded" and buckets else config.batch_size * config.model.max_len
        print(
            f"| {name} | {positions:,} | {sequences / wall:,.0f} | {gain[0]:.2f} | {sequences / cpu:,.0f} "
            f"| {gain[1]:.2f} |"
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
