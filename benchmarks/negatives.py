"""What drawing negatives costs: each method's training step over the same step with fixed negatives.

    python benchmarks/negatives.py [--lengths 50 200] [--samples 50] [--pool 100] [--methods uniform mixed]

The rival of a method is its own step, with candidates that were drawn once and are passed in: same shapes, same scores,
same loss (BCE), same batches drawn, but nothing proposed. Methods that choose by score keep --samples and 5 of --pool
candidates; what choosing costs is their step over the one that keeps the first candidates of the pool. The two programs
take turns within one run, warm, --steps training steps at a time; medians of the repeats, and the median of the ratios
of neighbours. Every sequence is padded to --length; data are synthetic.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import base, sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training
from jaxneg.types import Batch, Negatives

USERS, ROWS_PER_USER = 1000, 60
PROPOSING = ("uniform", "popularity", "inverse_popularity", "popularity_cohort", "in_batch", "mixed")
CHOOSING = ("adaptive", "adaptive_mixed")


class Case(NamedTuple):
    """A method and its settings."""

    method: str
    settings: samplers.Settings

    @property
    def name(self) -> str:
        return f"{self.method}, {self.settings.num_kept} of the pool" if self.method in CHOOSING else self.method


class World(NamedTuple):
    """What all steps share."""

    prepared: data.Prepared
    model: base.Model
    batch_size: int
    num_steps: int


def cases(names: list[str], num_samples: int, pool: int) -> list[Case]:
    """Every method with `num_samples` candidates; those that choose, with two numbers that they keep of their pool."""

    def settings(total: int, mixed: bool, kept: int) -> samplers.Settings:
        half = total // 2
        return samplers.Settings(half if mixed else total, total - half if mixed else total, total, kept)

    found = [Case(name, settings(num_samples, name == "mixed", 1)) for name in names if name in PROPOSING]
    return found + [
        Case(name, settings(pool, name == "adaptive_mixed", kept))
        for name in names
        if name in CHOOSING
        for kept in (5, num_samples)
    ]


def fixed(proposal: samplers.Proposal) -> samplers.Proposal:
    """A proposal whose tables are its candidates."""
    return proposal._replace(sample=lambda key, candidates, batch: candidates)


def first_candidates(num_kept: int) -> Callable:
    """A selector that chooses nothing: the first K, of scores that are all computed."""

    def select(key, negatives: Negatives, positive_scores) -> Negatives:
        scores = jax.lax.optimization_barrier(negatives.scores)
        return Negatives(*(part[..., :num_kept] for part in negatives._replace(scores=scores)))

    return select


def draw_once(method: samplers.Method, tables, dataset, world: World):
    """One batch's candidates."""
    objective = world.model.objective
    window = data.draw_users(
        jax.random.key(1),
        dataset,
        batch_size=world.batch_size,
        length=world.model.max_len + objective.extra,
        num_items=world.prepared.num_items,
        history_size=data.longest_history(dataset),
    )
    batch = Batch(*objective.make(jax.random.key(3), window.items), *window[1:])
    return jax.jit(method.proposal.sample)(jax.random.key(2), tables, batch)


def compiled(method: samplers.Method, tables, dataset, world: World) -> Callable[[], float]:
    """A call that makes `num_steps` training steps, and returns the seconds that one took."""
    adam, num_items = adam_lib.adam(), world.prepared.num_items
    step = training.Step(
        model=world.model,
        method=method,
        loss=losses.make("bce", num_items),
        optimizer=adam,
        batch_size=world.batch_size,
        num_items=num_items,
        history_size=data.longest_history(dataset),
    )
    sizes = {"num_items": num_items, "num_users": world.prepared.num_users}
    init = functools.partial(training.init_state, model=world.model, optimizer=adam, **sizes)
    hyper = training.HyperParams(*(np.full(1, value, np.float32) for value in (1e-3, 0.2, 1.0)))
    states = jax.vmap(init)(jax.random.split(jax.random.key(0), 1), hyper)
    options = mesh_lib.compiler_options(jax.default_backend())
    advance = jax.jit(functools.partial(training_loop.run_steps, step), compiler_options=options)

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(advance(np.int32(world.num_steps), states, tables, dataset))
        return (time.perf_counter() - start) / world.num_steps

    run()
    return run


def pair(case: Case, world: World) -> tuple[Callable, Callable]:
    """The method's own step, and the same step without what it adds."""
    method = samplers.make(case.method, world.prepared.num_items, case.settings)
    dataset = data.training_set(world.prepared)
    counts = data.target_counts(dataset, world.model.max_len, world.prepared.num_items)
    dataset = jax.tree.map(jnp.asarray, dataset)
    tables = jax.device_put(method.proposal.init(np.asarray(world.prepared.item_counts), counts))
    own = compiled(method, tables, dataset, world)
    if case.method in CHOOSING:
        return own, compiled(method._replace(selector=first_candidates(method.num_kept)), tables, dataset, world)
    candidates = draw_once(method, tables, dataset, world)
    return own, compiled(method._replace(proposal=fixed(method.proposal)), candidates, dataset, world)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"items": 3000, "batch": 128, "width": 50, "samples": 50, "pool": 100, "steps": 5, "repeats": 7}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--methods", nargs="+", default=[*PROPOSING, *CHOOSING], choices=[*PROPOSING, *CHOOSING])
    options = parser.parse_args()
    frame = synthetic.generate(USERS * ROWS_PER_USER, USERS, options.items, seed=0)
    arrays, meta = prepare.prepare_frame(frame)
    prepared = data.Prepared(**{name: arrays[name] for name in data.Prepared._fields if name != "meta"}, meta=meta)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {prepared.num_items} items, {vars(options)}")
    print("| method | L | ms per step | ms without | x | its share of the step |")
    print("|---|---|---|---|---|---|")
    for length in options.lengths:
        model = sasrec.make(sasrec.Settings(options.width, max_len=length), prepared.num_items)
        world = World(prepared, model, options.batch, options.steps)
        for case in cases(options.methods, options.samples, options.pool):
            own, rival = pair(case, world)
            seconds = [(own(), rival()) for _ in range(options.repeats)]
            mine, theirs = (1e3 * statistics.median(column) for column in zip(*seconds, strict=True))
            ratio = statistics.median(one / other for one, other in seconds)
            told = f"{mine:.1f} | {theirs:.1f} | {ratio:.2f} | {1 - 1 / ratio:.0%}"
            print(f"| {case.name} | {length} | {told} |", flush=True)


if __name__ == "__main__":
    main()
