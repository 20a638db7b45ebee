"""Step time of the paper's six methods for 1, 4 and 20 seeds in one program, and the hours of training a study takes.

    python benchmarks/study_hours.py [--methods uniform adaptive] [--seeds 1 4 20] [--data CONFIG=FILE ...]

Each config of --configs with its own settings per method, on its file where --data names one, else on synthetic data of
MovieLens-10M's size (--users, --items, --rows). The programs of a method take turns, warm, --steps steps at a time; the
medians are printed, per seed too, and the hours that 20 seeds x 201 epochs take at the rate of the most seeds, without
evaluation. Share: of what this device reaches in one large matrix product, by the model's own products, padded.
"""

import argparse
import pathlib
import runpy
import statistics
import tempfile
import time

import jax
import numpy as np
import step

from jaxneg.data import dataset as data
from jaxneg.devices import mesh as mesh_lib
from jaxneg.run import config as config_lib
from jaxneg.run import experiment
from jaxneg.run import programs as plan_lib

METHODS = ("uniform", "popularity", "in_batch", "mixed", "adaptive", "adaptive_mixed")
CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
STUDY_SEEDS, STUDY_EPOCHS = 20, 201


def make_config(name: str, method: str, files: dict[str, str], options):
    """The config of a run of this method, on its file or on synthetic data."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](method)
    if name in files:
        config.data.path = files[name]
    else:
        config.data.format = "synthetic"
        size = {"num_rows": options.rows, "num_users": options.users, "num_items": options.items}
        config.data.synthetic.update(size)
    return config_lib.resolve(config)


def compiled(config, prepared: data.Prepared, seeds: int, options):
    """A call that makes --steps steps of all seeds and waits for them."""
    made = plan_lib.on_devices(plan_lib.make_plan(config, pathlib.Path(tempfile.gettempdir()), prepared, range(seeds)))
    keys = mesh_lib.seed_keys(made.layout, config.seed)
    state = [made.programs.init(keys, mesh_lib.repeat(made.layout, made.hyper))]

    def run():
        state[0] = made.programs.advance(np.int32(options.steps), state[0], made.tables, made.dataset)
        jax.block_until_ready(state[0])

    run()
    return run


def products(config, num_items: int) -> float:
    """Operations of a seed's matrix products in a padded step."""
    method = plan_lib.make_parts(config, plan_lib.seed_layout(config, 1), num_items).method
    of_step = argparse.Namespace(batch=config.batch_size, width=config.model.width, negatives=method.num_candidates)
    return step.matmul_flops(config.model.max_len, of_step)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"rows": 10_000_000, "users": 70_000, "items": 10_000, "steps": 20, "repeats": 5}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4, 20])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--configs", nargs="+", default=["ml10m"], choices=[file.stem for file in CONFIGS.glob("*.py")])
    parser.add_argument("--data", nargs="+", default=[], metavar="CONFIG=FILE")
    options = parser.parse_args()
    files = dict(pair.split("=", 1) for pair in options.data)
    rate, copied = step.machine_rates()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {vars(options)}")
    print(f"a large matrix product: {rate / 1e9:,.0f} GFLOP/s; a large copy: {copied / 1e9:,.1f} GB/s read and written")
    print("| config | method | seeds | ms per step | ms per step and seed | share | hours of 20 seeds x 201 epochs |")
    print("|---|---|---|---|---|---|---|", flush=True)
    whole = 0.0
    for name in options.configs:
        for method in options.methods:
            config = make_config(name, method, files, options)
            prepared = data.load(experiment.prepare_data(config))
            runs = {seeds: compiled(config, prepared, seeds, options) for seeds in options.seeds}
            spent = {seeds: [] for seeds in runs}
            for _ in range(options.repeats):
                for seeds, run in runs.items():
                    start = time.perf_counter()
                    run()
                    spent[seeds].append((time.perf_counter() - start) / options.steps)
            model = plan_lib.make_parts(config, plan_lib.seed_layout(config, 1), prepared.num_items).model
            steps = STUDY_SEEDS * STUDY_EPOCHS * plan_lib.count_steps(config, model, prepared)
            for seeds, times in spent.items():
                each = statistics.median(times) / seeds
                hours, share = steps * each / 3600, products(config, prepared.num_items) / each / rate
                print(
                    f"| {name} | {method} | {seeds} | {1e3 * each * seeds:.1f} | {1e3 * each:.2f} "
                    f"| {share:.0%} | {hours:,.2f} |",
                    flush=True,
                )
            whole += hours
    print(f"\nall of them, at {options.seeds[-1]} seeds in one program: {whole:,.1f} hours of training")


if __name__ == "__main__":
    main()
