"""One run, from the raw file to the results table: the host loop, and the one place that does I/O while training."""

import functools
import json
import math
import pathlib
import platform
import sys
import time
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax.traverse_util import flatten_dict
from tqdm import tqdm

import jaxneg
from jaxneg import checkpoint, evaluate, losses, optimizer, parallel, results, samplers, train, writer
from jaxneg import config as config_lib
from jaxneg.data import buckets, prepare, synthetic
from jaxneg.data import dataset as data
from jaxneg.errors import InputError
from jaxneg.models import sasrec
from jaxneg.types import Dataset, EvalCases

SPLITS = ("valid", "test")
BUCKET_OVERFLOW = 1e-3  # chance that a batch is too long for one of its buckets and has to be padded
FREE_SETTINGS = ("data.path", "data.cache_dir", "steps_per_dispatch", "eval.memory_mb")  # where or how, not what
CHECKPOINT_SECONDS = 5.0  # the least time between two saves; longer where a save itself takes long
CHECKPOINT_COST = 20  # time between saves, in times of what the last one took


class Split(NamedTuple):
    """What is evaluated: the cases on the device, and what the host knows of their targets."""

    cases: EvalCases
    cohorts: np.ndarray  # [C] 0 head, 1 mid, 2 tail
    cold: np.ndarray  # [C] never seen in training


class Programs(NamedTuple):
    """The compiled programs of a run, each for all seeds at once."""

    init: Any  # (keys, hyper) -> state
    advance: Any  # (number of steps, state, tables, dataset) -> state
    evaluate: Any  # (params, items, cases) -> num_above [C], num_tied [C], exposure [K, V+1]


class Plan(NamedTuple):
    """Everything about a run that does not change while it trains."""

    config: Any
    folder: pathlib.Path
    layout: parallel.Layout
    programs: Programs
    dataset: Dataset
    tables: Any
    splits: dict[str, Split]
    item_counts: np.ndarray
    hyper: train.Hyper
    steps_per_epoch: int

    @property
    def last_step(self) -> int:
        return self.config.num_epochs * self.steps_per_epoch


class Progress(NamedTuple):
    """How far a run is; with the training state, all that a checkpoint holds."""

    evaluated_step: int  # the step of the last evaluation, 0 before the first
    best_valid: np.ndarray  # [S] best validation HR@10 so far
    num_above: np.ndarray  # [S, C] of the test cases at each seed's best epoch
    num_tied: np.ndarray  # [S, C]
    best_params: dict  # [S, ...] the weights at each seed's best epoch, on the host
    metrics_bytes: int  # of metrics.jsonl: what is beyond them is written again after a resume
    train_seconds: float
    eval_seconds: float


def run(config, workdir: str | pathlib.Path) -> pathlib.Path:
    """Prepares the data, trains and evaluates all seeds, writes the files, prints the table.

    The same command goes on where a run was killed, and only prints the table where it is complete.

    Returns: the path of results.csv.
    Raises:
      InputError: what the user can mend; nothing half-written is left behind.
    """
    config = config_lib.resolve(config)
    with writer.claimed(workdir) as folder:
        prepared = data.load(prepare_data(config))
        plan = make_plan(config, folder, prepared)
        claim_config(plan, prepared)
    results_path = folder / "results.csv"
    if not results_path.exists():
        baselines = rank_baselines(plan, prepared)
        progress = train_seeds(plan)
        write_results(plan, prepared, baselines, progress)
    tables = [results.read_results(folder / name) for name in ("baselines.csv", "results.csv")]
    print(results.results_table(pd.concat(tables)))
    print(f"files: {folder}/results.csv, baselines.csv, metrics.jsonl, cases.npz, model.npz, items.npz, config.json")
    return results_path


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


