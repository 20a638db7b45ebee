"""What the files of a study say, in numbers: summaries with intervals, tests between methods, the Pareto front."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxneg.evaluation import metrics
from jaxneg.evaluation import rows as results
from jaxneg.report import read as runs
from jaxneg.report import statistics
from jaxneg.report.statistics import UNKNOWN, Interval

NUM_RESAMPLES = 2000
USER_SEED = 1  # of the resampled users, the same for all methods
COHORT_METRICS = tuple(f"{cohort}_{metric}@10" for metric in ("hr", "ndcg") for cohort in results.COHORTS)
PER_CASE = ("hr@10", "ndcg@10", *COHORT_METRICS)  # means over test cases, so that test users can be resampled
SUMMARISED = (*PER_CASE, "balance", "coverage@10", "arp@10", "popular_share@10", "train_seconds", "eval_seconds")


class Summary(NamedTuple):
    """One metric of one method over its seeds."""

    mean: float
    std: float  # of the sample (n - 1); NaN for one seed
    n: int  # seeds whose value is known
    over_seeds: Interval
    over_users: Interval  # the seeds' mean, test users resampled
    over_both: Interval


class Line(NamedTuple):
    """A variant with its numbers."""

    variant: runs.Variant
    summaries: dict[str, Summary]
    resampled: dict[str, np.ndarray]  # [R] resampled means of NDCG@10 and Balance, for what is derived from several
    user_ndcg: np.ndarray | None  # [U] NDCG@10 summed over each test user's cases, mean over seeds
    collapsed: dict[int, str]  # {row of variant.ok: why}

    @property
    def label(self) -> str:
        return self.variant.label

    def mean(self, metric: str) -> float:
        return self.summaries[metric].mean if metric in self.summaries else np.nan


class Pair(NamedTuple):
    """Two methods compared on NDCG@10; the better mean comes first."""

    a: str
    b: str
    difference: float
    interval: Interval  # of the difference, seeds and test users resampled where cases are known
    hedges_g: float
    cliffs_delta: float
    welch: float
    welch_holm: float
    mann_whitney_holm: float
    paired_holm: float

    @property
    def significant(self) -> bool:
        """By the primary test: Welch, Holm-adjusted over all pairs of the data set."""
        return self.welch_holm < statistics.SIGNIFICANT


def line(variant: runs.Variant) -> Line:
    """The numbers of one variant. Seeds that failed are left out."""
    rows, cases = variant.ok, runs.read_cases(variant)
    by_user, user_ndcg = {}, None
    if cases is not None and len(rows) and len(cases.user):
        by_user, user_ndcg = resample_cases(cases, _seed_rng(variant))
    summaries, resampled = {}, {}
    for metric in SUMMARISED:
        if metric not in rows:
            continue
        values = rows[metric].to_numpy(float)
        known = values[np.isfinite(values)]
        over_users, over_both = by_user.get(metric, (np.empty(0), np.empty(0)))
        enough = len(known) >= statistics.MIN_SEEDS
        summaries[metric] = Summary(
            mean=float(known.mean()) if len(known) else np.nan,
            std=float(known.std(ddof=1)) if len(known) > 1 else np.nan,
            n=len(known),
            over_seeds=statistics.seed_interval(values, _seed_rng(variant), NUM_RESAMPLES),
            over_users=statistics.percentile_interval(over_users),
            over_both=statistics.percentile_interval(over_both, len(known)) if enough else UNKNOWN,
        )
        if metric in ("ndcg@10", "balance") and enough:
            resampled[metric] = over_both if len(over_both) else resample_seeds(values, _seed_rng(variant))
    collapsed = {index: words for index, row in rows.iterrows() if (words := results.collapse(row))}
    return Line(variant, summaries, resampled, user_ndcg, collapsed)


def resample_seeds(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means [R] of values [S] over resampled seeds."""
    return statistics.mean_known(values[statistics.draw_seeds(rng, len(values), NUM_RESAMPLES)], axis=1)


