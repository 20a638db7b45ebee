"""A study: several methods, one after another, on one data set or several, and the report at the end.

  python launch/study.py --config=configs/ml1m.py --methods=all --config.num_seeds=20 --workdir=DIR \\
      --config.data.path=PATH/ratings.dat

  --config=FILE          a config file; may be given several times
  --methods=LIST         all (default), paper (the paper's six), or names as in uniform,mixed,adaptive_mixed
  --osf=LIST             several oversampling factors, as in 1,3,10,20,30,50,inf: every method once for each
  --workdir=DIR          gets DIR/DATASET/METHOD/ (with --osf: DIR/DATASET/METHOD/osf_VALUE/) and the report
  --config.FIELD=VALUE   a setting of every run; python -m jaxneg.main --help lists them
  --NAME.FIELD=VALUE     a setting of the runs of configs/NAME.py only, as in --beauty.data.path=PATH

Every run is a process of its own. The same command goes on where it was stopped: what is finished is skipped, what is
not goes on from its checkpoint. A run that fails does not stop the others. Ctrl-C and SIGTERM go on to the run, which
may save first; a second one ends it at once.

Exit codes: 0 all is finished; 1 a run failed (the summary tells which); 2 bad input; 130, 143 stopped by a signal.
"""

import contextlib
import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jaxneg import files
from jaxneg import main as jaxneg_main
from jaxneg.errors import InputError
from jaxneg.evaluation import rows as results
from jaxneg.report import __main__ as report
from jaxneg.run import config as config_lib

STOP = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class Run(NamedTuple):
    """One process to start."""

    dataset: str
    name: str  # dataset, method and OSF, for people
    folder: pathlib.Path
    command: tuple[str, ...]
    settings: dict[str, Any]  # as config.json will have them


class Stopped(Exception):
    """A signal came; holds the exit code."""