def make_plan(config, folder: pathlib.Path, prepared: data.Prepared) -> Plan:
    """Puts the data on the devices and compiles nothing yet. Raises InputError."""
    num_items, ks = prepared.num_items, tuple(config.eval.ks)
    settings = samplers.Settings(**{name: config.sampler[name] for name in samplers.Settings._fields})
    method = samplers.make(config.method, num_items, settings)
    model = sasrec.SASRec(config.model.num_blocks, config.model.num_heads, config.model.width, config.model.max_len)
    dataset = data.training_set(prepared)
    targets = data.target_counts(dataset, model.max_len, num_items)
    tables = method.proposal.init(np.asarray(prepared.item_counts), targets)
    adam = optimizer.adam(
        config.optimizer.b1, config.optimizer.b2, config.optimizer.epsilon, config.optimizer.tensorflow_epsilon
    )
    steps_per_epoch = max(1, prepared.num_users // config.batch_size)
    unselected = method.num_candidates - method.num_kept if config.loss.keep_unselected else 0
    step = train.make_step(
        model=model,
        method=method,
        loss=functools.partial(losses.bce, num_unselected=unselected),
        optimizer=adam,
        batch_size=config.batch_size,
        num_items=num_items,
        history_size=data.longest_history(dataset),
        buckets=make_buckets(config, dataset),
        pool_size=None if math.isinf(config.osf) else max(1, math.floor(config.osf * steps_per_epoch)),
        count_pads=config.loss.count_pads,
    )
    layout = parallel.seed_layout(config.num_seeds)
    budget = config.eval.memory_mb * 2**20
    chunks = evaluate.choose_chunks(num_items, model.width, layout.seeds_per_device, budget)
    seen = max_history(prepared, config.eval.rolling_history) if config.eval.filter_seen else 0

    def init(key, hyper):
        return train.init_state(key, hyper, model=model, num_items=num_items, optimizer=adam)

    def rank(params, items, cases):
        encode = functools.partial(sasrec.encode, model, params)
        bounds = (cases.history_start, cases.history_end)
        hidden = evaluate.encode_histories(
            encode, items, *bounds, max_len=model.max_len, chunk_size=chunks.case_chunk
        )
        return rank_hidden(hidden, params["item_table"], items, cases, ks, chunks, seen)

    programs = Programs(
        init=parallel.over_seeds(init, layout, (True, True)),
        advance=parallel.over_devices(
            functools.partial(train.run_steps, step), layout, (False, True, False, False), donate=(1,)
        ),
        evaluate=parallel.over_seeds(rank, layout, (True, False, False)),
    )
    hyper = train.Hyper(
        learning_rate=np.float32(config.learning_rate),
        dropout=np.float32(config.model.dropout),
        negative_weight=np.float32(config.loss.negative_weight),
    )
    return Plan(
        config, folder, layout, programs, parallel.put_shared(layout, dataset), parallel.put_shared(layout, tables),
        {name: make_split(prepared, name, config.eval.rolling_history, layout) for name in SPLITS},
        np.asarray(prepared.item_counts), hyper, steps_per_epoch,
    )  # fmt: skip


def make_buckets(config, dataset: Dataset) -> tuple[buckets.Bucket, ...]:
    """How batches are cut so that few pads are computed; () where every sequence is to be padded to max_len."""
    alone = config.method == "popularity_cohort" or config.sampler.scope == "position"
    if config.loss.count_pads and alone:
        return ()  # a left-out pad would need negatives of its own
    overflow = BUCKET_OVERFLOW / config.num_seeds
    lengths = data.input_lengths(dataset)
    return buckets.choose_buckets(lengths, config.batch_size, config.model.max_len, config.num_buckets, overflow)


def make_split(prepared: data.Prepared, name: str, rolling: bool, layout: parallel.Layout) -> Split:
    """The cases of one split, on the devices, with the cohorts of their targets on the host."""
    cases = data.evaluation_cases(prepared, name, rolling)
    cohorts = np.asarray(prepared.item_cohorts)[cases.targets]
    cold = np.asarray(prepared.item_counts)[cases.targets] == 0
    return Split(parallel.put_shared(layout, cases), cohorts, cold)


def max_history(prepared: data.Prepared, rolling: bool) -> int:
    """The longest history of any case, in rows."""
    cases = [data.evaluation_cases(prepared, name, rolling) for name in SPLITS]
    return max(int((case.history_end - case.history_start).max()) for case in cases)


def rank_hidden(hidden, item_table, items, cases: EvalCases, ks, chunks, max_seen: int):
    """(num_above [C], num_tied [C], exposure [K, V+1]) of histories' states; `max_seen` 0 filters nothing."""
    own = {"seen": items, "max_seen": max_seen} if max_seen else {}
    num_above, num_tied = evaluate.rank_cases(hidden, item_table, cases, chunks=chunks, **own)
    own = own | ({"cases": cases} if own else {})
    return num_above, num_tied, evaluate.count_recommended(hidden, item_table, ks, chunks=chunks, **own)


def claim_config(plan: Plan, prepared: data.Prepared) -> None:
    """Writes config.json, or checks that the folder's own says the same. Raises InputError with what differs."""
    path = plan.folder / "config.json"
    settings = writer.plain(config_lib.flatten(plan.config))
    data_facts = {"fingerprint": prepared.meta["fingerprint"], "num_users": prepared.num_users,
                  "num_items": prepared.num_items, "num_rows": len(prepared.items)}  # fmt: skip
    if path.exists():
        old = json.loads(path.read_text())
        mine, theirs = settings | data_facts, old["config"] | old["data"]
        changed = [f"{name} was {theirs.get(name)!r} and is {mine.get(name)!r}"
                   for name in sorted(mine.keys() | theirs.keys())
                   if mine.get(name) != theirs.get(name) and name not in FREE_SETTINGS]  # fmt: skip
        if changed:
            raise InputError(f"workdir {plan.folder} holds another run: {'; '.join(changed)}; name another --workdir")
        return
    record = {"config": settings, "data": data_facts, "versions": versions(), "device": device()}
    writer.write_json(path, record)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    modules = {"jax": jax, "flax": flax, "optax": optax, "numpy": np, "jaxneg": jaxneg}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in modules.items()}


