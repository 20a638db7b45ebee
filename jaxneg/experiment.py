"""One run, from the raw file to the results table: the host loop, and the one place that does I/O while training."""

import contextlib
import itertools
import json
import pathlib
import sys
import time
from contextlib import closing
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax.traverse_util import flatten_dict
from tqdm import tqdm

from jaxneg import checkpoint, evaluate, hosts, parallel, results, run_folder, signals, train, writer
from jaxneg import config as config_lib
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.errors import InputError
from jaxneg.plan import Plan, drawn_from, fitting_plan, with_item_table
from jaxneg.run_data import SPLITS, Split, make_splits, max_history, rank_hidden

DISPATCH_SECONDS = 2.0  # about how long a device program trains before the host looks at signals and clocks again


class Progress(NamedTuple):
    """How far a run is; with the training state, all that a checkpoint holds."""

    evaluated_step: int  # the step of the last evaluation, 0 before the first
    best_valid: np.ndarray  # [S] best validation HR@10 so far
    num_above: np.ndarray  # [S, C] of the test cases at each seed's best epoch
    num_tied: np.ndarray  # [S, C]
    best_params: dict  # [S, ...] the weights at each seed's best epoch, on the host
    train_seconds: float
    eval_seconds: float


def run(
    config, workdir: str | pathlib.Path, extend: bool = False, join_hosts: dict | None = None
) -> pathlib.Path:
    """Prepares the data, trains and evaluates all seeds, writes the files, prints the table.

    The same command goes on where a run was killed, and only prints the table where it is complete. `extend` accepts
    more epochs or seeds than the folder's run began with, and other versions of the packages. `join_hosts` makes this
    process one of several (see `hosts.Hosts`), which all call this; the first of them writes the files.

    Returns: the path of results.csv.
    Raises:
      InputError: what the user can mend; nothing half-written is left behind.
      signals.Stopped: SIGTERM or SIGINT came; what was trained is saved.
    """
    config = config_lib.resolve(config)
    if join_hosts is not None:
        hosts.join(hosts.Hosts(**join_hosts))
    with signals.raised(), hosts.losses_told(), contextlib.ExitStack() as until_done:
        folder = hosts.from_first(lambda: str(until_done.enter_context(writer.claimed(workdir))))
        folder = pathlib.Path(folder)
        prepared = data.load(find_data(config), verify=hosts.is_first())
        config = with_item_table(config, prepared.num_items)
        record = run_folder.config_record(config, prepared)
        changed = hosts.from_first(lambda: run_folder.compare_record(folder, record, extend))
        chunks = run_folder.pending_chunks(config, folder)
        while seeds := hosts.from_first(lambda: [[seeds.start, seeds.stop] for seeds in itertools.islice(chunks, 1)]):
            hosts.from_first(lambda: run_folder.refuse_versions(folder, changed, extend))
            plan = fitting_plan(config, folder, prepared, range(*seeds[0]))
            hosts.from_first(lambda plan=plan: begin_folder(plan, prepared, record))
            trained = train_seeds(plan, record)
            hosts.from_first(lambda plan=plan, trained=trained: write_results(plan, prepared, *trained))
        if hosts.is_first():
            print_results(folder)
    return folder / "results.csv"


def begin_folder(plan: Plan, prepared: data.Prepared, record: dict) -> None:
    """What a run's folder holds before its seeds are trained."""
    folder = plan.folder
    writer.write_json(folder / "config.json", run_folder.updated_record(folder, record))
    writer.write_arrays(folder / "items.npz", count=plan.item_counts, cohort=np.asarray(prepared.item_cohorts))


def print_results(folder: pathlib.Path) -> None:
    """The results table, and what else there is to read."""
    tables = [results.read_results(folder / name) for name in ("baselines.csv", "results.csv")]
    print(results.results_table(pd.concat(tables)))
    print(f"files: {folder}/results.csv, baselines.csv, metrics.jsonl, cases.npz, model.npz, items.npz, config.json")


def find_data(config) -> pathlib.Path:
    """`prepare_data`, of several hosts by the first one; another one that does not see its folder makes its own."""
    folder = pathlib.Path(hosts.from_first(lambda: str(prepare_data(config))))
    return folder if folder.is_dir() else prepare_data(config)


def prepare_data(config) -> pathlib.Path:
    """The prepared folder of the config's data: made, or found in the cache. Raises InputError."""
    source = config.data
    settings = prepare.PrepareSettings(**{name: source[name] for name in prepare.PrepareSettings._fields})
    cache_dir = source.cache_dir or None
    if source.format == "synthetic":
        made = synthetic.SyntheticSettings(**source.synthetic)
        return synthetic.prepare_synthetic(made, settings, cache_dir=cache_dir, name=config.dataset)
    if not source.path:
        raise InputError("config.data.path is empty: name the raw file, as in --config.data.path=PATH/ratings.dat")
    columns = (source.user_column, source.item_column, source.time_column)
    return prepare.prepare(
        source.path, settings, format=source.format, columns=columns, member=source.member,
        cache_dir=cache_dir, name=config.dataset,
    )  # fmt: skip


