"""Train and evaluate one method of negative sampling on one data set.

Reads the flags, checks the config, and hands both to `jaxneg.run.experiment.run`. Whatever the user can mend is one
line on stderr and exit code 2. JAX is imported only when a run starts.
"""

import ast
import gc
import os
import pathlib
import re
import runpy
import sys
import traceback

from absl import flags
from ml_collections import config_dict, config_flags

from jaxneg import fields, settings, versions
from jaxneg.data import store
from jaxneg.errors import InputError
from jaxneg.run import config as config_lib
from jaxneg.run import signals

USAGE = """\
jaxneg trains a recommender with one method of negative sampling and measures its accuracy and its popularity bias:
interaction file -> prepared data -> training -> ranks over the whole catalogue -> results.csv.

  python -m jaxneg.main --config=configs/NAME.py[:METHOD][,MODEL] --workdir=DIR [--config.FIELD=VALUE ...]

  python -m jaxneg.main --config=configs/quickstart.py:mixed --workdir=runs/mixed --config.num_seeds=4
  python -m jaxneg.main --config=configs/quickstart.py:mixed,gru4rec --workdir=runs/gru --config.model.num_layers=2
  python -m jaxneg.main --config=configs/ml1m.py:adaptive_mixed --workdir=runs/ml1m --config.data.path=PATH/ratings.dat

  --version              the versions of jaxneg, jax, jaxlib and Python
  --multihost            one run on several hosts: the same command on each (srun, a TPU pod's workers, GKE); elsewhere
                         also --coordinator=HOST:PORT --num_processes=N --process_id=I

--workdir receives config.json, metrics.jsonl, cases.npz, model.npz, items.npz, baselines.csv and results.csv. The same
command goes on where a run was stopped; with --extend also to more epochs or seeds than it began with.
"""


def main(argv: list[str]) -> int:
    """Runs a command line (argv[0] is the program). Returns the exit code.

    0: done; 2: bad input, or a disk that is full; 130 or 143: stopped by SIGINT or SIGTERM, and saved.
    """
    try:
        if {"-h", "-help", "--help"} & set(argv[1:]):
            print(usage())
            return 0
        if "--version" in argv[1:]:
            print(versions.in_words())
            return 0
        argv, hosts = take_host_flags(argv)
        config, workdir, extend = parse_flags(argv)
        versions.refuse_bad_jaxlib()
        with signals.raised():
            from jaxneg.devices import mesh as mesh_lib  # here, so that --help and a refused flag do not wait for JAX
            from jaxneg.run import experiment

            if hosts is None and not config.debug and max(config.mesh.data, config.mesh.model) <= 1:
                mesh_lib.use_cores(min(config.num_seeds, config.seeds_per_chunk or config.num_seeds))
            experiment.run(config, workdir, extend, hosts)
        return 0
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    except signals.Stopped as stopped:
        print(f"jaxneg: {stopped}", file=sys.stderr)
        return stopped.code
    except MemoryError as error:
        told = " ".join(str(error).split()) or "none is left"
        print(f"jaxneg: not enough memory for these settings ({told})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxneg: interrupted", file=sys.stderr)
        return 130


def parse_flags(argv: list[str]) -> tuple[config_dict.FrozenConfigDict, str, bool]:
    """The resolved config, the work folder and --extend of a command line. Raises InputError for all that is wrong."""
    source, argv = _take_flag(argv, "config")
    if not source:
        raise InputError("--config is needed, as in --config=configs/quickstart.py:mixed; --help tells more")
    named, argv = _take_flag(argv, "config.model.name")
    config = load_config(source, named or None)
    model = config_lib.known_model(config_lib.model_of(config_lib.flatten(config)))
    for arg in argv[1:]:
        override = re.match(r"--?(?:no)?config\.([^=]*)", arg)
        if override:
            config_lib.known(override[1], model)
        elif re.match(r"--?(flagfile|undefok)\b", arg):  # absl's own: they would let flags pass unchecked
            raise InputError(f"flag {arg!r} is not allowed: give every flag on the command line")
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "folder for the results", flag_values=values)
        flags.DEFINE_bool("extend", False, "accept more epochs or seeds, and other versions", flag_values=values)
        rest = values(argv)[1:]
    except (flags.Error, ValueError) as error:
        wrong = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
        if not wrong:
            raise InputError(_one_line(error)) from error
        name, value = wrong[1], wrong[2] if len(wrong[2]) <= 100 else wrong[2][:97] + "..."
        allowed = config_lib.allowed(config_lib.known(name, model))
        raise InputError(f"config.{name}={value} is not allowed: {allowed}") from error
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}: every setting is a flag, as in --workdir=DIR")
    if not values.workdir:
        raise InputError("--workdir is needed, as in --workdir=runs/first: the folder for the results")
    return config_lib.resolve(values.config), values.workdir, values.extend


