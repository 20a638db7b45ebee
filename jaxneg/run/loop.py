"""Trains the seeds of a run to their last epoch: dispatches, evaluations, checkpoints, signals."""

import json
import sys
import time
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxneg import files, settings
from jaxneg.devices import hosts
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.evaluation import rows as results
from jaxneg.run import checkpoint, outputs, signals, steps, workdir
from jaxneg.run import config as config_lib
from jaxneg.run.checkpoint import Progress
from jaxneg.run.inputs import SPLITS
from jaxneg.run.programs import Plan
from jaxneg.training import step as training

DISPATCH_SECONDS = 2.0  # about how long a device program trains before the host looks at signals and clocks again


def train_seeds(plan: Plan, record: dict) -> tuple[Progress, np.ndarray]:
    """Trains the plan's seeds to the last epoch, evaluating as it goes; picks up from the newest sound checkpoint.

    Returns: the progress, and failed_step [S]. Raises signals.Stopped, after saving, and InputError.
    """
    there = workdir.checkpoint_folder(plan.folder, plan.seeds)
    checkpoints = checkpoint.Checkpoints(there, plan.config.checkpoint_seconds)
    about = checkpoint_record(plan, record)
    state, progress = resume(plan, checkpoints, about)
    metrics = plan.folder / "metrics.jsonl"
    hosts.on_first(
        lambda: files.keep_rows(
            metrics, lambda row: row["seed"] not in plan.seeds or row["step"] <= progress.evaluated_step
        )
    )
    step, collapsed = int(seeds_own(plan, state.step)[0]), set()
    first = step

    def save():
        checkpoints.save(step, (mesh_lib.stored(plan.layout, state), progress), about)

    def stop(number):
        save()
        checkpoints.close()
        where = f" after step {step:,} of {plan.last_step:,}; it is saved, and the same command goes on from there"
        raise signals.Stopped(number, where)

    with (
        closing(steps.Feed(plan, state, first)) as feed,
        signals.noted() as received,
        tqdm(
            total=plan.last_step,
            initial=step,
            unit="step",
            desc=describe(plan),
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,
            disable=not hosts.is_first(),
        ) as bar,
    ):
        count = 1
        for epoch in steps.evaluation_epochs(plan.config):
            until = epoch * plan.steps_per_epoch
            while step < until:
                start, before = time.perf_counter(), step
                state, step = steps.dispatch(plan, state, feed, step, until, count)
                count = step - before
                told = loss_in_words(plan, state, step - progress.evaluated_step)
                seconds = time.perf_counter() - start
                progress = progress._replace(train_seconds=progress.train_seconds + seconds)
                rate = count * plan.config.batch_size * len(plan.seeds) / seconds
                bar.set_postfix_str(f"epoch {step // plan.steps_per_epoch}, {told}, {rate:,.0f} seq/s", refresh=False)
                bar.update(count)
                if step == first + count:
                    bar.refresh()  # at once, also where the bar is drawn every 30 s only: it has begun
                most = plan.config.steps_per_dispatch or max(1, int(DISPATCH_SECONDS * count / seconds))
                number, is_due, count = hosts.agreed(
                    received[0] if received else 0, checkpoints.due(), min(most, 2 * count)
                )
                if number:
                    stop(number)
                if is_due:
                    save()
            if progress.evaluated_step < until:
                heard = received if jax.process_count() == 1 else []  # several hosts stop together, after a dispatch
                evaluated = evaluate_seeds(plan, epoch, state, progress, heard)
                if evaluated is None:
                    stop(received[0])
                state, progress, rows = evaluated
                if hosts.is_first():
                    warn_of_collapse(rows, collapsed)
            if np.all(seeds_own(plan, state.failed_step) != training.NOT_FAILED):
                break
        save()
        checkpoints.close()
    if hosts.is_first():
        tell_of_checkpoints(checkpoints, progress)
    return progress, seeds_own(plan, state.failed_step)


def seeds_own(plan: Plan, values: jax.Array) -> np.ndarray:
    """Values with a seed axis, [num_seeds, ...], on the host. Waits for the device."""
    return np.asarray(mesh_lib.take(plan.layout, values))


def loss_in_words(plan: Plan, state: training.TrainState, num_steps: int) -> str:
    """The mean loss of the seeds that are well, and how many are not. Waits for the device."""
    failed = seeds_own(plan, state.failed_step) != training.NOT_FAILED
    losses_of_seeds = seeds_own(plan, state.loss_sum)[~failed] / num_steps
    told = f"loss {losses_of_seeds.mean():.4f}" if len(losses_of_seeds) else "no loss"
    return f"{told}, {failed.sum()} failed" if failed.any() else told


def warn_of_collapse(rows: list[dict], collapsed: set[int]) -> None:
    """One line on stderr for each seed that newly shows a collapse to popularity; `collapsed` keeps their numbers."""
    for seed in sorted({row["seed"] for row in rows}):
        cohorts = {row["cohort"]: row for row in rows if (row["seed"], row["split"]) == (seed, "valid")}
        everything = cohorts["all"] | {f"{name}_hr@10": cohorts[name]["hr@10"] for name in results.COHORTS}
        reason = results.collapse(everything)
        if reason and seed not in collapsed:
            tqdm.write(
                f"jaxneg: seed {seed}, epoch {everything['epoch']}: this looks like a collapse to popularity: "
                f"{reason} (validation)",
                file=sys.stderr,
            )
        collapsed.add(seed) if reason else collapsed.discard(seed)


