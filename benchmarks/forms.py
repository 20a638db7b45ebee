"""What another form of the same run costs in accuracy, and in time and memory: one setting, several values.

    python benchmarks/forms.py --field=optimizer.item_table --values=dense,sparse --config=FILE:uniform \\
        --config.data.path=PATH --config.num_seeds=4
    python benchmarks/forms.py --field=model.compute --values=float32,bfloat16 ...
    python benchmarks/forms.py --field=optimizer.moments --values=float32,bfloat16,int8 \\
        --config.optimizer.item_table=sparse ...

Any config of jaxneg will do, and any field whose values are words. The seeds have the same draws and initial weights
with each value. Prints HR@10 and NDCG@10 of the test at each seed's best epoch, mean and standard deviation over seeds,
and the mean of the seeds' differences to the first value, with its standard error.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np
import pandas as pd
from absl import app, flags
from ml_collections import config_flags

from jaxneg.data import dataset as data
from jaxneg.devices import memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.run import config as config_lib
from jaxneg.run import experiment
from jaxneg.run import programs as plan_lib

CONFIG = config_flags.DEFINE_config_file("config", None, "the run")
FIELD = flags.DEFINE_string("field", None, "the setting, as in model.compute")
VALUES = flags.DEFINE_list("values", None, "its values; the first is the one that the others are compared with")
JSON = flags.DEFINE_string("json", "", "a file for the figures")
METRICS = ("hr@10", "ndcg@10")


def table_bytes(config, prepared: data.Prepared) -> int:
    """Of one seed's item table with its moments."""
    made = plan_lib.make_plan(config, pathlib.Path(), prepared, range(1))
    keys = mesh_lib.seed_keys(made.layout, 0)
    state = jax.eval_shape(made.programs.init, keys, mesh_lib.repeat(made.layout, made.hyper))
    kept = jax.tree.leaves((state.params["tables"], state.opt_state))
    return memory.tree_bytes([leaf for leaf in kept if prepared.num_items + 1 in leaf.shape])


def main(_):
    mesh_lib.use_cores(CONFIG.value.num_seeds)
    found, sizes, seconds = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for value in VALUES.value:
            config = config_lib.resolve(config_lib.changed(CONFIG.value, {FIELD.value: value}))
            prepared = data.load(experiment.prepare_data(config))
            table = pd.read_csv(experiment.run(config, pathlib.Path(folder) / value))
            found[value] = {name: table[name].to_numpy() for name in METRICS}
            sizes[value], seconds[value] = table_bytes(config, prepared), table["train_seconds"].sum()
    first = VALUES.value[0]
    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {config.dataset}, {config.num_seeds} seeds, "
        f"{config.num_epochs} epochs of {max(1, prepared.num_users // config.batch_size)} steps, "
        f"{prepared.num_items:,} items of width {config.model.width}"
    )
    print(f"| {FIELD.value} | table, MiB | training, s | HR@10 | minus {first} | NDCG@10 | minus {first} |")
    print("|---|---|---|---|---|---|---|")
    for value, of_seeds in found.items():
        cells = []
        for name in METRICS:
            less = of_seeds[name] - found[first][name]
            error = less.std(ddof=1) / np.sqrt(len(less)) if len(less) > 1 else np.nan
            cells += [
                f"{of_seeds[name].mean():.4f} ± {of_seeds[name].std(ddof=1) if len(less) > 1 else np.nan:.4f}",
                f"{less.mean():+.4f} ± {error:.4f}",
            ]
        print(f"| {value} | {sizes[value] / 2**20:.2f} | {seconds[value]:.0f} | {' | '.join(cells)} |")
    if JSON.value:
        record = {
            value: {name: values.tolist() for name, values in of_seeds.items()} | {"table_bytes": sizes[value]}
            for value, of_seeds in found.items()
        }
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "field", "values"])
    app.run(main)
