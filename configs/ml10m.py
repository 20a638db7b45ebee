"""MovieLens-10M, the paper's settings.

    python -m jaxneg.main --config=configs/ml10m.py:adaptive_mixed --workdir=runs/ml10m \\
        --config.data.path=PATH/ml-10m.zip

Duration: to be measured.
Expected result: to be measured.
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method = config_lib.parse_arg(arg)
    config = config_lib.use_method(config_lib.base(), method, tuned.ML10M[method])
    config.dataset = "ml10m"
    config.model.max_len = 200
    config.osf = 30.0
    return config
