"""NDCG@5/10/20/50 against hardness: DNS(M, N) over M and over N, Softmax-v(rho, N) over rho, on one data file.

    python benchmarks/hardness.py FILE --out DIR [--config configs/ml1m.py] [--seeds 5] [--epochs 40] [--loss bpr]

Each setting is a run of jaxneg with all seeds in a folder of its own below DIR, and one that was stopped goes on.
Writes DIR/hardness.csv, a row for each setting and seed (what it has is not run again, so that the study can be made in
pieces: other options need another DIR), and DIR/hardness.png, a curve for each K: the mean over seeds with its standard
deviation, and the highest point marked.
The theory (Shi et al., WWW 2023, arXiv 2302.03472) says: the smaller the K, the harder the best negatives.
"""

import argparse
import pathlib
import sys
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from jaxneg import files, main
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.evaluation import rows as results
from jaxneg.run import experiment

KS = (5, 10, 20, 50)
COLUMNS = ["method", "seed", "status", "best_epoch", *(f"ndcg@{k}" for k in KS), *(f"hr@{k}" for k in KS), "balance"]


class Sweep(NamedTuple):
    """Settings that differ by one number, in which they become harder from the left to the right of a picture."""

    name: str
    method: str
    axis: str
    settings: dict[float, dict]  # the number -> config fields
    rising: bool  # whether a larger number is harder


def sweeps(options) -> list[Sweep]:
    """DNS over M with N fixed, DNS over N with M = 1, Softmax-v over rho with N fixed."""
    pool = options.pool
    return [
        Sweep(
            "dns_m",
            "dns",
            f"M of DNS(M, {pool})",
            {m: {"sampler.num_uniform": pool, "sampler.num_kept": m} for m in options.m if m <= pool},
            rising=False,
        ),
        Sweep(
            "dns_n",
            "dns",
            "N of DNS(1, N)",
            {n: {"sampler.num_uniform": n, "sampler.num_kept": 1} for n in options.n},
            rising=True,
        ),
        Sweep(
            "softmax_rho",
            "softmax_hard",
            f"rho of Softmax-v(rho, {pool})",
            {
                rho: {"sampler.num_uniform": pool, "sampler.num_kept": min(options.draws, pool), "sampler.rho": rho}
                for rho in options.rho
            },
            rising=True,
        ),
    ]


def run(sweep: Sweep, value: float, options) -> pd.DataFrame:
    """The rows of results.csv of one setting, one for each seed."""
    config = main.load_config(f"{options.config}:{sweep.method}")
    config.update_from_flattened_dict(
        {
            "data.path": str(options.file),
            "num_seeds": options.seeds,
            "num_epochs": options.epochs,
            "eval_every": options.eval_every,
            "eval.ks": KS,
            "loss.name": options.loss,
            "learning_rate": options.learning_rate,
            "model.max_len": options.length,
            "batch_size": options.batch,
        }
        | sweep.settings[value]
    )
    path = experiment.run(config, pathlib.Path(options.out) / f"{sweep.name}_{value:g}")
    rows = results.read_results(path)[COLUMNS]
    return pd.concat([pd.DataFrame({"sweep": sweep.name, "value": value}, index=rows.index), rows], axis=1)


def draw(table: pd.DataFrame, chosen: list[Sweep], path: pathlib.Path) -> None:
    """A row of panels for each sweep, a panel for each K; harder negatives are to the right."""
    figure = Figure(figsize=(3.4 * len(KS), 2.9 * len(chosen)), layout="constrained")
    panels = figure.subplots(len(chosen), len(KS), squeeze=False)
    for line, sweep in zip(panels, chosen, strict=True):
        rows = table[table["sweep"] == sweep.name]
        for axes, k in zip(line, KS, strict=True):
            each = rows.groupby("value")[f"ndcg@{k}"]
            mean, deviation = each.mean(), each.std(ddof=1).fillna(0.0)
            axes.errorbar(mean.index, mean, deviation, marker="o", capsize=3, color="C0")
            axes.plot(mean.idxmax(), mean.max(), "o", color="C3", zorder=3)
            axes.set(title=f"NDCG@{k}", xlabel=sweep.axis)
            axes.set_xscale("symlog", linthresh=0.01) if 0 in mean.index else axes.set_xscale("log")
            axes.set_xticks(mean.index, [f"{value:g}" for value in mean.index])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            if not sweep.rising:
                axes.invert_xaxis()
    figure.suptitle("Mean and standard deviation over seeds; harder negatives to the right; red: the highest mean")
    with files.whole(path) as temporary:
        figure.savefig(temporary, dpi=130)


def best(table: pd.DataFrame) -> str:
    """For each sweep and K the value with the highest mean, in lines of text."""
    lines = [f"{'sweep':<14}" + "".join(f"{f'best for NDCG@{k}':>20}" for k in KS)]
    for name, rows in table.groupby("sweep", sort=False):
        means = [rows.groupby("value")[f"ndcg@{k}"].mean() for k in KS]
        lines.append(f"{name:<14}" + "".join(f"{f'{mean.idxmax():g} ({mean.max():.4f})':>20}" for mean in means))
    return "\n".join(lines)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the interaction file")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--config", default="configs/ml1m.py", help="config file, without a method")
    numbers = {"seeds": 5, "epochs": 40, "eval-every": 5, "batch": 128, "length": 50, "pool": 200, "draws": 5}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--loss", default="bpr", help="default bpr, which the theory is about")
    parser.add_argument("--m", type=int, nargs="*", default=[1, 2, 5, 10, 20, 50, 100, 200])
    parser.add_argument("--n", type=int, nargs="*", default=[1, 5, 20, 50, 100, 200, 500])
    parser.add_argument("--rho", type=float, nargs="*", default=[0, 0.01, 0.1, 0.5, 1, 2, 5])
    return parser.parse_args(arguments)


def study(options) -> None:
    """Runs all settings, and writes the table and the picture anew after each, so that a long study can be watched."""
    mesh_lib.use_cores(options.seeds)
    chosen = [sweep for sweep in sweeps(options) if sweep.settings]
    path = pathlib.Path(options.out) / "hardness.csv"
    known = dict(tuple(pd.read_csv(path).groupby(["sweep", "value"]))) if path.exists() else {}
    settings = [(sweep, value) for sweep in chosen for value in sorted(sweep.settings)]
    for sweep, value in settings:
        if (sweep.name, value) not in known:
            known[sweep.name, value] = run(sweep, value, options)
        table = pd.concat([known[one.name, each] for one, each in settings if (one.name, each) in known])
        files.write_csv(path, table.to_dict("records"))
        sound = table[table["status"] == "ok"]
        draw(sound, [one for one in chosen if one.name in set(sound["sweep"])], path.with_suffix(".png"))
    print(best(sound))
    left_out = len(table) - len(sound)
    print(f"{len(table)} runs, {left_out} of them failed and left out; files: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    try:
        study(parsed(sys.argv[1:]))
    except InputError as error:
        print(f"hardness: {error}", file=sys.stderr)
        sys.exit(2)
