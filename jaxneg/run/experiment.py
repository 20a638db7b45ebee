"""One run, from the raw file to the results table: the host loop, and the one place that does I/O while training."""

import contextlib
import itertools
import pathlib

import numpy as np
import pandas as pd

from jaxneg import files
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import hosts
from jaxneg.errors import InputError
from jaxneg.evaluation import rows as results
from jaxneg.report import table
from jaxneg.run import checkpoint, loop, outputs, signals
from jaxneg.run import config as config_lib
from jaxneg.run import workdir as workdir_lib
from jaxneg.run.capacity import fitting_plan
from jaxneg.run.programs import Plan, with_item_table


def run(config, workdir: str | pathlib.Path, extend: bool = False, join_hosts: dict | None = None) -> pathlib.Path:
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
    with signals.raised(), hosts.exit_on_lost_host(), contextlib.ExitStack() as until_done:
        folder = hosts.on_first(lambda: str(until_done.enter_context(files.claimed(workdir))))
        folder = pathlib.Path(folder)
        prepared = data.load(find_data(config), verify=hosts.is_first())
        config = with_item_table(config, prepared.num_items)
        record = workdir_lib.config_record(config, prepared)
        changed = hosts.on_first(lambda: workdir_lib.compare_record(folder, record, extend))
        chunks = workdir_lib.pending_chunks(config, folder)
        while seeds := hosts.on_first(lambda: [[seeds.start, seeds.stop] for seeds in itertools.islice(chunks, 1)]):
            hosts.on_first(lambda: workdir_lib.refuse_versions(folder, changed, extend))
            plan = fitting_plan(config, folder, prepared, range(*seeds[0]))
            there = workdir_lib.checkpoint_folder(folder, plan.seeds)
            hosts.on_first(lambda there=there: checkpoint.check_layout(there))
            hosts.on_first(lambda plan=plan: begin_folder(plan, prepared, record))
            trained = loop.train_seeds(plan, record)
            hosts.on_first(lambda plan=plan, trained=trained: outputs.write_results(plan, prepared, *trained))
        if hosts.is_first():
            print_results(folder)
    return folder / "results.csv"


def begin_folder(plan: Plan, prepared: data.Prepared, record: dict) -> None:
    """What a run's folder holds before its seeds are trained."""
    folder = plan.folder
    files.write_json(folder / "config.json", workdir_lib.updated_record(folder, record))
    files.write_arrays(folder / "items.npz", count=plan.item_counts, cohort=np.asarray(prepared.item_cohorts))


def print_results(folder: pathlib.Path) -> None:
    """The results table, and what else there is to read."""
    tables = [results.read_results(folder / name) for name in ("baselines.csv", "results.csv")]
    print(table.results_table(pd.concat(tables)))
    print(f"files: {folder}/results.csv, baselines.csv, metrics.jsonl, cases.npz, model.npz, items.npz, config.json")


def find_data(config) -> pathlib.Path:
    """`prepare_data`, of several hosts by the first one; another one that does not see its folder makes its own."""
    folder = pathlib.Path(hosts.on_first(lambda: str(prepare_data(config))))
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
        source.path,
        settings,
        format=source.format,
        columns=columns,
        member=source.member,
        cache_dir=cache_dir,
        name=config.dataset,
    )
