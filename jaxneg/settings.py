"""Every setting of a run: its own, and those that the components declare (see `jaxneg.fields`).

Read from the components' source files, so that nothing here waits for JAX.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxneg import fields
from jaxneg.errors import InputError
from jaxneg.fields import (
    ANY,
    BELOW_ONE,
    KS,
    NAME,
    NOT_NEGATIVE,
    OR_ENDLESS,
    POSITIVE,
    SHARES,
    Field,
    Release,
    Rule,
    at_least,
    declared,
    one_of,
)

ROOT = pathlib.Path(__file__).parent
SAMPLERS, LOSS_FILE = ROOT / "samplers" / "__init__.py", ROOT / "losses.py"
MODEL_FILES = {
    path.stem: path
    for path in sorted((ROOT / "models").glob("*.py"))
    if path.stem not in ("__init__", "base", "layers", "objectives")
}

# name -> its words in --help
METHODS = {
    name: recipe.about
    for name, recipe in fields.read_names(SAMPLERS, "POOL", "MIXTURE", "Recipe", "METHODS")["METHODS"].items()
}
LOSSES, TWO_TERMS = fields.read_names(LOSS_FILE, "ABOUT", "TWO_TERMS").values()
MODELS = {name: fields.about(path) for name, path in MODEL_FILES.items()}
DEFAULT_METHOD, DEFAULT_MODEL = "adaptive_mixed", "sasrec"
PAPER_METHODS = ("uniform", "popularity", "in_batch", "mixed", "adaptive", "adaptive_mixed")  # have published results
BY_SCORE = ("adaptive", "adaptive_mixed", "dns", "softmax_hard")  # they keep num_kept of what is drawn

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

RUN = {
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
    "steps_per_dispatch": Field(
        0, int, at_least(0, 10**6), "most steps of one device program; 0: about 2 seconds", changes_result=False
    ),
    "seeds_per_chunk": Field(
        0, int, at_least(0, 10**4), "seeds that train together; 0: as many as memory holds", changes_result=False
    ),
    "checkpoint_seconds": Field(
        5.0,
        float,
        NOT_NEGATIVE,
        "least time between checkpoints; never under 20 times what the last one took",
        changes_result=False,
    ),
    "mesh.data": Field(
        0,
        int,
        at_least(0, 10**6),
        "devices that share a seed's batches and hold the data in parts; 0: those that the seeds leave over",
        changes_result=False,
    ),
    "mesh.model": Field(
        1,
        int,
        at_least(1, 10**6),
        "devices that share a seed's batches and hold the items in parts",
        changes_result=False,
    ),
    "debug": Field(
        False,
        bool,
        ANY,
        "check every operation's result, and name the first that is not a number; slow",
        changes_result=False,
    ),
    "num_buckets": Field(
        6, int, at_least(1, 1000), "pieces of a batch by length, so that few pads are computed; 1: padded"
    ),
}
DATA = {
    "path": Field("", str, ANY, "the raw interaction file (plain, .gz or inside a .zip)", changes_result=False),
    "format": Field("auto", str, one_of(*DATA_FORMATS), "the file's format; auto looks at the file"),
    "member": Field("", str, ANY, "which file of a .zip, where its name does not tell"),
    "user_column": Field("SessionId", str, ANY, "name of the user or session column of a table"),
    "item_column": Field("ItemId", str, ANY, "name of the item column of a table"),
    "time_column": Field("Time", str, ANY, "name of the time column of a table"),
    "cache_dir": Field(
        "", str, ANY, "where prepared data is kept; empty: the user's cache folder", changes_result=False
    ),
}
STREAM = {
    "stream": Field(
        "auto",
        str,
        one_of("auto", "on", "off"),
        "the host reads the batches from the prepared files, ahead of the steps, and the training "
        "data is not on the device; auto: where it would take a quarter of the free memory",
        changes_result=False,
    ),
}
OPTIMIZER = {
    "b1": Field(0.9, float, BELOW_ONE, "Adam's decay of the mean"),
    "b2": Field(0.98, float, BELOW_ONE, "Adam's decay of the variance"),
    "epsilon": Field(1e-8, float, POSITIVE, "Adam's epsilon"),
    "tensorflow_epsilon": Field(
        False, bool, ANY, "epsilon without bias correction, as in TensorFlow 1", release=Release(True)
    ),
    "item_table": Field(
        "auto",
        str,
        one_of("auto", "dense", "sparse"),
        "Adam moves all items' rows, or only those that a step looks up (LazyAdam); auto: sparse for a large catalogue",
        release=Release("dense"),
    ),
    "moments": Field(
        "float32",
        str,
        one_of("float32", "bfloat16", "int8"),
        "how a sparse item table keeps Adam's moments: in 8, 4 or 2 bytes a weight",
    ),
    "weight_decay": Field(
        0.0, float, NOT_NEGATIVE, "L2 in Adam: the gradient gains that times every weight; dense only"
    ),
}
LOSS = {
    "name": Field("bce", str, one_of(*LOSSES), "the loss (the list above)"),
    "negative_weight": Field(1.0, float, NOT_NEGATIVE, "weight of the negatives' term (bce, gbce)"),
    "l2": Field(0.0, float, NOT_NEGATIVE, "the loss gains half that times the squares of all embeddings; dense only"),
    "l2_rows": Field(0.0, float, NOT_NEGATIVE, "the same for the rows of the batch only, per target"),
    "count_pads": Field(False, bool, ANY, "padded positions join the means", release=Release(True)),
    "keep_unselected": Field(
        False, bool, ANY, "candidates that were not kept join the mean as constants", release=Release(True)
    ),
}
EVAL = {
    "ks": Field((10,), tuple, KS, "the K of HR@K and its kin; 10 always joins them"),
    "opauc_betas": Field((), tuple, SHARES, "columns opauc@beta: AUC up to these false positive rates; 1: AUC"),
    "filter_seen": Field(False, bool, ANY, "leave a user's earlier items out of the ranking"),
    "rolling_history": Field(False, bool, ANY, "a test user's earlier test items join the history"),
    "max_users": Field(
        0,
        int,
        at_least(0),
        "rank the cases of this many users of each split only, drawn at random and the same in every run; 0: of all",
    ),
    "memory_mb": Field(256, int, at_least(1, 10**6), "bound on the scores held at once", changes_result=False),
    "empty_balance": Field(
        math.nan,
        float,
        Rule("nan or 1", lambda value: math.isnan(value) or value == 1),
        "Balance where nothing is hit, or a cohort is empty",
        release=Release(1.0),
    ),
}


def prefixed(group: str, found: Mapping[str, Field]) -> dict[str, Field]:
    """The fields of a group, with its name before theirs."""
    return {f"{group}.{name}": field for name, field in found.items()}


def of_model(name: str) -> dict[str, Field]:
    """The fields of one model. Raises InputError, with the known ones, for a name that is unknown."""
    if name not in MODEL_FILES:
        raise InputError(f"config.model.name={name!r} is not allowed: one of {', '.join(MODELS)}")
    named = Field(name, str, one_of(*MODELS), "the model (the list above)")
    return prefixed("model", {"name": named} | declared(MODEL_FILES[name]))


OTHERS = (
    RUN
    | prefixed("data", DATA | declared(ROOT / "data" / "prepare.py", "PrepareSettings") | STREAM)
    | prefixed("data.synthetic", declared(ROOT / "data" / "synthetic.py", "SyntheticSettings"))
    | prefixed("sampler", declared(SAMPLERS, "Settings", "PARTS", "POOLS"))
)
LAST = prefixed("optimizer", OPTIMIZER) | prefixed("loss", LOSS | declared(LOSS_FILE)) | prefixed("eval", EVAL)
FIELDS = {name: OTHERS | of_model(name) | LAST for name in MODELS}  # of a run with that model

# Where the release differs from the paper: (this project's value, the release's). `reference` picks; a set field wins.
BY_REFERENCE = {
    name: (field.default, field.release.value) for name, field in (OTHERS | LAST).items() if field.release is not None
}
# Where or how, not what: these may change while a run is under way, and repeats may differ in them.
FREE = tuple(name for name, field in (OTHERS | LAST).items() if not field.changes_result)


def model_of(values: Mapping[str, Any]) -> str:
    """The model of a flat config, which one of an older version does not name."""
    return values.get("model.name", DEFAULT_MODEL)


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config as a run's config.json tells it, with the defaults of the fields that it lacks: an older version's.

    A field that follows `reference` has the value that it picks.
    """
    model = model_of(values)
    known = FIELDS.get(model, OTHERS | LAST)
    chosen = bool(values.get("reference", False))
    picked = {name: choices[chosen] for name, choices in BY_REFERENCE.items()}
    return {name: field.default for name, field in known.items()} | picked | dict(values)


def distributions(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The distributions that the method of a flat config draws from, side by side; none for catalogue."""
    pool = values["sampler.pool"] or BY_REFERENCE["sampler.pool"][values["reference"]]
    method = values["method"]
    if method == "catalogue":
        return ()
    if method in ("mixed", "adaptive_mixed") or (method in BY_SCORE and pool == "mixed"):
        return values["sampler.mixture"]
    return (pool,) if method in BY_SCORE else (method,)
