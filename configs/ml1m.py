"""MovieLens-1M, with the settings that the paper tuned on MovieLens-10M.

    python -m jaxneg.main --config=configs/ml1m.py:adaptive_mixed --workdir=runs/ml1m \\
        --config.data.path=PATH/ratings.dat

Duration: not measured by us for the whole 201 epochs; the README has a shortened run.
Expected result: the paper has none for this file; the README's table shows all methods after 8 epochs.
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg)
    config = config_lib.base(model)
    config.dataset = "ml1m"
    config.model.max_len = 200
    settings = tuned.settings(__file__, config.dataset, method, tuned.ML10M[method], model)
    return config_lib.use_method(config, method, settings)
