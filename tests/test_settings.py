"""Every setting is written once, where its component is; and how a command line names a model."""

import importlib
import inspect
import pathlib

import pytest

from jaxneg import fields, losses, main, models, samplers, settings
from jaxneg.data import prepare, synthetic
from jaxneg.errors import InputError
from jaxneg.run import config as config_lib

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
COMPONENTS = {
    "data.": prepare.PrepareSettings,
    "data.synthetic.": synthetic.SyntheticSettings,
    "sampler.": samplers.Settings,
    "loss.": losses.Settings,
}
EVERY = {name: field for own in settings.FIELDS.values() for name, field in own.items()}


def told(field):
    """What of a field can be compared: its rule is a function, which the two readings make twice."""
    return field.default, field.kind, field.rule.text, field.text, field.release, field.changes_result


def assert_same(prefix, component, declared):
    own = fields.fields_of(component)
    assert tuple(own) == component._fields, "each has its rule and its words"
    for name, field in own.items():
        assert told(declared[prefix + name]) == told(field), name
        assert declared[prefix + name].default == component()[component._fields.index(name)]


@pytest.mark.parametrize("prefix", COMPONENTS)
@pytest.mark.parametrize("model", settings.MODELS)
def test_a_components_settings_are_its_own(prefix, model):
    assert_same(prefix, COMPONENTS[prefix], settings.FIELDS[model])


@pytest.mark.parametrize("name", settings.MODELS)
def test_a_models_settings_are_its_own(name):
    module = importlib.import_module(f"jaxneg.models.{name}")
    assert_same("model.", module.Settings, settings.FIELDS[name])
    of_model = [field for field in settings.FIELDS[name] if field.startswith("model.")]
    assert of_model == ["model.name", *(f"model.{own}" for own in module.Settings._fields)]
    assert settings.FIELDS[name]["model.name"].default == name
    assert settings.MODELS[name] == inspect.getdoc(module).split("\n")[0]


def test_the_names_are_those_of_the_components():
    assert tuple(settings.MODELS) == models.NAMES
    assert list(settings.METHODS) == list(samplers.METHODS)
    assert list(settings.LOSSES) == list(losses.LOSSES) == list(losses.ABOUT)
    assert settings.TWO_TERMS == losses.TWO_TERMS


@pytest.mark.parametrize("name", EVERY)
def test_every_default_obeys_its_own_rule(name):
    field = EVERY[name]
    for value in [field.default] + ([field.release.value] if field.release else []):
        kinds = (int, float) if field.kind is float else field.kind
        assert isinstance(value, kinds) and field.rule.holds(value), name
    assert field.text and field.rule.text


def test_a_model_has_its_defaults_and_refuses_what_it_does_not_have():
    made = models.make("sasrec", {}, 30)
    assert (made.width, made.max_len) == (50, 50)
    assert models.make("sasrec", {"width": 6, "max_len": 4}, 30)[:2] == (6, 4)
    with pytest.raises(InputError, match="sasrec has no model.num_layers; it has width, num_blocks"):
        models.make("sasrec", {"num_layers": 2}, 30)
    with pytest.raises(InputError, match="model.name is 'sasrek'; allowed: .*sasrec"):
        models.make("sasrek", {}, 30)


OTHER_VALUES = {
    "num_rows": 777,
    "num_users": 55,
    "num_items": 66,
    "seed": 9,
    "num_tastes": 7,
    "zipf_exponent": 0.7,
    "follow": 0.25,
    "taste": 0.75,
    "days": 30.5,
}


@pytest.mark.parametrize("name", synthetic.SyntheticSettings._fields)
def test_every_synthetic_setting_can_be_set_by_a_flag(name):
    value = OTHER_VALUES[name]
    assert value != getattr(synthetic.DEFAULT, name)
    flag = f"--config.data.synthetic.{name}={value}"
    config, *_ = main.parse_flags(["main.py", f"--config={CONFIGS}/quickstart.py", "--workdir=x", flag])
    assert synthetic.SyntheticSettings(**config.data.synthetic) == synthetic.DEFAULT._replace(**{name: value})


def test_an_older_runs_settings_get_the_defaults_of_what_they_lack():
    old = {"method": "mixed", "seed": 3, "reference": False, "loss.name": "bpr"}
    full = settings.with_defaults(old)
    assert full.keys() == settings.FIELDS["sasrec"].keys()
    assert full["model.name"] == "sasrec" and full["loss.l2"] == 0 and full["seed"] == 3
    assert full["sampler.pool"] == "uniform" and full["loss.count_pads"] is False
    released = settings.with_defaults(old | {"reference": True, "sampler.pool": "popularity"})
    assert released["sampler.pool"] == "popularity" and released["loss.count_pads"] is True


def test_what_follows_reference_and_what_is_free():
    for name, (ours, theirs) in settings.BY_REFERENCE.items():
        assert config_lib.flatten(config_lib.base())[name] is None
        assert repr((EVERY[name].default, EVERY[name].release.value)) == repr((ours, theirs))  # one is nan
        assert repr(ours) != repr(theirs)
    assert {"mesh.data", "mesh.model", "data.stream", "data.path"} < set(settings.FREE) < set(EVERY)
    assert not {"seed", "method", "model.name", "loss.l2", "batch_size"} & set(settings.FREE)


# Names of models


