"""What a run's folder holds: whether it is this run, which seeds are done, and joining new ones to them."""

import pathlib
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxneg import files, settings, versions
from jaxneg.data import dataset as data
from jaxneg.errors import InputError
from jaxneg.evaluation import rows as results
from jaxneg.run import config as config_lib

GROWING_SETTINGS = ("num_epochs", "num_seeds")  # may become larger, with `extend`


def config_record(config, prepared: data.Prepared) -> dict:
    """What config.json tells of a run: the settings, the data, the versions and the device."""
    data_facts = {
        "fingerprint": prepared.meta["fingerprint"],
        "num_users": prepared.num_users,
        "num_items": prepared.num_items,
        "num_rows": len(prepared.items),
    }
    return {
        "config": files.plain(config_lib.flatten(config)),
        "data": data_facts,
        "versions": versions.versions(),
        "device": device(),
    }


def plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A record's settings, those that it lacks at their defaults, as config.json holds them."""
    return files.plain(settings.with_defaults(config))


def compare_record(folder: pathlib.Path, record: dict, extend: bool) -> list[str]:
    """What differs between the versions of this process and those of the folder's config.json, in words.

    Raises InputError where the settings or the data differ: what is there belongs to another run. `extend` accepts
    growing settings that have grown.
    """
    path = folder / "config.json"
    if not path.exists():
        if (folder / "results.csv").exists() or (folder / "checkpoints").exists():
            raise InputError(f"workdir {folder} holds a run without its config.json: name another --workdir")
        return []
    old = files.read_json(path)
    try:
        mine = plain_settings(record["config"]) | record["data"]
        theirs = plain_settings(old["config"]) | old["data"]
        old_versions = dict(old["versions"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a run's config.json: name another --workdir") from error
    changed = {
        name: f"{name} was {theirs.get(name)!r} and is {mine.get(name)!r}"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name) and name not in settings.FREE
    }
    grown = {name for name in changed.keys() & set(GROWING_SETTINGS) if mine[name] > theirs[name]}
    if changed.keys() - (grown if extend else set()):
        hint = "; --extend accepts that" if grown == changed.keys() else ""
        told = "; ".join(changed.values())
        raise InputError(f"workdir {folder} holds another run: {told}: name another --workdir{hint}")
    return [
        f"{name} was {old_versions.get(name)} and is {version}"
        for name, version in record["versions"].items()
        if old_versions.get(name, version) != version  # one that an older version did not tell of is not a changed one
    ]


def refuse_versions(folder: pathlib.Path, changed: list[str], extend: bool) -> None:
    """Where versions changed: raises InputError, or with `extend` warns, since the run's rest comes from others."""
    if not changed:
        return
    told = f"workdir {folder} was begun with other versions: {'; '.join(changed)}"
    if not extend:
        raise InputError(f"{told}: name another --workdir; --extend goes on all the same")
    print(f"jaxneg: {told}; going on, so the numbers may differ in their last digits", file=sys.stderr)


def updated_record(folder: pathlib.Path, record: dict) -> dict:
    """The folder's own record, with what has grown, and under "continued" the versions that went on with it."""
    path = folder / "config.json"
    if not path.exists():
        return record
    old = files.read_json(path)
    grown = {name: record["config"][name] for name in GROWING_SETTINGS}
    now = {"versions": record["versions"], "device": record["device"]} | grown
    begun = {"versions": old["versions"], "device": old["device"]}
    last = (old.get("continued") or [begun | {name: old["config"][name] for name in GROWING_SETTINGS}])[-1]
    last = last | {"versions": record["versions"] | last["versions"]}
    continued = [*old.get("continued", []), *([now] if now != last else [])]
    return old | {"config": old["config"] | grown} | ({"continued": continued} if continued else {})


def device() -> str:
    """The devices in words, as in "8 x TPU v5 lite"."""
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"


def pending_chunks(config, folder: pathlib.Path) -> Iterator[range]:
    """The seeds that are not done, in groups to train side by side: those begun together stay together.

    The next group is looked for once the one before it is done, so a group may be cut (see `capacity.fitting_plan`).
    """
    while True:
        begun = begun_chunks(folder)
        done = finished_seeds(config, folder)
        pending = [seed for seed in range(config.num_seeds) if seed not in done]
        if not pending:
            return
        first = pending[0]
        together = [seeds for seeds in begun if first in seeds]
        others = done.union(*begun)
        yield together[0] if together else range(first, next((s for s in pending if s in others), config.num_seeds))


def begun_chunks(folder: pathlib.Path) -> list[range]:
    """The groups of seeds that have checkpoints."""
    names = [re.fullmatch(r"seeds_(\d+)_(\d+)", path.name) for path in (folder / "checkpoints").glob("seeds_*")]
    return [range(int(name[1]), int(name[2]) + 1) for name in names if name]


def finished_seeds(config, folder: pathlib.Path) -> set[int]:
    """The seeds of results.csv that failed, or that were evaluated after the config's last epoch."""
    if not (folder / "results.csv").exists():
        return set()
    table = results.read_results(folder / "results.csv")
    last = {row["seed"] for row in files.read_rows(folder / "metrics.jsonl") if row["epoch"] >= config.num_epochs}
    return {
        int(seed)
        for seed, status in zip(table["seed"], table["status"], strict=True)
        if status == "failed" or seed in last
    }


def checkpoint_folder(folder: pathlib.Path, seeds: range) -> pathlib.Path:
    """Where the checkpoints of seeds that train side by side are kept."""
    return folder / "checkpoints" / f"seeds_{seeds.start}_{seeds.stop - 1}"


def join_seeds(path: pathlib.Path, seeds: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`seed` and the arrays [S, ...], with those of the file's other seeds, in the order of the seeds."""
    mine = {"seed": seeds} | arrays
    if path.exists():
        old = {_today(name): array for name, array in files.read_arrays(path).items()}
        others = ~np.isin(old["seed"], seeds)
        mine = {name: np.concatenate([old[name][others], new]) for name, new in mine.items()}
    order = np.argsort(mine["seed"], kind="stable")
    return {name: array[order] for name, array in mine.items()}


def _today(name: str) -> str:
    """What an array of model.npz is called now, that an older version called otherwise."""
    return "tables/item" if name == "item_table" else name.replace("encoder/", "network/", 1)