def main(argv: Sequence[str]) -> int:
    """Runs a command line (argv[0] is the program); returns the exit code."""
    try:
        if {"-h", "-help", "--help"} & set(argv[1:]):
            print(__doc__)
            return 0
        workdir, runs = plan(argv[1:])
        with files.claimed(workdir):
            pass
        failed = run_all(runs)
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        say("stopped; the same command goes on from here")
        return stopped.args[0]
    if len(failed) < len(runs):
        print(f"report: {report.write([workdir])}")
    for run in runs:
        if run.name in failed:
            say(f"{run.name} failed ({_reason(failed[run.name])}); this runs it alone: {shlex.join(run.command)}")
    if failed:
        say(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again")
    return 1 if failed else 0


def plan(arguments: Sequence[str]) -> tuple[pathlib.Path, list[Run]]:
    """The work folder and all runs of a command line, every one checked before the first starts. Raises InputError."""
    given: dict[str, list[str]] = {"config": [], "methods": [], "osf": [], "workdir": []}
    settings: dict[str, list[str]] = {}  # {"config" or a config file's name: flags for the runs}
    for argument in arguments:
        flag = re.fullmatch(r"--(\w+)(?:\.([\w.]+))?=(.*)", argument, re.DOTALL)
        if flag and flag[2]:
            settings.setdefault(flag[1], []).append(f"--config.{flag[2]}={flag[3]}")
        elif flag and flag[1] in given and flag[3]:
            given[flag[1]].append(flag[3])
        else:
            raise InputError(
                f"unexpected argument {argument!r}: --config=FILE, --methods=LIST, --osf=LIST, "
                "--workdir=DIR or --config.FIELD=VALUE; --help tells more"
            )
    for name, example in (("config", "configs/ml1m.py"), ("workdir", "runs/study")):
        if not given[name]:
            raise InputError(f"--{name} is needed, as in --{name}={example}")
    for name in ("methods", "osf", "workdir"):
        if len(given[name]) > 1:
            raise InputError(f"--{name} is given {len(given[name])} times: once, with commas between several values")
    workdir = pathlib.Path(given["workdir"][0])
    stems = [pathlib.Path(source).stem for source in given["config"]]
    unknown = [name for name in settings if name not in (*stems, "config")]
    if unknown:
        raise InputError(f"--{unknown[0]}.FIELD=VALUE names no config of this study: config, {', '.join(stems)}")
    runs = [
        run
        for source, stem in zip(given["config"], stems, strict=True)
        for method in config_lib.parse_methods("".join(given["methods"]) or "all")
        for osf in _factors(given["osf"])
        for run in [_run(source, method, osf, settings.get("config", []) + settings.get(stem, []), workdir)]
    ]
    for run in runs:
        if [other.folder for other in runs].count(run.folder) > 1:
            raise InputError(
                f"{run.name} is named twice: two runs would share the folder {run.folder}; give each "
                "config a --NAME.dataset of its own"
            )
    return workdir, runs


def _factors(given: Sequence[str]) -> list[float | None]:
    if not given:
        return [None]
    rule = config_lib.known("osf").rule
    factors = []
    for text in given[0].split(","):
        with contextlib.suppress(ValueError):
            if rule.holds(float(text)):
                factors.append(float(text))
                continue
        raise InputError(f"--osf={given[0]}: {text!r} is not {rule.text}; numbers with commas, as in 1,3,10,inf")
    return factors


def _run(source: str, method: str, osf: float | None, settings: list[str], workdir: pathlib.Path) -> Run:
    if ":" in pathlib.Path(source).name:
        raise InputError(f"--config={source}: name the methods with --methods, not after a colon")
    flags = [f"--config={source}:{method}", *settings, *([] if osf is None else [f"--config.osf={osf:g}"])]
    config, *_ = jaxneg_main.parse_flags(["study", *flags, "--workdir=unused"])
    if config.method != method:
        raise InputError(f"--config.method={config.method}: name the methods with --methods")
    folder = workdir / config.dataset / method / ("" if osf is None else f"osf_{osf:g}")
    name = f"{config.dataset} {method}" + ("" if osf is None else f" OSF {osf:g}")
    command = (sys.executable, "-m", "jaxneg.main", *flags, f"--workdir={folder}")
    return Run(config.dataset, name, folder, command, files.plain(config_lib.flatten(config)))


def run_all(runs: Sequence[Run]) -> dict[str, int]:
    """Runs what is not finished, one process after another; returns {name of a run that failed: its exit code}.

    Raises Stopped when a signal came.
    """
    seconds = {run.name: past_seconds(run) for run in runs if is_finished(run)}  # of all that is finished
    failed: dict[str, int] = {}
    start = time.monotonic()
    with signals_forwarded() as (current, received):
        for index, run in enumerate(runs):
            place = f"[{index + 1}/{len(runs)}] {run.name}"
            if run.name in seconds:
                say(f"{place}: already finished")
                continue
            say(f"{place}: starts; {_clock(time.monotonic() - start)} so far, {time_left(runs[index:], runs, seconds)}")
            begun = time.monotonic()
            # Its own process group: Ctrl-C reaches it once, through us.
            current.append(subprocess.Popen(run.command, process_group=0))
            code = current[-1].wait()
            if received:
                raise Stopped(STOP[received[0]])
            if code:
                failed[run.name] = code
                say(f"{place}: failed ({_reason(code)})")
            else:
                seconds[run.name] = time.monotonic() - begun
    say(f"{len(seconds)} of {len(runs)} runs are finished after {_clock(time.monotonic() - start)}")
    return failed


@contextlib.contextmanager
def signals_forwarded() -> Iterator[tuple[list[subprocess.Popen], list[int]]]:
    """(processes, the last one being current; signals received): what stops us is passed on, a second one kills."""
    current: list[subprocess.Popen] = []
    received: list[int] = []

    def forward(number, frame):
        if current and current[-1].poll() is None:
            current[-1].send_signal(signal.SIGKILL if received else number)
        received.append(number)

    before = {number: signal.getsignal(number) for number in STOP}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup ignores it, and means it
            signal.signal(number, forward)
    try:
        yield current, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_finished(run: Run) -> bool:
    """Whether the run's folder holds the results of these very settings. Others are left to the run itself to judge."""
    config = run.folder / "config.json"
    if not (run.folder / "results.csv").exists() or not config.exists():
        return False
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads(config.read_text())["config"] == run.settings
    return False


def past_seconds(run: Run) -> float:
    """What a finished run took, from its results: all seeds, training and evaluation."""
    return float(results.read_results(run.folder / "results.csv")[["train_seconds", "eval_seconds"]].to_numpy().sum())


def time_left(remaining: Sequence[Run], runs: Sequence[Run], seconds: dict[str, float]) -> str:
    """In words: each run that is left takes the mean of the finished ones on its data set, or of all."""
    if not seconds:
        return "time left not known before the first run is done"
    by_dataset: dict[str, list[float]] = {}
    for run in runs:
        if run.name in seconds:
            by_dataset.setdefault(run.dataset, []).append(seconds[run.name])
    left = [by_dataset.get(run.dataset, list(seconds.values())) for run in remaining if run.name not in seconds]
    return f"about {_clock(sum(sum(each) / len(each) for each in left))} left"


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"study: {text}", file=sys.stderr, flush=True)


def _reason(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (", perhaps for its memory" * (code == -signal.SIGKILL))
    return "bad input" if code == 2 else f"exit code {code}"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
