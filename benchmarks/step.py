"""Time of a whole training step of SASRec, on equal padded shapes, beside PyTorch's, eager and compiled.

    python benchmarks/step.py [--lengths 50 200] [--batch 128] [--width 50] [--negatives 50] [--repeats 7]

Two blocks, one head, dropout 0.2, float32, Adam, BCE, negatives shared by the positions of a sequence. A step is all of
it: drawing the batch and the negatives, the gradient, the update. jaxneg excludes the user's own items exactly;
PyTorch's step does not, which is in its favour. The programs take turns within one run, warm, --steps steps at a time,
and the median of the repeats is printed; the ratio is the median of the ratios within each turn. Wall time is what
counts on a quiet machine; the process's CPU time is printed too, for one that is shared. PyTorch (extra `bench`) is
left out where it is not installed. --seeds trains several seeds side by side, and times are per seed then.

Beside it: the operations of the step's matrix products, and what share that is of what this machine reaches in one
large matrix product; its rate of copying memory; and the bytes that the compiler says the step reads and writes.
"""

import argparse
import functools
import importlib.util
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training

BLOCKS, HEADS, DROPOUT, LEARNING_RATE = 2, 1, 0.2, 1e-3
ROWS_PER_USER = 240  # so that no sequence of 200 is padded


def prepared_data(num_users: int, num_items: int) -> data.Prepared:
    """Synthetic users with about ROWS_PER_USER interactions each, prepared in memory."""
    frame = synthetic.generate(num_users * ROWS_PER_USER, num_users, num_items, seed=0)
    arrays, meta = prepare.prepare_frame(frame)
    return data.Prepared(**{name: arrays[name] for name in data.Prepared._fields if name != "meta"}, meta=meta)


def jaxneg_steps(prepared: data.Prepared, length: int, options):
    """(a call that makes --steps steps and waits for them, the compiled program)."""
    settings = samplers.Settings(num_uniform=options.negatives)
    method = samplers.make("uniform", prepared.num_items, settings)
    model = sasrec.make(sasrec.Settings(options.width, BLOCKS, HEADS, length), prepared.num_items)
    adam = adam_lib.adam()
    dataset = data.training_set(prepared)
    step = training.Step(
        model=model,
        method=method,
        loss=losses.make("bce", prepared.num_items),
        optimizer=adam,
        batch_size=options.batch,
        num_items=prepared.num_items,
        history_size=data.longest_history(dataset),
    )
    sizes = {"num_items": prepared.num_items, "num_users": prepared.num_users}
    init = functools.partial(training.init_state, model=model, optimizer=adam, **sizes)
    seeds = options.seeds
    hyper = training.HyperParams(*(np.full(seeds, value, np.float32) for value in (LEARNING_RATE, DROPOUT, 1.0)))
    states = [jax.vmap(init)(jax.random.split(jax.random.key(0), seeds), hyper)]
    shared = jax.device_put((method.proposal.init(np.asarray(prepared.item_counts)), dataset))
    compiler_options = mesh_lib.compiler_options(jax.default_backend())
    advance = jax.jit(
        functools.partial(training_loop.run_steps, step), donate_argnums=1, compiler_options=compiler_options
    )

    def run():
        states[0] = jax.block_until_ready(advance(np.int32(options.steps), states[0], *shared))

    run()
    return run, advance.lower(np.int32(1), states[0], *shared).compile()


def torch_steps(prepared: data.Prepared, length: int, options, compiled: bool):
    """A call that makes --steps steps with PyTorch."""
    import torch_sasrec

    users = np.asarray(prepared.user_start)[: prepared.num_users]
    ends = np.asarray(prepared.train_end)[: prepared.num_users]
    items = np.asarray(prepared.items)
    rows = np.zeros((prepared.num_users, length + 1), np.int64)
    for user, (start, end) in enumerate(zip(users, ends, strict=True)):
        own = items[start:end][-(length + 1) :]
        if len(own):
            rows[user, -len(own) :] = own
    run = torch_sasrec.stepper(
        rows,
        num_items=prepared.num_items,
        width=options.width,
        blocks=BLOCKS,
        heads=HEADS,
        dropout=DROPOUT,
        batch=options.batch,
        negatives=options.negatives,
        learning_rate=LEARNING_RATE,
        compiled=compiled,
    )

    def steps():
        for _ in range(options.steps):
            run()

    steps()
    return steps


def machine_rates() -> tuple[float, float]:
    """(floating-point operations per second of a large matrix product, bytes per second of a large copy)."""
    size = 2048
    square = jnp.ones((size, size), jnp.float32)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    large = jnp.ones(64 * 2**20, jnp.float32)

    def best(function, x):
        function(x).block_until_ready()
        times = []
        for _ in range(7):
            start = time.perf_counter()
            function(x).block_until_ready()
            times.append(time.perf_counter() - start)
        return min(times)

    return 2 * size**3 / best(product, square), 2 * large.nbytes / best(copy, large)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"batch": 128, "width": 50, "negatives": 50, "items": 10_000, "users": 1000, "seeds": 1}
    for name, value in (defaults | {"steps": 10, "repeats": 7}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200])
    options = parser.parse_args()
    prepared = prepared_data(options.users, options.items)
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {prepared.num_items} items, {json.dumps(vars(options))}")
    flops, copied = machine_rates()
    print(f"a large matrix product: {flops / 1e9:.0f} GFLOP/s; a large copy: {copied / 1e9:.1f} GB/s read and written")
    rivals = {}
    if importlib.util.find_spec("torch") and options.seeds == 1:
        rivals = {"torch, eager": False, "torch, compiled": True}
    else:
        print("PyTorch: not installed, or more than one seed, so not compared")
    print("| length | program | ms per step | x jaxneg | CPU ms per step | x jaxneg | GFLOP/s | share |")
    print("|---|---|---|---|---|---|---|---|")
    for length in options.lengths:
        ours, program = jaxneg_steps(prepared, length, options)
        runs = {"jaxneg": ours}
        runs |= {name: torch_steps(prepared, length, options, compiled) for name, compiled in rivals.items()}
        times = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, run in runs.items():
                start = np.array([time.perf_counter(), time.process_time()])
                run()
                spent = np.array([time.perf_counter(), time.process_time()]) - start
                times[name].append(spent / (options.steps * options.seeds))
        for name, each in times.items():
            wall, cpu = np.median(each, axis=0)
            of_ours = np.median(np.divide(each, times["jaxneg"]), axis=0)
            rate = matmul_flops(length, options) / wall
            print(
                f"| {length} | {name} | {1e3 * wall:.1f} | {of_ours[0]:.2f} | {1e3 * cpu:.1f} | {of_ours[1]:.2f} "
                f"| {rate / 1e9:.0f} | {rate / flops:.0%} |"
            )
        read = program.cost_analysis().get("bytes accessed", 0) / options.seeds
        work = matmul_flops(length, options)
        print(
            f"\nlength {length}: {work / 1e9:.2f} GFLOP in matrix products; the compiler counts {read / 1e9:.2f} GB "
            "read and written, most of it in caches\n"
        )


def matmul_flops(length: int, options) -> float:
    """Operations of one seed's matrix products in a step: three times those of the forward pass.

    Per position and block: 5 dense layers of d x d, and two products of the L x L attention; and the scores.
    """
    width, positions = options.width, options.batch * length
    block = 5 * 2 * width * width + 2 * 2 * length * width
    return 3.0 * positions * (BLOCKS * block + 2 * width * (options.negatives + 1))


if __name__ == "__main__":
    main()
