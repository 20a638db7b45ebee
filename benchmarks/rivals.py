"""jaxneg against RecTools, RePlay and RecBole: SASRec's training and its top-10 lists, on the same rows of one file.

    python benchmarks/rivals.py --data FILE [--python rectools=VENV/bin/python ...] [--lengths 50 200] [--negatives 1]

Each library runs in a process of its own, by the interpreter that --python names (default: this one), and one that its
interpreter lacks is left out with a line; rivals/*.txt say what to install. For each length and number of negatives
all are set up and warmed up first; then they take turns of --seconds each, --rounds times, while the others sleep.

Timed is the library's own training loop with its own data loading, sampling, loss and optimizer, from one step of the
loop to another, after --warm_up steps: no start, no preparation, no compilation. Then the top-10 among all items for
each user with a training row, by the library's own call, in turns again, after one call that is not timed. Printed are
medians over the rounds, and the range of jaxneg's advantage over the rounds. Where /proc tells (Linux), a round with a
turn in which other work took more than a tenth of the machine is repeated, as often as there are rounds at most, and
the calmest rounds count.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np

from jaxneg.data import dataset as data
from jaxneg.data import prepare
from jaxneg.errors import InputError

FOLDER = pathlib.Path(__file__).parent / "rivals"
MODEL = {"batch": 128, "width": 50, "blocks": 2, "dropout": 0.2, "learning_rate": 1e-3, "k": 10}


class Contender(NamedTuple):
    """What takes turns: a library, perhaps with settings of its own."""

    library: str  # rivals/train_LIBRARY.py
    package: str
    own: dict[str, Any]
    what: str  # timed: training; recommending
    variant: bool = False  # of a library's main contender; it differs in training only


JAXNEG = "jaxneg"
MOST_OTHERS = 0.1  # share of the machine that other work may take in a turn
CONTENDERS = {
    JAXNEG: Contender("jaxneg", "jax", {"scope": "sequence"}, "run_steps; encode_histories, count_recommended"),
    "jaxneg, per position": Contender("jaxneg", "jax", {"scope": "position"}, "the same", True),
    "jaxneg, per batch": Contender("jaxneg", "jax", {"scope": "batch"}, "the same", True),
    "RecTools": Contender("rectools", "rectools", {}, "SASRecModel.fit; SASRecModel.recommend, a frame of ids"),
    "RePlay": Contender("replay", "replay-rec", {"buckets": False}, "Trainer.fit; Trainer.predict, top-items callback"),
    "RePlay, length buckets": Contender("replay", "replay-rec", {"buckets": True}, "the same", True),
    "RecBole": Contender("recbole", "recbole", {}, "Trainer.fit; Trainer.evaluate, with one metric"),
}
# (contender, length, negatives) that are not tried, and why.
LEFT_OUT = {("RecBole", 200, 50): "encodes 6,400 copies of 200 positions at once, which takes more than 20 GB"}


class Child:
    """A contender's process."""

    def __init__(self, name: str, python: str, settings: dict, log: pathlib.Path):
        contender = CONTENDERS[name]
        self.name, self.log = name, log
        script = FOLDER / f"train_{contender.library}.py"
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=settings["folder"],
            )
        self.send(json.dumps(settings | contender.own))

    def send(self, line: str) -> None:
        print(line, file=self.process.stdin, flush=True)

    def receive(self) -> dict:
        """The next answer. Raises RuntimeError, with the last line of what it wrote, where the process ended."""
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text().strip().splitlines()
            raise RuntimeError(f"ended with code {self.process.wait()}: {said[-1] if said else 'it said nothing'}")
        return json.loads(line)

    def ask(self, line: str) -> dict:
        """The answer, with the share of the machine that other work took meanwhile as "others"."""
        start, before = time.perf_counter(), others_seconds(self.process.pid)
        self.send(line)
        answer = self.receive()
        available = (time.perf_counter() - start) * os.cpu_count()
        return answer | {"others": (others_seconds(self.process.pid) - before) / available}

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def others_seconds(pid: int) -> float:
    """CPU seconds of everything but that process since the start, those that a host took from us too; 0: unknown."""
    try:
        machine = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()
        own = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, machine[1:9])
    busy = user + nice + system + irq + softirq + steal
    return (busy - int(own[11]) - int(own[12])) / os.sysconf("SC_CLK_TCK")


