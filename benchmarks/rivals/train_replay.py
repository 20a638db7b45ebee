"""RePlay's turn: SasRec with sampled BCE over a ParquetModule, trained by Lightning, and its top-items callback."""

import pathlib

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import TorchTopItemsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.loss import BCESampled
from replay.nn.sequential import LengthBucketedQueryEncoder, SasRec
from replay.nn.transform import UniformNegativeSamplingTransform
from replay.nn.transform.template import make_default_sasrec_transforms
from turns import Turns

BUCKET_ROWS = 32  # of the encoder with length buckets: four of a batch of 128, as jaxneg has


class Count(lightning.Callback):
    """Tells of each step."""

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not self.turns.about:
            packages = ["replay-rec", "torch", "lightning", "numpy"]
            shape = list(batch["negative_labels"].shape)
            self.turns.describe(packages, shape, "per batch", torch.get_num_threads())
        trainer.should_stop = not self.turns.stepped(1, len(batch["positive_labels"]), float(outputs["loss"]))


def write_sequences(folder: pathlib.Path) -> tuple[pathlib.Path, int]:
    """One row of items 0 .. V-1 for each user: the file, and V."""
    rows = np.load(folder / "rows.npz")
    start = np.flatnonzero(rows["position"] == 0)
    items = pa.ListArray.from_arrays(
        pa.array(np.append(start, len(rows["item"])), pa.int32()), pa.array(rows["item"] - 1, pa.int64())
    )
    path = folder / "replay.parquet"
    pq.write_table(pa.table({"user_id": pa.array(rows["user"][start], pa.int64()), "item_id": items}), path)
    return path, int(rows["num_items"])


def make_model(settings: dict, schema: TensorSchema, num_items: int) -> SasRec:
    """The standard model, its loss replaced by sampled BCE; its encoder wrapped where buckets are asked for."""
    model = SasRec.from_params(
        schema,
        embedding_dim=settings["width"],
        num_heads=1,
        num_blocks=settings["blocks"],
        max_sequence_length=settings["length"],
        dropout=settings["dropout"],
    )
    if settings["buckets"]:
        model.body.encoder = LengthBucketedQueryEncoder(model.body.encoder, bucket_size=BUCKET_ROWS)
    model.loss = BCESampled()
    model.loss.logits_callback = model.get_logits
    return model


def main():
    turns = Turns()
    settings = turns.settings
    path, num_items = write_sequences(pathlib.Path(settings["folder"]))
    schema = TensorSchema(
        [
            TensorFeatureInfo(
                "item_id",
                FeatureType.CATEGORICAL,
                is_seq=True,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
                cardinality=num_items,
                padding_value=num_items,
                embedding_dim=settings["width"],
            )
        ]
    )
    transforms = make_default_sasrec_transforms(schema)
    transforms["train"].append(UniformNegativeSamplingTransform(num_items, settings["negatives"]))

    def columns(length: int) -> dict:
        return {"user_id": {}, "item_id": {"shape": length, "padding": num_items}}

    module = ParquetModule(
        settings["batch"],
        {"train": columns(settings["length"] + 1), "predict": columns(settings["length"])},
        transforms,
        train_path=str(path),
        predict_path=str(path),
    )
    optimizer = OptimizerFactory(learning_rate=settings["learning_rate"])
    model = LightningModule(make_model(settings, schema, num_items), optimizer)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "devices": 1,
    }
    trainer = lightning.Trainer(max_epochs=-1, limit_val_batches=0, callbacks=[Count(turns)], **quiet)
    trainer.fit(model, datamodule=module)

    def recommend() -> int:
        top = TorchTopItemsCallback(settings["k"], "user_id")
        predictor = lightning.Trainer(callbacks=[top], inference_mode=True, **quiet)
        predictor.predict(model, datamodule=module, return_predictions=False)
        users, items, _ = top.get_result()
        assert items.shape == (len(users), settings["k"]), items.shape
        return len(users)

    turns.evaluate(recommend)


if __name__ == "__main__":
    main()