def device() -> str:
    """The devices in words, as in "8 x TPU v5 lite"."""
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def rank_baselines(plan: Plan, prepared: data.Prepared) -> list[dict]:
    """One results row for each ranking by popularity: over the whole training part, and over its last days."""
    recent = f"popularity_last_{plan.config.data.recent_days:g}_days"
    counted = {"popularity_baseline": prepared.item_counts, recent: prepared.recent_counts}
    return [baseline_row(plan, prepared, name, np.asarray(counts)) for name, counts in counted.items()]


def baseline_row(plan: Plan, prepared: data.Prepared, name: str, counts: np.ndarray) -> dict:
    """Ranks the cases of both splits by `counts` [V+1], with the very programs that rank a model."""
    config, table = plan.config, evaluate.baseline_table(counts)
    ks = tuple(config.eval.ks)
    seen = max_history(prepared, config.eval.rolling_history) if config.eval.filter_seen else 0
    chunks = evaluate.choose_chunks(prepared.num_items, 1, 1, config.eval.memory_mb * 2**20)
    rank = jax.jit(lambda table, items, cases: rank_hidden(
        jnp.ones((cases.history_start.shape[0], 1)), table, items, cases, ks, chunks, seen))  # fmt: skip
    start = time.perf_counter()
    rows = []
    for split in SPLITS:
        ranked = jax.device_get(rank(table, plan.dataset.items, plan.splits[split].cases))
        rows.append(split_rows(plan, split, ranked, epoch=0, step=0, seed=0))
    seconds = {"eval_seconds": time.perf_counter() - start}
    return results.result_row(*rows, dataset=config.dataset, method=name, status="ok", train_seconds=0.0, extra=seconds)


