"""From counts to rows to a table, on the host: NumPy and pandas only.

An evaluation gives, per case, how many items score above the target and how many tie with it, and per K how
often each item is recommended. Everything that is reported derives from those two.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxneg.errors import InputError
from jaxneg.evaluation import metrics

COHORTS = ("head", "mid", "tail")
MAIN_K = 10  # Balance, the best epoch and the table are all at 10
LOW_BALANCE, MISSED_HIT_RATE, MOSTLY_POPULAR = 0.5, 0.001, 0.5  # the rule of `collapse`

# The leading columns of results.csv, in their order; whatever else a row holds comes after them.
RESULT_COLUMNS = (
    "dataset",
    "method",
    "seed",
    "status",
    "best_epoch",
    "valid_hr@10",
    "hr@10",
    "ndcg@10",
    "head_hr@10",
    "head_ndcg@10",
    "mid_hr@10",
    "mid_ndcg@10",
    "tail_hr@10",
    "tail_ndcg@10",
    "balance",
    "balance_hr",
    "coverage@10",
    "arp@10",
    "exposure_gini@10",
    "popular_share@10",
    "cases",
    "head_cases",
    "mid_cases",
    "tail_cases",
    "cold_cases",
    "train_seconds",
)

LATER_COLUMNS = ("popular_share@10",)  # tables that jaxneg wrote before it had these are read all the same


def metric_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """The list of K to evaluate at: ascending, without repeats, and 10 always among them."""
    return tuple(sorted({MAIN_K, *(int(k) for k in ks)}))


def evaluation_rows(
    num_above: np.ndarray,
    num_tied: np.ndarray,
    case_cohorts: np.ndarray,
    case_cold: np.ndarray,
    exposure: np.ndarray,
    item_counts: np.ndarray,
    *,
    ks: Sequence[int],
    epoch: int,
    step: int,
    seed: int,
    split: str,
    reference: bool = False,
    opauc_betas: Sequence[float] = (),
    extra: Mapping | None = None,
) -> list[dict]:
    """One evaluation of one seed on one split, as four rows: cohort = all, head, mid and tail.

    num_above, num_tied int [C] (see `metrics`); case_cohorts [C]: the target's cohort, 0 head, 1 mid, 2 tail;
    case_cold bool [C]: the target has no training row; exposure int [len(ks), V + 1]; item_counts [V + 1]:
    how popular each item is in training. `ks` is as `metric_ks` gives it. Every row has hr@K, ndcg@K,
    mrr@K, and opauc@beta for each of `opauc_betas`, NaN for a cohort without cases; the row of all cases adds Balance,
    exposure, and what cold targets change. `extra` is copied into each row.
    """
    if tuple(ks) != metric_ks(ks) or len(exposure) != len(ks):
        raise ValueError(f"ks must be metric_ks(...), each with a line of exposure: {ks}, {len(exposure)}")
    num_above, num_tied = np.asarray(num_above), np.asarray(num_tied)
    case_cohorts, case_cold = np.asarray(case_cohorts), np.asarray(case_cold, dtype=bool)
    per_case = {f"hr@{k}": metrics.hit_rate(num_above, num_tied, k) for k in ks}
    per_case |= {f"ndcg@{k}": metrics.ndcg(num_above, num_tied, k) for k in ks}
    per_case |= {f"mrr@{k}": metrics.mrr(num_above, num_tied, k) for k in ks}
    num_others = len(item_counts) - 2  # all items but the pad and the target
    per_case |= {f"opauc@{beta:g}": metrics.opauc(num_above, num_tied, num_others, beta) for beta in opauc_betas}
    chosen = {"all": np.ones(len(num_above), dtype=bool)}
    chosen |= {cohort: case_cohorts == index for index, cohort in enumerate(COHORTS)}

    rows = []
    for cohort, cases in chosen.items():
        row = {"epoch": int(epoch), "step": int(step), "seed": int(seed), "split": split, "cohort": cohort}
        row["cases"] = int(cases.sum())
        row |= {name: _mean(values[cases]) for name, values in per_case.items()}
        rows.append(row)
    everything, *cohort_rows = rows
    for name, metric in (("balance", "ndcg"), ("balance_hr", "hr")):
        means = [row[f"{metric}@{MAIN_K}"] for row in cohort_rows]
        everything[name] = float(metrics.balance(*means, reference=reference))
    everything |= _exposure_columns(exposure, item_counts, ks)
    everything["cold_cases"] = int(case_cold.sum())
    everything["cold_share"] = _mean(case_cold)
    everything |= {f"warm_{name}": _mean(values[~case_cold]) for name, values in per_case.items()}
    return [row | dict(extra or {}) for row in rows]


def _exposure_columns(exposure, item_counts, ks) -> dict[str, float]:
    columns = {}
    measures = {
        "coverage": metrics.coverage(exposure),
        "arp": metrics.average_recommended_popularity(exposure, item_counts),
        "exposure_gini": metrics.exposure_gini(exposure),
        "popular_share": metrics.popular_share(exposure, item_counts, ks),
    }
    for name, values in measures.items():
        columns |= {f"{name}@{k}": float(value) for k, value in zip(ks, values, strict=True)}
    return columns


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def best_evaluation(valid_hit_rates: Sequence[float | None]) -> int:
    """Index of one seed's first strictly largest validation HR@10; the last if none is a number (JSON's null)."""
    best, best_value = len(valid_hit_rates) - 1, -math.inf
    for index, value in enumerate(valid_hit_rates):
        if value is not None and value > best_value:  # never for NaN: there are no validation cases
            best, best_value = index, value
    return best


def collapse(row: Mapping) -> str:
    """Why a row of results.csv (or such a row's names) tells of a collapse to popularity, in words; "" if it does not.

    The rule: Balance under 0.5 with a cohort's HR@10 under 0.001, or more than half of all recommendations going to
    the 10 most popular items.
    """
    share = row.get(f"popular_share@{MAIN_K}", math.nan)
    if share > MOSTLY_POPULAR:
        return f"{share:.0%} of the recommendations are the {MAIN_K} most popular items"
    missed = [cohort for cohort in COHORTS if row[f"{cohort}_hr@{MAIN_K}"] < MISSED_HIT_RATE]
    if row["balance"] < LOW_BALANCE and missed:
        return f"Balance is {row['balance']:.2f} and {' and '.join(missed)} items are not found"
    return ""


def result_row(
    valid_rows: Sequence[Mapping],
    test_rows: Sequence[Mapping],
    *,
    dataset: str,
    method: str,
    status: str,
    train_seconds: float,
    extra: Mapping | None = None,
) -> dict:
    """One seed's row of results.csv, from the `evaluation_rows` of its best epoch on both splits.

    `extra` comes last. What may differ between two identical runs has `second` or `time` in its name.
    """
    test = {row["cohort"]: row for row in test_rows}
    everything = test["all"]
    valid = next(row for row in valid_rows if row["cohort"] == "all")
    row = {"dataset": dataset, "method": method, "seed": everything["seed"], "status": status}
    row["best_epoch"] = everything["epoch"]
    row[f"valid_hr@{MAIN_K}"] = valid[f"hr@{MAIN_K}"]
    row["train_seconds"] = float(train_seconds)
    named_already = ("epoch", "seed", "split", "cohort")
    row |= {name: value for name, value in everything.items() if name not in named_already}
    for cohort in COHORTS:
        measured = {name: value for name, value in test[cohort].items() if "@" in name or name == "cases"}
        row |= {f"{cohort}_{name}": value for name, value in measured.items()}
    row["valid_cases"] = valid["cases"]
    row |= {f"valid_{name}": value for name, value in valid.items() if "@" in name or "balance" in name}
    row |= dict(extra or {})
    return {name: row.pop(name) for name in RESULT_COLUMNS} | row


def read_results(path: str | Path) -> pd.DataFrame:
    """Rows of results.csv, numbers as they were written. Only an empty field is missing, not "NA".

    Raises InputError where the file is not such a table: not there, no text, no row, a column missing, text where a
    number belongs.
    """
    text = {"dataset": str, "method": str, "status": str}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lengths = [len(fields) for fields in csv.reader(file, strict=True)]
        uneven = next((row for row, length in enumerate(lengths) if length != lengths[0]), 0)
        if uneven:
            raise InputError(f"{path}: row {uneven} has {lengths[uneven]} fields, and the header has {lengths[0]}")
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=text, engine="python", index_col=False)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; a finished run writes it") from error
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise InputError(f"{path}: is not a table as a run writes it ({error})") from error
    missing = [name for name in RESULT_COLUMNS if name not in (*frame, *LATER_COLUMNS)]
    if missing:
        raise InputError(f"{path}: is not a table as a run writes it: no column {', '.join(missing)}")
    if frame.empty:
        raise InputError(f"{path}: has a header and no row; a finished run writes one row per seed")
    for name in frame.columns.intersection(RESULT_COLUMNS):
        if name not in text and not pd.api.types.is_numeric_dtype(frame[name]):
            values = [str(value) for value in frame[name].dropna()]
            wrong = next((value for value in values if not _is_number(value)), values[0])
            raise InputError(f"{path}: {name} is {wrong[:60]!r}; a number is wanted")
        if name in ("dataset", "method", "seed") and frame[name].isna().any():
            raise InputError(f"{path}: row {int(frame[name].isna().argmax()) + 1}: {name} is empty")
    return frame


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
