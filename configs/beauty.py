"""Amazon Beauty ratings (2014), the paper's settings.

    python -m jaxneg.main --config=configs/beauty.py:adaptive_mixed --workdir=runs/beauty \\
        --config.data.path=PATH/ratings_Beauty.csv

Duration: not measured by us for this file and the whole 201 epochs; the README has a shortened run on a smaller one.
Expected result: the paper reports HR@10 0.0233, NDCG@10 0.0115 and Balance 0.51 for adaptive_mixed (10 runs).
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg)
    config = config_lib.base(model)
    config.dataset = "beauty"
    config.osf = 30.0
    settings = tuned.settings(__file__, config.dataset, method, tuned.BEAUTY[method], model)
    return config_lib.use_method(config, method, settings)
