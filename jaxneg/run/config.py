"""The configuration of a run: a ConfigDict with the fields of `jaxneg.settings`.

`base` makes a config of the defaults, `use_method` sets a method and its settings, `validate` names every wrong
value, and `resolve` turns a config into the frozen one that a run works from. Only `main` and the rooms of a run import
this module: the inner parts get plain values. It imports no JAX, so `--help` and a refused flag are quick.
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

from jaxneg.errors import InputError
from jaxneg.fields import ANY, Field, is_number
from jaxneg.settings import (
    BY_REFERENCE,
    BY_SCORE,
    DEFAULT_METHOD,
    DEFAULT_MODEL,
    DISTRIBUTIONS,
    FIELDS,
    METHODS,
    MODELS,
    PAPER_METHODS,
    TWO_TERMS,
    distributions,
    model_of,
)

_asked = []  # the model that the command line names, while its config file runs


@contextlib.contextmanager
def asked_model(name: str | None) -> Iterator[None]:
    """While a config file runs: the model that `--config.model.name` names, or None."""
    _asked.append(name)
    try:
        yield
    finally:
        _asked.pop()


def base(model: str = DEFAULT_MODEL) -> config_dict.ConfigDict:
    """A locked config of every field's default for a model: what a config file starts from. Raises InputError."""
    known_model(model)
    config = config_dict.ConfigDict()
    for name, field in FIELDS[model].items():
        *groups, leaf = name.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = config_dict.ConfigDict()
            node = node[group]
        node[leaf] = config_dict.placeholder(field.kind) if field.release else field.default
    return config.lock()


def split_arg(arg: str | None, method: str = DEFAULT_METHOD) -> tuple[str, str]:
    """The method and the model that a config file's argument names, as in `configs/ml1m.py:mixed,gru4rec`.

    Either may be left out: `method`, and the model of `--config.model.name` or else sasrec. Raises InputError for
    a name that is not known, for two methods or models, and where the argument and the flag name different models.
    """
    names = [name.strip() for name in arg.split(",")] if arg else []
    both = [*METHODS, *MODELS]
    for name in names:
        if name not in both:
            known = f"known methods: {', '.join(METHODS)}; known models: {', '.join(MODELS)}"
            raise InputError(f"unknown method or model {name!r}{_nearest(name, both)}; {known}")
    found = [[name for name in names if name in known] for known in (METHODS, MODELS)]
    for kind, named in zip(("method", "model"), found, strict=True):
        if len(named) > 1:
            raise InputError(f"the config's argument {arg!r} names two {kind}s: one of {' and '.join(named)}")
    asked = _asked[-1] if _asked else None
    model = found[1][0] if found[1] else asked or DEFAULT_MODEL
    if asked and model != asked:
        raise InputError(f"the config's argument names the model {model}, and --config.model.name names {asked}")
    return (found[0][0] if found[0] else method), known_model(model)


def parse_arg(arg: str | None) -> str:
    """The method of `split_arg`."""
    return split_arg(arg)[0]


def known_model(name: str) -> str:
    """The name. Raises InputError, with the known ones, for one that is not known."""
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(f"unknown model {shown(name)}{_nearest(str(name), MODELS)}; known: {', '.join(MODELS)}")
    return name


def known_method(name: str) -> str:
    """The name. Raises InputError, with the known ones, for one that is not known."""
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}{_nearest(name, METHODS)}; known: {', '.join(METHODS)}")
    return name


def parse_methods(text: str) -> list[str]:
    """The methods that a list names: "all", "paper" (those with published results), or names with commas between them.

    Raises InputError for a method that is not known.
    """
    named = {"all": list(METHODS), "paper": list(PAPER_METHODS)}.get(text, text.split(","))
    return [known_method(name.strip() or repr(name)) for name in named]


def parse_models(text: str) -> list[str]:
    """The models that a list names: "all", or names with commas between them. Raises InputError for an unknown one."""
    named = list(MODELS) if text == "all" else text.split(",")
    return [known_model(name.strip() or repr(name)) for name in named]


def use_method(config: config_dict.ConfigDict, method: str, settings: Mapping[str, Any]) -> config_dict.ConfigDict:
    """Sets `config.method` and that method's settings, {field name: value}; returns the config."""
    config.method = method
    config.update_from_flattened_dict(dict(settings))
    return config


