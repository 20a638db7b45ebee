"""Time of a training step per seed, alone and with others: side by side in one vmap, taking turns, over all cores.

    python benchmarks/seeds.py [--seeds 1 4 20] [--method uniform] [--batch 64] [--length 50] [--repeats 7]

A run on a CPU makes a device of each core and lets a device's seeds take turns (`mesh.use_cores`,
`mesh.group_size`). The programs take turns within one process, warm, --steps steps of all seeds at a time; wall
time and the process's CPU time per step and seed, medians, and their ratio to one seed alone on one device. One device
has all cores for its larger operations. Memory is what `memory.peak_bytes` reads off the traced program. Data are
synthetic.
"""

import argparse
import functools
import os
import statistics
import time
from typing import NamedTuple

import jax
import numpy as np
from methods import prepared_data

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.devices import memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training


class Case(NamedTuple):
    """How the seeds of a run are laid out."""

    num_seeds: int
    num_devices: int
    group_size: int  # of a device's seeds


def cases(seeds: list[int], num_devices: int) -> list[Case]:
    """One seed alone first, which all are compared with."""
    found = [Case(1, 1, 1)]
    for number in sorted({*seeds} - {1}):
        found += [Case(number, 1, number), Case(number, 1, 1)]
        spread = min(num_devices, number)
        found += [Case(number, spread, -(-number // spread)), Case(number, spread, 1)] if spread > 1 else []
    return found


def compiled(case: Case, prepared: data.Prepared, options):
    """(a call that makes --steps steps of all seeds and waits for them, MiB that a seed needs while training)."""
    layout = mesh_lib.seed_layout(case.num_seeds, jax.devices()[: case.num_devices])
    method = samplers.make(options.method, prepared.num_items, samplers.Settings(num_in_batch=50, num_uniform=50))
    model = sasrec.make(sasrec.Settings(options.width, max_len=options.length), prepared.num_items)
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
    hyper = mesh_lib.repeat(layout, training.HyperParams(np.float32(1e-3), np.float32(0.2), np.float32(1.0)))
    state = [mesh_lib.over_seeds(init, layout, (True, True))(mesh_lib.seed_keys(layout, 0), hyper)]
    counts = data.target_counts(dataset, options.length, prepared.num_items)
    tables = method.proposal.init(np.asarray(prepared.item_counts), counts)
    tables, dataset = mesh_lib.put_shared(layout, (tables, dataset))
    advance = mesh_lib.over_devices(
        functools.partial(training_loop.run_groups, step, case.group_size),
        layout,
        (False, True, False, False),
        donate=(1,),
    )
    specs = (None, mesh_lib.specs(state[0], mesh_lib.SEED), mesh_lib.specs(tables), mesh_lib.specs(dataset))
    program = mesh_lib.on_one_device(mesh_lib.traced(advance, layout, specs, np.int32(1), state[0], tables, dataset))
    shared = mesh_lib.bytes_per_device(layout, (tables, dataset))
    needed = (memory.peak_bytes(program, donated=True) - shared) / layout.seeds_per_device

    def run():
        state[0] = jax.block_until_ready(advance(np.int32(options.steps), state[0], tables, dataset))

    run()
    return run, needed / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"items": 3000, "batch": 64, "length": 50, "width": 50, "steps": 4, "repeats": 7}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    drawing = [name for name in samplers.METHODS if name != "catalogue"]
    parser.add_argument("--method", default="uniform", choices=drawing)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 4, 20])
    options = parser.parse_args()
    mesh_lib.use_cores(max(options.seeds))
    prepared = prepared_data(options.items)
    print(
        f"{len(jax.devices())} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, "
        f"{vars(options)}",
        flush=True,
    )
    runs = {case: compiled(case, prepared, options) for case in cases(options.seeds, len(jax.devices()))}
    spent = {case: [] for case in runs}
    for _ in range(options.repeats):
        for case, (run, _) in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            whole = options.steps * case.num_seeds
            spent[case].append(((time.perf_counter() - start[0]) / whole, (time.process_time() - start[1]) / whole))
    first = spent[Case(1, 1, 1)]
    print("| seeds | devices | side by side | ms per step and seed | x alone | CPU ms | x alone | MiB per seed |")
    print("|---|---|---|---|---|---|---|---|")
    for case, (_, mebibytes) in runs.items():
        told = []
        for kind in range(2):
            ratio = statistics.median(own[kind] / base[kind] for own, base in zip(spent[case], first, strict=True))
            told.append(f"{1e3 * statistics.median(own[kind] for own in spent[case]):.1f} | {ratio:.2f}")
        print(f"| {case.num_seeds} | {case.num_devices} | {case.group_size} | {' | '.join(told)} | {mebibytes:.0f} |")


if __name__ == "__main__":
    main()
