"""Draws per second of every proposal, the user's own items excluded, and the alias table's build time.

    python benchmarks/samplers.py [--items 10000 1000000] [--batch 128] [--length 50] [--samples 50] [--history 200]
        [--tables 100000000]

One program draws 20 times by lax.scan; proposals take turns within one run, warm; the median of the repeats is printed,
and its ratio to `randint`: as many plain `jax.random.randint` draws per sequence, with nothing excluded.
Log q is not read, so it is not computed. Users' histories follow popularity (Zipf), 20 items to --history.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import samplers
from jaxneg.devices import mesh as mesh_lib
from jaxneg.samplers import alias
from jaxneg.types import Batch, Candidates

DRAWS = 20


def zipf_batch(rng, counts, rows: int, length: int, longest: int) -> Batch:
    """Users whose items are drawn by popularity; their sequence is the end of a shuffled history."""
    num_items = len(counts) - 1
    upto = np.cumsum(counts[1:] / counts.sum())
    history = np.full((rows, longest), num_items + 1, np.int32)
    targets = np.zeros((rows, length), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row in range(rows):
        drawn = np.unique(np.searchsorted(upto, rng.random(2 * longest) * upto[-1]) + 1)
        own = rng.permutation(drawn)[: rng.integers(20, longest + 1)]
        lengths[row] = len(own)
        history[row, : len(own)] = np.sort(own)
        targets[row, length - len(own[:length]) :] = own[:length]
    return jax.tree.map(jnp.asarray, Batch(targets, targets, history, lengths))


def randint(num_items: int, num_samples: int) -> samplers.Proposal:
    """What drawing costs at the least."""

    def sample(key, tables, batch):
        item_ids = jax.random.randint(key, (len(batch.targets), 1, num_samples), 1, num_items + 1)
        return Candidates(item_ids, jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1), bool))

    return samplers.Proposal(lambda item_counts: (), sample, None, num_samples)


def compiled(proposal: samplers.Proposal, tables, batch: Batch):
    """(a call that draws DRAWS times, negatives per draw)."""

    @functools.partial(jax.jit, compiler_options=mesh_lib.compiler_options(jax.default_backend()))
    def run(key, tables, batch):
        def draw(total, key):
            candidates = proposal.sample(key, tables, batch)
            return total + jnp.sum(candidates.item_ids) + jnp.sum(candidates.mask), None

        return jax.lax.scan(draw, jnp.int32(0), jax.random.split(key, DRAWS))[0]

    run(jax.random.key(0), tables, batch).block_until_ready()
    size = jax.eval_shape(proposal.sample, jax.random.key(0), tables, batch).item_ids.size
    return lambda key: run(key, tables, batch), size


def zipf_counts(rng, num_items: int) -> np.ndarray:
    return np.append(0, rng.permutation(np.maximum(num_items * 10 / np.arange(1, num_items + 1), 1).astype(int)))


def told_of_table(weights: np.ndarray) -> str:
    start = time.perf_counter()
    alias.build(weights)
    return f"\n{len(weights):,} items: alias table built in {time.perf_counter() - start:.2f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"batch": 128, "length": 50, "samples": 50, "history": 200, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--items", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--tables", type=int, nargs="*", default=[10**8], help="items of tables that are only built")
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {vars(args)}")
    for num_items in args.items:
        rng = np.random.default_rng(0)
        counts = zipf_counts(rng, num_items)
        print(told_of_table(counts[1:]))
        batch = zipf_batch(rng, counts, args.batch, args.length, args.history)
        proposals = {
            "randint": randint(num_items, args.samples),
            "uniform": samplers.uniform(num_items, args.samples),
            "popularity": samplers.weighted(num_items, args.samples),
            "inverse_popularity": samplers.weighted(num_items, args.samples, exponent=-1.0),
            "in_batch": samplers.in_batch(num_items, args.samples),
            "popularity_cohort": samplers.cohort(num_items, args.samples),
        }
        runs = {name: compiled(p, jax.device_put(p.init(counts)), batch) for name, p in proposals.items()}
        seconds = {name: [] for name in runs}
        for repeat in range(args.repeats):
            for name, (run, _) in runs.items():
                start = time.perf_counter()
                run(jax.random.key(repeat)).block_until_ready()
                seconds[name].append((time.perf_counter() - start) / DRAWS)
        rate = {name: size / statistics.median(seconds[name]) for name, (_, size) in runs.items()}
        print(f"{'proposal':20} {'ms/draw':>8} {'million/s':>10} {'time per item, randint = 1':>28}")
        for name, (_, size) in runs.items():
            ratio = rate["randint"] / rate[name]
            print(f"{name:20} {1e3 * size / rate[name]:8.3f} {rate[name] / 1e6:10.1f} {ratio:28.2f}")
    for num_items in args.tables:
        print(told_of_table(zipf_counts(np.random.default_rng(0), num_items)[1:]))


if __name__ == "__main__":
    main()
