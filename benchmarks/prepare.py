"""Seconds and peak memory to prepare 10 million rows, by stage.

    python benchmarks/prepare.py [--rows 10000000] [--kind dat|parquet|tsv]

Generates rows in one process, prepares the file in another, so that the peak is the preparation's own.
"""

import argparse
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

from jaxneg.data import prepare, raw, store, synthetic


def peak_gib() -> float:
    """Peak resident memory of this process so far, in GiB (Linux counts in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def make(path: pathlib.Path, rows: int) -> None:
    """Writes rows of 70,000 users (fewer for fewer rows) in the order of time, as a log would have them."""
    frame = synthetic.generate(rows, max(rows // 143, 1), max(rows // 1000, 40), seed=0)
    frame = frame.iloc[np.argsort(frame["time"].to_numpy(), kind="stable")]
    if path.suffix == ".dat":
        frame = frame.assign(a="", b="", rating=5, c="")[["user", "a", "item", "b", "rating", "c", "time"]]
        frame.to_csv(path, sep=":", header=False, index=False)
    else:
        synthetic.write(frame, path)


def measure(path: pathlib.Path) -> None:
    """Prints a line per stage. The stages are those of `prepare.prepare`, called one by one."""
    begin = start = (time.perf_counter(), time.process_time())

    def lap(stage: str, since: tuple[float, float] | None = None) -> None:
        nonlocal start
        now = (time.perf_counter(), time.process_time())
        wall, cpu = (new - old for new, old in zip(now, since or start, strict=True))
        print(f"{stage:<28}{wall:7.2f} s   CPU {cpu:6.2f} s   peak {peak_gib():5.2f} GiB", flush=True)
        start = now

    store.content_hash(path)
    lap("hash of the file")
    frame = raw.read(path)
    lap("read")
    arrays, meta = prepare.prepare_frame(frame)
    lap("prepare")
    with tempfile.TemporaryDirectory() as folder:
        store.cached(folder, "benchmark", {}, lambda: (arrays, meta))
        lap("write")
    lap(f"all of {meta['num_raw_rows']:,} rows", begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kind", choices=["dat", "parquet", "tsv"], default="dat")
    parser.add_argument("--file", default="", help=argparse.SUPPRESS)  # the second process
    given = parser.parse_args()
    if given.file:
        measure(pathlib.Path(given.file))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"rows.{given.kind}"
        start = time.perf_counter()
        make(path, given.rows)
        print(f"{'generate and write':<28}{time.perf_counter() - start:7.2f} s", flush=True)
        subprocess.run([sys.executable, __file__, "--file", str(path)], check=True)


if __name__ == "__main__":
    main()
