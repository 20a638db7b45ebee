"""Time of a whole training step against the size of the catalogue, with the item table dense and row-sparse.

    python benchmarks/catalogue.py [--items 10000 100000 1000000 10000000] [--forms dense sparse] [--seeds 1]

SASRec of width 50 with two blocks, 128 sequences of 50 items, 50 uniform negatives that a sequence shares, everything
included (batches, negatives, dropout, Adam). Histories follow Zipf's law, popular items lying anywhere in the table.
All programs are made first, --steps steps each; then they take turns, warm, and the median of the repeats is printed,
with its ratio to the smallest catalogue of the same form. What does not fit in memory is left out, and said.
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.devices import memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.optim import row_tables
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training
from jaxneg.types import Dataset

USERS, LONGEST = 10_000, 100
COPIES = {"sparse": 2, "dense": 7 / 3}  # of weights and moments at once: while they are made; with the gradient
SPARE = 2 * 2**30  # bytes for all else


def zipf_dataset(num_items: int) -> Dataset:
    """Users with 10 to LONGEST training items, drawn by Zipf's law with exponent 1."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, LONGEST + 1, USERS)
    end = np.cumsum(lengths)
    upto = np.cumsum(1 / np.arange(1, num_items + 1))
    rank = np.searchsorted(upto, rng.random(end[-1]) * upto[-1])
    items = (rng.permutation(num_items)[rank] + 1).astype(np.int32)
    bounds, distinct = data.distinct_histories(items, end - lengths, end, num_items)
    arrays = (items, end - lengths, end, np.arange(USERS), distinct, bounds[:-1], bounds[1:])
    return Dataset(*(array.astype(np.int32) for array in arrays))


def compiled(form: str, num_items: int, dataset: Dataset, options):
    """A call that makes --steps training steps, in place, and waits for them."""
    method = samplers.make("uniform", num_items, samplers.Settings(num_uniform=options.samples))
    model = sasrec.make(sasrec.Settings(max_len=options.length), num_items)
    adam, storage = adam_lib.adam(), row_tables.STORAGES[form]
    step = training.Step(
        model=model,
        method=method,
        loss=losses.make("bce", num_items),
        optimizer=adam,
        storage=storage,
        batch_size=options.batch,
        num_items=num_items,
        history_size=data.longest_history(dataset),
    )
    layout = mesh_lib.seed_layout(options.seeds)
    init = functools.partial(
        training.init_state, model=model, num_items=num_items, num_users=1, optimizer=adam, storage=storage
    )
    hyper = mesh_lib.repeat(layout, training.HyperParams(np.float32(1e-3), np.float32(0.2), np.float32(1.0)))
    state = [mesh_lib.over_seeds(init, layout, (True, True))(mesh_lib.seed_keys(layout, 0), hyper)]
    dataset = mesh_lib.put_shared(layout, dataset)
    advance = mesh_lib.over_devices(
        functools.partial(training_loop.run_steps, step), layout, (False, True, False, False), donate=(1,)
    )

    def run():
        state[0] = jax.block_until_ready(advance(np.int32(options.steps), state[0], (), dataset))

    run()
    return run


def fits(form: str, num_items: int, options) -> bool:
    """Whether the weights and moments fit beside those that are there, in all the copies that there are at once."""
    needed = COPIES[form] * options.seeds * num_items * 3 * 50 * 4
    there = memory.device_bytes(jax.devices()[0])
    return there is None or needed + SPARE < there


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"seeds": 1, "batch": 128, "length": 50, "samples": 50, "steps": 10, "repeats": 7}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--items", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--forms", nargs="+", choices=list(row_tables.STORAGES), default=list(row_tables.STORAGES))
    options = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {vars(options)}", flush=True)
    runs = {}
    # The largest first, while the memory is free; the sparse form before the dense one.
    for num_items in sorted(options.items, reverse=True):
        dataset = zipf_dataset(num_items)
        for form in sorted(options.forms, reverse=True):
            if fits(form, num_items, options):
                runs[form, num_items] = compiled(form, num_items, dataset, options)
            else:
                print(f"{form}, {num_items:,} items: left out, it does not fit in memory", flush=True)
    seconds = {case: [] for case in runs}
    for _ in range(options.repeats):
        for case, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[case].append((time.perf_counter() - start) / options.steps)
    median = {case: statistics.median(times) for case, times in seconds.items()}
    print("| form | items | ms per step | x smallest catalogue, same form | x dense |")
    print("|---|---|---|---|---|")
    for form, num_items in sorted(runs):
        mine = median[form, num_items]
        smallest = median[form, min(size for other, size in runs if other == form)]
        dense = f"{mine / median['dense', num_items]:.2f}" if ("dense", num_items) in runs else ""
        print(f"| {form} | {num_items:,} | {1e3 * mine:.1f} | {mine / smallest:.2f} | {dense} |")


if __name__ == "__main__":
    main()
