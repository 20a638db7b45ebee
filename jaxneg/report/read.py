"""The files of finished runs, read and put in order: by data set, then by method and settings. Nothing else is read."""

import json
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxneg import files
from jaxneg.errors import InputError
from jaxneg.evaluation import rows as results
from jaxneg.settings import FREE, with_defaults

# Settings that two runs of one method may differ in and still be repeats of each other: which seeds, where, how.
REPEATS_DIFFER_IN = ("seed", "num_seeds", *FREE)
PROTOCOL = ("eval.filter_seen", "eval.rolling_history")  # with the data: what a comparison must have in common
NEEDED = results.RESULT_COLUMNS[: results.RESULT_COLUMNS.index("balance") + 1]
INFINITE = "inf"  # osf as a key: JSON has no infinity, so a run's file says null


class Run(NamedTuple):
    """One folder with a results.csv."""

    folder: pathlib.Path
    dataset: str
    method: str
    settings: dict[str, Any]  # {field: value} of config.json; {} where there is none
    about: dict[str, Any]  # the rest of config.json: data, versions, device
    rows: pd.DataFrame  # results.csv
    baselines: pd.DataFrame  # baselines.csv; no rows where there is none


class Variant(NamedTuple):
    """A line of the tables: one method with its settings, and all seeds of all its runs."""

    label: str
    method: str
    runs: tuple[Run, ...]
    rows: pd.DataFrame  # all seeds; `run` is the index of a row's run

    @property
    def ok(self) -> pd.DataFrame:
        """The seeds that did not fail."""
        return self.rows[self.rows["status"] == "ok"]

    @property
    def osf(self) -> str | float | None:
        """The oversampling factor, INFINITE if infinite, None where no file tells."""
        return _osf(self.runs[0])


class Study(NamedTuple):
    """All runs on one data set that may be compared: the same data, the same protocol."""

    name: str  # the data set's, with its fingerprint where two share a name
    dataset: str
    variants: tuple[Variant, ...]
    osf_variants: tuple[Variant, ...]  # those with another OSF than the variants above have
    osf: str | float | None  # the OSF that was chosen for `variants`, where runs differ in it
    baselines: pd.DataFrame
    notes: tuple[str, ...]  # what a reader must know about what was left out


class Cases(NamedTuple):
    """Ranks of every test case by each seed that did not fail."""

    user: np.ndarray  # [C]
    item: np.ndarray  # [C]
    cohort: np.ndarray  # [C] 0 head, 1 mid, 2 tail
    num_above: np.ndarray  # [S, C]
    num_tied: np.ndarray  # [S, C]


def find_runs(folders: Sequence[str | pathlib.Path]) -> tuple[list[Run], list[pathlib.Path]]:
    """The finished runs in and below the folders, each once, and the folders of runs that are not finished.

    Raises InputError where a folder is not there or holds no finished run, or a file cannot be understood.
    """
    finished, unfinished = {}, {}
    for folder in map(pathlib.Path, folders):
        try:
            is_folder, found = folder.is_dir(), sorted(folder.rglob("results.csv"))
        except (OSError, ValueError) as error:  # a name too long, or with a NUL
            raise InputError(f"{str(folder)[:200]}: cannot be searched ({error}); name a folder") from error
        if not is_folder:
            raise InputError(f"{folder}: there is no such folder")
        if not found:
            raise InputError(f"{folder}: no results.csv in or below it; name a folder with a finished run")
        finished |= {path.resolve(): path.parent for path in found}
        begun = {path.resolve().parent: path.parent for path in sorted(folder.rglob("metrics.jsonl"))}
        unfinished |= {real: path for real, path in begun.items() if not (real / "results.csv").exists()}
    return [read_run(path) for path in finished.values()], list(unfinished.values())


