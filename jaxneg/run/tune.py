"""Hyper-parameter search on the validation metric: optuna proposes, one program tries several values at once.

A trial has a shape (batch size, numbers of negatives, OSF), for which a program is compiled; within it every
combination of the values that change no shape (learning rate, dropout) runs as a seed of that program. The test cases
are never ranked here, and the random draws are none of the final runs' (see `ROOT`).
"""

import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from jaxneg import files, settings
from jaxneg.data import dataset as data
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.evaluation import metrics
from jaxneg.evaluation import rows as results
from jaxneg.run import config as config_lib
from jaxneg.run import experiment, steps, tuned
from jaxneg.run import programs as plan_lib
from jaxneg.training import step as training

ROOT = 1_000_000_000  # added to config.seed: final runs, whose seeds are small, share no draw with the search
# What is tried: the values of the paper's tuned table (arXiv 2410.17276), and their neighbours.
CHOICES = {
    "batch_size": (64, 128, 256),
    "osf": (3.0, 30.0, math.inf),
    "sampler.num_in_batch": (5, 10, 50, 100),
    "sampler.num_uniform": (5, 10, 50, 100),
    "sampler.num_popularity": (5, 10, 50, 100),
    "sampler.num_kept": (5, 25, 50),
    "learning_rate": (1e-4, 1e-3, 1e-2),
    "model.dropout": (0.2, 0.5),
}
SAME_SHAPE = ("learning_rate", "model.dropout")  # fields of HyperParams: they differ between the seeds of one program


def search(
    config, workdir: str | pathlib.Path, num_trials: int, choices: Mapping[str, Sequence[Any]] = CHOICES
) -> dict[str, Any]:
    """Searches for one method; a search that was stopped goes on.

    Args:
      config: what is not searched, with `num_seeds` repeats of every combination.
      workdir: keeps the trials, in `optuna.jsonl`.
      num_trials: shapes to try, those of an earlier start included.
      choices: {config field: values to try}; only what the method uses is searched.
    Returns: {"settings": the best ones, "valid_hr@10": their mean over the repeats, and how they were found}.
    Raises InputError for a bad setting, and where the workdir holds another search.
    """
    config = config_lib.resolve(config)
    with files.claimed(workdir) as folder:
        prepared = data.load(experiment.prepare_data(config))
        space = search_space(config, prepared.num_items, choices)
        facts = _facts(config, prepared, space)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.jsonl")))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        name = f"{config.dataset}/{tuned.key(config.method, config.model.name)}"
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="maximize")
        _claim(study, facts, folder)
    points = list(itertools.product(*(space[name] for name in same_shape(space))))
    first = done = _num_done(study)
    begun = time.monotonic()
    while done < num_trials:
        # Seeded by what is done, so that a resumed search does not propose the same again.
        study.sampler = optuna.samplers.TPESampler(seed=ROOT + len(study.trials), n_startup_trials=10 * len(points))
        try_one(study, config, prepared, space, points)
        done = _num_done(study)
        if done > first:
            left = (time.monotonic() - begun) / (done - first) * (num_trials - done) / 60
            _say(
                f"{study.study_name}: {done} of {num_trials} trials, best validation HR@10 {study.best_value:.4f} "
                f"with {_told(study.best_params)}" + (f"; about {left:.1f} min left" if done < num_trials else "")
            )
    found = {
        "valid_hr@10": study.best_value,
        "trials": done,
        "combinations": len(_complete(study)),
        "repeats": config.num_seeds,
        "num_epochs": config.num_epochs,
        "seed": ROOT + config.seed,
        "data_fingerprint": prepared.meta["fingerprint"],
    }
    return {"settings": study.best_params, **found}


def same_shape(space: Mapping[str, Any]) -> tuple[str, ...]:
    """The searched fields that change no shape."""
    return tuple(name for name in SAME_SHAPE if name in space)


def search_space(config, num_items: int, choices: Mapping[str, Sequence[Any]]) -> dict[str, tuple]:
    """{field: values} of the fields that the config's method uses; more candidates than items are not tried."""
    drawn = sorted({settings.DISTRIBUTIONS[part] for part in settings.distributions(config_lib.flatten(config))})
    kept = ["sampler.num_kept"] if config.method in settings.BY_SCORE else []
    flat = config_lib.flatten(config)
    names = ("batch_size", "osf", *drawn, *kept, *SAME_SHAPE)
    space = {name: tuple(choices[name]) for name in names if name in flat}  # not every model has dropout
    space |= {name: tuple(value for value in space[name] if value <= num_items) for name in drawn}
    empty = [name for name, values in space.items() if not values]
    if empty:
        raise InputError(f"nothing to try for {empty[0]}: {choices[empty[0]]} are more than the {num_items} items")
    if kept and min(space[kept[0]]) > sum(max(space[name]) for name in drawn):
        raise InputError(f"nothing to try for {kept[0]}: {space[kept[0]]} are more than is ever drawn")
    return space


