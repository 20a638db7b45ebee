"""Cost of a training step with every sampler and every loss, relative to uniform negatives with BCE.

    python benchmarks/methods.py [--items 3000] [--batch 128] [--length 50] [--samples 100] [--repeats 7]

Samplers run with BCE and losses with uniform negatives (full_softmax without any); each has --samples candidates, and
those that choose by score keep 5. The programs take turns within one run, warm, --steps training steps at a time; the
median of the repeats is printed. Wall time is what counts on a quiet machine; the process's CPU time is printed too,
for one that is shared. Data are synthetic.
"""

import argparse
import functools
import statistics
import time

import jax
import numpy as np

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training

USERS, ROWS_PER_USER = 1000, 60


def prepared_data(num_items: int) -> data.Prepared:
    """A synthetic data set, prepared in memory."""
    frame = synthetic.generate(USERS * ROWS_PER_USER, USERS, num_items, seed=0)
    arrays, meta = prepare.prepare_frame(frame)
    return data.Prepared(**{name: arrays[name] for name in data.Prepared._fields if name != "meta"}, meta=meta)


def cases(num_samples: int) -> dict[tuple[str, str], samplers.Settings]:
    """{(method, loss): the sampler's settings}, the one that all are compared with first."""
    alone = samplers.Settings(num_samples, num_samples, num_samples, num_kept=min(5, num_samples))
    halves = alone._replace(num_in_batch=num_samples // 2, num_uniform=num_samples - num_samples // 2)
    found = {}
    for method in samplers.METHODS:
        if method != "catalogue":
            found[method, "bce"] = halves if samplers.METHODS[method].proposals == samplers.MIXTURE else alone
    found["dns, random_one", "bce"] = alone._replace(dns_form="random_one")
    found |= {("uniform", loss): alone for loss in losses.LOSSES if loss != "full_softmax"}
    return found | {("catalogue", "full_softmax"): alone}


def compiled(method: str, loss: str, settings: samplers.Settings, prepared: data.Prepared, options):
    """A call that makes --steps training steps and waits for them."""
    chosen = samplers.make(method.split(",")[0], prepared.num_items, settings)
    model = sasrec.make(sasrec.Settings(options.width, max_len=options.length), prepared.num_items)
    adam = adam_lib.adam()
    dataset = data.training_set(prepared)
    step = training.Step(
        model=model,
        method=chosen,
        loss=losses.make(loss, prepared.num_items),
        optimizer=adam,
        batch_size=options.batch,
        num_items=prepared.num_items,
        history_size=data.longest_history(dataset),
    )
    sizes = {"num_items": prepared.num_items, "num_users": prepared.num_users}
    init = functools.partial(training.init_state, model=model, optimizer=adam, **sizes)
    hyper = training.HyperParams(*(np.full(1, value, np.float32) for value in (1e-3, 0.2, 1.0)))
    states = jax.vmap(init)(jax.random.split(jax.random.key(0), 1), hyper)
    counts = data.target_counts(dataset, options.length, prepared.num_items)
    shared = jax.device_put((chosen.proposal.init(np.asarray(prepared.item_counts), counts), dataset))
    compiler_options = mesh_lib.compiler_options(jax.default_backend())
    advance = jax.jit(functools.partial(training_loop.run_steps, step), compiler_options=compiler_options)

    def run():
        jax.block_until_ready(advance(np.int32(options.steps), states, *shared))

    run()
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"items": 3000, "batch": 128, "length": 50, "width": 50, "samples": 100, "steps": 10, "repeats": 7}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    prepared = prepared_data(options.items)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {prepared.num_items} items, {vars(options)}")
    runs = {case: compiled(*case, settings, prepared, options) for case, settings in cases(options.samples).items()}
    wall, cpu = {case: [] for case in runs}, {case: [] for case in runs}
    for _ in range(options.repeats):
        for case, run in runs.items():
            start = time.perf_counter(), time.process_time()
            run()
            wall[case].append((time.perf_counter() - start[0]) / options.steps)
            cpu[case].append((time.process_time() - start[1]) / options.steps)
    base = [statistics.median(times["uniform", "bce"]) for times in (wall, cpu)]
    print("| sampler | loss | ms per step | x uniform + bce | CPU ms per step | x uniform + bce |")
    print("|---|---|---|---|---|---|")
    for method, loss in runs:
        seconds = [statistics.median(times[method, loss]) for times in (wall, cpu)]
        told = " | ".join(f"{1e3 * value:.1f} | {value / one:.2f}" for value, one in zip(seconds, base, strict=True))
        print(f"| {method} | {loss} | {told} |")


if __name__ == "__main__":
    main()
