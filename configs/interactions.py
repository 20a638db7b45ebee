"""Your own file of interactions: one row per event, with a user, an item and a time.

    python -m jaxneg.main --config=configs/interactions.py:adaptive_mixed --workdir=runs/mine \\
        --config.data.path=PATH/my_log.csv \\
        --config.data.user_column=user --config.data.item_column=item --config.data.time_column=time

Duration: depends on the file; the progress bar tells after the first epoch.
Expected result: results.csv, and above all whether it beats the two popularity baselines.
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg)
    config = config_lib.base(model)
    settings = tuned.settings(__file__, config.dataset, method, tuned.DEFAULT[method], model)
    return config_lib.use_method(config, method, settings)
