"""Files of finished runs with made-up ranks, written by the very functions that write a real run's."""

import json
import pathlib

import numpy as np

from jaxneg import files
from jaxneg.evaluation import rows as results

NUM_ITEMS, NUM_USERS = 300, 60
COUNTS = np.concatenate([[0], np.maximum(300 // np.arange(1, NUM_ITEMS + 1), 1)])
COHORTS = np.concatenate([[-1], np.repeat([0, 1, 2], [10, 50, 240])]).astype(np.int8)
EPOCHS = (5, 10)


def cases():
    """(user, item, cohort) of the test cases, the same for every run: 2 to 8 for each user."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(NUM_USERS), rng.integers(2, 9, NUM_USERS))
    item = rng.integers(1, NUM_ITEMS + 1, len(user))
    return user, item, COHORTS[item]


def exposure(shown):
    """How often each item is recommended: 10 for each user, the `shown` most popular items alike."""
    counts = np.zeros((1, NUM_ITEMS + 1), int)
    counts[0, 1 : shown + 1] = NUM_USERS * 10 // shown
    return counts


def write_run(
    folder: pathlib.Path,
    dataset: str,
    method: str,
    *,
    hit_chance=(0.4, 0.2, 0.1),
    num_seeds=6,
    seed=0,
    failed=(),
    shown=200,
    leave_out=(),
    **settings,
) -> pathlib.Path:
    """A finished run. `hit_chance`: how often a head, mid and tail target is among the first 10, one per cohort.

    `failed`: seeds whose loss was no number. `leave_out`: names of files that are not written.
    `settings` (with __ for a dot) go to config.json.
    """
    folder.mkdir(parents=True)
    user, item, cohort = cases()
    rng = np.random.default_rng([seed, *method.encode()])
    above, metrics, rows = [], [], []
    for one in range(num_seeds):
        chance = np.asarray(hit_chance)[cohort] * rng.normal(1, 0.1)
        found = rng.random((len(EPOCHS), len(user))) < chance * np.array([[0.8], [1.0]])
        num_above = np.where(found, rng.integers(0, 10, found.shape), rng.integers(10, NUM_ITEMS, found.shape))
        for epoch, ranks in zip(EPOCHS, num_above, strict=True):
            where = {"ks": (10,), "epoch": epoch, "step": 10 * epoch, "seed": one}
            made = [
                results.evaluation_rows(
                    ranks,
                    0 * ranks,
                    cohort,
                    item < 0,
                    exposure(shown),
                    COUNTS,
                    split=split,
                    extra={"loss": 1 / epoch},
                    **where,
                )
                for split in ("valid", "test")
            ]
            metrics += made[0] + made[1]
        above.append(ranks)
        status = "failed" if one in failed else "ok"
        rows.append(
            results.result_row(
                *made, dataset=dataset, method=method, status=status, train_seconds=12.5, extra={"eval_seconds": 1.5}
            )
        )
    ranks = np.where(cohort == 0, item - 1, 50)
    baseline = results.evaluation_rows(
        ranks, 0 * item, cohort, item < 0, exposure(10), COUNTS, ks=(10,), epoch=0, step=0, seed=0, split="test"
    )
    baseline = results.result_row(
        baseline, baseline, dataset=dataset, method="popularity_baseline", status="ok", train_seconds=0.0
    )
    config = {
        "dataset": dataset,
        "method": method,
        "seed": seed,
        "num_seeds": num_seeds,
        "num_epochs": EPOCHS[-1],
        "osf": None,
        "learning_rate": 0.001,
        "eval.filter_seen": False,
        "eval.rolling_history": False,
    }
    config |= {name.replace("__", "."): value for name, value in settings.items()}
    data = {"fingerprint": f"of-{dataset}", "num_users": 900, "num_items": NUM_ITEMS, "num_rows": 20_000}
    write = {
        "config.json": lambda path: files.write_json(
            path, {"config": config, "data": data, "versions": {}, "device": "1 x cpu (cpu)"}
        ),
        "metrics.jsonl": lambda path: files.append_rows(path, metrics),
        "cases.npz": lambda path: files.write_arrays(
            path,
            user=user,
            item=item,
            cohort=cohort,
            seed=np.arange(num_seeds),
            num_above=np.array(above),
            num_tied=0 * np.array(above),
        ),
        "items.npz": lambda path: files.write_arrays(path, count=COUNTS, cohort=COHORTS),
        "baselines.csv": lambda path: files.write_csv(path, [baseline]),
        "results.csv": lambda path: files.write_csv(path, rows),
    }
    for name in write.keys() - set(leave_out):
        write[name](folder / name)
    return folder


def read_config(folder: pathlib.Path) -> dict:
    return json.loads((folder / "config.json").read_text())
