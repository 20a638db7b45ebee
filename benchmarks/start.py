"""Seconds from the command to the first training step, with and without the persistent compilation cache.

    python benchmarks/start.py [--config configs/quickstart.py:mixed] [--repeats 5] [-- FLAGS OF jaxneg.main]

Each start is a process of its own, `python -m jaxneg.main` in a new work folder, and is ended as soon as its progress
bar shows the first step. Cold: the cache of compiled programs is empty, and the data are not prepared. Warm: both are
there. Cold and warm starts take turns; medians.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import jax

FIRST_STEP = re.compile(rb"\| 1/\d+ \[")  # of the progress bar


def seconds_to_first_step(command: list[str], environment: dict) -> float:
    """Starts the command and ends it after its first step. Raises RuntimeError if it never comes to that."""
    start, told = time.perf_counter(), b""
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not FIRST_STEP.search(told):
            piece = process.stderr.read1()
            if not piece:
                raise RuntimeError(f"{' '.join(command)} ended without a step:\n{told.decode(errors='replace')}")
            told += piece
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.py:mixed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("flags", nargs="*", help="flags of jaxneg.main, after --")
    options = parser.parse_args()
    seconds = {"cold": [], "warm": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(folder) / "compiled")}
            for kind, found in seconds.items():
                command = [
                    sys.executable,
                    "-m",
                    "jaxneg.main",
                    f"--config={options.config}",
                    f"--workdir={folder}/{kind}",
                    f"--config.data.cache_dir={folder}/data",
                ]
                found.append(seconds_to_first_step(command + options.flags, environment))
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {options.config} {' '.join(options.flags)}")
    print("| start | seconds to the first step, median | from | to |")
    print("|---|---|---|---|")
    for kind, found in seconds.items():
        print(f"| {kind} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} |")


if __name__ == "__main__":
    main()
