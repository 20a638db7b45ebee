"""Full-catalogue evaluation: ranks by counting, and recommendations, against a plain sort of every score.

    python benchmarks/evaluate.py [--items 10000] [--cases 4096] [--width 50] [--repeats 5]

Rivals take turns within one run, warm; the median of the repeats is printed, and the ratio to the sort, which is so
slow that it has a few of the cases only. Wall time is what counts on a quiet machine; the process's CPU time is
printed too, for one that is shared.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg.evaluation import ranks as ranking
from jaxneg.types import EvalCases

CHUNK = 128  # cases
SORTED = 12_800_000  # scores


def sorted_ranks(hidden, item_table, cases, *, chunk: int):
    """The plain way, for the first `chunk` cases: sorts the scores of each and looks the target's place up."""
    order = jnp.argsort(-(hidden[cases.history_of_case[:chunk]] @ item_table[1:].T), axis=1)
    return jnp.argmax(order == cases.targets[:chunk, None] - 1, axis=1)


def only_scores(hidden, item_table, cases, *, chunk: int):
    """The matrix products alone, each row reduced to its maximum: what any exact evaluation has to pay."""
    pieces = cases.history_of_case.reshape(-1, chunk)
    return jax.lax.map(lambda history: (hidden[history] @ item_table[1:].T).max(axis=1), pieces)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--cases", type=int, default=4096, help="rounded up to whole chunks of 128")
    parser.add_argument("--width", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    num_items, num_cases = options.items, -(-options.cases // CHUNK) * CHUNK

    num_sorted = max(1, min(CHUNK, SORTED // num_items))
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(num_cases, options.width)), jnp.float32)
    item_table = jnp.asarray(rng.normal(size=(num_items + 1, options.width)), jnp.float32)
    index = jnp.arange(num_cases, dtype=jnp.int32)
    targets = jnp.asarray(rng.integers(1, num_items + 1, num_cases), jnp.int32)
    cases = EvalCases(index, index, index, targets, index)
    chunks = ranking.choose_chunks(num_items, options.width)
    rivals = {
        "sort": partial(sorted_ranks, chunk=num_sorted),
        "scores only": partial(only_scores, chunk=CHUNK),
        "rank_cases": partial(ranking.rank_cases, chunks=chunks),
        "count_recommended @10": lambda h, t, c: ranking.count_recommended(h, t, (10,), chunks=chunks),
        "count_recommended @50": lambda h, t, c: ranking.count_recommended(h, t, (50,), chunks=chunks),
    }
    rivals = {name: jax.jit(function) for name, function in rivals.items()}
    for function in rivals.values():
        jax.block_until_ready(function(hidden, item_table, cases))
    wall, cpu = {name: [] for name in rivals}, {name: [] for name in rivals}
    for _ in range(options.repeats):
        for name, function in rivals.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(function(hidden, item_table, cases))
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(time.process_time() - start[1])

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}: {num_items:,} items, {num_cases:,} cases, {chunks}")
    print(f"{'':24}{'cases/s':>14}{'x sort':>9}{'cases/CPU-s':>14}{'x sort':>9}")
    rates = {
        name: [
            (num_sorted if name == "sort" else num_cases) / statistics.median(seconds[name]) for seconds in (wall, cpu)
        ]
        for name in rivals
    }
    for name, own in rates.items():
        told = (f"{rate:14,.0f}{rate / base:9.1f}" for rate, base in zip(own, rates["sort"], strict=True))
        print(f"{name:24}{''.join(told)}")


if __name__ == "__main__":
    main()