def take_host_flags(argv: list[str]) -> tuple[list[str], dict | None]:
    """The other arguments, and how the hosts find each other: None without --multihost. Raises InputError."""
    found, others = {}, []
    for arg in argv:
        name, equals, value = arg.removeprefix("--").partition("=")
        if arg == "--multihost":
            found["multihost"] = True
        elif not arg.startswith("--") or name not in ("coordinator", "num_processes", "process_id"):
            others.append(arg)
        elif name == "coordinator" and re.fullmatch(r"[^\s:]+:\d+", value):
            found[name] = value
        elif name != "coordinator" and value.isdecimal():
            found[name] = int(value)
        else:
            raise InputError(f"{arg} is not allowed: --coordinator=HOST:PORT, --num_processes=N, --process_id=I")
    if found and "multihost" not in found:
        raise InputError(f"--{next(iter(found))} goes with --multihost only")
    if 1 < len(found) < 4:
        raise InputError("--coordinator, --num_processes and --process_id go together; a known cluster needs none")
    if found.get("process_id", 0) >= found.get("num_processes", 1):
        raise InputError(f"--process_id={found['process_id']} must be below --num_processes={found['num_processes']}")
    return others, {name: found[name] for name in found if name != "multihost"} if found else None


def load_config(source: str, model: str | None = None) -> config_dict.ConfigDict:
    """Runs `get_config` of a config file: `source` is PATH.py, or PATH.py:ARGUMENT.

    `model` counts as if it stood in the argument (see `config.split_arg`). Raises InputError for a file that is not
    there, for whatever the file raises, and if its config is of another model.
    """
    if model is not None:
        config_lib.known_model(model)
    name, *argument = source.split(":", 1)
    path = pathlib.Path(name)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise InputError(f"--config={source}: cannot be read ({error.strerror})") from error
    if not is_file:
        there = ", ".join(str(file) for file in sorted(path.parent.glob("*.py"))) or "none"
        raise InputError(f"--config={source}: there is no file {path}; the .py files in {path.parent}: {there}")
    try:
        with config_lib.asked_model(model):
            config = runpy.run_path(name)["get_config"](*argument)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's own code: whatever it raises is about that file
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
        where = f" in line {lines[-1]}" if lines else ""
        raise InputError(f"--config={source}: {type(error).__name__}{where}: {_one_line(error)}") from error
    if not isinstance(config, config_dict.ConfigDict):
        raise InputError(f"--config={source}: get_config must return a config made by jaxneg.config.base()")
    theirs = config_lib.model_of(config_lib.flatten(config))
    if model is not None and theirs != model:
        raise InputError(
            f"--config.model.name={model}: {name} makes a config of {theirs} whatever is asked; let it call "
            "jaxneg.config.split_arg and base(model)"
        )
    return config


def usage() -> str:
    """The text of --help: what it does, examples, the config files, the methods, and every field."""
    configs = pathlib.Path(__file__).parent.parent / "configs"
    lines = [USAGE]
    if configs.is_dir():
        lines.append("configs/ (each file's head gives its command):")
        for file in sorted(configs.glob("*.py")):
            about = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]
            lines.append(f"  {file.stem:<14}{about}")
    lines.append("\nmethods, after the colon or as --config.method:")
    lines += [f"  {name:<20}{text}" for name, text in settings.METHODS.items()]
    lines.append("\nmodels, after the colon or as --config.model.name:")
    lines += [f"  {name:<20}{text}" for name, text in settings.MODELS.items()]
    lines.append("\nlosses, as --config.loss.name:")
    lines += [f"  {name:<20}{text}" for name, text in settings.LOSSES.items()]
    lines.append("\nfields, as --config.FIELD=VALUE (defaults; a config file may set others):")
    for name, field in settings.FIELDS[settings.DEFAULT_MODEL].items():
        lines.append(_field_line(name, field))
    for model in settings.MODELS:
        if model != settings.DEFAULT_MODEL:
            lines.append(f"\nthe model's own fields for {model}:")
            lines += [_field_line(name, field) for name, field in list(settings.of_model(model).items())[1:]]
    return "\n".join(lines)


def _field_line(name: str, field: fields.Field) -> str:
    """One field in --help."""
    default = "as reference" if field.release else repr(field.default)
    listed = field.kind is str and field.rule is not fields.ANY and name not in ("method", "model.name", "loss.name")
    choices = f" ({field.rule.text})" if listed else ""
    return f"  {f'{name}={default}':<40} {field.text}{choices}"


def _take_flag(argv: list[str], flag: str) -> tuple[str, list[str]]:
    """The value of a flag (in either form, --config=FILE or --config FILE), "" without it, and the other arguments."""
    found, others, rest = "", [], list(argv)
    while rest:
        arg = rest.pop(0)
        name, equals, value = arg.partition("=")
        if name in (f"-{flag}", f"--{flag}"):
            found = value if equals else (rest.pop(0) if rest and not rest[0].startswith("-") else "")
        else:
            others.append(arg)
    return found, others


def _one_line(error: Exception) -> str:
    """An exception's message in one line, without the dump of all fields that a locked config adds."""
    text = str(error.args[0]) if error.args else str(error)
    text = re.sub(r"Other fields present.*?(?=Did you mean|$)", "", text, flags=re.DOTALL)
    return " ".join(text.split())


if __name__ == "__main__":
    # Imports and tracing make millions of objects that stay: to look for garbage among them takes a quarter of a start.
    gc.set_threshold(1_000_000)
    # A run that is resumed should not compile again, not even what takes less than a second; JAX reads these when it is
    # imported.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(store.default_cache_dir() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if code > 128:
        os._exit(code)  # at once: a device program may still be running, and Python would wait for it
    sys.exit(code)
