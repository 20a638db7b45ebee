"""Where the time of a training step goes on this machine, by kind of operation and by operation.

    python benchmarks/profile_step.py [--length 50] [--batch 128] [--top 15]

The step is that of benchmarks/step.py. Times are those that XLA's own operations take, summed over threads, so they
come to more than the wall time where operations run side by side.
"""

import argparse
import collections
import glob
import re
import tempfile

import jax
import step

DEFINITION = re.compile(r"%([\w.\-]+) = (\S+) ([\w\-]+)\(([^\n]*)")
TURNS = 4


def durations(folder: str) -> dict[str, int]:
    """{operation: nanoseconds in all} of a trace."""
    path = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0]
    spent = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(path).planes:
        for line in plane.lines:
            for event in line.events:
                spent[event.name] += event.duration_ns
    return spent


def kind(name: str, opcode: str, operands: str, shape: str) -> str:
    """What an operation is for, in a reader's words."""
    if opcode == "dot":
        if shape.split("{")[0].count(",") == 2 and "lhs_batch_dims" in operands:
            return "products, one per sequence (attention, scores)"
        return (
            "products that sum over positions (kernels' gradients)"
            if "lhs_contracting_dims={0}" in operands
            else "products of all positions (dense layers)"
        )
    if opcode in ("scatter", "gather") or "scatter" in name or "gather" in name:
        return "look-ups in the item table and their gradient"
    if "reduce" in name or opcode in ("reduce", "reduce-window"):
        return "sums and maxima"
    return "elementwise (LayerNorm, dropout, softmax, loss, Adam) and copies"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"length": 50, "batch": 128, "width": 50, "negatives": 50, "items": 10_000, "users": 1000}
    for name, value in (defaults | {"seeds": 1, "steps": 5, "top": 15}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    run, program = step.jaxneg_steps(step.prepared_data(options.users, options.items), options.length, options)
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(TURNS):
                run()
        spent = durations(folder)
    found = {match[0]: match for match in DEFINITION.findall(program.as_text())}
    number = TURNS * options.steps * 1e6
    rows = [
        (nanoseconds / number, name)
        for name, nanoseconds in spent.items()
        if name in found and found[name][2] not in ("while", "call", "conditional")
    ]
    total, kinds = sum(each for each, _ in rows), collections.Counter()
    for each, name in rows:
        _, shape, opcode, operands = found[name]
        kinds[kind(name, opcode, operands, shape)] += each
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {vars(options)}: {total:.1f} ms a step, all threads")
    print("| kind | ms | share |\n|---|---|---|")
    for name, each in kinds.most_common():
        print(f"| {name} | {each:.1f} | {each / total:.0%} |")
    print("\n| operation | shape | ms | from |\n|---|---|---|---|")
    for each, name in sorted(rows, reverse=True)[: options.top]:
        source = re.search(r'op_name="([^"]*)"', found[name][3])
        print(f"| {name} | {found[name][1]} | {each:.2f} | {source[1][-60:] if source else ''} |")


if __name__ == "__main__":
    main()
