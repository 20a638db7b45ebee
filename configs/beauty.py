"""Amazon Beauty ratings (2014), the paper's settings.

    python -m jaxneg.main --config=configs/beauty.py:adaptive_mixed --workdir=runs/beauty \\
        --config.data.path=PATH/ratings_Beauty.csv

Duration: to be measured.
Expected result: to be measured.
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method = config_lib.parse_arg(arg)
    config = config_lib.use_method(config_lib.base(), method, tuned.BEAUTY[method])
    config.dataset = "beauty"
    config.osf = 30.0
    return config