def resample_cases(
    cases: runs.Cases, seed_rng: np.random.Generator
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """{metric: (test users resampled [R], seeds and users resampled [R])}, and the users' sums of NDCG@10 [U].

    All variants of a study meet the same resampled users. Balance is taken per seed, as results.csv has it.
    """
    num_seeds, user = len(cases.num_above), np.unique(cases.user, return_inverse=True)[1]
    num_users = user.max() + 1
    members = [np.ones(len(user), bool), *(cases.cohort == index for index in range(len(results.COHORTS)))]
    counts = [np.bincount(user, weights=member, minlength=num_users) for member in members]
    per_case = [metric(cases.num_above, cases.num_tied, results.MAIN_K) for metric in (metrics.hit_rate, metrics.ndcg)]
    sums = np.array(
        [
            [
                [np.bincount(user, weights=seed_values * member, minlength=num_users) for member in members]
                for values in per_case
                for seed_values in [values[seed]]
            ]
            for seed in range(num_seeds)
        ]
    )
    table = np.concatenate([sums.reshape(-1, num_users), counts]).T  # [U, S * 2 * 4 + 4]
    resampled = statistics.resample_users(np.random.default_rng(USER_SEED), table, NUM_RESAMPLES)
    number = resampled[:, None, None, -len(members) :]
    totals = resampled[:, : -len(members)].reshape(-1, *sums.shape[:3])  # [R, S, 2, 4]
    means = np.where(number > 0, totals / np.maximum(number, 1), np.nan)
    names = np.array(
        [
            [f"{cohort}{metric}@10" for cohort in ("", *(f"{name}_" for name in results.COHORTS))]
            for metric in ("hr", "ndcg")
        ]
    )
    values = {names[index]: means[:, :, *index] for index in np.ndindex(names.shape)}
    values["balance"] = metrics.balance(*(values[f"{cohort}_ndcg@10"] for cohort in results.COHORTS))
    drawn = statistics.draw_seeds(seed_rng, num_seeds, NUM_RESAMPLES)
    both = {name: np.take_along_axis(value, drawn, axis=1) for name, value in values.items()}
    return (
        {name: (statistics.mean_known(values[name], 1), statistics.mean_known(both[name], 1)) for name in values},
        sums[:, 1, 0].mean(axis=0),
    )


def _seed_rng(variant: runs.Variant) -> np.random.Generator:
    """The same for the same variant, another for another: seeds of two methods are independent."""
    return np.random.default_rng(zlib.crc32(variant.label.encode()))


def pairs(lines: Sequence[Line]) -> list[Pair]:
    """All pairs of a study's variants that have seeds: one family for each test, Holm-adjusted."""
    lines = sorted((line for line in lines if line.summaries["ndcg@10"].n), key=lambda line: -line.mean("ndcg@10"))
    couples = [(a, b) for index, a in enumerate(lines) for b in lines[index + 1 :]]
    values = [tuple(line.variant.ok["ndcg@10"].to_numpy(float) for line in couple) for couple in couples]
    welch = [statistics.welch(*each) for each in values]
    adjusted = [
        statistics.holm(welch),
        statistics.holm([statistics.mann_whitney(*each) for each in values]),
        statistics.holm([_paired(*couple) for couple in couples]),
    ]
    return [
        Pair(
            a.label,
            b.label,
            a.mean("ndcg@10") - b.mean("ndcg@10"),
            _difference(a, b),
            statistics.hedges_g(*each),
            statistics.cliffs_delta(*each),
            p,
            *rest,
        )
        for (a, b), each, p, *rest in zip(couples, values, welch, *adjusted, strict=True)
    ]


def _paired(a: Line, b: Line) -> float:
    if a.user_ndcg is None or b.user_ndcg is None or len(a.user_ndcg) != len(b.user_ndcg):
        return np.nan
    return statistics.paired_by_user(a.user_ndcg, b.user_ndcg)


def _difference(a: Line, b: Line) -> Interval:
    if "ndcg@10" not in a.resampled or "ndcg@10" not in b.resampled:
        return UNKNOWN
    fewest = min(a.summaries["ndcg@10"].n, b.summaries["ndcg@10"].n)
    return statistics.percentile_interval(a.resampled["ndcg@10"] - b.resampled["ndcg@10"], fewest)


def on_front(lines: Sequence[Line]) -> dict[str, bool]:
    """{label: whether no other method is as good in both NDCG@10 and Balance and better in one}, by the means."""
    means = [np.array([line.mean(metric) for line in lines]) for metric in ("ndcg@10", "balance")]
    return dict(zip([line.label for line in lines], statistics.pareto_front(*means).tolist(), strict=True))


def front_share(lines: Sequence[Line]) -> dict[str, float]:
    """{label: share of the resamples in which the method is on the front}; {} where a method has too few seeds."""
    if not lines or any(len(line.resampled) < 2 for line in lines):
        return {}
    x, y = (np.stack([line.resampled[metric] for line in lines], axis=1) for metric in ("ndcg@10", "balance"))
    return dict(zip([line.label for line in lines], statistics.pareto_front(x, y).mean(axis=0).tolist(), strict=True))


def best_at_the_end(lines: Sequence[Line]) -> dict[str, tuple[int, int]]:
    """{label: (seeds that are best at the last epoch, seeds)}, for those whose number of epochs is known."""
    told = {}
    for line in lines:
        known = dict(enumerate(run.settings.get("num_epochs") for run in line.variant.runs))
        epochs = line.variant.ok["run"].map(known)
        if len(epochs) and epochs.notna().all():
            told[line.label] = (int((line.variant.ok["best_epoch"] == epochs).sum()), len(epochs))
    return told
