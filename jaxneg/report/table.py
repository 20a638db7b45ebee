"""The table that `python -m jaxneg.results` prints: one line for each method, from finished runs."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxneg.errors import InputError, refuse
from jaxneg.evaluation.rows import COHORTS
from jaxneg.report import read


def results_table(results: pd.DataFrame | Sequence[Mapping]) -> str:
    """The terminal's table: a line for each method, with mean +- standard deviation over its seeds.

    `results` are rows of results.csv; baselines are rows like any other. The deviation is the sample's
    (n - 1), left out for one seed. Failed seeds are counted and left out. A Balance that is not defined is left out
    of the mean, and said in words. The dataset is named in the lines if there are several.
    """
    frame = pd.DataFrame(results)
    columns = {
        "HR@10": "hr@10",
        "NDCG@10": "ndcg@10",
        "head NDCG": "head_ndcg@10",
        "mid NDCG": "mid_ndcg@10",
        "tail NDCG": "tail_ndcg@10",
        "Balance": "balance",
        "coverage": "coverage@10",
    }
    lines, notes = [["dataset", "method", "seeds", *columns]], []
    for (dataset, method), group in frame.groupby(["dataset", "method"], sort=False):
        well = group[group["status"] != "failed"]
        cells = [_mean_and_deviation(well[column]) for column in columns.values()]
        number = str(len(group)) if len(well) == len(group) else f"{len(well)} of {len(group)}"
        lines.append([str(dataset), str(method), number, *cells])
        notes += _notes(str(method), group)
    if frame["dataset"].nunique() == 1:
        lines = [["", *line[1:]] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for line in lines:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join(names + numbers).strip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text + notes) + "\n"


def _mean_and_deviation(values: pd.Series) -> str:
    known = values.astype(float).dropna()
    if known.empty:
        return "undefined"
    deviation = f" +- {known.std(ddof=1):.4f}" if len(known) > 1 else ""
    return f"{known.mean():.4f}{deviation}"


def _notes(method: str, group: pd.DataFrame) -> Iterator[str]:
    undefined = group[group["balance"].astype(float).isna() & (group["status"] != "failed")]
    for _, row in undefined.iterrows():
        empty = [cohort for cohort in COHORTS if row[f"{cohort}_cases"] == 0]
        reason = f"no test case has a {' or '.join(empty)} target" if empty else "no test case is hit at 10"
        yield f"{method}, seed {row['seed']}: Balance is undefined, because {reason}."
    failed = (group["status"] == "failed").sum()
    if failed:
        yield f"{method}: {failed} of {len(group)} seeds failed (not finite); the means leave them out."


def find_results(folders: Sequence[str | Path]) -> pd.DataFrame:
    """Rows of every results.csv below the folders, and each data set's baselines once, first.

    Raises InputError where a folder holds no finished run.
    """
    runs, _ = read.find_runs(folders)
    baselines = pd.concat([run.baselines for run in runs]).drop_duplicates(["dataset", "method"])
    return pd.concat([baselines, *(run.rows for run in runs)]).sort_values("dataset", kind="stable")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m jaxneg.results", description="One table of several finished runs.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folders to search for results.csv")
    parser.error = refuse
    try:
        print(results_table(find_results(parser.parse_args(arguments).folders)), end="")
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
