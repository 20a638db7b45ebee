"""A study on a SLURM cluster: one array job, in which every data set, method and OSF is a task of its own.

  python launch/slurm.py --config=configs/ml1m.py --config=configs/beauty.py --methods=paper --workdir=DIR \\
      --time=8:00:00 --gpus-per-node=1 --cpus-per-task=8 --partition=gpu [--submit]

The study, as launch/study.py takes it (and DIR/DATASET/METHOD/ gets the same files):
  --config=FILE          a config file; may be given several times
  --methods=LIST         all (default), paper (the paper's six), or names as in uniform,mixed,adaptive_mixed
  --models=LIST          all, or names as in sasrec,gru4rec (default: sasrec)
  --osf=LIST             several oversampling factors, as in 1,3,10,20,30,50,inf
  --workdir=DIR          a folder that every node sees
  --config.FIELD=VALUE   a setting of every run; --NAME.FIELD=VALUE: of the runs of configs/NAME.py only

What each task of the array asks for:
  --time=LIMIT           as SLURM writes it: minutes, H:MM:SS or D-HH:MM:SS (default: the partition's own limit)
  --partition=NAME  --account=NAME
  --nodes=N              nodes of one run (1)
  --gpus-per-node=N      GPUs of each node (0)
  --tasks-per-node=N     processes of each node. Default: 1 on one node, which then uses all its GPUs; with several
                         nodes one for each GPU, as JAX expects it under SLURM. With more than one process in all, the
                         run gets --multihost
  --cpus-per-task=N      cores of each process (default: SLURM's)
  --at-once=N            most tasks of the array that run side by side (default: as many as there is room for)
  --sbatch=OPTION        one more option of sbatch, as in --sbatch=--mem=64G; may be given several times
  --setup=LINE           a line of bash before the run, as in --setup='module load cuda'; may be given several times
  --python=FILE          the interpreter on the nodes (default: the one that runs this)

What happens when a run does not come to its end:
  --notice=SECONDS       so long before its time limit it is told to save (300); queued again, it goes on from there
  --retries=N            how often a run that failed is started again within its job (2); not after bad input
A task whose node fails is queued again by SLURM itself. A job that you cancel stays cancelled.

Runs that are finished are left out. Prints the script; --submit writes it to DIR/slurm/study.sh, submits it, and says
how to make the report once all is done. The runs start in the folder in which you call this.
Exit codes: 0 done; 1 sbatch failed; 2 bad input.
"""

import argparse
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence

import study

from jaxneg import files
from jaxneg.errors import InputError

# seconds of minutes, minutes:seconds, hours:minutes:seconds; days-hours, days-hours:minutes, days-hours:minutes:seconds
UNITS, UNITS_AFTER_DAYS = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}, (3600, 60, 1)
LONGEST_NOTICE = 65535  # SLURM's own

# Exit codes: 0 done, 2 bad input, which no other try mends.
SCRIPT = """\
#!/usr/bin/env bash
{options}
cd {folder} || exit 1
case "$SLURM_ARRAY_TASK_ID" in
{runs}
  *) echo "there is no task $SLURM_ARRAY_TASK_ID in this study" >&2; exit 2 ;;
esac
{setup}
# Shortly before the time limit SLURM tells this script alone; it tells the run, which saves and ends.
out_of_time=no
trap 'out_of_time=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
failures=0
while [ "$out_of_time" = no ]; do
  srun {srun} "${{run[@]}}" &
  step=$!
  code=0
  wait "$step" || code=$?
  if [ "$out_of_time" = yes ]; then  # the signal may have ended that wait, not the run
    code=0
    wait "$step" || code=$?
  fi
  if [ "$code" -eq 0 ] || [ "$code" -eq 2 ]; then
    exit "$code"
  fi
  failures=$((failures + 1))
  if [ "$out_of_time" = no ]; then
    [ "$failures" -le {retries} ] || exit "$code"
    echo "the run ended with exit code $code; try $failures of {retries} goes on from the last checkpoint" >&2
  fi
done
echo "out of time; queued again, to go on from the last checkpoint" >&2
exec scontrol requeue "$SLURM_JOB_ID"
"""


