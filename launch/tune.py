"""Hyper-parameter search on the validation metric, and the tuned settings that the configs read.

  python launch/tune.py --config=configs/ml1m.py --methods=paper --trials=20 --workdir=DIR \\
      --config.data.path=PATH/ratings.dat

  --config=FILE          a config file
  --methods=LIST         all (default), paper (the paper's six), or names as in uniform,mixed
  --models=LIST          all, or names as in sasrec,gru4rec (default: sasrec)
  --trials=N             shapes (batch size, numbers of negatives, OSF) to try per method and model (20); each one with
                         every learning rate and dropout, side by side in one program
  --workdir=DIR          keeps all trials (DIR/DATASET/METHOD/optuna.jsonl): the same command goes on where it stopped
  --try.FIELD=V1,V2      the values to try of a field, in place of CHOICES in jaxneg/run/tune.py; one value fixes it
  --config.FIELD=VALUE   a setting that is not searched; num_seeds: repeats of every combination

What is maximised is HR@10 on validation at its best epoch; test cases are never ranked. The draws are none of
the runs': their root seed is 1,000,000,000 + config.seed. The best settings go to tuned/DATASET.json beside the config
file as soon as a method is done, and its next run takes them; a --config flag still wins, and without the file the
paper's table holds.

Needs optuna: pip install -e '.[tune]'. Exit codes: 0 done; 2 bad input; 130 interrupted, 143 terminated.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from jaxneg import main as jaxneg_main
from jaxneg.errors import InputError
from jaxneg.run import config as config_lib
from jaxneg.run import tuned
from jaxneg.settings import DEFAULT_MODEL


def main(argv: Sequence[str]) -> int:
    """Runs a command line (argv[0] is the program); returns the exit code."""
    try:
        if {"-h", "-help", "--help"} & set(argv[1:]):
            print(__doc__)
            return 0
        given, flags, tried = parse(argv[1:])
        configs = [
            load(given.config, method, model, flags)
            for model in config_lib.parse_models(given.models)
            for method in config_lib.parse_methods(given.methods)
        ]
        tune = import_tune()
        refuse_unsearched(flags, tried, tune.CHOICES)
        own_name = jaxneg_main.load_config(given.config).dataset  # as the config file asks for it, whatever the flags
        path = tuned.tuned_file(given.config, own_name)
        for config in configs:
            name = tuned.key(config.method, config.model.name)
            workdir = pathlib.Path(given.workdir) / config.dataset / name
            found = tune.search(config, workdir, given.trials, tune.CHOICES | tried)
            tune.write_tuned(path, config.dataset, config.method, found, config.model.name)
            print(f"{path}: {name}, validation HR@10 {found['valid_hr@10']:.4f}", flush=True)
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tune: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], dict[str, tuple[Any, ...]]]:
    """(own flags, --config.FIELD flags, {field: values to try}). Raises InputError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    defaults = {"config": "", "methods": "all", "models": DEFAULT_MODEL, "workdir": "", "trials": "20"}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default)
    try:
        given, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    for name, example in (("config", "configs/ml1m.py"), ("workdir", "runs/tune")):
        if not getattr(given, name):
            raise InputError(f"--{name} is needed, as in --{name}={example}")
    if not given.trials.isdecimal() or int(given.trials) < 1:
        raise InputError(f"--trials={given.trials} is not allowed: a whole number, 1 or more")
    given.trials = int(given.trials)
    flags, tried = [], {}
    for argument in rest:
        if values := re.fullmatch(r"--try\.([\w.]+)=(.+)", argument):
            tried[values[1]] = values_to_try(values[1], values[2])
        elif re.fullmatch(r"--config\.[\w.]+=.*", argument, re.DOTALL):
            flags.append(argument)
        else:
            raise InputError(f"unexpected argument {argument!r}; --help tells what there is")
    return given, flags, tried


def values_to_try(name: str, text: str) -> tuple[Any, ...]:
    """The values of a field, of its type. Raises InputError where one is not allowed."""
    field, values = config_lib.known(name), []
    for part in text.split(","):
        try:
            value = field.kind(part)
        except ValueError:
            value = None
        if value is None or not field.rule.holds(value):
            raise InputError(f"--try.{name}={text}: {part!r} is not {config_lib.allowed(field)}")
        values.append(value)
    return tuple(dict.fromkeys(values))


def load(source: str, method: str, model: str, flags: Sequence[str]) -> config_dict.FrozenConfigDict:
    """The config of one method and model. Raises InputError."""
    if ":" in pathlib.Path(source).name:
        raise InputError(f"--config={source}: name the methods with --methods and --models, not after a colon")
    config, *_ = jaxneg_main.parse_flags(["tune", f"--config={source}:{method},{model}", *flags, "--workdir=unused"])
    if config.method != method:
        raise InputError(f"--config.method={config.method}: name the methods with --methods")
    return config


def import_tune():
    """jaxneg.run.tune, imported once the flags are right, as it brings JAX. Raises InputError without optuna."""
    try:
        from jaxneg.run import tune
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise InputError("launch/tune.py needs optuna, which is not installed: pip install -e '.[tune]'") from error
    return tune


def refuse_unsearched(flags: Sequence[str], tried: Mapping[str, Any], searched: Mapping[str, Any]) -> None:
    """Raises InputError for a searched field that is set, and for values to try of a field that is not searched."""
    for flag in flags:
        name = re.match(r"--config\.([^=]+)", flag)[1]
        if name in searched:
            raise InputError(f"{flag}: {name} is searched; --try.{name}=VALUE fixes it")
    for name in tried:
        if name not in searched:
            raise InputError(
                f"--try.{name}: {name} is not searched, --config.{name} sets it; searched are {', '.join(searched)}"
            )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