TOY = '''"""A toy, to have two models."""
class Settings(NamedTuple):
    width: Annotated[int, at_least(1, 999), "its width"] = 8
    max_len: Annotated[int, at_least(1, 999), "its length"] = 4
    num_layers: Annotated[int, at_least(1, 99), "its layers"] = 3
    dropout: Annotated[float, BELOW_ONE, "its dropout"] = 0.1
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A second model, as far as settings go."""
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    monkeypatch.setitem(settings.MODEL_FILES, "toy", path)
    monkeypatch.setitem(settings.MODELS, "toy", fields.about(path))
    monkeypatch.setitem(settings.FIELDS, "toy", settings.OTHERS | settings.of_model("toy") | settings.LAST)
    return "toy"


def parsed(source, *flags):
    return main.parse_flags(["main.py", f"--config={CONFIGS}/{source}", "--workdir=x", *flags])[0]


@pytest.mark.parametrize(
    ("arg", "asked", "found"),
    [
        (None, None, ("adaptive_mixed", "sasrec")),
        ("", None, ("adaptive_mixed", "sasrec")),
        ("mixed", None, ("mixed", "sasrec")),
        ("toy", None, ("adaptive_mixed", "toy")),
        ("mixed,toy", None, ("mixed", "toy")),
        ("toy, mixed", None, ("mixed", "toy")),
        (None, "toy", ("adaptive_mixed", "toy")),
        ("dns", "toy", ("dns", "toy")),
        ("dns,toy", "toy", ("dns", "toy")),
        ("sasrec", "sasrec", ("adaptive_mixed", "sasrec")),
    ],
)
def test_an_argument_and_a_flag_name_method_and_model(toy, arg, asked, found):
    with config_lib.asked_model(asked):
        assert config_lib.split_arg(arg) == found
    assert config_lib.split_arg(None, "uniform") == ("uniform", "sasrec")  # the flag is forgotten


@pytest.mark.parametrize(
    ("arg", "asked", "says"),
    [
        ("toy", "sasrec", "argument names the model toy, and --config.model.name names sasrec"),
        ("mixed,sasrec", "toy", "argument names the model sasrec, and --config.model.name names toy"),
        ("toy,sasrec", None, "'toy,sasrec' names two models: one of toy and sasrec"),
        ("mixed,dns", None, "'mixed,dns' names two methods: one of mixed and dns"),
        ("mixed,tuy", None, "unknown method or model 'tuy' (did you mean 'toy'?); known methods: uniform, popularity"),
        ("mixed,tuy", None, "known models: sasrec, toy"),
        ("mixed,", None, "unknown method or model ''"),
        (None, "nothing", "unknown model 'nothing'"),
    ],
)
def test_what_an_argument_and_a_flag_may_not_name(toy, arg, asked, says):
    with pytest.raises(InputError) as refused, config_lib.asked_model(asked):
        config_lib.split_arg(arg)
    assert says in str(refused.value).replace(", ".join(settings.MODELS), "sasrec, toy")


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.py")))
@pytest.mark.parametrize("how", [":mixed,toy", ":toy,mixed", ":mixed --config.model.name=toy"])
def test_every_config_file_takes_another_model(toy, config, how):
    arg, *flags = how.split()
    resolved = parsed(config + arg, *flags, "--config.model.num_layers=2")
    assert (resolved.method, resolved.model.name, resolved.model.num_layers) == ("mixed", "toy", 2)
    assert "num_blocks" not in resolved.model
    assert config_lib.label(resolved).startswith("toy/mixed")


@pytest.mark.parametrize(
    ("source", "flags", "says"),
    [
        ("quickstart.py:toy", ["--config.model.name=sasrec"], ["the model toy, and --config.model.name names sasrec"]),
        (
            "quickstart.py",
            ["--config.model.name=tuy"],
            ["unknown model 'tuy' (did you mean 'toy'?); known: sasrec, toy"],
        ),
        (
            "quickstart.py:toy",
            ["--config.model.num_blocks=2"],
            ["toy has no config.model.num_blocks", "; it has model.name, model.width, model.max_len, model.num_layers"],
        ),
        (
            "quickstart.py",
            ["--config.model.num_layers=2"],
            [
                "sasrec has no config.model.num_layers",
                "; it has model.name, model.width, model.num_blocks, model.num_h",
            ],
        ),
        (
            "quickstart.py",
            ["--config.model.name=toy", "--config.model.num_heads=1"],
            ["toy has no config.model.num_heads", "; it has model.name, model.width"],
        ),
        ("quickstart.py:toy", ["--config.model.num_layers=100"], ["config.model.num_layers=100 is not allowed", "99"]),
    ],
)
def test_a_command_line_that_a_model_refuses(toy, source, flags, says):
    with pytest.raises(InputError) as refused:
        parsed(source, *flags)
    message = str(refused.value).replace(", ".join(settings.MODELS), "sasrec, toy")
    assert all(words in message for words in says) and "\n" not in message


def test_a_config_file_that_makes_one_model_only_is_told_of(toy, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from jaxneg import config\n\n\ndef get_config():\n    return config.base()\n")
    args = ["main.py", f"--config={path}", "--workdir=x"]
    assert main.parse_flags([*args, "--config.model.name=sasrec"])[0].model.name == "sasrec"
    with pytest.raises(InputError, match="makes a config of sasrec whatever is asked"):
        main.parse_flags([*args, "--config.model.name=toy"])


def test_lists_of_models(toy):
    assert config_lib.parse_models("all") == list(settings.MODELS)
    assert config_lib.parse_models("toy, sasrec") == ["toy", "sasrec"]
    with pytest.raises(InputError, match="unknown model 'tuy'"):
        config_lib.parse_models("sasrec,tuy")


def test_a_changed_config_keeps_its_model(toy):
    config = parsed("quickstart.py:toy")
    other = config_lib.changed(config, {"model.num_layers": 5, "seed": 4})
    assert (other.model.name, other.model.num_layers, other.seed) == ("toy", 5, 4)
    assert config.model.num_layers == 3