def changed(config: Mapping[str, Any], values: Mapping[str, Any]) -> config_dict.ConfigDict:
    """A config with other values of some fields, {field name: value}."""
    flat = flatten(config) | dict(values)
    other = base(model_of(flat))
    other.update_from_flattened_dict(flat)
    return other


def known(name: str, model: str = DEFAULT_MODEL) -> Field:
    """The field of that dotted name. Raises InputError, with the nearest name, where there is none."""
    fields = FIELDS[model]
    if name in fields:
        return fields[name]
    inside = [field for field in fields if field.startswith(name + ".")]
    if inside:
        raise InputError(f"config.{name} is a group of fields: set one of {', '.join(inside)}")
    if name.startswith("model."):
        own = ", ".join(field for field in fields if field.startswith("model."))
        raise InputError(f"{model} has no config.{name}{_nearest(name, fields)}; it has {own}")
    raise InputError(f"config has no field {name!r}{_nearest(name, fields)}; --help lists them all")


def allowed(field: Field) -> str:
    """What a field may hold, in words."""
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a tuple"}
    return kinds[field.kind] if field.rule is ANY else f"{kinds[field.kind]}, {field.rule.text}"


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def validate(config: Mapping[str, Any]) -> None:
    """Raises one InputError that names every wrong value of the config, with what is allowed."""
    values = flatten(config)
    model = known_model(model_of(values))
    fields = FIELDS[model]
    for name in values:
        known(name, model)
    missing = [name for name in fields if name not in values]
    if missing:
        raise InputError(f"config lacks the fields {', '.join(missing)}: start from jaxneg.config.base()")
    wrong = [
        f"config.{name}={shown(value)} is not allowed: {allowed(fields[name])}"
        for name, value in values.items()
        if not _fits(value, fields[name])
    ]
    wrong = wrong or _conflicts(values)
    if wrong:
        raise InputError("; ".join(wrong))


def resolve(config: Mapping[str, Any]) -> config_dict.FrozenConfigDict:
    """Validates a config, fills in what follows `reference`, puts 10 among `eval.ks`, and freezes it.

    Resolving twice changes nothing.

    Raises InputError (see `validate`).
    """
    validate(config)
    values = flatten(config)
    values["eval.ks"] = tuple(sorted({10, *values["eval.ks"]}))
    resolved = base(model_of(values))
    for name, choices in BY_REFERENCE.items():
        if values[name] is None:
            values[name] = choices[values["reference"]]
    resolved.update_from_flattened_dict(values)
    return config_dict.FrozenConfigDict(resolved)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted field name: value} of a nested config."""
    flat = {}
    for key in config:
        value = config[key]
        if isinstance(value, Mapping | config_dict.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def label(config: Mapping[str, Any]) -> str:
    """How results name a run: the method, the model if it is not sasrec, and the loss if it is not bce.

    As in "mixed", "gru4rec/mixed" and "gru4rec/mixed+bpr", so that tables keep them apart.
    """
    model, loss = config["model"]["name"], config["loss"]["name"]
    return ("" if model == DEFAULT_MODEL else f"{model}/") + config["method"] + ("" if loss == "bce" else f"+{loss}")


def _fits(value: Any, field: Field) -> bool:
    """Whether a value has a field's type and obeys its rule; unset is right where the default is unset."""
    if value is None:
        return field.release is not None
    if field.kind is float:
        return is_number(value) and field.rule.holds(value)
    right_type = isinstance(value, field.kind) and (field.kind is bool or not isinstance(value, bool))
    return right_type and field.rule.holds(value)


