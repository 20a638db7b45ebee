"""Seconds to compile each sampler, each loss and each whole step, and the instructions that they compile to.

    python benchmarks/compile_times.py [--out results/compile_times/jax_VERSION.csv] [--limit 330] [--only in_batch ...]

Batches of 128 sequences of 50, 10,000 items, 50 negatives, width 50. Every program is compiled --repeats times (3) in a
process of its own, without any cache: the best time counts. Instructions are those of the optimised program. One that
takes longer than --limit seconds is ended, and says so.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import time

B, L, V, N, WIDTH = 128, 50, 10_000, 50, 50


def programs():
    """{name: () -> (function, arguments)} of all that is compiled."""
    import functools

    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxneg import losses, models, samplers
    from jaxneg.data import dataset as data
    from jaxneg.data import prepare, synthetic
    from jaxneg.optim import adam as adam_lib
    from jaxneg.training import loop as training_loop
    from jaxneg.training import step as training
    from jaxneg.types import Batch, Negatives

    settings = samplers.Settings(num_uniform=N, num_in_batch=N, num_popularity=N)
    key = jax.random.key(0)

    def sampler(method):
        rng = np.random.default_rng(0)
        targets = jnp.asarray(rng.integers(1, V + 1, (B, L)), jnp.int32)
        batch = Batch(targets, targets, jnp.sort(targets, axis=1), jnp.full(B, L, jnp.int32))
        made = samplers.make(method, V, settings)
        return made.proposal.sample, (key, made.proposal.init(np.ones(V + 1)), batch)

    def loss(name):
        made, ids = losses.make(name, V), jnp.ones((B, 1, N), jnp.int32)

        def total(positive, scores):
            negatives = Negatives(ids, scores, jnp.zeros(ids.shape), jnp.ones(ids.shape, bool))
            return jnp.sum(made(positive, negatives, negative_weight=1.0))

        def of_all(hidden, table):
            return jnp.sum(made(hidden, table, jnp.ones((B, L), jnp.int32)))

        if name == "full_softmax":
            return jax.value_and_grad(of_all, argnums=(0, 1)), (jnp.zeros((B, L, WIDTH)), jnp.zeros((V + 1, WIDTH)))
        return jax.value_and_grad(total, argnums=(0, 1)), (jnp.zeros((B, L)), jnp.zeros((B, L, N)))

    def step(method, model):
        arrays, meta = prepare.prepare_frame(synthetic.generate(100_000, 2_000, 1_000, seed=0))
        prepared = data.Prepared(**{name: arrays[name] for name in data.Prepared._fields if name != "meta"}, meta=meta)
        feed = jax.tree.map(jnp.asarray, data.training_set(prepared, with_rows_before=True))
        number = prepared.num_items
        made, adam = models.make(model, {}, number), adam_lib.adam()
        chosen, name = samplers.make(method, number, settings), "full_softmax" if method == "catalogue" else "bce"
        one = training.Step(made, chosen, losses.make(name, number), adam, B, number, data.longest_history(feed))
        state = training.init_state(
            key,
            training.HyperParams(jnp.float32(1e-3), jnp.float32(0.2), jnp.float32(1.0)),
            model=made,
            num_items=number,
            num_users=prepared.num_users,
            optimizer=adam,
        )
        states = jax.tree.map(lambda x: jnp.asarray(x)[None], state)
        tables = chosen.proposal.init(np.asarray(prepared.item_counts))
        return functools.partial(training_loop.run_steps, one), (jnp.int32(2), states, tables, feed)

    found = {f"sampler {name}": functools.partial(sampler, name) for name in samplers.METHODS}
    found |= {f"loss {name}": functools.partial(loss, name) for name in losses.LOSSES}
    found |= {f"step {name}": functools.partial(step, name, "sasrec") for name in samplers.METHODS}
    return found | {f"step {name}": functools.partial(step, "adaptive_mixed", name) for name in models.NAMES}


def measure(name: str, repeats: int) -> dict:
    """The row of one program."""
    import jax

    from jaxneg.devices import mesh

    jax.config.update("jax_enable_compilation_cache", False)
    function, arguments = programs()[name]()
    seconds = []
    for _ in range(repeats):
        jax.clear_caches()
        options = mesh.compiler_options(jax.default_backend())
        lowered = jax.jit(lambda *args: function(*args), compiler_options=options).lower(*arguments)
        begun = time.perf_counter()
        compiled = lowered.compile()
        seconds.append(time.perf_counter() - begun)
    lines = [line.strip() for line in compiled.as_text().splitlines()]
    instructions = sum(line.startswith(("%", "ROOT")) and " = " in line for line in lines)
    return {"program": name, "seconds": round(min(seconds), 2), "instructions": instructions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--limit", type=float, default=330.0, help="seconds for one program")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="programs whose name has one of these words")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.repeats)))
        return
    rows = []
    for name in programs():
        if options.only and not set(options.only) & set(name.split()):
            continue
        command = [sys.executable, __file__, f"--one={name}", f"--repeats={options.repeats}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit)
            row = json.loads(done.stdout) if done.returncode == 0 else {"program": name, "seconds": "failed"}
        except subprocess.TimeoutExpired:
            row = {"program": name, "seconds": f"over {options.limit:g}"}
        rows.append(row)
        print(f"{name:<28} {row['seconds']:>8} s {row.get('instructions', ''):>8} instructions", flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, ("program", "seconds", "instructions"), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
