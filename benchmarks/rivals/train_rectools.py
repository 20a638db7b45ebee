"""RecTools' turn: SASRecModel.fit with BCE and its own uniform sampler, and SASRecModel.recommend."""

import pathlib

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from turns import Turns

turns = Turns()  # a global: the model copies its trainer, with the callbacks, and this must not be copied


class Count(Callback):
    """Tells of each step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        shape = list(batch["negatives"].shape)
        if not turns.about:
            packages = ["rectools", "torch", "pytorch-lightning", "numpy"]
            turns.describe(packages, shape, "per position", torch.get_num_threads())
        trainer.should_stop = not turns.stepped(1, shape[0], float(outputs["loss"]))


def make_trainer() -> Trainer:
    """The model's default trainer, with no end and with the callback."""
    return Trainer(
        max_epochs=-1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
        devices=1,
        accelerator="cpu",
        callbacks=[Count()],
    )


def main():
    settings = turns.settings
    rows = np.load(pathlib.Path(settings["folder"], "rows.npz"))
    frame = pd.DataFrame(
        {
            Columns.User: rows["user"],
            Columns.Item: rows["item"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(rows["position"], unit="s"),
        }
    )
    dataset = Dataset.construct(frame)
    model = SASRecModel(
        n_blocks=settings["blocks"],
        n_heads=1,
        n_factors=settings["width"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["length"],
        loss="BCE",
        n_negatives=settings["negatives"],
        lr=settings["learning_rate"],
        batch_size=settings["batch"],
        get_trainer_func=make_trainer,
        recommend_torch_device="cpu",
    )
    model.fit(dataset)
    users = np.unique(rows["user"])

    def recommend() -> int:
        return len(model.recommend(users, dataset, k=settings["k"], filter_viewed=False)) // settings["k"]

    turns.evaluate(recommend)


if __name__ == "__main__":
    main()
