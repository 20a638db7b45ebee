"""The config table, the data sets' settings, what is refused, and how `reference` fills what is unset."""

import math
import pathlib

import pytest
from ml_collections import config_dict

from jaxneg import losses, main, models, samplers, settings
from jaxneg.data import prepare, raw, synthetic
from jaxneg.errors import InputError
from jaxneg.run import config as config_lib

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
NAMES = ["quickstart", "ml1m", "ml1m_leave_one_out", "ml10m", "beauty", "beauty5core", "retailrocket", "interactions"]

# The paper's tuned settings as published: batch, learning rate, and the draws: in-batch/uniform/kept, or one number.
PAPER = {
    "ml10m": {
        "uniform": "64 1e-2 50",
        "popularity": "64 1e-4 50",
        "in_batch": "128 1e-2 5",
        "mixed": "128 1e-2 50/50",
        "adaptive": "128 1e-2 100/0/5",
        "adaptive_mixed": "64 1e-2 10/100/25",
    },
    "beauty": {
        "uniform": "128 1e-4 5",
        "popularity": "128 1e-4 5",
        "in_batch": "128 1e-4 50",
        "mixed": "64 1e-3 5/5",
        "adaptive": "128 1e-4 100/0/25",
        "adaptive_mixed": "64 1e-3 10/100/5",
    },
    "retailrocket": {
        "uniform": "256 1e-3 5",
        "popularity": "256 1e-2 5",
        "in_batch": "128 1e-4 50",
        "mixed": "256 1e-3 5/5",
        "adaptive": "256 1e-2 100/0/5",
        "adaptive_mixed": "128 1e-3 10/100/5",
    },
}


def load(name, method=""):
    return main.load_config(f"{CONFIGS / name}.py" + (f":{method}" if method else ""))


def with_values(**values):
    changed = config_lib.base()
    changed.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
    return changed


def test_config_files_are_those_that_are_tested():
    assert sorted(path.stem for path in CONFIGS.glob("*.py")) == sorted(NAMES)


def test_methods_losses_and_pools_are_those_of_the_parts():
    assert settings.METHODS == {name: recipe.about for name, recipe in samplers.METHODS.items()}
    assert list(settings.LOSSES) == list(losses.LOSSES)
    assert set(settings.TWO_TERMS) < set(losses.LOSSES)
    assert tuple(settings.MODELS) == models.NAMES
    assert set(settings.PAPER_METHODS) < set(samplers.METHODS)
    assert set(settings.BY_SCORE) == {name for name, recipe in samplers.METHODS.items() if recipe.selector != "all"}
    assert set(settings.DISTRIBUTIONS) == set(samplers.PARTS)


@pytest.mark.parametrize("method", settings.METHODS)
@pytest.mark.parametrize("pool", samplers.POOLS)
def test_what_a_method_draws_is_what_its_sampler_is_built_of(method, pool):
    """The config counts candidates without building anything: the same fields, with the same sum."""
    mixture = ("popularity", "uniform", "inverse_popularity")
    values = config_lib.flatten(with_values(method=method, sampler__pool=pool, sampler__mixture=mixture))
    own = samplers.Settings(
        num_in_batch=values["sampler.num_in_batch"],
        num_uniform=values["sampler.num_uniform"],
        num_popularity=values["sampler.num_popularity"],
        pool=pool,
        mixture=mixture,
    )
    counted = [settings.DISTRIBUTIONS[part] for part in settings.distributions(values)]
    assert counted == [f"sampler.{source.count}" for source in samplers.sources(method, own)]
    assert sum(values[name] for name in counted) == samplers.make(method, 1000, own).num_candidates


def test_results_name_the_loss_that_is_not_bce():
    assert config_lib.label(config_lib.resolve(with_values(method="dns"))) == "dns"
    assert config_lib.label(config_lib.resolve(with_values(method="dns", loss__name="bpr"))) == "dns+bpr"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", settings.METHODS)
def test_every_config_is_valid_with_every_method(name, method):
    resolved = config_lib.resolve(load(name, method))
    assert resolved.method == method
    assert config_lib.resolve(load(name)).method == ("uniform" if name == "ml1m_leave_one_out" else "adaptive_mixed")