def split_rows(plan: Plan, split: str, ranked, **where) -> list[dict]:
    """The rows of one evaluation of one seed on one split, one per cohort."""
    num_above, num_tied, exposure = ranked
    chosen = plan.splits[split]
    return results.evaluation_rows(
        num_above, num_tied, chosen.cohorts, chosen.cold, exposure, plan.item_counts,
        ks=tuple(plan.config.eval.ks), split=split, reference=plan.config.eval.empty_balance == 1, **where,
    )  # fmt: skip


def train_seeds(plan: Plan) -> Progress:
    """Trains all seeds to the last epoch, evaluating as it goes; picks up from the newest checkpoint."""
    manager = checkpoint.open_folder(plan.folder / "checkpoints")
    state, progress = resume(plan, manager)
    metrics = plan.folder / "metrics.jsonl"
    writer.cut(metrics, progress.metrics_bytes)
    step, saved_at, pause = int(np.asarray(state.step)[0]), time.perf_counter(), CHECKPOINT_SECONDS
    bar = tqdm(total=plan.last_step, initial=step, unit="step", desc=plan.config.method, dynamic_ncols=True,
               mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip
    for epoch in evaluation_epochs(plan.config):
        until = epoch * plan.steps_per_epoch
        while step < until:
            start, count = time.perf_counter(), min(plan.config.steps_per_dispatch, until - step)
            state = plan.programs.advance(np.int32(count), state, plan.tables, plan.dataset)
            step += count
            loss = float(jnp.mean(state.loss_sum)) / (step - progress.evaluated_step)
            seconds = time.perf_counter() - start
            progress = progress._replace(train_seconds=progress.train_seconds + seconds)
            rate = count * plan.config.batch_size * plan.config.num_seeds / seconds
            told = f"epoch {step // plan.steps_per_epoch}, loss {loss:.4f}, {rate:,.0f} seq/s"
            bar.set_postfix_str(told, refresh=False)
            bar.update(count)
            if time.perf_counter() - saved_at > pause:
                pause = save(plan, manager, step, state, progress)
                saved_at = time.perf_counter()
        if progress.evaluated_step < until:
            state, progress = evaluate_seeds(plan, epoch, state, progress)
    bar.close()
    save(plan, manager, step, state, progress)
    manager.close()
    return progress


def evaluation_epochs(config) -> list[int]:
    """Every `eval_every` epochs, and after the last one."""
    return sorted({*range(config.eval_every, config.num_epochs, config.eval_every), config.num_epochs})


def resume(plan: Plan, manager) -> tuple[train.TrainState, Progress]:
    """The state and progress of the newest checkpoint, or those of a run that begins."""
    layout, num_cases = plan.layout, len(plan.splits["test"].cold)
    keys = parallel.seed_keys(layout, plan.config.seed)
    state = plan.programs.init(keys, parallel.repeat(layout, plan.hyper))
    ranks = np.zeros((layout.num_seeds, num_cases), np.int32)
    params = jax.device_get(parallel.take(layout, state.params))
    progress = Progress(0, np.full(layout.num_seeds, -1.0), ranks, ranks, params, 0, 0.0, 0.0)
    stored = checkpoint.restore(manager, (parallel.take(layout, state), progress))
    if stored is None:
        return state, progress
    state, progress = parallel.fill(layout, stored[0]), stored[1]
    progress = jax.tree.map(lambda leaf: leaf if leaf.ndim else leaf.item(), progress)
    print(f"jaxneg: resuming after step {int(np.asarray(state.step)[0]):,} of {plan.last_step:,}", file=sys.stderr)
    return state, progress


def save(plan: Plan, manager, step: int, state: train.TrainState, progress: Progress) -> float:
    """Starts a checkpoint of this step; returns the seconds to wait before the next one."""
    start = time.perf_counter()
    checkpoint.save(manager, step, (parallel.take(plan.layout, state), progress))
    return max(CHECKPOINT_SECONDS, CHECKPOINT_COST * (time.perf_counter() - start))


def evaluate_seeds(plan: Plan, epoch: int, state: train.TrainState, progress: Progress):
    """Evaluates both splits for all seeds, appends their rows; keeps ranks and weights of the seeds that improved."""
    start, step = time.perf_counter(), epoch * plan.steps_per_epoch
    ranked = {
        split: [np.asarray(part)[: plan.layout.num_seeds] for part in
                plan.programs.evaluate(state.params, plan.dataset.items, plan.splits[split].cases)]
        for split in SPLITS
    }  # fmt: skip
    loss = np.asarray(state.loss_sum) / (step - progress.evaluated_step)
    rows, best = [], progress.best_valid.copy()
    num_above, num_tied = progress.num_above.copy(), progress.num_tied.copy()
    for seed in range(plan.layout.num_seeds):
        for split in SPLITS:
            one = [part[seed] for part in ranked[split]]
            rows += split_rows(plan, split, one, epoch=epoch, step=step, seed=seed, extra={"loss": float(loss[seed])})
        valid = next(row for row in rows if (row["seed"], row["split"], row["cohort"]) == (seed, "valid", "all"))
        if valid["hr@10"] > best[seed]:
            best[seed] = valid["hr@10"]
            num_above[seed], num_tied[seed] = (part[seed] for part in ranked["test"][:2])
    improved = best > progress.best_valid
    best_params = progress.best_params
    if improved.any():
        params = jax.device_get(parallel.take(plan.layout, state.params))
        best_params = jax.tree.map(lambda new, old: np.where(improved.reshape(-1, *[1] * (new.ndim - 1)), new, old),
                                   params, best_params)  # fmt: skip
    size = writer.append_rows(plan.folder / "metrics.jsonl", rows)
    seconds = progress.eval_seconds + time.perf_counter() - start
    state = state._replace(loss_sum=jnp.zeros_like(state.loss_sum))
    progress = progress._replace(evaluated_step=step, best_valid=best, num_above=num_above, num_tied=num_tied,
                                 best_params=best_params, metrics_bytes=size, eval_seconds=seconds)  # fmt: skip
    return state, progress


def write_results(plan: Plan, prepared: data.Prepared, baselines: list[dict], progress: Progress) -> None:
    """cases.npz, model.npz, items.npz, baselines.csv and, last because it marks the run as complete, results.csv."""
    config, num_seeds = plan.config, plan.layout.num_seeds
    metrics = [json.loads(line) for line in (plan.folder / "metrics.jsonl").read_text().splitlines()]
    rows = [seed_row(config, [row for row in metrics if row["seed"] == seed], progress) for seed in range(num_seeds)]
    test = plan.splits["test"]
    cases = jax.device_get(test.cases)
    writer.write_arrays(
        plan.folder / "cases.npz", user=cases.users, item=cases.targets, cohort=test.cohorts,
        seed=np.arange(num_seeds), num_above=progress.num_above, num_tied=progress.num_tied,
    )  # fmt: skip
    writer.write_arrays(plan.folder / "model.npz", **flatten_dict(progress.best_params, sep="/"))
    writer.write_arrays(plan.folder / "items.npz", count=plan.item_counts, cohort=np.asarray(prepared.item_cohorts))
    writer.write_csv(plan.folder / "baselines.csv", baselines)
    writer.write_csv(plan.folder / "results.csv", rows)


def seed_row(config, metrics: list[dict], progress: Progress) -> dict:
    """One seed's row of results.csv, from all its rows of metrics.jsonl."""
    overall = [row for row in metrics if (row["split"], row["cohort"]) == ("valid", "all")]
    best = overall[results.best_evaluation([row["hr@10"] for row in overall])]
    at_best = [row for row in metrics if row["epoch"] == best["epoch"]]
    valid, test = ([row for row in at_best if row["split"] == split] for split in SPLITS)
    diverged = any(row["loss"] is None for row in metrics)
    return results.result_row(
        valid, test, dataset=config.dataset, method=config.method, status="failed" if diverged else "ok",
        train_seconds=progress.train_seconds / config.num_seeds,
        extra={"eval_seconds": progress.eval_seconds / config.num_seeds},
    )  # fmt: skip
