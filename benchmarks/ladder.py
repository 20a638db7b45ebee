"""What each ingredient brings, one rung after another: number of negatives, loss, logQ, hardness, width; on one file.

    python benchmarks/ladder.py FILE --out DIR [--config configs/ml1m_leave_one_out.py] [--seeds 3] [--epochs 40]

Every rung is a run of jaxneg with all seeds, in DIR/RUNG; one that is finished is not run again, one that was stopped
goes on. Each changes one thing of another rung, and its gain is against that one: NDCG@10 with its 95% interval (test
users resampled, and seeds where there are five or more) and the test paired by test user. Writes DIR/ladder.md,
DIR/ladder.csv and DIR/ladder.png anew after each rung, so that a long study can be watched.
"""

import argparse
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxneg import files, main
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.report import analysis, statistics
from jaxneg.report import read as runs
from jaxneg.run import experiment


class Rung(NamedTuple):
    """One thing changed: the config fields that differ from those of the rung it stands on."""

    name: str
    below: str | None
    text: str
    fields: dict[str, Any]


class Step(NamedTuple):
    """A finished rung, beside the one below it."""

    rung: Rung
    line: analysis.Line
    gain: float
    interval: statistics.Interval
    p: float  # paired by test user


def rungs(number: int, width: int) -> list[Rung]:
    """The ladder, with `number` shared negatives; each rung stands on an earlier one."""
    half, popular = number // 2, ("uniform", "popularity")
    return [
        Rung(
            "bce_1",
            None,
            "BCE, one negative for each position",
            {
                "method": "uniform",
                "loss.name": "bce",
                "sampler.scope": "position",
                "sampler.num_uniform": 1,
                "model.width": width,
            },
        ),
        Rung(
            "bce",
            "bce_1",
            f"{number:,} negatives that the batch shares",
            {"sampler.scope": "batch", "sampler.num_uniform": number},
        ),
        Rung("gbce", "bce", "gBCE, t = 0.75", {"loss.name": "gbce", "loss.calibration": 0.75}),
        Rung("softmax", "bce", "sampled softmax", {"loss.name": "sampled_softmax"}),
        Rung(
            "popular",
            "softmax",
            "half of them by popularity, without logQ",
            {
                "method": "mixed",
                "sampler.mixture": popular,
                "sampler.num_uniform": half,
                "sampler.num_popularity": half,
                "loss.name": "infonce",
            },
        ),
        Rung("logq", "popular", "the same with logQ", {"loss.name": "sampled_softmax"}),
        Rung(
            "hard",
            "softmax",
            f"the hardest {number // 10:,} of {number:,}",
            {"method": "dns", "sampler.num_kept": number // 10, "loss.name": "infonce"},
        ),
        Rung("wide", "softmax", f"width {2 * width}", {"model.width": 2 * width}),
        Rung(
            "all_items",
            "softmax",
            "all items as negatives (full softmax)",
            {"method": "catalogue", "loss.name": "full_softmax"},
        ),
    ]


def fields_of(rung: Rung, ladder: list[Rung]) -> dict[str, Any]:
    """All config fields of a rung, with those of the rungs that it stands on."""
    below = {} if rung.below is None else fields_of(next(one for one in ladder if one.name == rung.below), ladder)
    return below | rung.fields


def run(rung: Rung, ladder: list[Rung], options) -> runs.Variant:
    """The finished run of a rung."""
    config = main.load_config(f"{options.config}:uniform")
    config.update_from_flattened_dict(
        {"data.path": str(options.file), "num_seeds": options.seeds} | given(options) | fields_of(rung, ladder)
    )
    found = runs.read_run(experiment.run(config, pathlib.Path(options.out) / rung.name).parent)
    return runs.Variant(rung.name, found.method, (found,), found.rows.assign(run=0))


def given(options) -> dict[str, Any]:
    """The config fields that the command line sets; the config file has the others."""
    names = {
        "epochs": "num_epochs",
        "eval_every": "eval_every",
        "learning_rate": "learning_rate",
        "batch": "batch_size",
        "length": "model.max_len",
    }
    return {field: value for name, field in names.items() if (value := getattr(options, name)) is not None}


def compared(rung: Rung, line: analysis.Line, below: analysis.Line | None) -> Step:
    """A rung's gain over the one below."""
    if below is None:
        return Step(rung, line, float("nan"), statistics.UNKNOWN, float("nan"))
    (pair,) = analysis.pairs([line, below])
    sign = 1 if pair.a == rung.name else -1
    low, high = sorted(sign * end for end in pair.interval)
    interval = over_users(line, below) if np.isnan(low) else statistics.Interval(low, high)
    return Step(rung, line, sign * pair.difference, interval, pair.paired_holm)


def over_users(line: analysis.Line, below: analysis.Line) -> statistics.Interval:
    """The 95% interval of the difference in NDCG@10 of these very seeds' means, test users resampled."""
    cases = np.unique(runs.read_cases(line.variant).user, return_counts=True)[1]
    table = np.stack([line.user_ndcg - below.user_ndcg, cases], axis=1)
    total, number = statistics.resample_users(np.random.default_rng(0), table, analysis.NUM_RESAMPLES).T
    return statistics.percentile_interval(total / number)


def row(step: Step) -> dict[str, Any]:
    """A rung's line of ladder.csv."""
    line, (low, high) = step.line, step.interval
    found = {metric: line.summaries[metric] for metric in ("ndcg@10", "hr@10", "balance", "train_seconds")}
    return {
        "rung": step.rung.name,
        "below": step.rung.below or "",
        "what": step.rung.text,
        "seeds": found["ndcg@10"].n,
        "ndcg@10": found["ndcg@10"].mean,
        "ndcg@10_std": found["ndcg@10"].std,
        "hr@10": found["hr@10"].mean,
        "balance": found["balance"].mean,
        "gain": step.gain,
        "gain_low": low,
        "gain_high": high,
        "p": step.p,
        "train_seconds": found["train_seconds"].mean,
    }


def table(steps: list[Step]) -> str:
    """The rungs as a Markdown table."""
    lines = [
        "| rung | what changes | against | seeds | NDCG@10 | gain (95%) | p | HR@10 | Balance | min per seed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in map(row, steps):
        gain = f"{each['gain']:+.4f} ({each['gain_low']:+.4f} to {each['gain_high']:+.4f})" if each["below"] else ""
        deviation = "" if np.isnan(each["ndcg@10_std"]) else f" ± {each['ndcg@10_std']:.4f}"
        p = "" if np.isnan(each["p"]) else "<0.001" if each["p"] < 0.001 else f"{each['p']:.3f}"
        cells = (
            each["rung"],
            each["what"],
            each["below"],
            each["seeds"],
            f"{each['ndcg@10']:.4f}{deviation}",
            gain,
            p,
            f"{each['hr@10']:.4f}",
            f"{each['balance']:.3f}",
            f"{each['train_seconds'] / 60:.1f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def draw(steps: list[Step], path: pathlib.Path) -> None:
    """A bar for each rung, the first one on top, with each seed as a dot and the gain beside it."""
    figure = Figure(figsize=(8.5, 0.9 + 0.45 * len(steps)), layout="constrained")
    axes = figure.subplots()
    for place, step in enumerate(steps):
        values = step.line.variant.ok["ndcg@10"].to_numpy(float)
        axes.barh(place, values.mean(), color="#56b4e9", height=0.65)
        axes.plot(values, np.full(len(values), place), ".", color="#222222")
        gain = f"{step.gain:+.4f} against {step.rung.below}" if step.rung.below else ""
        axes.annotate(gain, (values.max(), place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(steps)), [f"{step.rung.name}: {step.rung.text}" for step in steps])
    axes.invert_yaxis()
    axes.set_xlim(right=1.45 * axes.dataLim.x1)
    axes.set_xlabel("NDCG@10; dots: seeds")
    axes.grid(axis="x", alpha=0.3)
    with files.whole(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the interaction file")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--config", default="configs/ml1m_leave_one_out.py", help="config file, without a method")
    parser.add_argument("--negatives", type=int, default=3000, help="shared negatives, default 3000")
    parser.add_argument("--seeds", type=int, default=3, help="default 3")
    parser.add_argument("--width", type=int, default=64, help="default 64; the rung `wide` has twice that")
    for name in ("epochs", "eval-every", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, help="as in the config file unless told")
    parser.add_argument("--learning-rate", type=float, help="as in the config file unless told")
    parser.add_argument("--rungs", nargs="*", metavar="RUNG", help="only these (and a rung needs the one below it)")
    return parser.parse_args(arguments)


def climb(options) -> None:
    """Runs the rungs, and writes what is known after each."""
    ladder, out = rungs(options.negatives, options.width), pathlib.Path(options.out)
    names = [rung.name for rung in ladder]
    chosen = names if options.rungs is None else options.rungs
    if unknown := set(chosen) - set(names):
        raise InputError(f"--rungs: {sorted(unknown)[0]} is not one of {', '.join(names)}")
    mesh_lib.use_cores(options.seeds)
    lines, steps = {}, []
    for rung in ladder:
        if rung.name not in chosen:
            continue
        if rung.below is not None and rung.below not in lines:
            raise InputError(f"--rungs: {rung.name} stands on {rung.below}, which is left out")
        lines[rung.name] = analysis.line(run(rung, ladder, options))
        steps.append(compared(rung, lines[rung.name], lines.get(rung.below)))
        files.write_csv(out / "ladder.csv", [row(step) for step in steps])
        with files.whole(out / "ladder.md") as temporary:
            temporary.write_text(table(steps))
        draw(steps, out / "ladder.png")
    print(table(steps))


if __name__ == "__main__":
    try:
        climb(parsed(sys.argv[1:]))
    except InputError as error:
        print(f"ladder: {error}", file=sys.stderr)
        sys.exit(2)
