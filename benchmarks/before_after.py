"""Time of SASRec's training step in this checkout and in another one, in turns: what a change costs.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before [--lengths 50 200] [--repeats 15]

The step is that of benchmarks/step.py in each. Each checkout has a process of its own, which compiles it once; they
take turns, --steps steps at a time, and change places every time. Printed are medians, and the median of the ratios
within each pair of turns.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent


def serve(length: int, steps: int) -> None:
    """For each line that comes in, makes the steps and prints the seconds of wall and CPU time of one."""
    sys.path.insert(0, "benchmarks")
    import step

    options = types.SimpleNamespace(width=50, batch=128, negatives=50, steps=steps, seeds=1)
    run, *_ = step.jaxneg_steps(step.prepared_data(500, 2000), length, options)
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter(), time.process_time()
        run()
        took = time.perf_counter() - begun[0], time.process_time() - begun[1]
        print(json.dumps([seconds / steps for seconds in took]), flush=True)


def started(checkout: pathlib.Path, length: int, steps: int) -> subprocess.Popen:
    """A process that serves a checkout's step."""
    command = [sys.executable, __file__, "--serve", str(length), "--steps", str(steps)]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while process.stdout.readline() != "ready\n":
        if process.poll() is not None:
            sys.exit(f"{checkout}: its benchmarks/step.py cannot be run")
    return process


def turn(process: subprocess.Popen) -> list[float]:
    """[wall, CPU] seconds of one step."""
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=pathlib.Path, help="the checkout to compare with")
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.steps)
        return
    if options.other is None:
        parser.error("name the checkout to compare with")
    print("| length | before, ms | after, ms | after / before | CPU: before, ms | after, ms | after / before |")
    print("|---|---|---|---|---|---|---|")
    for length in options.lengths:
        pair = [started(checkout.resolve(), length, options.steps) for checkout in (options.other, ROOT)]
        rounds = []
        for index in range(options.repeats):
            order = pair if index % 2 else pair[::-1]
            found = {process: turn(process) for process in order}
            rounds.append([found[process] for process in pair])
        told = [str(length)]
        for kind in (0, 1):
            before, after = ([both[which][kind] for both in rounds] for which in (0, 1))
            ratio = statistics.median(a / b for a, b in zip(after, before, strict=True))
            told += [f"{1e3 * statistics.median(before):.1f}", f"{1e3 * statistics.median(after):.1f}", f"{ratio:.3f}"]
        print(f"| {' | '.join(told)} |", flush=True)
        for process in pair:
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()