@pytest.mark.parametrize(
    ("name", "column"), [("ml10m", "ml10m"), ("ml1m", "ml10m"), ("beauty", "beauty"), ("retailrocket", "retailrocket")]
)
@pytest.mark.parametrize("method", settings.METHODS)
def test_tuned_settings_are_the_papers(name, column, method):
    if method == "catalogue":  # the paper has nothing like it
        assert config_lib.resolve(load(name, method)).loss.name == "full_softmax"
        return
    like = {
        "inverse_popularity": "popularity",
        "popularity_cohort": "popularity",
        "dns": "adaptive",
        "softmax_hard": "adaptive",
    }
    published = PAPER[column][like.get(method, method)]
    batch_size, learning_rate, draws = published.split()
    resolved = config_lib.resolve(load(name, method))
    assert (resolved.batch_size, resolved.learning_rate) == (int(batch_size), float(learning_rate))
    sampler = resolved.sampler
    numbers = [int(number) for number in draws.split("/")]
    got = {
        "uniform": [sampler.num_uniform],
        "in_batch": [sampler.num_in_batch],
        "mixed": [sampler.num_in_batch, sampler.num_uniform],
        "adaptive": [sampler.num_uniform, 0, sampler.num_kept],
        "adaptive_mixed": [sampler.num_in_batch, sampler.num_uniform, sampler.num_kept],
    }
    got |= {method: got["adaptive"] for method in ("dns", "softmax_hard")}
    assert got.get(method, [sampler.num_popularity]) == numbers
    if method == "adaptive":  # the same hundred from the batch, when the release is followed
        assert sampler.num_in_batch == numbers[0]


@pytest.mark.parametrize("method", PAPER["beauty"])
def test_beauty5core_has_the_papers_numbers_and_rates_of_its_own(method):
    own, papers = (config_lib.flatten(config_lib.resolve(load(name, method))) for name in ("beauty5core", "beauty"))
    assert {name for name in own if repr(own[name]) != repr(papers[name])} <= {
        "dataset",
        "num_epochs",
        "eval_every",
        "learning_rate",
    }
    assert own["learning_rate"] in (1e-3, 3e-3, 1e-2) and own["num_epochs"] == 10
    assert load("beauty5core", "dns").learning_rate == 1e-3


def test_field_names_are_those_of_the_parts():
    """What a part calls a setting is what the config calls it, and the parts' known values are all allowed."""

    def group(name):
        return {field.removeprefix(name) for field in settings.FIELDS["sasrec"] if field.startswith(name)}

    assert group("sampler.") == set(samplers.Settings._fields)
    assert set(prepare.PrepareSettings._fields) < group("data.")
    assert group("data.synthetic.") == set(synthetic.SyntheticSettings._fields)
    assert set(settings.DATA_FORMATS) == {*raw.NAMES, "synthetic"}
    for field, names in [
        ("data.split", prepare.SPLIT_RULES),
        ("sampler.scope", samplers.SCOPES),
        ("sampler.pool", samplers.POOLS),
        ("sampler.dns_form", samplers.DNS_FORMS),
        ("loss.negative_reduction", losses.REDUCTIONS),
    ]:
        assert all(settings.FIELDS["sasrec"][field].rule.holds(name) for name in names)
    assert set(losses.Settings._fields) < group("loss.")


def test_what_the_data_sets_set():
    loaded = {name: config_lib.resolve(load(name)) for name in NAMES}
    assert {name: c.osf for name, c in loaded.items()} == {
        "quickstart": math.inf,
        "ml1m": math.inf,
        "ml1m_leave_one_out": math.inf,
        "interactions": math.inf,
        "ml10m": 30,
        "beauty": 30,
        "beauty5core": 30,
        "retailrocket": 30,
    }
    assert [loaded[name].model.max_len for name in ("ml1m", "ml10m", "beauty", "retailrocket", "interactions")] == [
        200,
        200,
        50,
        50,
        50,
    ]
    set_by_file = {field: loaded["retailrocket"].data[field] for field in prepare.PrepareSettings._fields}
    assert set_by_file == prepare.RETAILROCKET._asdict()
    leave_one_out = loaded.pop("ml1m_leave_one_out")
    assert (leave_one_out.data.split, leave_one_out.sampler.scope, leave_one_out.model.max_len) == (
        "leave_one_out",
        "batch",
        200,
    )
    assert (leave_one_out.loss.name, leave_one_out.sampler.num_uniform) == ("sampled_softmax", 3000)
    mixed = config_lib.resolve(load("ml1m_leave_one_out", "mixed")).sampler
    assert (mixed.num_in_batch, mixed.num_uniform) == (1500, 1500)
    for c in loaded.values():
        assert (c.num_seeds, c.seed, c.reference, c.model.width, c.model.dropout) == (1, 0, False, 50, 0.2)
    assert (loaded["ml10m"].num_epochs, loaded["ml10m"].eval_every) == (201, 25)


