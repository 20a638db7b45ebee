"""How much memory a run needs, and how many of its seeds fit together."""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxneg.data import dataset as data
from jaxneg.data import stream
from jaxneg.devices import hosts, memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.run import inputs as run_inputs
from jaxneg.run import programs as plan_lib
from jaxneg.run import workdir
from jaxneg.run.programs import Plan

MEMORY_SHARE = 0.9  # of what is free, for a chunk of seeds that is chosen to fit


class Needed(NamedTuple):
    """Bytes that a plan's programs need at once on each device."""

    shared: int  # data and tables, once for all seeds
    states: int  # weights and moments of the seeds
    training: int  # all that is alive in a training step
    evaluation: int

    @property
    def total(self) -> int:
        return max(self.training, self.evaluation)

    def advice(self, num_seeds: int) -> str:
        """The settings to lower, the best first."""
        if num_seeds > 1:
            return "config.seeds_per_chunk or config.num_seeds"
        if self.states > self.total / 4:
            return "config.model.width, or keep fewer items by config.data.min_item_rows"
        if self.evaluation > self.training:
            return "config.eval.memory_mb"
        return "config.batch_size, config.model.max_len, or the numbers of negatives under config.sampler"


def fitting_plan(config, folder: pathlib.Path, prepared: data.Prepared, seeds: range) -> Plan:
    """The plan for these seeds, or for as many of them, from the first on, as fit in memory.

    Says what is needed before anything is compiled. Seeds that were begun together are not parted.
    Raises InputError where not even these fit, with the setting to lower.
    """
    begun = hosts.on_first(lambda: workdir.checkpoint_folder(folder, seeds).exists())
    number = len(seeds) if begun else min(len(seeds), config.seeds_per_chunk or len(seeds))
    plan = plan_lib.make_plan(config, folder, prepared, seeds[:number])
    if config.debug:
        return plan_lib.on_devices(plan)
    needed, there = needed_bytes(plan), run_inputs.available_bytes(plan.layout)
    if there is not None and needed.total > there and number > 1 and not begun and not config.seeds_per_chunk:
        plan = plan_lib.make_plan(config, folder, prepared, seeds[: fitting_seeds(plan, needed, there, prepared)])
        needed, there = needed_bytes(plan), run_inputs.available_bytes(plan.layout)
    told = needed_in_words(plan, needed, there)
    if there is not None and needed.total > there:
        raise InputError(f"{told}: lower {needed.advice(len(plan.seeds))}")
    if hosts.is_first():
        print(f"jaxneg: {told}", file=sys.stderr)
    advance = mesh_lib.compiled_ahead(plan.programs.advance, traced_advance(plan))
    return plan_lib.on_devices(plan._replace(programs=plan.programs._replace(advance=advance)))


def fitting_seeds(plan: Plan, needed: Needed, there: int, prepared: data.Prepared) -> int:
    """How many of a plan's seeds fit: what it needs, and what one seed on each device does, tell what another adds."""
    groups, each = plan.layout.mesh.shape["seed"], plan.layout.seeds_per_device
    if each == 1:
        return 1
    of_one = needed_bytes(plan_lib.make_plan(plan.config, plan.folder, prepared, plan.seeds[:groups])).total
    more = (MEMORY_SHARE * there - of_one) * (each - 1) / max(1, needed.total - of_one)
    return groups * min(each - 1, 1 + max(0, int(more)))


def needed_bytes(plan: Plan) -> Needed:
    """What the plan's programs need, from their traced forms (see `memory.peak_bytes`)."""
    layout, cases = plan.layout, plan.splits["test"].cases
    state, source = plan_lib.state_shapes(layout, plan.programs.init), source_shapes(plan)
    copies = run_inputs.copies_on(layout)
    ahead = 0 if plan.stream is None else stream.AHEAD * mesh_lib.bytes_per_device(layout, source, mesh_lib.SEED)
    rank = mesh_lib.on_one_device(
        mesh_lib.traced(
            plan.programs.evaluate,
            layout,
            (mesh_lib.specs(state.params, mesh_lib.SEED), mesh_lib.specs(plan.history_rows), mesh_lib.DATA),
            jax.eval_shape(plan.programs.weights, state.params),
            plan.history_rows,
            cases,
        )
    )
    advance = mesh_lib.on_one_device(traced_advance(plan))
    states = mesh_lib.bytes_per_device(layout, state, mesh_lib.SEED)
    shared = mesh_lib.bytes_per_device(layout, (plan.dataset or plan.history_rows, plan.tables))
    return Needed(
        *(
            copies * number
            for number in (
                shared + mesh_lib.bytes_per_device(layout, cases, mesh_lib.DATA),
                states,
                memory.peak_bytes(advance, donated=True) + ahead,
                memory.peak_bytes(rank) + states + ahead,
            )
        )
    )


def traced_advance(plan: Plan) -> Any:
    """The program that trains, traced."""
    layout, state, source = plan.layout, plan_lib.state_shapes(plan.layout, plan.programs.init), source_shapes(plan)
    specs = (
        None,
        mesh_lib.specs(state, mesh_lib.SEED),
        mesh_lib.specs(plan.tables),
        mesh_lib.specs(source) if plan.stream is None else True,
    )
    return mesh_lib.traced(plan.programs.advance, layout, specs, np.int32(1), state, plan.tables, source)


def source_shapes(plan: Plan) -> Any:
    """What a step draws from, or its shapes."""
    return plan.dataset if plan.stream is None else stream.shapes(plan.stream)


def needed_in_words(plan: Plan, needed: Needed, there: int | None) -> str:
    """One line on memory."""
    number = f"{len(plan.seeds)} seeds together need" if len(plan.seeds) > 1 else "one seed needs"
    parts = [
        f"data {memory.in_words(needed.shared)}",
        f"weights and moments {memory.in_words(needed.states)}",
        f"a training step {memory.in_words(needed.training)} in all",
        f"an evaluation {memory.in_words(needed.evaluation)} in all",
    ]
    limit = f", of {memory.in_words(there)} that are free" if there is not None else ""
    return f"{number} about {memory.in_words(needed.total)} on each device{limit} ({', '.join(parts)})"
