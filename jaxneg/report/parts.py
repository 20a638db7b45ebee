"""The parts of a report, each from the data of one study: tables, tests, pictures and a recommendation."""

import math
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from jaxneg import files
from jaxneg.evaluation import rows as results
from jaxneg.report import advice, analysis, plots, statistics
from jaxneg.report import read as runs
from jaxneg.report.analysis import Line
from jaxneg.report.document import Bullets, Element, Heading, Picture, Table, Text
from jaxneg.report.text import (
    best_interval,
    counted,
    duration,
    fixed,
    interval_text,
    listed,
    mean_and_std,
    p_text,
    rounded,
    seed_count,
    sum_text,
    with_spread,
)

MANY_ROWS = 15  # a longer table of tests is folded
NAMES = {
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "balance": "Balance",
    "coverage@10": "coverage@10",
    "arp@10": "ARP@10",
    "popular_share@10": "popular share@10",
    "train_seconds": "training seconds per run",
    "eval_seconds": "evaluation seconds per run",
}
NAMES |= {
    f"{cohort}_{metric}@10": f"{cohort} {metric.upper()}@10" for metric in ("hr", "ndcg") for cohort in results.COHORTS
}
TIMES = ("train_seconds", "eval_seconds")  # each seed's share of one time: there is nothing to resample


def _head(found: Sequence[runs.Run], unfinished: Sequence[pathlib.Path]) -> Iterator[Element]:
    yield Heading(1, "Negative sampling: report")
    methods, datasets = {run.method for run in found}, {run.dataset for run in found}
    yield Text(
        f"{counted(len(found), 'finished run')} with {counted(sum(len(run.rows) for run in found), 'seed')} in all: "
        f"{counted(len(methods), 'method')} on {listed(sorted(datasets))}. HR and NDCG are at 10, over the whole "
        "catalogue, at each seed's epoch with the best validation HR@10. Balance is 1 - Gini of head, mid and tail "
        "NDCG@10: 1 where all three are alike, 0.333 where one has everything. Intervals are 95% by bootstrap with "
        f"{analysis.NUM_RESAMPLES:,} resamples. Over seeds (expanded percentiles, for {statistics.MIN_SEEDS} or more) "
        "they tell what other runs may give, over test users (each with all of its cases) what other users may give."
    )
    if unfinished:
        yield Text(f"Not finished, and left out: {listed([f'`{folder.name}`' for folder in unfinished])}.")


def study_blocks(
    study: runs.Study, lines: Sequence[Line], osf_lines: Sequence[Line], folder: pathlib.Path
) -> list[Element]:
    """All parts of one data set, in order; its pictures are written to `folder`."""
    styles = plots.looks([line.label for line in lines] + [line.variant.method for line in osf_lines])
    pairs = analysis.pairs(lines)
    parts = {
        "Results": result_part(study, lines),
        "Tests between methods": test_part(lines, pairs),
        "Accuracy and balance": pareto_part(study, lines, styles, folder),
        "Head, mid and tail": cohort_part(study, lines, styles, folder),
        "Learning curves": curve_part(study, lines, styles, folder),
        "Popularity of the items": popularity_part(study, folder),
        "Oversampling factor": osf_part(study, lines, osf_lines, styles, folder),
        "Collapsed and failed seeds": collapse_part(lines),
        "Cost": cost_part(lines),
        "Beside the published results": published_part(study, lines),
        "Recommendation": recommendation_part(study, lines, pairs),
    }
    blocks: list[Element] = [Heading(2, study.name), *_facts(study, lines)]
    for title, part in parts.items():
        blocks += [Heading(3, title), *part]
    return blocks