def test_reference_fills_only_what_is_unset():
    plain = config_lib.resolve(config_lib.base())
    assert (plain.sampler.pool, plain.sampler.mixed_exclude) == ("uniform", "history")
    assert (plain.loss.keep_unselected, plain.loss.count_pads, plain.optimizer.tensorflow_epsilon) == (False,) * 3
    assert math.isnan(plain.eval.empty_balance)

    released = config_lib.resolve(with_values(reference=True, loss__count_pads=False))
    assert (released.sampler.pool, released.sampler.mixed_exclude) == ("in_batch", "targets")
    assert (released.loss.keep_unselected, released.optimizer.tensorflow_epsilon) == (True, True)
    assert released.eval.empty_balance == 1
    assert released.loss.count_pads is False


def test_resolve_freezes_and_is_idempotent():
    once = config_lib.resolve(with_values(eval__ks=(20, 5), seed=3))
    assert isinstance(once, config_dict.FrozenConfigDict)
    assert once.eval.ks == (5, 10, 20)
    again = config_lib.flatten(config_lib.resolve(once))
    assert math.isnan(again.pop("eval.empty_balance"))
    assert again == {name: value for name, value in config_lib.flatten(once).items() if name != "eval.empty_balance"}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("batch_size", 0, "1 or more"),
        ("num_seeds", 0, "1 or more"),
        ("num_epochs", -1, "1 or more"),
        ("seed", -1, "0 or more"),
        ("learning_rate", 0.0, "finite and above 0"),
        ("learning_rate", math.inf, "finite"),
        ("learning_rate", math.nan, "finite"),
        ("osf", 0.0, "above 0, or inf"),
        ("osf", math.nan, "above 0, or inf"),
        ("osf", -math.inf, "above 0, or inf"),
        ("method", "hard", "adaptive_mixed"),
        ("data.split", "random", "temporal, leave_one_out"),
        ("data.format", "json", "auto"),
        ("data.test_fraction", 1.0, "below 1"),
        ("data.valid_fraction", 0.0, "above 0"),
        ("sampler.scope", "user", "sequence, position, batch"),
        ("sampler.pool", "all", "uniform, in_batch, popularity"),
        ("sampler.mixture", (), "some of uniform, in_batch"),
        ("sampler.mixture", ("uniform",) * 2, "each once"),
        ("sampler.mixture", ("mixed",), "some of uniform, in_batch"),
        ("sampler.dns_form", "all", "average, random_one"),
        ("sampler.rho", -0.1, "0 or more"),
        ("sampler.rho", math.inf, "finite"),
        ("loss.negative_reduction", "max", "auto, mean, sum"),
        ("loss.calibration", 1.5, "from 0 to 1"),
        ("loss.score_penalty", -1.0, "0 or more"),
        ("loss.temperature", 0.0, "above 0"),
        ("loss.chunk", 0, "1 or more"),
        ("eval.opauc_betas", (0.0,), "above 0, at most 1"),
        ("eval.opauc_betas", ("all",), "above 0, at most 1"),
        ("sampler.mixed_exclude", "none", "history, targets"),
        ("sampler.num_kept", 0, "1 or more"),
        ("sampler.exponent", -1.0, "0 or more"),
        ("model.dropout", 1.0, "below 1"),
        ("model.dropout", -0.1, "0 or more"),
        ("model.max_len", 0, "1 or more"),
        ("eval.ks", (), "whole numbers"),
        ("eval.ks", (0,), "whole numbers"),
        ("eval.ks", (1.5,), "whole numbers"),
        ("loss.name", "hinge", "bce, gbce, bpr"),
        ("eval.empty_balance", 0.5, "nan or 1"),
        ("optimizer.epsilon", 0.0, "above 0"),
    ],
)
def test_wrong_values_are_named(name, value, says):
    changed = config_lib.base()
    changed.update_from_flattened_dict({name: value})
    with pytest.raises(InputError) as error:
        config_lib.validate(changed)
    message = str(error.value)
    assert f"config.{name}={value!r}" in message and says in message and "\n" not in message