def _conflicts(values: Mapping[str, Any]) -> list[str]:
    """Fields that are right alone and wrong together."""
    wrong = []
    drawn = [DISTRIBUTIONS[part] for part in distributions(values)]
    pool = sum(values[name] for name in drawn)
    width, heads, kept = values.get("model.width", 1), values.get("model.num_heads", 1), values["sampler.num_kept"]
    if width % heads:
        wrong.append(f"config.model.num_heads={heads} must divide config.model.width={width}")
    wrong += [
        f"config.{name}=0 leaves method {values['method']} without negatives: 1 or more"
        for name in drawn
        if values[name] == 0
    ]
    if values["method"] in BY_SCORE and kept > pool:
        sizes = " + ".join(f"config.{name}={values[name]}" for name in drawn)
        wrong.append(f"config.sampler.num_kept={kept} is more than the pool of {pool} ({sizes}): keep {pool} or fewer")
    if values["data.test_fraction"] + values["data.valid_fraction"] >= 1:
        wrong.append("config.data.test_fraction + config.data.valid_fraction must be below 1")
    if values["data.format"] == "synthetic" and values["data.path"]:
        wrong.append(
            f"config.data.path={shown(values['data.path'])} would not be read, because config.data.format is "
            f"'synthetic': set --config.data.format=auto too, or take another config file"
        )
    columns = {values[f"data.{name}_column"] for name in ("user", "item", "time")}
    if len(columns) < 3 or "" in columns:
        wrong.append(
            "config.data.user_column, item_column and time_column must be three different names: "
            + ", ".join(shown(values[f"data.{name}_column"]) for name in ("user", "item", "time"))
        )
    if values["debug"] and max(values["mesh.data"], values["mesh.model"]) > 1:
        wrong.append("config.debug=True checks a step on one device: set config.mesh.data and config.mesh.model to 1")
    if values["mesh.model"] > 1 and (
        values["optimizer.item_table"] == "dense" or values["reference"] or values["method"] == "catalogue"
    ):
        wrong.append(
            f"config.mesh.model={values['mesh.model']} splits the rows of the item table, which only the "
            "sparse form can do: set it 1, or config.optimizer.item_table=sparse without config.reference and "
            "with another method than catalogue"
        )
    if values["optimizer.item_table"] == "sparse" and values["reference"]:
        wrong.append(
            "config.optimizer.item_table=sparse can not go with config.reference=True: the released code "
            "moves the row of every item at every step; set it dense"
        )
    if values["optimizer.item_table"] == "sparse" and values["method"] == "catalogue":
        wrong.append(
            "config.optimizer.item_table=sparse can not go with method catalogue: its loss has a gradient for "
            "every item; set it dense or auto"
        )
    form = values["optimizer.item_table"] or BY_REFERENCE["optimizer.item_table"][values["reference"]]
    if values["optimizer.moments"] != "float32" and (form == "dense" or values["method"] == "catalogue"):
        wrong.append(
            f"config.optimizer.moments={values['optimizer.moments']} is for a sparse item table, and this "
            "run's is dense: set config.optimizer.item_table=sparse where that can be, or float32"
        )
    return wrong + _loss_conflicts(values)


def _loss_conflicts(values: Mapping[str, Any]) -> list[str]:
    """Why this loss can not go with this sampler, or with these settings."""
    loss, method, wrong = values["loss.name"], values["method"], []
    count_pads, keep_unselected = (
        BY_REFERENCE[name][values["reference"]] if values[name] is None else values[name]
        for name in ("loss.count_pads", "loss.keep_unselected")
    )
    if (loss == "full_softmax") != (method == "catalogue"):
        wrong.append(
            f"config.loss.name={loss} can not go with method {method}: full_softmax scores every item and "
            "catalogue draws none, so they go with each other only"
        )
    if loss == "full_softmax" and count_pads:
        wrong.append("config.loss.count_pads=True can not go with full_softmax: a pad is no item of the catalogue")
    if loss == "sampled_softmax" and method in BY_SCORE:
        wrong.append(
            f"config.loss.name=sampled_softmax needs each negative's probability, and what {method} chooses "
            "by its score has none that is known: use infonce"
        )
    if loss != "bce" and keep_unselected:
        wrong.append(f"config.loss.keep_unselected=True is a form of bce only: set it false for {loss}")
    for name in ("loss.negative_weight", "loss.negative_reduction"):
        if loss not in TWO_TERMS and values[name] != FIELDS[model_of(values)][name].default:
            wrong.append(
                f"config.{name}={values[name]!r} needs a loss whose negatives are a term of their own: "
                f"{' or '.join(TWO_TERMS)}, not {loss}"
            )
    return wrong


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    """' (did you mean ...?)', or nothing where no name is like it, whole or without its group."""

    def likeness(other: str) -> float:
        pairs = [(name, other), (name.rsplit(".", 1)[-1], other.rsplit(".", 1)[-1])]
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(names, key=likeness)
    return f" (did you mean {best!r}?)" if likeness(best) >= 0.6 else ""
