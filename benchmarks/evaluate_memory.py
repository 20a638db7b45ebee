"""Peak memory of an evaluation over a million items, beyond the tables that it is given.

    python benchmarks/evaluate_memory.py [--items 1000000] [--histories 300] [--memory_mb 64] [--out FILE.json]

Ranks the cases and counts the recommendations of one model, as a run does, in chunks that `eval.memory_mb` bounds; for
each bound in a process of its own, because a process's peak never falls. Beyond the bound come the compiler's own
memory, the exposure counts and what the allocator keeps: the benchmark states how much. Linux only.
"""

import argparse
import ctypes
import functools
import gc
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np

from jaxneg.evaluation import ranks as ranking
from jaxneg.types import EvalCases

CONSTANT_MB = 192  # what the process may take beyond the bound, two thirds of it the compiler


def memory_mb(what: str) -> float:
    """This process's resident memory in MiB: "VmRSS" now, "VmHWM" its peak."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**10


def measure(num_items: int, num_histories: int, width: int, bound_mb: int) -> dict:
    """The peak of one evaluation in this process, which has not done anything large before."""
    rng = np.random.default_rng(0)
    table = jax.device_put(rng.standard_normal((num_items + 1, width), dtype=np.float32))
    hidden = jax.device_put(rng.standard_normal((num_histories, width), dtype=np.float32))
    index = np.arange(2 * num_histories, dtype=np.int32) % num_histories  # two cases of each history
    targets = rng.integers(1, num_items + 1, 2 * num_histories).astype(np.int32)
    bounds = np.zeros(num_histories, np.int32)
    cases = jax.device_put(EvalCases(bounds, bounds, index, targets, index))
    chunks = ranking.choose_chunks(num_items, width, 1, bound_mb * 2**20)
    jax.block_until_ready((table, hidden, cases))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system ...
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # ... and the peak starts anew from here
    before = memory_mb("VmHWM")

    @functools.partial(jax.jit, static_argnums=2)
    def rank(hidden, table, ks, cases):
        ranks = ranking.rank_cases(hidden, table, cases, chunks=chunks)
        return ranks, ranking.count_recommended(hidden, table, ks, chunks=chunks)

    (num_above, _), exposure = jax.device_get(rank(hidden, table, (10, 50), cases))
    peak = memory_mb("VmHWM")
    scores = np.asarray(table)[1:] @ np.asarray(hidden)[0]
    assert num_above[0] == (scores > scores[targets[0] - 1]).sum()  # it did rank
    assert exposure.sum(axis=1).tolist() == [10 * num_histories, 50 * num_histories]
    return {
        "memory_mb": bound_mb,
        "case_chunk": chunks.case_chunk,
        "item_chunk": chunks.item_chunk,
        "table_mb": round(table.nbytes / 2**20),
        "before_mb": round(before),
        "peak_mb": round(peak),
        "beyond_before_mb": round(peak - before),
        "allowed_mb": bound_mb + CONSTANT_MB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--histories", type=int, default=300)
    parser.add_argument("--width", type=int, default=50)
    parser.add_argument("--memory_mb", type=int, default=0, help="one bound, in this process (0: 16, 64 and 256)")
    parser.add_argument("--out", default="", help="a file for the figures")
    given = parser.parse_args()
    if given.memory_mb:
        print(json.dumps(measure(given.items, given.histories, given.width, given.memory_mb)))
        return
    shape = [f"--items={given.items}", f"--histories={given.histories}", f"--width={given.width}"]
    rows = []
    for bound_mb in (16, 64, 256):
        command = [sys.executable, __file__, *shape, f"--memory_mb={bound_mb}"]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(rows[-1], flush=True)
    if given.out:
        device = jax.devices()[0].device_kind
        record = {
            "command": f"python benchmarks/evaluate_memory.py {' '.join(shape)}",
            "jax": jax.__version__,
            "device": device,
            "constant_mb": CONSTANT_MB,
            "bounds": rows,
        }
        pathlib.Path(given.out).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(given.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