@pytest.mark.parametrize("value", [True, 1.5, "7", None])
def test_wrong_types_are_named(value):
    values = config_lib.base().to_dict()
    values["batch_size"] = value
    with pytest.raises(InputError, match=r"config\.batch_size=.* is not allowed: a whole number"):
        config_lib.validate(values)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(InputError, match=r"config\.batch_size=0 .*config\.model\.dropout=2\.0 "):
        config_lib.validate(with_values(batch_size=0, model__dropout=2.0))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model.width": 50, "model.num_heads": 3}, "num_heads=3 must divide config.model.width=50"),
        ({"method": "adaptive_mixed", "sampler.num_kept": 111}, "pool of 110"),
        ({"method": "adaptive", "sampler.num_kept": 101}, "pool of 100"),
        ({"method": "adaptive", "reference": True, "sampler.num_kept": 11}, "pool of 10 "),
        ({"method": "adaptive", "sampler.pool": "in_batch", "sampler.num_kept": 11}, "pool of 10 "),
        ({"method": "uniform", "sampler.num_uniform": 0}, "num_uniform=0 leaves method uniform without"),
        ({"method": "popularity_cohort", "sampler.num_popularity": 0}, "config.sampler.num_popularity=0"),
        ({"method": "mixed", "sampler.num_in_batch": 0}, "config.sampler.num_in_batch=0"),
        (
            {"method": "mixed", "sampler.mixture": ("popularity", "uniform"), "sampler.num_popularity": 0},
            "config.sampler.num_popularity=0",
        ),
        ({"method": "dns", "sampler.num_kept": 101}, "pool of 100"),
        ({"method": "softmax_hard", "sampler.pool": "mixed", "sampler.num_kept": 111}, "pool of 110"),
        (
            {
                "method": "dns",
                "sampler.pool": "mixed",
                "sampler.mixture": ("popularity", "inverse_popularity"),
                "sampler.num_kept": 101,
            },
            "pool of 100 (config.sampler.num_popularity=50 + config.sampler.num_popularity=50)",
        ),
        ({"method": "uniform", "loss.name": "full_softmax"}, "full_softmax scores every item and catalogue draws none"),
        ({"method": "catalogue"}, "config.loss.name=bce can not go with method catalogue"),
        ({"method": "catalogue", "loss.name": "full_softmax", "loss.count_pads": True}, "a pad is no item"),
        (
            {"method": "catalogue", "loss.name": "full_softmax", "reference": True, "loss.keep_unselected": False},
            "config.loss.count_pads=True can not go with full_softmax",
        ),
        *(
            ({"method": method, "loss.name": "sampled_softmax"}, f"what {method} chooses by its score has none")
            for method in settings.BY_SCORE
        ),
        (
            {"method": "uniform", "loss.name": "bpr", "reference": True},
            "config.loss.keep_unselected=True is a form of bce",
        ),
        (
            {"loss.name": "bpr", "loss.negative_weight": 0.5},
            "config.loss.negative_weight=0.5 needs a loss whose negatives",
        ),
        (
            {"loss.name": "infonce", "loss.negative_reduction": "sum"},
            "config.loss.negative_reduction='sum' needs a loss",
        ),
        ({"data.test_fraction": 0.6, "data.valid_fraction": 0.4}, "must be below 1"),
    ],
)
def test_conflicts_are_named(values, says):
    changed = config_lib.base()
    changed.update_from_flattened_dict(values)
    with pytest.raises(InputError) as error:
        config_lib.validate(changed)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "uniform", "sampler.num_kept": 500},  # not an adaptive method: nothing is kept or dropped
        {"method": "in_batch", "sampler.num_uniform": 0},
        {"method": "adaptive", "sampler.num_kept": 100},
        {"method": "softmax_hard", "sampler.pool": "popularity", "loss.name": "bpr"},
        {"method": "adaptive", "sampler.pool": "mixed", "sampler.mixture": ("popularity", "in_batch", "uniform")},
        {"method": "mixed", "loss.name": "sampled_softmax"},
        {"eval.opauc_betas": (0.01, 1)},
        {"method": "uniform", "reference": True, "loss.keep_unselected": False, "loss.name": "gbce"},
        {"eval.ks": (1, 1000)},
        {"osf": 0.5},
        {"learning_rate": 1},
        {"model.dropout": 0.0},
    ],
)
def test_right_values_pass(values):
    changed = config_lib.base()
    changed.update_from_flattened_dict(values)
    resolved = config_lib.flatten(config_lib.resolve(changed))
    assert all(resolved[name] == value for name, value in values.items() if name != "eval.ks")


def test_a_misspelt_field_gets_the_nearest_name():
    with pytest.raises(InputError, match=r"no field 'batchsize' \(did you mean 'batch_size'\?\)"):
        config_lib.known("batchsize")
    with pytest.raises(InputError, match="did you mean 'sampler.num_kept'"):
        config_lib.known("num_kpt")
    with pytest.raises(InputError, match="a group of fields: set one of model.name, model.width, "):
        config_lib.known("model")
    values = config_lib.base().to_dict() | {"learning_rat": 0.1}
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        config_lib.validate(values)


def test_a_missing_field_is_named():
    values = config_lib.base().to_dict()
    del values["osf"], values["model"]["width"]
    with pytest.raises(InputError, match="lacks the fields osf, model.width"):
        config_lib.validate(values)


def test_an_unknown_method_lists_the_known():
    with pytest.raises(
        InputError, match=r"unknown method or model 'mixd' \(did you mean 'mixed'\?\); known methods: uniform, pop"
    ):
        config_lib.parse_arg("mixd")
    assert config_lib.parse_arg(None) == config_lib.parse_arg("") == "adaptive_mixed"