def main(argv: Sequence[str]) -> int:
    """Runs a command line (argv[0] is the program); returns the exit code."""
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(__doc__)
        return 0
    try:
        given, rest = parse(argv[1:])
        workdir, planned = study.plan(rest)
        runs = [run for run in planned if not study.is_finished(run)]
        say(f"{len(runs)} of {len(planned)} runs are to be done" + ": nothing to submit" * (not runs))
        if not runs:
            return 0
        script = job_script(runs, workdir, given)
        if not given.submit:
            print(script, end="")
            folder = shlex.quote(str(logs(workdir)))
            say(f"nothing is submitted; --submit does it, or by hand: mkdir -p {folder}, and sbatch FILE")
            return 0
        return submit(script, workdir)
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(own options, the arguments of the study). Raises InputError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, default, least in (
        ("nodes", 1, 1),
        ("gpus-per-node", 0, 0),
        ("tasks-per-node", None, 1),
        ("cpus-per-task", None, 1),
        ("at-once", None, 1),
        ("retries", 2, 0),
    ):
        parser.add_argument(f"--{name}", type=_whole(least), default=default)
    parser.add_argument("--notice", type=_whole(1, LONGEST_NOTICE), default=300)
    parser.add_argument("--time", type=_limit)
    for name in ("partition", "account"):
        parser.add_argument(f"--{name}", type=_name)
    parser.add_argument("--sbatch", type=_option, action="append", default=[])
    parser.add_argument("--setup", type=_line, action="append", default=[])
    parser.add_argument("--python", type=_line, default=sys.executable)
    parser.add_argument("--submit", action="store_true")
    try:
        given, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error).removeprefix("argument ")) from error
    if given.time and seconds(given.time) <= given.notice:
        raise InputError(
            f"--time={given.time} leaves no time to train before the notice: more than {given.notice} s, "
            "or a shorter --notice=SECONDS"
        )
    if given.tasks_per_node is None:
        # JAX gives each process of a SLURM job one GPU of its node, unless it is alone.
        given.tasks_per_node = 1 if given.nodes == 1 else max(1, given.gpus_per_node)
    return given, rest


def job_script(runs: Sequence[study.Run], workdir: pathlib.Path, given: argparse.Namespace) -> str:
    """The script for sbatch: task i of its array is runs[i]."""
    multihost = ["--multihost"] if given.nodes * given.tasks_per_node > 1 else []
    commands = [[given.python, *run.command[1:], *multihost] for run in runs]
    cases = [f"  {index}) run=({shlex.join(command)}) ;;" for index, command in enumerate(commands)]
    cpus = [] if given.cpus_per_task is None else [f"--cpus-per-task={given.cpus_per_task}"]
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options(len(runs), workdir, given)),
        folder=shlex.quote(str(pathlib.Path.cwd())),
        runs="\n".join(cases),
        setup="\n".join(given.setup),
        srun=shlex.join(["--kill-on-bad-exit=1", *cpus]),  # srun does not take the number of cores from the job
        retries=given.retries,
    )


def options(num_runs: int, workdir: pathlib.Path, given: argparse.Namespace) -> Iterable[str]:
    """The options of sbatch, in the script's head."""
    yield "--job-name=jaxneg"
    yield f"--array=0-{num_runs - 1}" + (f"%{given.at_once}" if given.at_once else "")
    yield f"--nodes={given.nodes}"
    yield f"--ntasks-per-node={given.tasks_per_node}"
    if given.gpus_per_node:
        yield f"--gpus-per-node={given.gpus_per_node}"
    for name in ("cpus_per_task", "time", "partition", "account"):
        if getattr(given, name) is not None:
            yield f"--{name.replace('_', '-')}={getattr(given, name)}"
    yield "--requeue"
    yield f"--signal=B:USR1@{given.notice}"
    yield "--open-mode=append"  # a task that is queued again goes on in its log
    yield f"--output={shlex.quote(str(logs(pathlib.Path.cwd() / workdir) / '%A_%a.log'))}"
    yield from given.sbatch


def submit(script: str, workdir: pathlib.Path) -> int:
    """Writes the script below the work folder and hands it to sbatch; returns the exit code. Raises InputError."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "--submit: there is no sbatch on PATH; call this on a login node of the cluster, or leave out "
            "--submit and take the script that is printed"
        )
    with files.claimed(logs(workdir)) as folder, files.whole(folder / "study.sh") as temporary:
        temporary.write_text(script)
    path = logs(workdir) / "study.sh"
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True)
    if done.returncode:
        print(f"jaxneg: sbatch refused {path}: {' '.join(done.stderr.split())}", file=sys.stderr)
        return 1
    job = done.stdout.strip().split(";")[0]
    say(f"{path} is submitted as job {job}; logs: {logs(workdir)}/{job}_TASK.log")
    say("once it has ended, the same command submits what is not finished then")
    say(f"the report, when all is done: {shlex.join([sys.executable, '-m', 'jaxneg.report', str(workdir)])}")
    print(job)
    return 0


def logs(workdir: pathlib.Path) -> pathlib.Path:
    """The folder of the script and of its logs."""
    return workdir / "slurm"


def seconds(limit: str) -> int:
    """A time limit as SLURM writes it, in seconds."""
    days, _, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = UNITS_AFTER_DAYS[: len(parts)] if days else UNITS[len(parts)]
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=True))


def say(text: str) -> None:
    """What is going on, on stderr."""
    print(f"slurm: {text}", file=sys.stderr)


def _whole(least: int, most: int = 10**6):
    def parsed(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,7}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return parsed


def _limit(text: str) -> str:
    if not re.fullmatch(r"\d{1,6}(:\d\d){0,2}|\d{1,4}-\d{1,2}(:\d\d){0,2}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no time limit: minutes, H:MM:SS or D-HH:MM:SS, as in 8:00:00")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.,@+-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: letters, digits and any of _ . , @ + -")
    return text


def _line(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not one line of text")
    return text


def _option(text: str) -> str:
    if not _line(text).startswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r} is no option of sbatch, as in --sbatch=--mem=64G")
    return text


if __name__ == "__main__":
    sys.exit(main(sys.argv))