def write_rows(path: str, folder: pathlib.Path) -> str:
    """Training rows of users with two or more, prepared as jaxneg does: user, item, place in the user's sequence."""
    prepared = data.load(prepare.prepare(path, cache_dir=folder, name="rivals"))
    dataset = data.training_set(prepared)
    start, end = (bound[dataset.train_users] for bound in (dataset.user_start, dataset.train_end))
    length = end - start
    user = np.repeat(np.arange(len(length)), length)
    position = np.arange(len(user)) - np.repeat(np.cumsum(length) - length, length)
    item = dataset.items[position + start[user]]
    np.savez(folder / "rows.npz", user=user, item=item, position=position, num_items=prepared.num_items)
    return f"{len(user):,} training rows of {len(length):,} users, {prepared.num_items:,} items"


def installed(python: str, package: str) -> bool:
    """Whether that interpreter has the package."""
    code = f"from importlib import metadata; metadata.version({package!r})"
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def compare(names: list[str], pythons: dict[str, str], settings: dict, recommend: bool, options) -> list[dict]:
    """One row for each contender: what it says of itself, and its answers of all rounds."""
    folder = pathlib.Path(settings["folder"])
    alive: dict[str, Child] = {}
    found: dict[str, dict] = {}

    def take_turns(action, who: list[str]) -> None:
        """`action` of each, one after another; one that fails is told of and left out, unless it is jaxneg."""
        for name in who:
            try:
                action(alive[name], found[name])
            except (RuntimeError, BrokenPipeError) as error:
                if name == JAXNEG:
                    raise
                print(f"{name}: left out: {error}", file=sys.stderr)
                alive.pop(name).end()
                del found[name]

    def hold_rounds(line: str, kind: str, who: list[str]) -> None:
        """Fills row[kind] of each with the answers to `line` in the calmest rounds."""
        tried: list[dict[str, dict]] = []

        def take(child, row):
            tried[-1][row["name"]] = child.ask(line)

        def unrest(answers):
            return max(answer["others"] for answer in answers.values())

        if options.pause:
            print("all are ready: Enter begins the timed turns", file=sys.stderr, flush=True)
            sys.stdin.readline()
        while len(tried) < 2 * options.rounds and sum(unrest(one) <= MOST_OTHERS for one in tried) < options.rounds:
            tried.append({})
            take_turns(take, [name for name in who if name in alive])
        if options.pause:
            print("timed: the machine may be used again", file=sys.stderr, flush=True)
        calm = sorted(range(len(tried)), key=lambda index: unrest(tried[index]))[: options.rounds]
        for name in [name for name in who if name in alive]:
            found[name][kind] = [tried[index][name] for index in sorted(calm)]

    def set_up(child, row):
        row.update(child.receive())

    for name in names:  # one by one: none is set up while another still works
        alive[name] = Child(name, pythons[name], settings, folder / f"{name}.log")
        found[name] = {"name": name, "training": [], "evaluation": []}
        take_turns(set_up, [name])
    hold_rounds(f"train {options.seconds}", "training", list(alive))
    if recommend:
        recommenders = [name for name in alive if not CONTENDERS[name].variant]
        take_turns(lambda child, row: child.ask("evaluate"), recommenders)  # compiles
        hold_rounds("evaluate", "evaluation", recommenders)
    for child in alive.values():
        child.end()
    for name, row in found.items():
        rate = statistics.median(rates(row, "training", "sequences"))
        print(f"L={settings['length']}, {settings['negatives']} negatives, {name}: {rate:,.0f} sequences/s", flush=True)
    return list(found.values())


def rates(row: dict, kind: str, unit: str) -> list[float]:
    return [answer[unit] / answer["seconds"] for answer in row[kind]]


def advantage(rows: list[dict], row: dict, kind: str, unit: str) -> str:
    """How many times faster jaxneg is: ratio of medians, and the range of the rounds' ratios."""
    own, other = (rates(each, kind, unit) for each in (rows[0], row))
    if row is rows[0]:
        return "1"
    each = [a / b for a, b in zip(own, other, strict=True)]
    return f"{statistics.median(own) / statistics.median(other):.2f} ({min(each):.2f} to {max(each):.2f})"


