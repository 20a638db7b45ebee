"""Cost of a training step of every model, relative to SASRec; and how much of GRU4Rec's is its scan.

    python benchmarks/models.py [--batch 128] [--length 50] [--samples 100] [--models sasrec gru4rec] [--repeats 7]

Uniform negatives with BCE; every model has its default sizes and --length positions (mf and neumf also with unit=user,
where a batch row is a user with as many items). The programs take turns within one run, warm, --steps training steps at
a time; the median of the repeats is printed, as wall time and as the process's CPU time, for a machine that is shared.
Data are synthetic. The scan is timed alone, with its gradient, on projected inputs of the same shape.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import fields, losses, models, samplers, settings
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import gru4rec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training

USERS, ROWS_PER_USER, ITEMS = 1000, 60, 3000


def timed(function):
    """A call that waits for a compiled function's result, once warm."""

    def run():
        jax.block_until_ready(function())

    run()
    return run


def training_steps(name: str, values: dict, prepared: data.Prepared, options):
    """A call that makes --steps training steps of a model."""
    known = fields.declared(settings.MODEL_FILES[name])
    own = {"max_len": options.length} | values
    model = models.make(name, {field: value for field, value in own.items() if field in known}, prepared.num_items)
    method = samplers.make("uniform", prepared.num_items, samplers.Settings(num_uniform=options.samples))
    dataset, adam = data.training_set(prepared, with_rows_before=True), adam_lib.adam()
    step = training.Step(
        model=model,
        method=method,
        loss=losses.make("bce", prepared.num_items),
        optimizer=adam,
        batch_size=options.batch,
        num_items=prepared.num_items,
        history_size=data.longest_history(dataset),
    )
    init = functools.partial(
        training.init_state,
        model=model,
        num_items=prepared.num_items,
        num_users=prepared.num_users,
        optimizer=adam,
    )
    hyper = training.HyperParams(*(np.full(1, value, np.float32) for value in (1e-3, 0.2, 1.0)))
    states = jax.vmap(init)(jax.random.split(jax.random.key(0), 1), hyper)
    shared = jax.device_put((method.proposal.init(np.asarray(prepared.item_counts)), dataset))
    compiler_options = mesh_lib.compiler_options(jax.default_backend())
    advance = jax.jit(functools.partial(training_loop.run_steps, step), compiler_options=compiler_options)
    return timed(lambda: advance(np.int32(options.steps), states, *shared))


def scans(options):
    """A call that makes the scan of --steps steps of GRU4Rec, forwards and backwards."""
    width = gru4rec.Settings().width
    layer = gru4rec.init_layer(jax.random.key(0), width)
    projected = jax.random.normal(jax.random.key(1), (options.length, options.batch, 3 * width))
    valid = jnp.ones((options.length, options.batch), bool)

    def total(layer, projected):
        def scan(state, at):
            state = gru4rec.step(layer, state, *at)
            return state, state

        return jnp.sum(jax.lax.scan(scan, jnp.zeros((options.batch, width)), (projected, valid))[1])

    gradient = jax.jit(
        jax.value_and_grad(total, argnums=(0, 1)), compiler_options=mesh_lib.compiler_options(jax.default_backend())
    )
    return timed(lambda: [gradient(layer, projected) for _ in range(options.steps)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"batch": 128, "length": 50, "samples": 100, "steps": 10, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--models", nargs="+", choices=models.NAMES, default=list(models.NAMES))
    options = parser.parse_args()
    frame = synthetic.generate(USERS * ROWS_PER_USER, USERS, ITEMS, seed=0)
    arrays, meta = prepare.prepare_frame(frame)
    prepared = data.Prepared(**{name: arrays[name] for name in data.Prepared._fields if name != "meta"}, meta=meta)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {prepared.num_items} items, {vars(options)}")
    cases = {name: {} for name in ["sasrec", *options.models]}
    cases |= {f"{name}, unit=user": {"unit": "user"} for name in options.models if name in ("mf", "neumf")}
    runs = {case: training_steps(case.split(",")[0], values, prepared, options) for case, values in cases.items()}
    if "gru4rec" in options.models:
        runs["gru4rec, its scan alone"] = scans(options)
    wall, cpu = {case: [] for case in runs}, {case: [] for case in runs}
    for _ in range(options.repeats):
        for case, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            wall[case].append((time.perf_counter() - start[0]) / options.steps)
            cpu[case].append((time.process_time() - start[1]) / options.steps)
    base = [statistics.median(times["sasrec"]) for times in (wall, cpu)]
    print("| model | ms per step | x sasrec | CPU ms per step | x sasrec |")
    print("|---|---|---|---|---|")
    for case in runs:
        seconds = [statistics.median(times[case]) for times in (wall, cpu)]
        told = " | ".join(f"{1e3 * value:.1f} | {value / one:.2f}" for value, one in zip(seconds, base, strict=True))
        print(f"| {case} | {told} |")


if __name__ == "__main__":
    main()