def rank_baselines(plan: Plan, prepared: data.Prepared) -> list[dict]:
    """One results row for each ranking by popularity: over the whole training part, and over its last days."""
    recent = f"popularity_last_{plan.config.data.recent_days:g}_days"
    counted = {"popularity_baseline": prepared.item_counts, recent: prepared.recent_counts}
    config, ks = plan.config, tuple(plan.config.eval.ks)
    splits = make_splits(prepared, config.eval.rolling_history, config.eval.max_users)
    seen = max_history(prepared, config.eval.rolling_history) if config.eval.filter_seen else 0
    chunks = evaluate.choose_chunks(prepared.num_items, 1, 1, config.eval.memory_mb * 2**20)
    rank = jax.jit(lambda table, items, cases: rank_hidden(
        jnp.ones((cases.history_start.shape[0], 1)), table, items, cases, ks, chunks, seen),
        compiler_options=parallel.compiler_options(jax.default_backend(), "once"))  # fmt: skip
    items = np.asarray(prepared.items) if seen else np.zeros(1, np.int32)
    rows = []
    for name, counts in counted.items():
        start, table = time.perf_counter(), evaluate.baseline_table(np.asarray(counts))
        ranked = {split: jax.device_get(rank(table, items, splits[split].cases)) for split in SPLITS}
        rows.append(baseline_row(plan, name, splits, ranked, time.perf_counter() - start))
    return rows


def baseline_row(plan: Plan, name: str, splits: dict[str, Split], ranked: dict, eval_seconds: float) -> dict:
    """One results row of a ranking that was not trained."""
    rows = [split_rows(plan.config, splits[split], split, ranked[split], plan.item_counts, epoch=0, step=0, seed=0)
            for split in SPLITS]  # fmt: skip
    seconds = {"eval_seconds": eval_seconds}
    config = plan.config
    return results.result_row(*rows, dataset=config.dataset, method=name, status="ok", train_seconds=0.0, extra=seconds)


def split_rows(config, split: Split, name: str, ranked, item_counts: np.ndarray, **where) -> list[dict]:
    """The rows of one evaluation of one seed on one split, one per cohort."""
    num_above, num_tied, exposure = ranked
    return results.evaluation_rows(
        num_above[split.place], num_tied[split.place], split.cohorts, split.cold, exposure[:, : len(item_counts)],
        item_counts, ks=tuple(config.eval.ks), split=name, reference=config.eval.empty_balance == 1,
        opauc_betas=tuple(config.eval.opauc_betas), **where,
    )  # fmt: skip


def train_seeds(plan: Plan, record: dict) -> tuple[Progress, np.ndarray]:
    """Trains the plan's seeds to the last epoch, evaluating as it goes; picks up from the newest sound checkpoint.

    Returns: the progress, and failed_step [S]. Raises signals.Stopped, after saving, and InputError.
    """
    there = run_folder.checkpoint_folder(plan.folder, plan.seeds)
    checkpoints = checkpoint.Checkpoints(there, plan.config.checkpoint_seconds)
    about = checkpoint_record(plan, record)
    state, progress = resume(plan, checkpoints, about)
    metrics = plan.folder / "metrics.jsonl"
    hosts.from_first(lambda: writer.keep_rows(
        metrics, lambda row: row["seed"] not in plan.seeds or row["step"] <= progress.evaluated_step))
    step, collapsed = int(seeds_own(plan, state.step)[0]), set()
    first = step

    def save():
        checkpoints.save(step, (parallel.stored(plan.layout, state), progress), about)

    def stop(number):
        save()
        checkpoints.close()
        where = f" after step {step:,} of {plan.last_step:,}; it is saved, and the same command goes on from there"
        raise signals.Stopped(number, where)

    with closing(drawn_from(plan, state, first)) as sources, signals.noted() as received, tqdm(
        total=plan.last_step, initial=step, unit="step", desc=describe(plan), dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30, disable=not hosts.is_first(),
    ) as bar:  # fmt: skip
        count, held = 1, first
        for epoch in evaluation_epochs(plan.config):
            until = epoch * plan.steps_per_epoch
            while step < until:
                start = time.perf_counter()
                if step == held:
                    held, source = next(sources)
                count = min(count, until - step, held - step)
                state = advance(plan, count, state, source)
                step += count
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
                    received[0] if received else 0, checkpoints.due(), min(most, 2 * count))
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
            if np.all(seeds_own(plan, state.failed_step) != train.NOT_FAILED):
                break
        save()
        checkpoints.close()
    if hosts.is_first():
        tell_of_checkpoints(checkpoints, progress)
    return progress, seeds_own(plan, state.failed_step)