def tell_of_checkpoints(checkpoints: checkpoint.Checkpoints, progress: Progress) -> None:
    """What saving has cost this process, beside what the whole run took."""
    whole = progress.train_seconds + progress.eval_seconds
    print(
        f"jaxneg: {checkpoints.count} checkpoints in {checkpoints.seconds:.1f} s, in the background; training and "
        f"evaluation took {whole:.1f} s",
        file=sys.stderr,
    )


def describe(plan: Plan) -> str:
    """What the progress bar is headed by."""
    method, seeds, number = config_lib.label(plan.config), plan.seeds, plan.config.num_seeds
    return method if len(seeds) == number else f"{method}, seeds {seeds.start} to {seeds.stop - 1} of {number}"


def checkpoint_record(plan: Plan, record: dict) -> dict:
    """What a checkpoint belongs to: it is refused by a run of which this differs."""
    free = (*settings.FREE, *workdir.GROWING_SETTINGS)
    own = {name: value for name, value in workdir.plain_settings(record["config"]).items() if name not in free}
    return json.loads(json.dumps({"config": own, "data": record["data"], "seeds": [plan.seeds.start, plan.seeds.stop]}))


def resume(plan: Plan, checkpoints: checkpoint.Checkpoints, about: dict) -> tuple[training.TrainState, Progress]:
    """The state and progress of the newest sound checkpoint, or those of a run that begins. Raises InputError."""
    layout, num_cases = plan.layout, len(plan.splits["test"].cold)
    keys = mesh_lib.seed_keys(layout, plan.config.seed, plan.seeds.start)
    state = plan.programs.init(keys, mesh_lib.repeat(layout, plan.hyper))
    ranks = np.zeros((layout.num_seeds, num_cases), np.int32)
    # Of the shapes only: the first evaluation improves on every seed's -1, and puts the weights here.
    like = mesh_lib.shapes_of_taken(layout, (plan.programs.weights(state.params), state))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like[0])
    progress = Progress(0, np.full(layout.num_seeds, -1.0), ranks, ranks, params, 0.0, 0.0)
    stored = checkpoints.restore((like[1], progress))
    if stored is None:
        return state, progress
    (old_state, progress), theirs = stored
    if "config" in theirs:  # one of an older version lacks the fields that came later
        theirs |= {"config": {name: theirs["config"].get(name, value) for name, value in about["config"].items()}}
    if theirs != about:
        names = [name for name in about if theirs.get(name) != about[name]]
        raise InputError(
            f"{checkpoints.folder} holds checkpoints of another run (its {' and '.join(names)} differ): "
            "name another --workdir"
        )
    state = mesh_lib.fill(layout, old_state, like=state)
    progress = jax.tree.map(lambda leaf: leaf if leaf.ndim else leaf.item(), progress)
    if hosts.is_first():
        told = f"resuming after step {int(seeds_own(plan, state.step)[0]):,} of {plan.last_step:,}"
        print(f"jaxneg: {told}", file=sys.stderr)
    return state, progress


def evaluate_seeds(plan: Plan, epoch: int, state: training.TrainState, progress: Progress, received: list):
    """Evaluates both splits for all seeds, appends their rows; keeps ranks and weights of the seeds that improved.

    Returns: (state, progress, rows), or None if a signal came first.
    """
    start, step = time.perf_counter(), epoch * plan.steps_per_epoch
    weights = plan.programs.weights(state.params)
    computed = {split: plan.programs.evaluate(weights, plan.history_rows, plan.splits[split].cases) for split in SPLITS}
    if not computed_before(computed, received):
        return None
    ranked = {split: [seeds_own(plan, part) for part in parts] for split, parts in computed.items()}
    failed = seeds_own(plan, state.failed_step) != training.NOT_FAILED
    loss = np.where(failed, np.nan, seeds_own(plan, state.loss_sum) / (step - progress.evaluated_step))
    rows, best = [], progress.best_valid.copy()
    num_above, num_tied = progress.num_above.copy(), progress.num_tied.copy()
    for index, seed in enumerate(plan.seeds):
        for split in SPLITS:
            one = [part[index] for part in ranked[split]]
            where = {"epoch": epoch, "step": step, "seed": seed, "extra": {"loss": float(loss[index])}}
            rows += outputs.split_rows(plan.config, plan.splits[split], split, one, plan.item_counts, **where)
        valid = next(row for row in rows if (row["seed"], row["split"], row["cohort"]) == (seed, "valid", "all"))
        if valid["hr@10"] > best[index]:
            best[index] = valid["hr@10"]
            place = plan.splits["test"].place
            num_above[index], num_tied[index] = (part[index, place] for part in ranked["test"][:2])
    improved = best > progress.best_valid
    best_params = progress.best_params
    if improved.any():
        params = jax.device_get(mesh_lib.take(plan.layout, weights))
        if improved.all():  # no third copy of a large table
            best_params = params
        else:
            best_params = jax.tree.map(
                lambda new, old: np.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old), params, best_params
            )
    if hosts.is_first():
        files.append_rows(plan.folder / "metrics.jsonl", rows)
    seconds = progress.eval_seconds + time.perf_counter() - start
    state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
    progress = progress._replace(
        evaluated_step=step,
        best_valid=best,
        num_above=num_above,
        num_tied=num_tied,
        best_params=best_params,
        eval_seconds=seconds,
    )
    return state, progress, rows


def computed_before(arrays, received: list) -> bool:
    """Waits until the arrays are computed, and returns True; or until a signal is received."""
    leaves = jax.tree.leaves(arrays)
    while not all(leaf.is_ready() for leaf in leaves):
        if received:
            return False
        time.sleep(0.002)
    return True
