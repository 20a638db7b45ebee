"""The paper's six methods beside jaxneg's own recipes on several data sets, by NDCG@10 and Balance.

    python benchmarks/four_datasets.py --out DIR --ml100k FILE --ml1m FILE --beauty5core FILE --online_retail FILE

The paper's protocol (global temporal split, BCE for its six), shortened: one cap on epochs for all, few seeds. Batch
sizes and numbers of negatives are those that the paper tuned on data of the same kind; its learning rates are for 201
epochs, so every method's is tuned here, for the same cap, with one seed on the validation cases. Each run is in
DIR/DATASET/NAME, and one that was stopped goes on. Writes DIR/methods.csv, methods.md and methods.png anew after each
run. What methods.csv has is not run again, so that the study can be made in pieces: other settings need another DIR.
`python -m jaxneg.report DIR` has the tests between the methods.
"""

import argparse
import itertools
import pathlib
import sys
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from jaxneg import files as files_lib
from jaxneg import main
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.evaluation import rows as results
from jaxneg.run import config as config_lib
from jaxneg.run import experiment, tune, tuned

SETTINGS = {
    "ml100k": tuned.ML10M,
    "ml1m": tuned.ML10M,
    "beauty5core": tuned.BEAUTY,
    "online_retail": tuned.RETAILROCKET,
}
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
NUM_SHARED = 1000  # negatives that the batch shares
METRICS = ("ndcg@10", "hr@10", "balance")


class Recipe(NamedTuple):
    """A method with the config fields that differ from its settings on the data set."""

    method: str
    fields: dict[str, Any]


SHARED = {"batch_size": 128, "sampler.scope": "batch"}
RECIPES = {method: Recipe(method, {}) for method in config_lib.PAPER_METHODS} | {
    "softmax": Recipe("uniform", SHARED | {"sampler.num_uniform": NUM_SHARED, "loss.name": "sampled_softmax"}),
    "softmax_popular": Recipe(
        "mixed",
        SHARED
        | {
            "sampler.mixture": ("uniform", "popularity"),
            "sampler.num_uniform": NUM_SHARED // 2,
            "sampler.num_popularity": NUM_SHARED // 2,
            "loss.name": "infonce",
        },
    ),
    "hard": Recipe("dns", {"batch_size": 128, "sampler.num_uniform": 200, "sampler.num_kept": 5, "loss.name": "bpr"}),
}


