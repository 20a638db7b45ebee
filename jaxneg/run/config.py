"""The configuration: every field with its default, what is allowed and what it means, in one table.

`base` makes a config of the defaults, `use_method` sets a method and its settings, `validate` names every wrong
value, and `resolve` turns a config into the frozen one that a run works from. Only `main` and `experiment` import
this module: the inner parts get plain values. It imports no JAX, so `--help` and a refused flag are quick.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from jaxneg.errors import InputError
from jaxneg.fields import (
    ANY,
    BELOW_ONE,
    FRACTION,
    KS,
    NAME,
    NOT_NEGATIVE,
    OR_ENDLESS,
    POSITIVE,
    SHARES,
    Field,
    Rule,
    at_least,
    is_number,
    one_of,
)

METHODS = {
    "uniform": "items drawn uniformly from those that the user has not met (paper: RNS)",
    "popularity": "drawn by training frequency (PNS)",
    "inverse_popularity": "drawn by 1 / training frequency (IPNS)",
    "popularity_cohort": "drawn mostly from the positive's own cohort: head, mid or tail (PCNS)",
    "in_batch": "other users' positives of the same batch (BNS)",
    "mixed": "in-batch and uniform together (MNS)",
    "adaptive": "the hardest of a uniform pool, by the model's own scores (ANS)",
    "adaptive_mixed": "the hardest of a mixed pool (AMNS); used where no method is named",
    "dns": "DNS(M, N): the M hardest of N (num_kept of the pool), or one of them at random",
    "softmax_hard": "Softmax-v(rho, N): drawn from the pool the likelier, the harder; rho says how much",
    "catalogue": "no draws: every item is a negative; for loss full_softmax",
}
DEFAULT_METHOD = "adaptive_mixed"
PAPER_METHODS = ("uniform", "popularity", "in_batch", "mixed", "adaptive", "adaptive_mixed")  # have published results
BY_SCORE = ("adaptive", "adaptive_mixed", "dns", "softmax_hard")  # they keep num_kept of what is drawn

LOSSES = {
    "bce": "binary cross-entropy; the paper's",
    "gbce": "BCE that is calibrated for many uniform negatives (gSASRec)",
    "bpr": "pairs of the positive and each negative; what dns and softmax_hard are meant for",
    "bpr_max": "pairs, weighted by the softmax of the negatives",
    "top1_max": "relative ranks, weighted in the same way",
    "sampled_softmax": "cross-entropy among the negatives, each corrected by log q",
    "infonce": "cross-entropy among the negatives as they come, with a temperature",
    "full_softmax": "cross-entropy among all items; for method catalogue",
}
TWO_TERMS = ("bce", "gbce")  # losses in which the negatives are a term of their own

DISTRIBUTIONS = {  # what a pool or a mixture is made of, and the field that counts its candidates
    "uniform": "sampler.num_uniform",
    "in_batch": "sampler.num_in_batch",
    "popularity": "sampler.num_popularity",
    "inverse_popularity": "sampler.num_popularity",
    "popularity_cohort": "sampler.num_popularity",
}

DATA_FORMATS = (
    "auto",
    "movielens_dat",
    "movielens_csv",
    "movielens_100k",
    "amazon",
    "amazon_csv",
    "retailrocket",
    "table",
    "parquet",
    "synthetic",
)
PARTS = Rule(
    "some of " + ", ".join(DISTRIBUTIONS) + ", each once, as in ('in_batch', 'uniform')",
    lambda values: 0 < len(values) == len(set(values)) and all(value in DISTRIBUTIONS for value in values),
)

FIELDS: dict[str, Field] = {
    "dataset": Field("interactions", str, NAME, "name of the data set, as results.csv shows it"),
    "method": Field(DEFAULT_METHOD, str, one_of(*METHODS), "how negatives are drawn (the list above)"),
    "num_seeds": Field(1, int, at_least(1, 10**4), "independent runs, trained together"),
    "seed": Field(0, int, at_least(0, 2**32 - 1), "the run's root seed; seed s of a run never depends on num_seeds"),
    "num_epochs": Field(201, int, at_least(1, 10**6), "an epoch is floor(users / batch_size) steps"),
    "eval_every": Field(25, int, at_least(1, 10**6), "epochs between evaluations; one always follows the last epoch"),
    "batch_size": Field(128, int, at_least(1, 10**6), "sequences per step"),
    "learning_rate": Field(1e-3, float, POSITIVE, "Adam's step size"),
    "learning_rate_half_life": Field(
        math.inf, float, OR_ENDLESS, "epochs in which the learning rate halves; inf: it stays (the paper's)"
    ),
    "osf": Field(
        math.inf,
        float,
        OR_ENDLESS,
        "oversampling factor: only floor(osf * steps per epoch) distinct batches are made; inf: always fresh",
    ),
    "reference": Field(False, bool, ANY, "true: behave as the paper's released code wherever it differs"),
    "steps_per_dispatch": Field(0, int, at_least(0, 10**6), "most steps of one device program; 0: about 2 seconds"),
    "seeds_per_chunk": Field(0, int, at_least(0, 10**4), "seeds that train together; 0: as many as memory holds"),
    "checkpoint_seconds": Field(
        5.0, float, NOT_NEGATIVE, "least time between checkpoints; never under 20 times what the last one took"
    ),
    "mesh.data": Field(
        0,
        int,
        at_least(0, 10**6),
        "devices that share a seed's batches and hold the data in parts; 0: those that the seeds leave over",
    ),
    "mesh.model": Field(1, int, at_least(1, 10**6), "devices that share a seed's batches and hold the items in parts"),
    "debug": Field(False, bool, ANY, "check every operation's result, and name the first that is not a number; slow"),
    "num_buckets": Field(
        6, int, at_least(1, 1000), "pieces of a batch by length, so that few pads are computed; 1: padded"
    ),
    "data.path": Field("", str, ANY, "the raw interaction file (plain, .gz or inside a .zip)"),
    "data.format": Field("auto", str, one_of(*DATA_FORMATS), "the file's format; auto looks at the file"),
    "data.member": Field("", str, ANY, "which file of a .zip, where its name does not tell"),
    "data.user_column": Field("SessionId", str, ANY, "name of the user or session column of a table"),
    "data.item_column": Field("ItemId", str, ANY, "name of the item column of a table"),
    "data.time_column": Field("Time", str, ANY, "name of the time column of a table"),
    "data.cache_dir": Field("", str, ANY, "where prepared data is kept; empty: the user's cache folder"),
    "data.split": Field(
        "temporal", str, one_of("temporal", "leave_one_out"), "the test: the last rows of all, or each user's last row"
    ),
    "data.test_fraction": Field(0.05, float, FRACTION, "share of the rows that are the test (temporal split)"),
    "data.valid_fraction": Field(0.05, float, FRACTION, "share of the rows before them that are validation"),
    "data.min_user_rows": Field(2, int, at_least(1), "users with fewer rows are dropped, again and again"),
    "data.min_item_rows": Field(5, int, at_least(1), "items with fewer rows are dropped, again and again"),
    "data.drop_repeats": Field(True, bool, ANY, "drop a row that repeats the item just before it"),
    "data.session_gap_seconds": Field(0.0, float, NOT_NEGATIVE, "a longer pause starts a new session; 0: no sessions"),
    "data.event": Field("", str, ANY, "keep only this event of a file with events; empty: all"),
    "data.recent_days": Field(7.0, float, POSITIVE, "last days of training that the recent baseline counts"),
    "data.stream": Field(
        "auto",
        str,
        one_of("auto", "on", "off"),
        "the host reads the batches from the prepared files, ahead of the steps, and the training "
        "data is not on the device; auto: where it would take a quarter of the free memory",
    ),
    "data.synthetic.num_rows": Field(100_000, int, at_least(1), "rows of the synthetic data (format=synthetic)"),
    "data.synthetic.num_users": Field(2_000, int, at_least(1), "its users"),
    "data.synthetic.num_items": Field(1_000, int, at_least(2), "its items"),
    "data.synthetic.seed": Field(0, int, at_least(0, 2**32 - 1), "its seed"),
    "sampler.num_in_batch": Field(10, int, at_least(0, 10**6), "in-batch negatives, where a method draws any"),
    "sampler.num_uniform": Field(100, int, at_least(0, 10**6), "uniform negatives, where a method draws any"),
    "sampler.num_popularity": Field(
        50, int, at_least(0, 10**6), "negatives of popularity, inverse_popularity and popularity_cohort"
    ),
    "sampler.num_kept": Field(
        5, int, at_least(1, 10**6), "candidates kept (adaptive, adaptive_mixed, softmax_hard); M of dns"
    ),
    "sampler.scope": Field(
        "sequence",
        str,
        one_of("sequence", "position", "batch"),
        "who shares one set of negatives: a sequence's positions, nobody, or the batch",
    ),
    "sampler.pool": Field(
        None, str, one_of(*DISTRIBUTIONS, "mixed"), "what adaptive, dns and softmax_hard choose from"
    ),
    "sampler.mixture": Field(("in_batch", "uniform"), tuple, PARTS, "what the mixed pools are made of, side by side"),
    "sampler.mixed_exclude": Field(
        None, str, one_of("history", "targets"), "what the uniform part of a mixed pool leaves out"
    ),
    "sampler.dns_form": Field(
        "average", str, one_of("average", "random_one"), "dns keeps the top M, or one of them at random"
    ),
    "sampler.rho": Field(0.5, float, NOT_NEGATIVE, "hardness of softmax_hard; 0: all of the pool alike"),
    "sampler.exponent": Field(
        1.0,
        float,
        Rule("0 or more, 10 at most", lambda value: 0 <= value <= 10),
        "popularity draws by frequency to this power",
    ),
    "model.width": Field(50, int, at_least(1, 10**4), "width of the embeddings and of every layer"),
    "model.num_blocks": Field(2, int, at_least(1, 1000), "transformer blocks"),
    "model.num_heads": Field(1, int, at_least(1, 10**4), "attention heads; they divide the width"),
    "model.max_len": Field(50, int, at_least(1, 10**5), "last items of a history that the model sees"),
    "model.compute": Field(
        "float32",
        str,
        one_of("float32", "bfloat16"),
        "precision of the encoder's products; weights, sums and scores stay float32",
    ),
    "model.dropout": Field(0.2, float, BELOW_ONE, "dropout of embeddings, attention and feed-forward layers"),
    "optimizer.b1": Field(0.9, float, BELOW_ONE, "Adam's decay of the mean"),
    "optimizer.b2": Field(0.98, float, BELOW_ONE, "Adam's decay of the variance"),
    "optimizer.epsilon": Field(1e-8, float, POSITIVE, "Adam's epsilon"),
    "optimizer.tensorflow_epsilon": Field(None, bool, ANY, "epsilon without bias correction, as in TensorFlow 1"),
    "optimizer.item_table": Field(
        None,
        str,
        one_of("auto", "dense", "sparse"),
        "Adam moves all items' rows, or only those that a step looks up (LazyAdam); auto: sparse for a large catalogue",
    ),
    "optimizer.moments": Field(
        "float32",
        str,
        one_of("float32", "bfloat16", "int8"),
        "how a sparse item table keeps Adam's moments: in 8, 4 or 2 bytes a weight",
    ),
    "loss.name": Field("bce", str, one_of(*LOSSES), "the loss (the list above)"),
    "loss.negative_weight": Field(1.0, float, NOT_NEGATIVE, "weight of the negatives' term (bce, gbce)"),
    "loss.negative_reduction": Field(
        "auto",
        str,
        one_of("auto", "mean", "sum"),
        "how bce and gbce join their negatives; auto: mean, and sum for gbce",
    ),
    "loss.calibration": Field(
        0.75, float, Rule("from 0 to 1", lambda value: 0 <= value <= 1), "gbce's t; 0: plain bce"
    ),
    "loss.score_penalty": Field(1.0, float, NOT_NEGATIVE, "weight of the squared scores (bpr_max)"),
    "loss.temperature": Field(1.0, float, POSITIVE, "infonce divides its scores by it"),
    "loss.chunk": Field(1024, int, at_least(1, 10**6), "items that full_softmax scores at a time"),
    "loss.count_pads": Field(None, bool, ANY, "padded positions join the means"),
    "loss.keep_unselected": Field(None, bool, ANY, "candidates that were not kept join the mean as constants"),
    "eval.ks": Field((10,), tuple, KS, "the K of HR@K and its kin; 10 always joins them"),
    "eval.opauc_betas": Field((), tuple, SHARES, "columns opauc@beta: AUC up to these false positive rates; 1: AUC"),
    "eval.filter_seen": Field(False, bool, ANY, "leave a user's earlier items out of the ranking"),
    "eval.rolling_history": Field(False, bool, ANY, "a test user's earlier test items join the history"),
    "eval.max_users": Field(
        0,
        int,
        at_least(0),
        "rank the cases of this many users of each split only, drawn at random and the same in every run; 0: of all",
    ),
    "eval.memory_mb": Field(256, int, at_least(1, 10**6), "bound on the scores held at once"),
    "eval.empty_balance": Field(
        None,
        float,
        Rule("nan or 1", lambda value: math.isnan(value) or value == 1),
        "Balance where nothing is hit, or a cohort is empty",
    ),
}

# Where the release differs from the paper: (this project's value, the release's). `reference` picks; a set field wins.
BY_REFERENCE = {
    "sampler.pool": ("uniform", "in_batch"),
    "sampler.mixed_exclude": ("history", "targets"),
    "optimizer.tensorflow_epsilon": (False, True),
    "optimizer.item_table": ("auto", "dense"),
    "loss.count_pads": (False, True),
    "loss.keep_unselected": (False, True),
    "eval.empty_balance": (math.nan, 1.0),
}


def base() -> config_dict.ConfigDict:
    """A locked config of every field's default: what a config file starts from."""
    config = config_dict.ConfigDict()
    for name, field in FIELDS.items():
        *groups, leaf = name.split(".")
        node = config
        for group in groups:
            if group not in node:
                node[group] = config_dict.ConfigDict()
            node = node[group]
        node[leaf] = config_dict.placeholder(field.kind) if field.default is None else field.default
    return config.lock()