def try_one(study: optuna.Study, config, prepared: data.Prepared, space, points: Sequence[tuple]) -> None:
    """One trial of the sampler's choice, and with it all combinations of the values that change no shape."""
    distributions = {name: CategoricalDistribution(values) for name, values in space.items()}
    trial = study.ask(distributions)
    trial.set_user_attr("proposed", True)
    varied = same_shape(space)
    shape = {name: value for name, value in trial.params.items() if name not in varied}
    known = {
        tuple(other.params[name] for name in varied): other.value
        for other in _complete(study)
        if all(other.params[name] == value for name, value in shape.items())
    }
    values = config_lib.flatten(config) | shape
    drawn = sum(values[settings.DISTRIBUTIONS[part]] for part in settings.distributions(values))
    if shape.get("sampler.num_kept", 0) > drawn:
        study.tell(trial, state=TrialState.PRUNED)  # more kept than drawn
        return
    own = tuple(trial.params[name] for name in varied)
    values = known
    if not known:
        named = [dict(zip(varied, point, strict=True)) for point in points]
        values = dict(zip(points, validation_hit_rates(config, shape, prepared, named), strict=True))
        others = [point for point in points if point != own]
        study.add_trials(
            [
                optuna.create_trial(
                    params=shape | dict(zip(varied, point, strict=True)),
                    distributions=distributions,
                    value=values[point],
                )
                for point in others
            ]
        )
    study.tell(trial, values[own])


def validation_hit_rates(
    config, shape: Mapping[str, Any], prepared: data.Prepared, points: Sequence[Mapping[str, float]]
) -> list[float]:
    """For each point, {field of SAME_SHAPE: value}: HR@10 on validation at the best epoch, the mean of all repeats.

    There are `config.num_seeds` of them.

    Repeat r has the same key for all points, so they differ by their values only.
    """
    repeats = config.num_seeds
    mesh_lib.use_cores(len(points) * repeats)
    changed = config_lib.changed(config, shape | {"num_seeds": len(points) * repeats})
    made = plan_lib.make_plan(config_lib.resolve(changed), pathlib.Path(), prepared, range(len(points) * repeats))
    plan = plan_lib.on_devices(made)
    flat = config_lib.flatten(config)

    def of_points(name):
        return np.repeat(np.array([point.get(name, flat.get(name, 0.0)) for point in points], np.float32), repeats)

    hyper = training.HyperParams(*map(of_points, ("learning_rate", "model.dropout", "loss.negative_weight")))
    seeds = np.arange(len(points) * repeats) % repeats
    keys = mesh_lib.seed_keys(mesh_lib.seed_layout(repeats), ROOT + config.seed)[seeds]
    state = plan.programs.init(mesh_lib.fill(plan.layout, keys), mesh_lib.fill(plan.layout, hyper))
    best, step = np.full(len(keys), -1.0), 0
    feed = steps.Feed(plan, state, 0)
    for epoch in steps.evaluation_epochs(plan.config):
        until = epoch * plan.steps_per_epoch
        while step < until:
            state, step = steps.dispatch(plan, state, feed, step, until, plan.config.steps_per_dispatch or until)
        valid, weights = plan.splits["valid"], plan.programs.weights(state.params)
        ranked = plan.programs.evaluate(weights, plan.history_rows, valid.cases)
        above, tied = (np.asarray(part)[:, valid.place] for part in mesh_lib.take(plan.layout, ranked[:2]))
        if above.shape[1] == 0:
            raise InputError("there is no validation case to tune on: raise config.data.valid_fraction")
        best = np.maximum(best, metrics.hit_rate(above, tied, results.MAIN_K).mean(axis=1))
    jax.clear_caches()  # the next trial has another shape
    return best.reshape(len(points), repeats).mean(axis=1).tolist()


def write_tuned(
    path: pathlib.Path, dataset: str, method: str, found: Mapping[str, Any], model: str = settings.DEFAULT_MODEL
) -> None:
    """Puts one method's settings for a model into the file of tuned settings, which is written whole; others stay."""
    methods = {}
    if path.exists():
        try:
            methods = dict(json.loads(path.read_text())["methods"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: is not a file of tuned settings ({error!r}); move it away") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"dataset": dataset, "methods": methods | {tuned.key(method, model): dict(found)}})


def _facts(config, prepared: data.Prepared, space) -> dict[str, Any]:
    """What two starts of one search must have in common."""
    searched = (*space, *settings.FREE)
    same = {name: value for name, value in config_lib.flatten(config).items() if name not in searched}
    tried = {f"values of {name}": list(values) for name, values in space.items()}
    return files.plain(same | tried | {"data fingerprint": prepared.meta["fingerprint"]})


def _claim(study: optuna.Study, facts: dict[str, Any], folder: pathlib.Path) -> None:
    theirs = study.user_attrs.get("facts", facts)
    defaults = files.plain(settings.with_defaults(facts))  # of fields that an older version did not have
    theirs = {name: defaults[name] for name in facts if name in defaults and name not in theirs} | theirs
    changed = [
        f"{name} was {theirs.get(name)!r} and is {facts.get(name)!r}"
        for name in sorted(facts.keys() | theirs.keys())
        if facts.get(name) != theirs.get(name)
    ]
    if changed:
        raise InputError(f"workdir {folder} holds another search: {'; '.join(changed)}; name another --workdir")
    study.set_user_attr("facts", facts)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)  # of a process that was stopped


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _num_done(study: optuna.Study) -> int:
    """Trials that the sampler proposed; the other combinations of their programs are trials too, but not counted."""
    return sum("proposed" in trial.user_attrs for trial in _complete(study))


def _told(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.rsplit('.', 1)[-1]} {value:g}" for name, value in params.items())


def _say(text: str) -> None:
    print(f"tune: {text}", file=sys.stderr, flush=True)