def run(dataset: str, file: str, name: str, options) -> pd.DataFrame:
    """The rows of results.csv of one recipe on one data set, its learning rate tuned before."""
    recipe, folder = RECIPES[name], pathlib.Path(options.out) / dataset
    config = main.load_config(f"configs/interactions.py:{recipe.method}")
    config.update_from_flattened_dict(
        SETTINGS[dataset][recipe.method]
        | {
            "dataset": dataset,
            "data.path": file,
            "num_epochs": options.epochs,
            "eval_every": options.eval_every,
            "num_seeds": 1,
            "model.max_len": options.length,
        }
        | recipe.fields
    )
    fixed = config_lib.flatten(config)
    choices = {field: (fixed[field],) for field in tune.CHOICES} | {"learning_rate": LEARNING_RATES}
    found = tune.search(config, folder / "tuned" / name, 1, choices)
    tune.write_tuned(folder / "tuned.json", dataset, name, found)
    config.update_from_flattened_dict({"num_seeds": options.seeds, "learning_rate": found["settings"]["learning_rate"]})
    rows = results.read_results(experiment.run(config, folder / name))
    return rows.assign(dataset=dataset, name=name, learning_rate=config.learning_rate)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the sound seeds, a row for each data set and recipe."""
    sound = table[table["status"] == "ok"]
    groups = sound.groupby(["dataset", "name"], sort=False)
    mean, deviation = groups[list(METRICS)].mean(), groups[list(METRICS)].std(ddof=1).add_suffix("_std")
    others = groups.agg(seeds=("seed", "size"), learning_rate=("learning_rate", "first"), epoch=("best_epoch", "mean"))
    return pd.concat([others, mean, deviation], axis=1).reset_index()


def markdown(found: pd.DataFrame) -> str:
    """The summary as a table; bold is the best mean of a data set."""
    header = ("data", "method", "learning rate", "best epoch", "NDCG@10", "HR@10", "Balance")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for dataset, rows in found.groupby("dataset", sort=False):
        for _, row in rows.iterrows():
            cells = [dataset, f"`{row['name']}`", f"{row['learning_rate']:g}", f"{row['epoch']:.0f}"]
            for metric, digits in zip(METRICS, (4, 4, 3), strict=True):
                text = f"{row[metric]:.{digits}f} ± {row[f'{metric}_std']:.{digits}f}"
                cells.append(f"**{text}**" if row[metric] == rows[metric].max() else text)
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: pd.DataFrame, path: pathlib.Path) -> None:
    """NDCG@10 against Balance, a panel for each data set; the paper's six are circles, the recipes squares."""
    datasets = list(dict.fromkeys(found["dataset"]))
    figure = Figure(figsize=(4.6 * len(datasets), 4), layout="constrained")
    for axes, dataset in zip(figure.subplots(1, len(datasets), squeeze=False)[0], datasets, strict=True):
        for number, (_, row) in enumerate(found[found["dataset"] == dataset].iterrows()):
            marker = "o" if row["name"] in config_lib.PAPER_METHODS else "s"
            axes.errorbar(
                row["balance"],
                row["ndcg@10"],
                row["ndcg@10_std"],
                row["balance_std"],
                marker=marker,
                color=f"C{number}",
                capsize=2,
            )
            axes.annotate(
                row["name"],
                (row["balance"], row["ndcg@10"]),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
                color=f"C{number}",
            )
        axes.set(title=dataset, xlabel="Balance", ylabel="NDCG@10")
        axes.margins(x=0.15)  # room for the names
        axes.grid(alpha=0.3)
    figure.suptitle("Mean and standard deviation over seeds; up and to the right is better; squares: jaxneg's recipes")
    with files_lib.whole(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="DIR")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", metavar="FILE", help="its interaction file; left out where it is not given")
    for name, default in {"epochs": 20, "eval-every": 4, "seeds": 3, "length": 50}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument(
        "--methods",
        nargs="*",
        default=list(RECIPES),
        choices=RECIPES,
        metavar="NAME",
        help=f"some of {', '.join(RECIPES)}",
    )
    return parser.parse_args(arguments)


def compare(options) -> None:
    """Runs everything, and writes what is known after each run."""
    files = {name: getattr(options, name) for name in SETTINGS if getattr(options, name)}
    if not files:
        raise InputError(f"no data: give a file for one of --{', --'.join(SETTINGS)}")
    mesh_lib.use_cores(options.seeds)
    out = pathlib.Path(options.out)
    known = pd.read_csv(out / "methods.csv").to_dict("records") if (out / "methods.csv").exists() else []
    rows = {(row["dataset"], row["name"]): row for row in known}
    for dataset, name in itertools.product(files, options.methods):
        if (dataset, name) not in rows:
            rows[dataset, name] = summary(run(dataset, files[dataset], name, options)).to_dict("records")[0]
        found = pd.DataFrame([rows[each] for each in itertools.product(SETTINGS, RECIPES) if each in rows])
        files_lib.write_csv(out / "methods.csv", found.to_dict("records"))
        with files_lib.whole(out / "methods.md") as temporary:
            temporary.write_text(markdown(found))
        draw(found, out / "methods.png")
    print(markdown(found))


if __name__ == "__main__":
    try:
        compare(parsed(sys.argv[1:]))
    except InputError as error:
        print(f"four_datasets: {error}", file=sys.stderr)
        sys.exit(2)
