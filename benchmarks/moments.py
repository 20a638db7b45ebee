"""What keeping the item table's moments in fewer bytes costs in accuracy, and in time and memory a step.

    python benchmarks/moments.py --config=configs/ml1m.py:uniform --config.data.path=PATH [--config.num_seeds=5]

Any config of jaxneg will do. The same run, row-sparse, with float32, bfloat16 and int8 moments, its seeds side by side:
same draws, same initial weights. Prints HR@10 and NDCG@10 of the test at each seed's best epoch, mean and standard
deviation over seeds, and the mean of the seeds' differences to float32 with its standard error.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np
import pandas as pd
from absl import app, flags
from ml_collections import config_flags

from jaxneg import config as config_lib
from jaxneg import experiment, memory, parallel, plan
from jaxneg.data import dataset as data

CONFIG = config_flags.DEFINE_config_file("config", None, "the run")
JSON = flags.DEFINE_string("json", "", "a file for the figures")
FORMS = ("float32", "bfloat16", "int8")
METRICS = ("hr@10", "ndcg@10")


def table_bytes(config, prepared: data.Prepared) -> int:
    """Of one seed's item table with its moments."""
    made = plan.make_plan(config, pathlib.Path(), prepared, range(1))
    keys = parallel.seed_keys(made.layout, 0)
    state = jax.eval_shape(made.programs.init, keys, parallel.repeat(made.layout, made.hyper))
    kept = jax.tree.leaves((state.params["item_table"], state.opt_state))
    return memory.tree_bytes([leaf for leaf in kept if prepared.num_items + 1 in leaf.shape])


def main(_):
    found, sizes, seconds = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            changed = config_lib.base()
            values = {"optimizer.item_table": "sparse", "optimizer.moments": form}
            changed.update_from_flattened_dict(config_lib.flatten(CONFIG.value) | values)
            config = config_lib.resolve(changed)
            prepared = data.load(experiment.prepare_data(config))
            table = pd.read_csv(experiment.run(config, pathlib.Path(folder) / form))
            found[form] = {name: table[name].to_numpy() for name in METRICS}
            sizes[form], seconds[form] = table_bytes(config, prepared), table["train_seconds"].sum()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {config.dataset}, {config.num_seeds} seeds, "
          f"{config.num_epochs} epochs of {max(1, prepared.num_users // config.batch_size)} steps, "
          f"{prepared.num_items:,} items of width {config.model.width}")  # fmt: skip
    print("| moments | table, MiB | training, s | HR@10 | minus float32 | NDCG@10 | minus float32 |")
    print("|---|---|---|---|---|---|---|")
    for form, of_seeds in found.items():
        cells = []
        for name in METRICS:
            less = of_seeds[name] - found["float32"][name]
            error = less.std(ddof=1) / np.sqrt(len(less)) if len(less) > 1 else np.nan
            cells += [f"{of_seeds[name].mean():.4f} ± {of_seeds[name].std(ddof=1) if len(less) > 1 else np.nan:.4f}",
                      f"{less.mean():+.4f} ± {error:.4f}"]  # fmt: skip
        print(f"| {form} | {sizes[form] / 2**20:.2f} | {seconds[form]:.0f} | {' | '.join(cells)} |")
    if JSON.value:
        record = {form: {name: values.tolist() for name, values in of_seeds.items()} | {"table_bytes": sizes[form]}
                  for form, of_seeds in found.items()}  # fmt: skip
        pathlib.Path(JSON.value).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
