"""Amazon Beauty, 5-core (22,363 users), shortened to 10 epochs.

    python -m jaxneg.main --config=configs/beauty5core.py:adaptive_mixed --workdir=runs/beauty5core \\
        --config.data.path=PATH/beauty-5core_full.tsv.gz

Batches and numbers of negatives are those that the paper tuned on the whole of Beauty. Its learning rates are for 201
epochs; those for 10 are tuned on the validation cases, in tuned/beauty5core.json (1e-3 for methods that are not there).
Duration: 6 epochs with 20 seeds of the paper's six methods took an hour on two CPU cores.
Expected result: for those 6 epochs the README's table.
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg)
    config = config_lib.base(model)
    config.dataset = "beauty5core"
    config.num_epochs = 10
    config.eval_every = 2
    config.osf = 30.0
    settings = tuned.settings(__file__, config.dataset, method, tuned.BEAUTY[method] | {"learning_rate": 1e-3}, model)
    return config_lib.use_method(config, method, settings)