def _facts(study: runs.Study, lines: Sequence[Line]) -> Iterator[Element]:
    all_runs = [run for line in lines for run in line.variant.runs]
    data = all_runs[0].about.get("data", {})
    told = [
        counted(data[name], word)
        for name, word in (("num_rows", "row"), ("num_users", "user"), ("num_items", "item"))
        if name in data
    ]
    if "cases" in all_runs[0].rows:
        told.append(counted(int(all_runs[0].rows["cases"].iloc[0]), "test case"))
    for name, words in (("num_epochs", "{} epochs"), ("osf", "OSF {}")):
        values = {runs.told(run.settings[name]) for run in all_runs if name in run.settings}
        told += [words.format(listed(sorted(values)))] if values else []
    if told:
        yield Text(", ".join(told) + ".")
    if len({run.settings.get("num_epochs") for run in all_runs}) > 1:
        yield Text(
            "**The methods were trained for different numbers of epochs**: their differences are not of the "
            "negatives alone."
        )
    if study.notes:
        yield Bullets(study.notes)


# --- the parts: each gives the blocks below its heading


def result_part(study: runs.Study, lines: Sequence[Line]) -> Iterator[Element]:
    """Mean and standard deviation of everything, then every interval, folded."""
    shown = [
        name
        for name in (
            "hr@10",
            "ndcg@10",
            *(f"{cohort}_ndcg@10" for cohort in results.COHORTS),
            "balance",
            "coverage@10",
            "arp@10",
        )
        if any(name in line.summaries for line in lines)
    ]
    best = {
        name: max((line.mean(name) for line in lines if not math.isnan(line.mean(name))), default=math.nan)
        for name in shown
        if name != "arp@10"
    }
    rows = []
    for _, row in study.baselines.iterrows():
        rows.append([row["method"], "", *(rounded(name, row.get(name, math.nan)) for name in shown), ""])
    for line in lines:
        cells = [mean_and_std(line, name, line.mean(name) == best.get(name)) for name in shown]
        rows.append([f"`{line.label}`", seed_count(line), *cells, rounded("train_seconds", line.mean("train_seconds"))])
    yield Table(["method", "seeds", *(NAMES[name] for name in shown), "training s per run"], rows)
    yield Text(
        "Mean ± standard deviation over the seeds that did not fail; the highest mean is bold. Baselines are "
        "counted once, without seeds. ARP is the mean number of training users of a recommended item."
    )
    rows = []
    for line in lines:
        for name, summary in line.summaries.items():
            if name in TIMES:
                continue
            rows.append(
                [
                    f"`{line.label}`",
                    NAMES[name],
                    str(summary.n),
                    rounded(name, summary.mean),
                    rounded(name, summary.std),
                    *(interval_text(name, each) for each in summary[3:]),
                ]
            )
    header = ["method", "metric", "n", "mean", "std", "95% over seeds", "95% over test users", "95% over both"]
    yield _table(header, rows, names=2, folded="All metrics with their intervals")
    if not any(line.user_ndcg is not None for line in lines):
        yield Text("Intervals over test users are left out: no run has cases.npz.")
    few = [line.label for line in lines if line.summaries["ndcg@10"].n < statistics.MIN_SEEDS]
    if few:
        yield Text(
            f"Intervals over seeds are left out for {listed([f'`{name}`' for name in few])}: fewer than "
            f"{statistics.MIN_SEEDS} seeds tell too little."
        )
    yield Text(
        "Coverage, ARP and popular share have no interval over test users: the files hold them over all users "
        "only. Where head, mid and tail are nearly alike, the intervals of Balance over test users lie low."
    )


