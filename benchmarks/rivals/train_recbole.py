"""RecBole's turn: its trainer's fit of SASRec with BPR, which is its loss with negatives, and its full ranking.

A row of RecBole is one prefix with one target, so a "sequence" here trains one position, and its negatives are drawn
for that row. Its data loader repeats the row for each negative, and the model encodes each copy.
"""

import pathlib

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed
from turns import Finished, Turns


def make_config(settings: dict) -> Config:
    """RecBole's config; every user's last row is the test, all else is training."""
    return Config(
        model="SASRec",
        dataset="rows",
        config_dict={
            "data_path": settings["folder"],
            "checkpoint_dir": f"{settings['folder']}/saved",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": "user"},
            "metrics": ["Hit"],
            "topk": [settings["k"]],
            "valid_metric": f"Hit@{settings['k']}",
            "MAX_ITEM_LIST_LENGTH": settings["length"],
            # The batch counts copies: each row has one for each negative.
            "train_batch_size": settings["batch"] * settings["negatives"],
            "train_neg_sample_args": {
                "distribution": "uniform",
                "sample_num": settings["negatives"],
                "alpha": 1.0,
                "dynamic": False,
                "candidate_num": 0,
            },
            "loss_type": "BPR",
            "learning_rate": settings["learning_rate"],
            "epochs": 10**6,
            "n_layers": settings["blocks"],
            "n_heads": 1,
            "hidden_size": settings["width"],
            "inner_size": settings["width"],
            "hidden_act": "relu",
            "hidden_dropout_prob": settings["dropout"],
            "attn_dropout_prob": settings["dropout"],
            "use_gpu": False,
            "show_progress": False,
        },
    )


def write_rows(folder: pathlib.Path) -> None:
    """RecBole's atomic file of interactions."""
    rows = np.load(folder / "rows.npz")
    (folder / "rows").mkdir(exist_ok=True)
    columns = np.stack([rows["user"] + 1, rows["item"], rows["position"]], axis=1)
    header = "user_id:token\titem_id:token\ttimestamp:float"
    np.savetxt(folder / "rows" / "rows.inter", columns, fmt="%d", delimiter="\t", header=header, comments="")


def main():
    turns = Turns()
    settings = turns.settings
    write_rows(pathlib.Path(settings["folder"]))
    config = make_config(settings)
    init_seed(config["seed"], config["reproducibility"])
    training, _, test = data_preparation(config, create_dataset(config))
    model = SASRec(config, training.dataset)
    trainer = Trainer(config, model)
    calculate_loss, last = model.calculate_loss, {}

    def noted_loss(interaction):
        last["copies"] = len(interaction[model.NEG_ITEM_ID])
        loss = calculate_loss(interaction)
        last["loss"] = loss.item()
        return loss

    def count(*_):
        rows = last["copies"] // settings["negatives"]
        if not turns.about:
            packages = ["recbole", "torch", "numpy", "pandas"]
            turns.describe(
                packages, [rows, settings["negatives"]], "per row, which has one target", torch.get_num_threads()
            )
        if not turns.stepped(1, rows, last["loss"]):
            raise Finished

    model.calculate_loss = noted_loss
    trainer.optimizer.register_step_post_hook(count)
    try:
        trainer.fit(training, saved=False, verbose=False)
    except Finished:
        pass

    def recommend() -> int:
        trainer.evaluate(test, load_best_model=False)
        return test.sample_size

    turns.evaluate(recommend)


if __name__ == "__main__":
    main()