def tables(results: list[tuple[int, int, list[dict]]]) -> str:
    """Both tables, in Markdown."""
    lines = [
        "| L | negatives | library | drawn | sequences/s | jaxneg is faster by | loss, first and last turn |",
        "|---|---|---|---|---|---|---|",
    ]
    for length, negatives, rows in results:
        for row in rows:
            rate = statistics.median(rates(row, "training", "sequences"))
            shape = " x ".join(map(str, row["negatives"]))
            lines.append(
                f"| {length} | {negatives} | {row['name']} | {row['drawn']}: {shape} | {rate:,.0f} | "
                f"{advantage(rows, row, 'training', 'sequences')} | "
                f"{row['training'][0]['loss']:.3f}, {row['training'][-1]['loss']:.3f} |"
            )
    lines += ["", "| L | library | top-10 users/s | jaxneg is faster by |", "|---|---|---|---|"]
    for length, _, rows in results:
        for row in rows:
            if not row["evaluation"]:
                continue
            rate = statistics.median(rates(row, "evaluation", "users"))
            lines.append(f"| {length} | {row['name']} | {rate:,.0f} | {advantage(rows, row, 'evaluation', 'users')} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a raw file of interactions, as configs/interactions.py takes it")
    parser.add_argument("--python", action="append", default=[], metavar="LIBRARY=PATH", help="a library's interpreter")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--negatives", type=int, nargs="+", default=[1, 50])
    parser.add_argument("--libraries", nargs="+", default=[], help="beside jaxneg; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of training in a turn, and one step at least")
    parser.add_argument("--warm_up", type=int, default=5, help="steps before the first turn")
    parser.add_argument("--no_variants", action="store_true", help="each library once, as it comes")
    parser.add_argument("--pause", action="store_true", help="wait for Enter before each set of timed turns")
    options = parser.parse_args(arguments)
    known = {contender.library for contender in CONTENDERS.values()}
    named = [text.split("=", 1)[0] for text in options.python if "=" in text] + options.libraries
    if wrong := [name for name in named if name not in known] + [text for text in options.python if "=" not in text]:
        parser.error(f"{wrong[0]!r} names no library; allowed are {', '.join(sorted(known))} (--python LIBRARY=PATH)")
    return options


def main():
    options = parse()
    pythons = dict(text.split("=", 1) for text in options.python)
    wanted = {JAXNEG, *(options.libraries or [contender.library for contender in CONTENDERS.values()])}
    chosen, missing = {}, set()
    for name, contender in CONTENDERS.items():
        python = pythons.get(contender.library, sys.executable)
        if contender.library not in wanted or contender.library in missing:
            continue
        if contender.variant and options.no_variants:
            continue
        if installed(python, contender.package):
            chosen[name] = python
        else:
            missing.add(contender.library)
            print(f"{contender.library}: not installed, left out (see rivals/{contender.library}.txt)")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(write_rows(options.data, pathlib.Path(folder)))
        except InputError as error:
            print(f"rivals: {error}", file=sys.stderr)
            sys.exit(2)
        for length in options.lengths:
            for negatives in options.negatives:
                names = [name for name in chosen if (name, length, negatives) not in LEFT_OUT]
                for name in set(chosen) - set(names):
                    print(
                        f"{name}: left out at L={length} and {negatives} negatives: it "
                        f"{LEFT_OUT[name, length, negatives]}"
                    )
                settings = MODEL | {
                    "data": str(pathlib.Path(options.data).resolve()),
                    "folder": folder,
                    "length": length,
                    "negatives": negatives,
                    "warm_up_steps": options.warm_up,
                }
                recommend = negatives == options.negatives[0]  # their number makes no difference there
                results.append((length, negatives, compare(names, chosen, settings, recommend, options)))
    told = {row["name"]: row for _, _, rows in results for row in rows}
    answers = [answer for _, _, rows in results for row in rows for answer in row["training"] + row["evaluation"]]
    print(
        f"\n{', '.join(f'{name} {value}' for name, value in MODEL.items())}; {options.rounds} rounds, "
        f"{options.seconds:g} s a turn; other work took {max(answer['others'] for answer in answers):.0%} of the "
        "machine at most"
    )
    for name, row in told.items():
        versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
        threads = f"; {row['threads']} threads" if row["threads"] else ""
        print(f"- {name} ({versions}{threads}): {CONTENDERS[name].what}")
    print(f"\n{tables(results)}")


if __name__ == "__main__":
    main()