def test_part(lines: Sequence[Line], pairs: Sequence[analysis.Pair]) -> Iterator[Element]:
    """All pairs on NDCG@10, Holm-adjusted."""
    if not any(math.isfinite(pair.welch) for pair in pairs):
        yield Text("Left out: a test needs two methods with two seeds each, whose values differ.")
        return
    rows = []
    for pair in pairs:
        rows.append(
            [
                f"`{pair.a}`",
                f"`{pair.b}`",
                f"{pair.difference:+.4f}",
                interval_text("ndcg@10", pair.interval),
                fixed(pair.hedges_g, 1),
                fixed(pair.cliffs_delta, 2),
                *map(p_text, (pair.welch, pair.welch_holm, pair.mann_whitney_holm, pair.paired_holm)),
                "yes" if pair.significant else "no",
            ]
        )
    number = sum(pair.significant for pair in pairs)
    yield Text(
        "NDCG@10 of all pairs; the better mean is on the left. The primary test is Welch's t over the seeds, "
        "Holm-adjusted over all pairs as one family. Significant at "
        f"{statistics.SIGNIFICANT:g}: {number} of {counted(len(pairs), 'difference')}."
    )
    header = [
        "better",
        "other",
        "difference",
        "95% interval",
        "Hedges' g",
        "Cliff's δ",
        "Welch p",
        "Welch, Holm",
        "Mann-Whitney, Holm",
        "paired by user, Holm",
        "significant",
    ]
    yield _table(header, rows, names=2, folded="All pairs" if len(rows) > MANY_ROWS else "")
    about = [
        "The interval of the difference resamples seeds"
        + (" and test users." if any(line.user_ndcg is not None for line in lines) else ".")
    ]
    if any(math.isfinite(pair.paired_holm) for pair in pairs):
        about.append(
            "The test paired by user compares the users' sums of NDCG@10, means over seeds (paired t): it "
            "asks whether these very models differ on other users, and knows nothing of other seeds."
        )
    else:
        about.append("The test paired by user is left out: no run has cases.npz.")
    fewest = min(line.summaries["ndcg@10"].n for line in lines)
    if fewest < statistics.MIN_SEEDS:
        about.append(f"With {counted(fewest, 'seed')} of a method these tests find large differences only.")
    yield Text(" ".join(about))


def pareto_part(study: runs.Study, lines: Sequence[Line], styles, folder: pathlib.Path) -> Iterator[Element]:
    """The picture of NDCG@10 against Balance, and who is on the front."""
    drawn = [line for line in lines if math.isfinite(line.mean("ndcg@10")) and math.isfinite(line.mean("balance"))]
    if not drawn:
        yield Text("Left out: no method has a Balance.")
        return
    front, share = analysis.on_front(lines), analysis.front_share(lines)
    points = [
        plots.Point(
            line.label,
            line.mean("ndcg@10"),
            line.mean("balance"),
            _error(line, "ndcg@10"),
            _error(line, "balance"),
            front[line.label],
        )
        for line in drawn
    ]
    baselines = {
        row["method"]: (row["ndcg@10"], row["balance"])
        for _, row in study.baselines.iterrows()
        if math.isfinite(row["balance"])
    }
    yield _picture(
        plots.pareto(points, baselines, styles),
        "pareto",
        study,
        folder,
        "NDCG@10 against Balance. Up and to the right is better. Dashed: the Pareto front of the means. "
        f"Bars: {_error_words(drawn)}. Circles: baselines.",
    )
    names = [
        f"`{label}`" + (f" ({share[label]:.0%} of the resamples)" if share else "")
        for label, is_best in front.items()
        if is_best
    ]
    yield Text(f"On the front: {listed(names)}.")
    near = [f"`{label}` ({value:.0%})" for label, value in share.items() if value >= 0.05 and not front[label]]
    if near:
        yield Text(f"Not on it by the means, but in 5% of the resamples or more: {listed(near)}.")


def cohort_part(study: runs.Study, lines: Sequence[Line], styles, folder: pathlib.Path) -> Iterator[Element]:
    """Bars of NDCG@10 per cohort, and the table of both metrics."""
    columns = {cohort: f"{cohort}_ndcg@10" for cohort in results.COHORTS}
    bars = {
        line.label: {cohort: (line.mean(name), *_error(line, name)) for cohort, name in columns.items()}
        for line in lines
        if all(math.isfinite(line.mean(name)) for name in columns.values())
    }
    if bars:
        yield _picture(
            plots.cohort_bars(bars, styles, "NDCG@10"),
            "cohorts",
            study,
            folder,
            f"NDCG@10 by the target's cohort; each panel has its own scale. Bars: {_error_words(lines)}.",
        )
    else:
        yield Text("The picture is left out: a cohort has no test case.")
    rows = [[f"`{line.label}`", *(mean_and_std(line, name) for name in analysis.COHORT_METRICS)] for line in lines]
    yield Table(["method", *(NAMES[name] for name in analysis.COHORT_METRICS)], rows)


