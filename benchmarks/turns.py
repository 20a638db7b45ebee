"""Time of a training step with thousands of shared negatives, its gradient worked out at once and in parts.

    python benchmarks/turns.py [--samples 1500] [--batch 128] [--length 200] [--turns 1 8 16]

SASRec of width 50 with two blocks, sampled softmax, uniform negatives that the batch shares. A run on a CPU chooses the
number of parts by itself (`programs.choose_microbatches`). The programs take turns within one process, warm, --steps
steps at a time: medians, and the ratio to the first number of parts. Data are synthetic.
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np
from methods import prepared_data

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training


def compiled(turns: int, prepared: data.Prepared, options):
    """(a call that makes --steps steps and waits for them, a call that tells their mean loss)."""
    layout = mesh_lib.seed_layout(1)
    method = samplers.make("uniform", prepared.num_items, samplers.Settings(num_uniform=options.samples, scope="batch"))
    model = sasrec.make(sasrec.Settings(max_len=options.length), prepared.num_items)
    adam = adam_lib.adam()
    dataset = data.training_set(prepared)
    step = training.Step(
        model=model,
        method=method,
        loss=losses.make("sampled_softmax", prepared.num_items),
        optimizer=adam,
        batch_size=options.batch,
        num_items=prepared.num_items,
        history_size=data.longest_history(dataset),
        num_microbatches=turns,
    )
    sizes = {"num_items": prepared.num_items, "num_users": prepared.num_users}
    init = functools.partial(training.init_state, model=model, optimizer=adam, **sizes)
    hyper = mesh_lib.repeat(layout, training.HyperParams(np.float32(1e-3), np.float32(0.2), np.float32(1.0)))
    state = [mesh_lib.over_seeds(init, layout, (True, True))(mesh_lib.seed_keys(layout, 0), hyper)]
    tables = method.proposal.init(np.asarray(prepared.item_counts))
    advance = mesh_lib.over_devices(
        functools.partial(training_loop.run_steps, step), layout, (False, True, False, False), donate=(1,)
    )

    def run():
        state[0] = jax.block_until_ready(advance(np.int32(options.steps), state[0], tables, dataset))

    run()
    return run, lambda: float(np.mean(state[0].loss_sum / state[0].step))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"items": 3000, "samples": 1500, "batch": 128, "length": 200, "steps": 2, "repeats": 7}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--turns", type=int, nargs="+", default=[1, 8, 16])
    options = parser.parse_args()
    prepared = prepared_data(options.items)
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {prepared.num_items} items, {vars(options)}", flush=True)
    runs = {turns: compiled(turns, prepared, options) for turns in options.turns}
    spent = {turns: [] for turns in runs}
    for _ in range(options.repeats):
        for turns, (run, _) in runs.items():
            start = np.array([time.perf_counter(), time.process_time()])
            run()
            spent[turns].append((np.array([time.perf_counter(), time.process_time()]) - start) / options.steps)
    first = spent[options.turns[0]]
    print("| parts | ms per step | x first | CPU ms | x first | mean loss |")
    print("|---|---|---|---|---|---|")
    for turns, (_, mean_loss) in runs.items():
        told = []
        for kind in range(2):
            ratio = statistics.median(own[kind] / base[kind] for own, base in zip(spent[turns], first, strict=True))
            told.append(f"{1e3 * statistics.median(own[kind] for own in spent[turns]):.0f} | {ratio:.2f}")
        print(f"| {turns} | {' | '.join(told)} | {mean_loss():.5f} |")


if __name__ == "__main__":
    main()
