"""Synthetic data, small enough for a laptop: nothing to download.

    python -m jaxneg.main --config=configs/quickstart.py:adaptive_mixed --workdir=runs/quickstart

Duration: launch/quickstart.sh, which trains four methods, took 2 min 15 s on two CPU cores, after the install.
Expected result: HR@10 about 0.32 (the most popular items: 0.12).
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg)
    config = config_lib.base(model)
    config.dataset = "quickstart"
    config.data.format = "synthetic"
    config.num_epochs = 10
    config.eval_every = 5
    config.model.max_len = 20
    default = tuned.DEFAULT[method] | {"learning_rate": 5e-3}
    settings = tuned.settings(__file__, config.dataset, method, default, model)
    return config_lib.use_method(config, method, settings)