def curve_part(study: runs.Study, lines: Sequence[Line], styles, folder: pathlib.Path) -> Iterator[Element]:
    """Loss, validation HR@10 and validation Balance over epochs."""
    columns = {
        "training loss": ("test", "loss"),
        "validation HR@10": ("valid", "hr@10"),
        "validation Balance": ("valid", "balance"),
    }
    panels: dict[str, list[plots.Curve]] = {name: [] for name in columns}
    missing = []
    for line in lines:
        rows = runs.read_curves(line.variant)
        if rows is None or rows.empty:
            missing.append(f"`{line.label}`")
            continue
        for name, (split, column) in columns.items():
            values = rows[rows["split"] == split].pivot(index="epoch", columns=["run", "seed"], values=column)
            values = values.astype(float)
            mean, std = values.mean(axis=1).to_numpy(), values.std(axis=1, ddof=1).fillna(0).to_numpy()
            panels[name].append(plots.Curve(line.label, values.index.to_numpy(), mean, mean - std, mean + std))
    if any(panels.values()):
        yield _picture(
            plots.learning_curves(panels, styles),
            "curves",
            study,
            folder,
            "Means over seeds; bands: one standard deviation. The losses of methods are not comparable: "
            "other negatives, another loss.",
        )
    if missing:
        yield Text(f"No curve of {listed(missing)}: no metrics.jsonl.")
    last = analysis.best_at_the_end(lines)
    if last:
        yield Text(
            "Seeds that are best at their last evaluation, and may still rise: "
            + listed([f"`{label}` {rising} of {number}" for label, (rising, number) in last.items()])
            + "."
        )


def popularity_part(study: runs.Study, folder: pathlib.Path) -> Iterator[Element]:
    """How popular the items are, and where the cohorts begin."""
    items = runs.read_items(study)
    if items is None:
        yield Text("Left out: no run has items.npz.")
        return
    yield _picture(
        plots.popularity(*items, results.COHORTS),
        "popularity",
        study,
        folder,
        "Training users of each item. Dotted: the lines between head, mid and tail, a third of all each.",
    )


def osf_part(study: runs.Study, lines: Sequence[Line], others: Sequence[Line], styles, folder) -> Iterator[Element]:
    """Accuracy and time against OSF; `others` are the lines of other OSF than the chosen one."""
    if not others:
        yield Text("Left out: no method was run with several values of OSF.")
        return
    several = [line for line in [*lines, *others] if line.variant.method in {line.variant.method for line in others}]
    places = [(line.variant.method, line.variant.osf) for line in several]
    doubled = sorted({method for method, osf in places if places.count((method, osf)) > 1})
    if doubled:
        yield Text(f"Left out for {listed([f'`{name}`' for name in doubled])}: its runs differ in other settings too.")
    several = [line for line in several if line.variant.method not in doubled]
    if not several:
        return
    values = sorted({line.variant.osf for line in several}, key=float)
    places = [runs.told(value) for value in values]
    panels: dict[str, list[plots.Curve]] = {}
    for metric in ("ndcg@10", "balance", "train_seconds"):
        panels[NAMES[metric]] = []
        for method in sorted({line.variant.method for line in several}, key=plots.method_order):
            own = sorted((line for line in several if line.variant.method == method), key=_osf_of)
            mean = np.array([line.mean(metric) for line in own])
            below, above = np.array([_error(line, metric) for line in own]).T
            x = np.array([values.index(line.variant.osf) for line in own])
            panels[NAMES[metric]].append(plots.Curve(method, x, mean, mean - below, mean + above))
    yield _picture(
        plots.against_osf(places, panels, styles),
        "osf",
        study,
        folder,
        f"OSF: how many epochs' worth of distinct batches a run sees. Bands: {_error_words(several)}.",
    )
    rows = [
        [
            f"`{line.variant.method}`",
            runs.told(line.variant.osf),
            seed_count(line),
            *(mean_and_std(line, name) for name in ("hr@10", "ndcg@10", "balance")),
            rounded("train_seconds", line.mean("train_seconds")),
        ]
        for line in sorted(several, key=lambda line: (plots.method_order(line.variant.method), _osf_of(line)))
    ]
    yield Table(["method", "OSF", "seeds", "HR@10", "NDCG@10", "Balance", "training s per run"], rows)
    yield Text(f"The other parts of this report are about the runs at OSF {runs.told(study.osf)}.")