def seeds_own(plan: Plan, values: jax.Array) -> np.ndarray:
    """Values with a seed axis, [num_seeds, ...], on the host. Waits for the device."""
    return np.asarray(parallel.take(plan.layout, values))


def advance(plan: Plan, count: int, state: train.TrainState, source) -> train.TrainState:
    """`count` steps of all seeds, from what `plan.drawn_from` gave for them.

    With `debug`, raises InputError naming the operation whose result is not a number.
    """
    try:
        return plan.programs.advance(np.int32(count), state, plan.tables, source)
    except FloatingPointError as error:
        raise InputError(f"config.debug: {error}") from error


def loss_in_words(plan: Plan, state: train.TrainState, num_steps: int) -> str:
    """The mean loss of the seeds that are well, and how many are not. Waits for the device."""
    failed = seeds_own(plan, state.failed_step) != train.NOT_FAILED
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
            tqdm.write(f"jaxneg: seed {seed}, epoch {everything['epoch']}: this looks like a collapse to popularity: "
                       f"{reason} (validation)", file=sys.stderr)  # fmt: skip
        collapsed.add(seed) if reason else collapsed.discard(seed)


def tell_of_checkpoints(checkpoints: checkpoint.Checkpoints, progress: Progress) -> None:
    """What saving has cost this process, beside what the whole run took."""
    whole = progress.train_seconds + progress.eval_seconds
    print(f"jaxneg: {checkpoints.count} checkpoints in {checkpoints.seconds:.1f} s, in the background; training and "
          f"evaluation took {whole:.1f} s", file=sys.stderr)  # fmt: skip


def describe(plan: Plan) -> str:
    """What the progress bar is headed by."""
    method, seeds, number = plan.config.method, plan.seeds, plan.config.num_seeds
    return method if len(seeds) == number else f"{method}, seeds {seeds.start} to {seeds.stop - 1} of {number}"


def evaluation_epochs(config) -> list[int]:
    """Every `eval_every` epochs, and after the last one."""
    return sorted({*range(config.eval_every, config.num_epochs, config.eval_every), config.num_epochs})


def checkpoint_record(plan: Plan, record: dict) -> dict:
    """What a checkpoint belongs to: it is refused by a run of which this differs."""
    free = (*run_folder.FREE_SETTINGS, *run_folder.GROWING_SETTINGS)
    settings = {name: value for name, value in record["config"].items() if name not in free}
    return json.loads(json.dumps({"config": settings, "data": record["data"],
                                  "seeds": [plan.seeds.start, plan.seeds.stop]}))  # fmt: skip


def resume(plan: Plan, checkpoints: checkpoint.Checkpoints, about: dict) -> tuple[train.TrainState, Progress]:
    """The state and progress of the newest sound checkpoint, or those of a run that begins. Raises InputError."""
    layout, num_cases = plan.layout, len(plan.splits["test"].cold)
    keys = parallel.seed_keys(layout, plan.config.seed, plan.seeds.start)
    state = plan.programs.init(keys, parallel.repeat(layout, plan.hyper))
    ranks = np.zeros((layout.num_seeds, num_cases), np.int32)
    # Of the shapes only: the first evaluation improves on every seed's -1, and puts the weights here.
    like = parallel.shapes_of_taken(layout, (plan.programs.weights(state.params), state))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like[0])
    progress = Progress(0, np.full(layout.num_seeds, -1.0), ranks, ranks, params, 0.0, 0.0)
    stored = checkpoints.restore((like[1], progress))
    if stored is None:
        return state, progress
    (old_state, progress), theirs = stored
    if theirs != about:
        names = [name for name in about if theirs.get(name) != about[name]]
        raise InputError(f"{checkpoints.folder} holds checkpoints of another run (its {' and '.join(names)} differ): "
                         "name another --workdir")  # fmt: skip
    state = parallel.fill(layout, old_state, like=state)
    progress = jax.tree.map(lambda leaf: leaf if leaf.ndim else leaf.item(), progress)
    if hosts.is_first():
        told = f"resuming after step {int(seeds_own(plan, state.step)[0]):,} of {plan.last_step:,}"
        print(f"jaxneg: {told}", file=sys.stderr)
    return state, progress