def read_run(folder: pathlib.Path) -> Run:
    """The run in a folder. Raises InputError where a file cannot be understood."""
    rows = _read_table(folder / "results.csv")
    baselines = folder / "baselines.csv"
    baseline_rows = _read_table(baselines) if baselines.exists() else rows[:0]
    record = {}
    if (folder / "config.json").exists():
        try:
            record = json.loads((folder / "config.json").read_text())
            settings = files.plain(with_defaults(record.pop("config")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / 'config.json'}: is not the config of a run ({error!r})") from error
    else:
        settings = {}
    return Run(folder, rows["dataset"].iloc[0], rows["method"].iloc[0], settings, record, rows, baseline_rows)


def _read_table(path: pathlib.Path) -> pd.DataFrame:
    rows = results.read_results(path)
    return rows.astype(dict.fromkeys(NEEDED[4:], float))


def studies(runs: Sequence[Run]) -> list[Study]:
    """The runs by data set and protocol; runs of the same settings and other seeds are one variant."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        key = (run.dataset, run.about.get("data", {}).get("fingerprint"), *(run.settings.get(f) for f in PROTOCOL))
        groups.setdefault(key, []).append(run)
    names = [key[0] for key in groups]
    return [_study(members, key, names.count(key[0]) > 1) for key, members in groups.items()]


def _study(members: list[Run], key: tuple, name_is_shared: bool) -> Study:
    dataset, fingerprint, *protocol = key
    name = dataset
    if name_is_shared:
        how = [field for field, value in zip(PROTOCOL, protocol, strict=True) if value]
        name = f"{dataset} ({', '.join([f'data {fingerprint}', *how])})"
    notes = []
    repeats: dict[tuple, list[Run]] = {}
    for run in members:
        repeats.setdefault((run.method, _identity(run, members)), []).append(run)
    groups = []
    for group in repeats.values():
        kept, doubles = _without_doubles(group)
        notes += [f"`{run.folder}` repeats the seeds of another run and is left out." for run in doubles]
        groups.append(kept)
    osf = _chosen_osf(groups)
    chosen = [group for group in groups if osf is None or _osf(group[0]) == osf]
    others = [group for group in groups if osf is not None and _osf(group[0]) != osf]
    missing = {run.method for run in members} - {group[0].method for group in chosen}
    notes += [f"`{method}` has no run at OSF {told(osf)}: it is in the part on OSF only." for method in sorted(missing)]
    every_baseline = pd.concat([run.baselines for run in members]).drop_duplicates("method")
    return Study(name, dataset, tuple(_variants(chosen)), tuple(_variants(others)), osf, every_baseline, tuple(notes))


def _identity(run: Run, members: Sequence[Run]) -> str:
    """The settings that make a run what it is; where one has no config.json, they tell nothing."""
    shared = set.intersection(*(set(other.settings) for other in members if other.method == run.method))
    return json.dumps({name: run.settings[name] for name in sorted(shared) if name not in REPEATS_DIFFER_IN})


def _without_doubles(group: list[Run]) -> tuple[list[Run], list[Run]]:
    """Runs with seeds of their own, and those whose root seed another one has, which are the same draws again."""
    kept: dict[Any, Run] = {}
    for run in sorted(group, key=lambda run: -len(run.rows)):
        kept.setdefault(run.settings.get("seed", run.folder), run)
    folders = {run.folder for run in kept.values()}
    return [run for run in group if run.folder in folders], [run for run in group if run.folder not in folders]


def _osf(run: Run) -> str | float | None:
    if "osf" not in run.settings:
        return None
    return INFINITE if run.settings["osf"] is None else run.settings["osf"]


def _chosen_osf(groups: Sequence[list[Run]]) -> str | float | None:
    """Where a method has runs of several OSF: the one that most methods have, of several the largest; else None."""
    methods: dict[Any, set[str]] = {}
    for group in groups:
        methods.setdefault(_osf(group[0]), set()).add(group[0].method)
    names = [method for each in methods.values() for method in each]
    if len(names) == len(set(names)):
        return None
    return max((osf for osf in methods if osf is not None), key=lambda osf: (len(methods[osf]), float(osf)))


def _variants(groups: Sequence[list[Run]]) -> Iterator[Variant]:
    for group in groups:
        first = group[0]
        rivals = [other[0] for other in groups if other[0].method == first.method]
        differing = [
            name
            for name in first.settings
            if name not in REPEATS_DIFFER_IN
            and all(name in rival.settings for rival in rivals)
            and len({json.dumps(rival.settings[name]) for rival in rivals}) > 1
        ]
        words = ", ".join(f"{name.rsplit('.', 1)[-1]}={told(first.settings[name])}" for name in differing)
        rows = pd.concat([run.rows.assign(run=index) for index, run in enumerate(group)], ignore_index=True)
        yield Variant(f"{first.method} ({words})" if words else first.method, first.method, tuple(group), rows)


def told(value: Any) -> str:
    """A setting as a reader knows it."""
    return INFINITE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def read_curves(variant: Variant) -> pd.DataFrame | None:
    """The rows over all cases of every evaluation of the seeds that did not fail; None where a run lacks the file."""
    frames = []
    for index, run in enumerate(variant.runs):
        path = run.folder / "metrics.jsonl"
        if not path.exists():
            return None
        try:
            rows = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
            rows = rows[rows["cohort"] == "all"]
            ok = variant.ok.loc[variant.ok["run"] == index, "seed"]
            frames.append(rows[rows["seed"].isin(ok)].assign(run=index))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: is not the metrics of a run ({error!r})") from error
    return pd.concat(frames, ignore_index=True)


def read_cases(variant: Variant) -> Cases | None:
    """The ranks of all cases, the seeds in the order of `variant.ok`; None where a run lacks the file."""
    found = []
    for index, run in enumerate(variant.runs):
        arrays = _read_arrays(run.folder / "cases.npz", Cases._fields + ("seed",))
        if arrays is None:
            return None
        ok = variant.ok.loc[variant.ok["run"] == index, "seed"].astype(int).tolist()
        places = [arrays["seed"].tolist().index(seed) for seed in ok]
        found.append(
            Cases(
                *(arrays[name] for name in Cases._fields[:3]), arrays["num_above"][places], arrays["num_tied"][places]
            )
        )
    if not all(same_cases(found[0], other) for other in found):
        return None
    ranks = (np.concatenate([getattr(cases, name) for cases in found]) for name in ("num_above", "num_tied"))
    return Cases(*found[0][:3], *ranks)


def same_cases(a: Cases, b: Cases) -> bool:
    """Whether both hold ranks of the same test cases, in the same order."""
    return np.array_equal(a.user, b.user) and np.array_equal(a.item, b.item)


def read_items(study: Study) -> tuple[np.ndarray, np.ndarray] | None:
    """(training users [V], cohort [V]) of every item, without the pad; None where no run has the file."""
    for variant in study.variants + study.osf_variants:
        for run in variant.runs:
            arrays = _read_arrays(run.folder / "items.npz", ("count", "cohort"))
            if arrays is not None:
                return arrays["count"][1:], arrays["cohort"][1:]
    return None


def _read_arrays(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: is not a file of a run's arrays ({error!r})") from error