def collapse_part(lines: Sequence[Line]) -> Iterator[Element]:
    """Seeds that failed or collapsed, and the means without them."""
    yield Text(
        f"A seed has collapsed to popularity where Balance is under {results.LOW_BALANCE:g} and a cohort's "
        f"HR@10 under {results.MISSED_HIT_RATE:g}, or where over {results.MOSTLY_POPULAR:.0%} of its "
        f"recommendations are the {results.MAIN_K} most popular items. A failed seed (its loss was no longer a "
        "number) is in no mean."
    )
    touched = [line for line in lines if line.collapsed or len(line.variant.ok) < len(line.variant.rows)]
    if not touched:
        yield Text(f"None of the {sum(len(line.variant.rows) for line in lines)} seeds failed or collapsed.")
        return
    rows, reasons = [], []
    for line in touched:
        ok = line.variant.ok
        upright = ok.drop(index=list(line.collapsed))
        cells = (
            [
                f"{rounded(name, upright[name].mean())} (all: {rounded(name, line.mean(name))})"
                for name in ("hr@10", "ndcg@10", "balance")
            ]
            if len(upright)
            else 3 * ["none left"]
        )
        rows.append(
            [
                f"`{line.label}`",
                str(len(line.variant.rows)),
                str(len(line.variant.rows) - len(ok)),
                str(len(line.collapsed)),
                *cells,
            ]
        )
        if line.collapsed:
            seeds = [str(ok.loc[index, "seed"]) for index in line.collapsed]
            reasons.append(
                f"`{line.label}`, seed{'s' * (len(seeds) > 1)} {listed(seeds)}. "
                f"Of seed {seeds[0]}: {next(iter(line.collapsed.values()))}."
            )
    yield Table(
        [
            "method",
            "seeds",
            "failed",
            "collapsed",
            "HR@10 without them",
            "NDCG@10 without them",
            "Balance without them",
        ],
        rows,
    )
    yield Bullets(reasons) if reasons else Text("No seed collapsed.")


def cost_part(lines: Sequence[Line]) -> Iterator[Element]:
    """Seconds per run, and hours for all seeds."""
    rows, total = [], 0.0
    for line in lines:
        timed = [name for name in TIMES if name in line.variant.rows]
        hours = line.variant.rows[timed].to_numpy(float).sum() / 3600
        total += hours
        devices = dict.fromkeys(run.about.get("device", "unknown") for run in line.variant.runs)
        seconds = [rounded(name, line.mean(name)) for name in TIMES]
        rows.append([f"`{line.label}`", seed_count(line), *seconds, duration(hours), listed(list(devices))])
    yield _table(["method", "seeds", "training s per run", "evaluation s per run", "all seeds", "device"], rows)
    yield Text(f"All together {duration(total)}. Seeds train together: a run's seconds are its share of the whole.")


