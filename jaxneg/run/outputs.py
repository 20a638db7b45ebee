"""What a run's evaluations write: the rows of results, the ranks of each case, the weights."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxneg import files
from jaxneg.data import dataset as data
from jaxneg.devices import mesh as mesh_lib
from jaxneg.evaluation import ranks as ranking
from jaxneg.evaluation import rows as results
from jaxneg.evaluation.ranks import rank_hidden
from jaxneg.run import config as config_lib
from jaxneg.run import workdir
from jaxneg.run.checkpoint import Progress
from jaxneg.run.inputs import SPLITS, Split, make_splits, max_history
from jaxneg.run.programs import Plan
from jaxneg.training import step as training


def rank_baselines(plan: Plan, prepared: data.Prepared) -> list[dict]:
    """One results row for each ranking by popularity: over the whole training part, and over its last days."""
    recent = f"popularity_last_{plan.config.data.recent_days:g}_days"
    counted = {"popularity_baseline": prepared.item_counts, recent: prepared.recent_counts}
    config, ks = plan.config, tuple(plan.config.eval.ks)
    splits = make_splits(prepared, config.eval.rolling_history, config.eval.max_users)
    seen = max_history(prepared, config.eval.rolling_history) if config.eval.filter_seen else 0
    chunks = ranking.choose_chunks(prepared.num_items, 1, 1, config.eval.memory_mb * 2**20)
    rank = jax.jit(
        lambda table, items, cases: rank_hidden(
            jnp.ones((cases.history_start.shape[0], 1)), table, items, cases, ks, chunks, seen
        ),
        compiler_options=mesh_lib.compiler_options(jax.default_backend(), "once"),
    )
    items = np.asarray(prepared.items) if seen else np.zeros(1, np.int32)
    rows = []
    for name, counts in counted.items():
        start, table = time.perf_counter(), ranking.baseline_table(np.asarray(counts))
        ranked = {split: jax.device_get(rank(table, items, splits[split].cases)) for split in SPLITS}
        rows.append(baseline_row(plan, name, splits, ranked, time.perf_counter() - start))
    return rows


def baseline_row(plan: Plan, name: str, splits: dict[str, Split], ranked: dict, eval_seconds: float) -> dict:
    """One results row of a ranking that was not trained."""
    rows = [
        split_rows(plan.config, splits[split], split, ranked[split], plan.item_counts, epoch=0, step=0, seed=0)
        for split in SPLITS
    ]
    seconds = {"eval_seconds": eval_seconds}
    config = plan.config
    return results.result_row(*rows, dataset=config.dataset, method=name, status="ok", train_seconds=0.0, extra=seconds)


def split_rows(config, split: Split, name: str, ranked, item_counts: np.ndarray, **where) -> list[dict]:
    """The rows of one evaluation of one seed on one split, one per cohort."""
    num_above, num_tied, exposure = ranked
    return results.evaluation_rows(
        num_above[split.place],
        num_tied[split.place],
        split.cohorts,
        split.cold,
        exposure[:, : len(item_counts)],
        item_counts,
        ks=tuple(config.eval.ks),
        split=name,
        reference=config.eval.empty_balance == 1,
        opauc_betas=tuple(config.eval.opauc_betas),
        **where,
    )


def write_results(plan: Plan, prepared: data.Prepared, progress: Progress, failed_step: np.ndarray) -> None:
    """Joins the seeds' ranks, weights and rows to those that the folder has: cases.npz, model.npz, results.csv.

    In this order, after the baselines' rows, and each file whole, because results.csv marks its seeds as done.
    """
    config, folder, seeds = plan.config, plan.folder, np.array(plan.seeds)
    if not (folder / "baselines.csv").exists():
        files.write_csv(folder / "baselines.csv", rank_baselines(plan, prepared))
    metrics = [row for row in files.read_rows(folder / "metrics.jsonl") if row["seed"] in plan.seeds]
    rows = [
        seed_row(config, [row for row in metrics if row["seed"] == seed], progress, int(failed))
        for seed, failed in zip(plan.seeds, failed_step, strict=True)
    ]
    test = plan.splits["test"]
    of_cases = {"user": test.users, "item": test.targets, "cohort": test.cohorts}
    ranks = {"num_above": progress.num_above, "num_tied": progress.num_tied}
    joined = workdir.join_seeds(folder / "cases.npz", seeds, ranks)
    files.write_arrays(folder / "cases.npz", **of_cases, **joined)
    joined = workdir.join_seeds(folder / "model.npz", seeds, flatten_dict(progress.best_params, sep="/"))
    files.write_arrays(folder / "model.npz", **joined)
    if (folder / "results.csv").exists():
        others = results.read_results(folder / "results.csv")
        rows = [row for row in others.to_dict("records") if row["seed"] not in plan.seeds] + rows
    files.write_csv(folder / "results.csv", sorted(rows, key=lambda row: row["seed"]))


def seed_row(config, metrics: list[dict], progress: Progress, failed_step: int) -> dict:
    """One seed's row of results.csv, from all its rows of metrics.jsonl."""
    overall = [row for row in metrics if (row["split"], row["cohort"]) == ("valid", "all")]
    best = overall[results.best_evaluation([row["hr@10"] for row in overall])]
    at_best = [row for row in metrics if row["epoch"] == best["epoch"]]
    valid, test = ([row for row in at_best if row["split"] == split] for split in SPLITS)
    failed = failed_step != training.NOT_FAILED
    return results.result_row(
        valid,
        test,
        dataset=config.dataset,
        method=config_lib.label(config),
        status="failed" if failed else "ok",
        train_seconds=progress.train_seconds / len(progress.best_valid),
        extra={
            "eval_seconds": progress.eval_seconds / len(progress.best_valid),
            "failed_step": failed_step if failed else None,
            "model": config.model.name,
        },
    )