def parse_arg(arg: str | None) -> str:
    """The method named by a config file's argument, as in `configs/ml1m.py:mixed`; adaptive_mixed for none.

    Raises InputError for a method that is not known.
    """
    method = arg or DEFAULT_METHOD
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}{_nearest(method, METHODS)}; known: {', '.join(METHODS)}")
    return method


def parse_methods(text: str) -> list[str]:
    """The methods that a list names: "all", "paper" (those with published results), or names with commas between them.

    Raises InputError for a method that is not known.
    """
    named = {"all": list(METHODS), "paper": list(PAPER_METHODS)}.get(text, text.split(","))
    return [parse_arg(name.strip() or repr(name)) for name in named]


def use_method(config: config_dict.ConfigDict, method: str, settings: Mapping[str, Any]) -> config_dict.ConfigDict:
    """Sets `config.method` and that method's settings, {field name: value}; returns the config."""
    config.method = method
    config.update_from_flattened_dict(dict(settings))
    return config


def known(name: str) -> Field:
    """The field of that dotted name. Raises InputError, with the nearest name, where there is none."""
    if name in FIELDS:
        return FIELDS[name]
    inside = [field for field in FIELDS if field.startswith(name + ".")]
    if inside:
        raise InputError(f"config.{name} is a group of fields: set one of {', '.join(inside)}")
    raise InputError(f"config has no field {name!r}{_nearest(name, FIELDS)}; --help lists them all")


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
    for name in values:
        known(name)
    missing = [name for name in FIELDS if name not in values]
    if missing:
        raise InputError(f"config lacks the fields {', '.join(missing)}: start from jaxneg.config.base()")
    wrong = [
        f"config.{name}={shown(value)} is not allowed: {allowed(FIELDS[name])}"
        for name, value in values.items()
        if not _fits(value, FIELDS[name])
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
    resolved = base()
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


def distributions(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The distributions that the method of a flat config draws from, side by side; none for catalogue."""
    pool = values["sampler.pool"] or BY_REFERENCE["sampler.pool"][values["reference"]]
    method = values["method"]
    if method == "catalogue":
        return ()
    if method in ("mixed", "adaptive_mixed") or (method in BY_SCORE and pool == "mixed"):
        return values["sampler.mixture"]
    return (pool,) if method in BY_SCORE else (method,)


def label(config: Mapping[str, Any]) -> str:
    """How results name a run: the method, and the loss where it is not bce, so that tables keep them apart."""
    return config["method"] if config["loss"]["name"] == "bce" else f"{config['method']}+{config['loss']['name']}"


def _fits(value: Any, field: Field) -> bool:
    """Whether a value has a field's type and obeys its rule; unset is right where the default is unset."""
    if value is None:
        return field.default is None
    if field.kind is float:
        return is_number(value) and field.rule.holds(value)
    right_type = isinstance(value, field.kind) and (field.kind is bool or not isinstance(value, bool))
    return right_type and field.rule.holds(value)


def _conflicts(values: Mapping[str, Any]) -> list[str]:
    """Fields that are right alone and wrong together."""
    wrong = []
    drawn = [DISTRIBUTIONS[part] for part in distributions(values)]
    pool = sum(values[name] for name in drawn)
    width, heads, kept = values["model.width"], values["model.num_heads"], values["sampler.num_kept"]
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
        if loss not in TWO_TERMS and values[name] != FIELDS[name].default:
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
