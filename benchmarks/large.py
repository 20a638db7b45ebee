"""A large catalogue on a small machine: 10 million items, 100 million interactions, from the raw file to exact ranks.

    python benchmarks/large.py [--items 10000000 --rows 100000000 --width 32] [--folder DIR] [--json FILE]

Four stages, each in a process of its own, so that its peak of memory is its own:
  generate: writes the interactions as parquet, a part at a time. Items follow Zipf's law, and each occurs.
  prepare:  as a run does (--config.data.min_item_rows=1).
  train:    --steps steps of SASRec with 50 uniform negatives, after as many turns with a catalogue of --small_items
            items as it takes to compare their steps. Data is streamed, or not, as is chosen automatically (--stream).
  evaluate: the exact ranks of --users users' test rows among all items.
Prints seconds and peak memory of each. The files, about 30 bytes a row and 4 a weight, are removed in the end.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxneg.data import dataset as data
from jaxneg.devices import memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.evaluation import metrics
from jaxneg.run import capacity, experiment
from jaxneg.run import config as config_lib
from jaxneg.run import programs as plan_lib

STAGES = ("generate", "prepare", "train", "evaluate")
ROWS_PER_USER = (10, 90)
PART_USERS = 1 << 16  # users written at once
START, PERIOD = 1_577_836_800, 31_536_000  # the year 2020, in seconds
TURNS, TURN_STEPS = 11, 8  # of each catalogue, to compare their steps


def peak_gib() -> float:
    """Peak resident memory of this process so far, in GiB, with the pages of mapped files that it looked at."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def generate(path: pathlib.Path, num_items: int, num_rows: int) -> None:
    """Writes user, item and time of about num_rows rows, by user, then time."""
    schema = pa.schema([("user", pa.int32()), ("item", pa.int32()), ("time", pa.int64())])
    rng, done, first_user = np.random.default_rng(0), 0, 1
    shuffled = rng.permutation(num_items).astype(np.int32) + 1
    every = max(1, num_rows // num_items)  # each so many rows the next item in turn, so that none is missing
    with pq.ParquetWriter(path, schema) as writer:
        while done < num_rows:
            length = rng.integers(ROWS_PER_USER[0], ROWS_PER_USER[1] + 1, PART_USERS)
            length = length[: max(1, int(np.searchsorted(np.cumsum(length), num_rows - done, side="right")))]
            owner = np.repeat(np.arange(len(length)), length)
            # Zipf's law with exponent 1: the rank's logarithm is uniform.
            rank = np.minimum(np.exp(rng.random(len(owner)) * np.log(num_items + 1)).astype(np.int64), num_items)
            row = done + np.arange(len(owner))
            rank = np.where(row % every == 0, row // every % num_items + 1, rank)
            begin = rng.random(len(length)) * PERIOD * 0.9
            time = START + begin[owner] + rng.random(len(owner)) * PERIOD * 0.1
            order = np.lexsort((time, owner))
            columns = [(first_user + owner).astype(np.int32), shuffled[rank - 1], time[order].astype(np.int64)]
            writer.write_table(pa.table(columns, schema=schema))
            done, first_user = done + len(owner), first_user + len(length)


def config_of(given, path: pathlib.Path):
    """The config of a run on a generated file."""
    settings = {
        "dataset": "large",
        "data.path": str(path),
        "data.user_column": "user",
        "data.item_column": "item",
        "data.time_column": "time",
        "data.min_item_rows": 1,
        "data.cache_dir": str(path.parent / "prepared"),
        "data.stream": given.stream,
        "model.width": given.width,
        "model.max_len": given.length,
        "batch_size": given.batch,
        "sampler.num_uniform": 50,
        "eval.max_users": given.users,
        "num_epochs": 1000,
    }
    return config_lib.resolve(config_lib.use_method(config_lib.base(), "uniform", settings))


def planned(config) -> plan_lib.Plan:
    """The plan of one seed, its data where it is to be; says what it needs."""
    prepared = data.load(experiment.prepare_data(config))
    config = plan_lib.with_item_table(config, prepared.num_items)
    return capacity.fitting_plan(config, pathlib.Path(tempfile.gettempdir()), prepared, range(1))


class Run:
    """A run in the middle of training."""

    def __init__(self, made: plan_lib.Plan):
        keys = mesh_lib.seed_keys(made.layout, 0)
        self.plan, self.step, self.held = made, 0, 0
        self.state = made.programs.init(keys, mesh_lib.repeat(made.layout, made.hyper))
        self.feeds = plan_lib.drawn_from(made, self.state, 0)

    def advance(self, steps: int) -> float:
        """Makes so many steps; returns the seconds that it took."""
        start, until = time.perf_counter(), self.step + steps
        while self.step < until:
            if self.step == self.held:
                self.held, self.feed = next(self.feeds)
            count = min(until, self.held) - self.step
            self.state = self.plan.programs.advance(np.int32(count), self.state, self.plan.tables, self.feed)
            jax.block_until_ready(self.state)
            self.step += count
        return time.perf_counter() - start


def train(given, folder: pathlib.Path) -> dict:
    """Trains on the large catalogue, and for a while in turns on the small one; writes the weights."""
    start = time.perf_counter()
    large, small = (planned(config_of(given, folder / name / "rows.parquet")) for name in ("large", "small"))
    ready = time.perf_counter()
    runs = [Run(large), Run(small)]
    with closing(runs[0].feeds), closing(runs[1].feeds):
        first = [run.advance(1) for run in runs]
        turns = [[run.advance(TURN_STEPS) for run in runs] for _ in range(TURNS)]
        rest = runs[0].advance(max(0, given.steps - runs[0].step))
    state = runs[0].state
    loss = float(np.asarray(state.loss_sum)[0]) / runs[0].step
    weights = mesh_lib.take(large.layout, large.programs.weights(state.params))
    for name, array in flatten_dict(weights, sep=".").items():
        np.save(folder / f"weights.{name}.npy", np.asarray(array))
    of_large, of_small = np.median(turns, axis=0) / TURN_STEPS
    return {
        "items": len(large.item_counts) - 1,
        "streamed": large.stream is not None,
        "item_table": large.config.optimizer.item_table,
        "seconds_to_plan": round(ready - start, 1),
        "seconds_of_the_first_step": round(first[0], 1),
        "steps": runs[0].step,
        "loss": round(loss, 4),
        "ms_per_step": round(1e3 * of_large, 1),
        "ms_per_step_small": round(1e3 * of_small, 1),
        "item_table_small": small.config.optimizer.item_table,
        "x_small": round(float(np.median([a / b for a, b in turns])), 2),
        "seconds_of_the_rest": round(rest, 1),
        "table_and_moments_gib": round(memory.tree_bytes(state.params["tables"]["item"]) / 2**30, 2),
    }


def evaluate(given, folder: pathlib.Path) -> dict:
    """Exact ranks of a sample of users among all items, by the weights that were trained."""
    made = planned(config_of(given, folder / "large" / "rows.parquet"))
    paths = folder.glob("weights.*.npy")
    weights = {path.name.removeprefix("weights.").removesuffix(".npy"): np.load(path, mmap_mode="r") for path in paths}
    params = mesh_lib.fill(made.layout, unflatten_dict(weights, sep="."))
    start = time.perf_counter()
    test = made.splits["test"]
    ranked = made.programs.evaluate(params, made.history_rows, test.cases)
    above, tied = (np.asarray(part)[0, : len(test.cold)] for part in ranked[:2])
    seconds = time.perf_counter() - start
    users = len(np.unique(np.asarray(test.cases.users)[: len(test.cold)]))
    return {
        "users": users,
        "cases": len(above),
        "seconds_of_ranking": round(seconds, 1),
        "cases_per_second": round(len(above) / seconds, 1),
        "hr@10": round(float(metrics.hit_rate(above, tied, 10).mean()), 5),
        "median_rank": int(np.median(above)),
    }


def stage(name: str, given, folder: pathlib.Path) -> dict:
    """Runs one stage in this process; what it tells."""
    start = time.perf_counter()
    told = {}
    if name == "generate":
        for own, num_items, num_rows in (
            ("large", given.items, given.rows),
            ("small", given.small_items, min(given.rows, 100 * given.small_items)),
        ):
            (folder / own).mkdir(parents=True)
            generate(folder / own / "rows.parquet", num_items, num_rows)
        told = {"file_gib": round((folder / "large" / "rows.parquet").stat().st_size / 2**30, 2)}
    elif name == "prepare":
        for own in ("small", "large"):
            prepared = experiment.prepare_data(config_of(given, folder / own / "rows.parquet"))
        meta = json.loads((prepared / "meta.json").read_text())
        told = {key: meta[key] for key in ("num_rows", "num_users", "num_items", "num_test_cases")}
    else:
        told = {"train": train, "evaluate": evaluate}[name](given, folder)
    return {"stage": name, "seconds": round(time.perf_counter() - start, 1), "peak_gib": round(peak_gib(), 2)} | told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {
        "items": 10**7,
        "rows": 10**8,
        "small_items": 10**4,
        "width": 32,
        "length": 50,
        "batch": 128,
        "steps": 2000,
        "users": 256,
    }
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--stream", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--folder", default="", help="where the files are made (a temporary folder)")
    parser.add_argument("--json", default="", help="a file for the figures")
    parser.add_argument("--stage", choices=STAGES, default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(stage(given.stage, given, pathlib.Path(given.folder))))
        return
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxneg-large-", dir=given.folder or None))
    sizes = [f"--{name}={getattr(given, name)}" for name in defaults]
    rows = []
    try:
        for name in STAGES:
            command = [sys.executable, __file__, *sizes, f"--stream={given.stream}", f"--stage={name}"]
            ran = subprocess.run([*command, f"--folder={folder}"], stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(ran.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        record = {
            "command": f"python benchmarks/large.py {' '.join(sizes)} --stream={given.stream}",
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "stages": rows,
        }
        pathlib.Path(given.json).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
