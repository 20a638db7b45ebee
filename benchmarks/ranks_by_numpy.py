"""The test ranks of a finished leave-one-out run made anew by pandas and NumPy, with and without the user's own items.

    python benchmarks/ranks_by_numpy.py RUN --data FILE

RUN is a work folder of `configs/ml1m_leave_one_out.py`, FILE its interaction file (users, items and times in its first
three columns). Only the hidden states are jaxneg's: 5-core, order in time, histories, ranks and metrics are not.
"""

import argparse
import json
import pathlib

import jax
import numpy as np
import pandas as pd
from flax import traverse_util

from jaxneg import main, models
from jaxneg.models import base
from jaxneg.run import experiment

SEED, CHUNK, LEAST_ROWS = 0, 256, 5


def histories(file: str, item_ids: np.ndarray) -> list[np.ndarray]:
    """Each user's items in time order, as jaxneg's ids, of the file's 5-core."""
    frame = pd.read_csv(file, sep="\t").iloc[:, :3].set_axis(["user", "item", "time"], axis=1)
    size = None
    while size != len(frame):
        size = len(frame)
        for column in ("item", "user"):
            frame = frame[frame.groupby(column)[column].transform("size") >= LEAST_ROWS]
    frame = frame.sort_values(["user", "time"], kind="stable")
    frame["item"] = frame["item"].map({raw: number for number, raw in enumerate(item_ids.tolist())})
    return [items.to_numpy() for _, items in frame.groupby("user")["item"]]


def report(name: str, ranks: list[int]) -> None:
    gains = np.where(np.array(ranks) < 10, 1 / np.log2(np.array(ranks) + 2.0), 0.0)
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    print(f"| {name} | {len(gains):,} | {gains.mean():.4f} ± {error:.4f} | {np.mean(gains > 0):.4f} |")


def compare(folder: pathlib.Path, file: str) -> None:
    settings = json.loads((folder / "config.json").read_text())["config"]
    config = main.load_config("configs/ml1m_leave_one_out.py")
    config.data.path = file
    users = histories(file, np.load(experiment.prepare_data(config) / "item_ids.npy"))
    with np.load(folder / "model.npz") as stored:
        params = traverse_util.unflatten_dict({k: v[SEED] for k, v in stored.items() if k != "seed"}, sep="/")
    settings = {name.removeprefix("model."): value for name, value in settings.items() if name.startswith("model.")}
    table = params["tables"]["item"].astype(np.float64)
    model = models.make(settings.pop("name", "sasrec"), settings, len(table) - 1)
    encode = jax.jit(lambda inputs: base.encode_inputs(model, params, model.objective.query(inputs))[:, -1])
    among_all, among_new = [], []
    for first in range(0, len(users), CHUNK):
        inputs = np.zeros((CHUNK, model.max_len), np.int32)
        for row, items in zip(inputs, users[first : first + CHUNK], strict=False):
            before = items[:-1][-model.max_len :]
            row[model.max_len - len(before) :] = before
        scores = np.asarray(encode(inputs), np.float64) @ table.T
        scores[:, 0] = -np.inf  # the pad
        for row, items in zip(scores, users[first : first + CHUNK], strict=False):
            own = row[items[-1]]
            among_all.append(int((row > own).sum()))
            row[items[:-1]] = -np.inf
            among_new.append(int((row > own).sum()))
    print("| ranked | users | NDCG@10 ± standard error | HR@10 |\n|---|---|---|---|")
    report("all items but the user's own", among_new)
    report("all items", among_all)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    compare(options.run, options.data)