def published_part(study: runs.Study, lines: Sequence[Line]) -> Iterator[Element]:
    """Our numbers beside the paper's, and whether the test cases are the paper's."""
    published = pd.read_csv(pathlib.Path(__file__).with_name("published.csv"), comment="#")
    published = published[published["dataset"] == study.dataset].set_index("method")
    if published.empty:
        yield Text("Left out: the paper (arXiv 2410.17276) has no such data set.")
        return
    names = ["cases", *(f"{cohort}_cases" for cohort in results.COHORTS)]
    theirs = [int(published[name].iloc[0]) for name in names]
    if all(name in lines[0].variant.rows for name in names):
        ours = [int(lines[0].variant.rows[name].iloc[0]) for name in names]
        verdict = (
            "The preparation is the paper's."
            if ours == theirs
            else (
                "**These are not the paper's test cases**: the data or its preparation differs, and so may all numbers."
            )
        )
        yield Text(
            f"Test cases (all = head + mid + tail): {sum_text(ours)} here, {sum_text(theirs)} in the paper. {verdict}"
        )
    rows = []
    for line in lines:
        if line.label not in published.index:
            continue
        theirs = published.loc[line.label]
        cells = []
        for name in ("hr@10", "ndcg@10", "balance"):
            cells += [mean_and_std(line, name), with_spread(name, theirs[f"{name}_mean"], theirs[f"{name}_std"])]
        summary = line.summaries["ndcg@10"]
        p = statistics.welch_of_moments(
            (summary.mean, summary.std, summary.n), (theirs["ndcg@10_mean"], theirs["ndcg@10_std"], int(theirs["n"]))
        )
        rows.append([f"`{line.label}`", str(summary.n), str(int(theirs["n"])), *cells, p_text(p)])
    if not rows:
        yield Text("None of these methods has published results.")
        return
    yield Table(
        [
            "method",
            "n here",
            "n paper",
            "HR@10 here",
            "paper",
            "NDCG@10 here",
            "paper",
            "Balance here",
            "paper",
            "Welch p, NDCG@10",
        ],
        rows,
    )
    yield Text("The p is of one test, not adjusted. Which settings made the published numbers is likely, not certain.")


def recommendation_part(study: runs.Study, lines: Sequence[Line], pairs: Sequence[analysis.Pair]) -> Iterator[Element]:
    """What to choose, in plain words."""
    said = advice.recommend(study, lines, pairs)
    yield Bullets(said) if said else Text("None: every seed failed.")


# --- what the parts share


def _osf_of(line: Line) -> float:
    return float(line.variant.osf)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], **how) -> Table:
    """A table without the columns in which every cell is empty."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return Table([header[column] for column in kept], [[row[column] for column in kept] for row in rows], **how)


def _picture(figure, name: str, study: runs.Study, folder: pathlib.Path, caption: str) -> Picture:
    """Writes `name_DATASET.png` whole."""
    file = f"{name}_{re.sub(r'[^A-Za-z0-9._-]+', '_', study.name).strip('_')}.png"
    with files.whole(folder / file) as temporary:
        plots.save(figure, temporary)
    return Picture(file, caption)


def _error(line: Line, name: str) -> tuple[float, float]:
    """Distances below and above the mean: of the interval, or one standard deviation, or nothing."""
    summary, interval = line.summaries[name], best_interval(line, name)[0]
    if math.isfinite(interval.low):
        return max(summary.mean - interval.low, 0.0), max(interval.high - summary.mean, 0.0)
    return (summary.std, summary.std) if math.isfinite(summary.std) else (0.0, 0.0)


def _error_words(lines: Sequence[Line]) -> str:
    kinds = {best_interval(line, "ndcg@10")[1] for line in lines}
    words = [f"95% interval over {kind}" for kind in sorted(kinds - {""})]
    return " or ".join(words + ["one standard deviation over seeds"] * ("" in kinds))


def interval_rows(study: runs.Study, lines: Sequence[Line]) -> list[dict]:
    """report.csv: one row per method and metric."""
    rows = []
    for line in lines:
        for name, summary in line.summaries.items():
            row = {
                "dataset": study.name,
                "method": line.variant.method,
                "variant": line.label,
                "osf": line.variant.osf,
                "metric": name,
                "n": summary.n,
                "mean": summary.mean,
                "std": summary.std,
            }
            for kind, interval in zip(("seeds", "users", "both"), summary[3:], strict=True):
                row |= {f"{kind}_low": interval.low, f"{kind}_high": interval.high}
            rows.append(row)
    return rows
