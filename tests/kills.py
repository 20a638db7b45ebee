"""A run that is killed again and again, by SIGKILL, until it comes through.

    python tests/kills.py OUT.json     # 24 kills, then one every ten seconds; writes what happened

`test_kills.py` does the same with fewer kills.
"""

import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

from jaxneg import files

SETTINGS = {
    "dataset": "killed",
    "batch_size": 32,
    "learning_rate": 1e-2,
    "num_seeds": 2,
    "num_buckets": 1,
    "model.width": 8,
    "model.num_blocks": 1,
    "model.max_len": 10,
    "data.synthetic.num_rows": 3000,
    "data.synthetic.num_users": 150,
    "data.synthetic.num_items": 80,
    "checkpoint_seconds": 0.5,
    "steps_per_dispatch": 1,
}
MOMENTS = ("any", "checkpoint", "rows")  # when to kill: at any time, while a checkpoint or after rows are written


def command(workdir: pathlib.Path, cache: pathlib.Path, **others) -> list[str]:
    """The command line of the run."""
    settings = SETTINGS | {"data.cache_dir": cache} | others
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    program = [sys.executable, "-m", "jaxneg.main", "--config=configs/quickstart.py:uniform"]
    return [*program, f"--workdir={workdir}", *flags]


def run_until(arguments: list[str], workdir: pathlib.Path, moment: str, seconds: float) -> tuple[bool, str]:
    """Runs until the moment has come, and kills. Returns (whether it came through, what was being done when killed)."""
    root = pathlib.Path(__file__).parent.parent
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(arguments, cwd=root, stdout=log, stderr=log)
        start, rows = time.monotonic(), size(workdir)
        while process.poll() is None:
            doing = activity(workdir, rows)
            if time.monotonic() - start > seconds and moment in ("any", doing):
                process.send_signal(signal.SIGKILL)
                process.wait()
                return False, doing
            time.sleep(0.002)
        log.seek(0)
        assert process.returncode == 0, log.read()
    return True, ""


def activity(workdir: pathlib.Path, rows: int) -> str:
    """What the run is doing, as far as its folder tells."""
    if any((workdir / "checkpoints").glob("*/*.orbax-checkpoint-tmp")):
        return "checkpoint"
    if size(workdir) > rows:
        return "rows"
    return "other" if (workdir / "checkpoints").exists() else "start"


def size(workdir: pathlib.Path) -> int:
    """Bytes of the run's metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def survive(workdir: pathlib.Path, cache: pathlib.Path, waits: list[tuple[str, float]], **others) -> dict:
    """Kills the run once for each (moment, seconds at least), then lets it come through. Returns what happened."""
    arguments, killed, start = command(workdir, cache, **others), {}, time.monotonic()
    for moment, seconds in waits:
        through, doing = run_until(arguments, workdir, moment, seconds)
        if through:
            break
        killed[doing] = killed.get(doing, 0) + 1
    if not through:
        assert run_until(arguments, workdir, "", 0)[0]
    return {"kills": sum(killed.values()), "killed_while": killed, "seconds": round(time.monotonic() - start, 1)}


def same(folder: pathlib.Path, other: pathlib.Path) -> bool:
    """Whether two runs ended alike: every byte of metrics.jsonl, every array, every number that is no duration."""
    rows = [(path / "metrics.jsonl").read_bytes() for path in (folder, other)]
    tables = [without_times(path / "results.csv") for path in (folder, other)]
    arrays = [files.read_arrays(path / name) for name in ("cases.npz", "model.npz") for path in (folder, other)]
    pairs = [(arrays[i], arrays[i + 1]) for i in (0, 2)]
    return (
        rows[0] == rows[1]
        and tables[0] == tables[1]
        and all(
            np.array_equal(mine[name], theirs[name]) for mine, theirs in pairs for name in mine.keys() | theirs.keys()
        )
    )


def without_times(path: pathlib.Path) -> list[list[str]]:
    """The cells of a results.csv, without the columns of durations."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    kept = [index for index, name in enumerate(lines[0]) if "second" not in name and "time" not in name]
    return [[line[index] for index in kept] for line in lines]


def main(out: str) -> None:
    """The long form, with its figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        cache, rng, report = folder / "cache", np.random.default_rng(0), {"command": "python tests/kills.py OUT.json"}
        report |= {"cores": os.cpu_count(), "python": platform.python_version()}
        cases = {
            "random": ([(MOMENTS[i % 3], float(rng.uniform(2, 12))) for i in range(24)], {"num_epochs": 1000}),
            "every_ten_seconds": (
                500 * [("any", 10.0)],
                {"num_epochs": 3000, "steps_per_dispatch": 0, "checkpoint_seconds": 5.0},
            ),
        }
        for name, (waits, others) in cases.items():
            undisturbed = survive(folder / f"{name}_undisturbed", cache, [("never", 0.0)], **others)
            result = survive(folder / name, cache, waits, **others)
            result["seconds_undisturbed"] = undisturbed["seconds"]
            result["seconds_lost_per_kill"] = round((result["seconds"] - undisturbed["seconds"]) / result["kills"], 1)
            result["same_results"] = same(folder / name, folder / f"{name}_undisturbed")
            report[name] = result
            print(name, json.dumps(result), flush=True)
        files.write_json(pathlib.Path(out), report)


if __name__ == "__main__":
    main(*sys.argv[1:])
