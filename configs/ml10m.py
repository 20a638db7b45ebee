"""MovieLens-10M, the paper's settings.

    python -m jaxneg.main --config=configs/ml10m.py:adaptive_mixed --workdir=runs/ml10m \\
        --config.data.path=PATH/ml-10m.zip

Duration: not measured by us.
Expected result: the paper reports HR@10 0.0110, NDCG@10 0.0050 and Balance 0.87 for adaptive_mixed (20 runs).
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg)
    config = config_lib.base(model)
    config.dataset = "ml10m"
    config.model.max_len = 200
    config.osf = 30.0
    settings = tuned.settings(__file__, config.dataset, method, tuned.ML10M[method], model)
    return config_lib.use_method(config, method, settings)