def evaluate_seeds(plan: Plan, epoch: int, state: train.TrainState, progress: Progress, received: list):
    """Evaluates both splits for all seeds, appends their rows; keeps ranks and weights of the seeds that improved.

    Returns: (state, progress, rows), or None if a signal came first.
    """
    start, step = time.perf_counter(), epoch * plan.steps_per_epoch
    weights = plan.programs.weights(state.params)
    computed = {split: plan.programs.evaluate(weights, plan.items, plan.splits[split].cases)
                for split in SPLITS}  # fmt: skip
    if not computed_before(computed, received):
        return None
    ranked = {split: [seeds_own(plan, part) for part in parts] for split, parts in computed.items()}
    failed = seeds_own(plan, state.failed_step) != train.NOT_FAILED
    loss = np.where(failed, np.nan, seeds_own(plan, state.loss_sum) / (step - progress.evaluated_step))
    rows, best = [], progress.best_valid.copy()
    num_above, num_tied = progress.num_above.copy(), progress.num_tied.copy()
    for index, seed in enumerate(plan.seeds):
        for split in SPLITS:
            one = [part[index] for part in ranked[split]]
            where = {"epoch": epoch, "step": step, "seed": seed, "extra": {"loss": float(loss[index])}}
            rows += split_rows(plan.config, plan.splits[split], split, one, plan.item_counts, **where)
        valid = next(row for row in rows if (row["seed"], row["split"], row["cohort"]) == (seed, "valid", "all"))
        if valid["hr@10"] > best[index]:
            best[index] = valid["hr@10"]
            place = plan.splits["test"].place
            num_above[index], num_tied[index] = (part[index, place] for part in ranked["test"][:2])
    improved = best > progress.best_valid
    best_params = progress.best_params
    if improved.any():
        params = jax.device_get(parallel.take(plan.layout, weights))
        if improved.all():  # no third copy of a large table
            best_params = params
        else:
            best_params = jax.tree.map(
                lambda new, old: np.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old), params, best_params)
    if hosts.is_first():
        writer.append_rows(plan.folder / "metrics.jsonl", rows)
    seconds = progress.eval_seconds + time.perf_counter() - start
    state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
    progress = progress._replace(evaluated_step=step, best_valid=best, num_above=num_above, num_tied=num_tied,
                                 best_params=best_params, eval_seconds=seconds)  # fmt: skip
    return state, progress, rows


def computed_before(arrays, received: list) -> bool:
    """Waits until the arrays are computed, and returns True; or until a signal is received."""
    leaves = jax.tree.leaves(arrays)
    while not all(leaf.is_ready() for leaf in leaves):
        if received:
            return False
        time.sleep(0.002)
    return True


def write_results(plan: Plan, prepared: data.Prepared, progress: Progress, failed_step: np.ndarray) -> None:
    """Joins the seeds' ranks, weights and rows to those that the folder has: cases.npz, model.npz, results.csv.

    In this order, after the baselines' rows, and each file whole, because results.csv marks its seeds as done.
    """
    config, folder, seeds = plan.config, plan.folder, np.array(plan.seeds)
    if not (folder / "baselines.csv").exists():
        writer.write_csv(folder / "baselines.csv", rank_baselines(plan, prepared))
    metrics = [row for row in writer.read_rows(folder / "metrics.jsonl") if row["seed"] in plan.seeds]
    rows = [seed_row(config, [row for row in metrics if row["seed"] == seed], progress, int(failed))
            for seed, failed in zip(plan.seeds, failed_step, strict=True)]  # fmt: skip
    test = plan.splits["test"]
    of_cases = {"user": test.users, "item": test.targets, "cohort": test.cohorts}
    ranks = {"num_above": progress.num_above, "num_tied": progress.num_tied}
    joined = run_folder.join_seeds(folder / "cases.npz", seeds, ranks)
    writer.write_arrays(folder / "cases.npz", **of_cases, **joined)
    joined = run_folder.join_seeds(folder / "model.npz", seeds, flatten_dict(progress.best_params, sep="/"))
    writer.write_arrays(folder / "model.npz", **joined)
    if (folder / "results.csv").exists():
        others = results.read_results(folder / "results.csv")
        rows = [row for row in others.to_dict("records") if row["seed"] not in plan.seeds] + rows
    writer.write_csv(folder / "results.csv", sorted(rows, key=lambda row: row["seed"]))


def seed_row(config, metrics: list[dict], progress: Progress, failed_step: int) -> dict:
    """One seed's row of results.csv, from all its rows of metrics.jsonl."""
    overall = [row for row in metrics if (row["split"], row["cohort"]) == ("valid", "all")]
    best = overall[results.best_evaluation([row["hr@10"] for row in overall])]
    at_best = [row for row in metrics if row["epoch"] == best["epoch"]]
    valid, test = ([row for row in at_best if row["split"] == split] for split in SPLITS)
    failed = failed_step != train.NOT_FAILED
    return results.result_row(
        valid, test, dataset=config.dataset, method=config_lib.label(config), status="failed" if failed else "ok",
        train_seconds=progress.train_seconds / len(progress.best_valid),
        extra={"eval_seconds": progress.eval_seconds / len(progress.best_valid),
               "failed_step": failed_step if failed else None},
    )  # fmt: skip
