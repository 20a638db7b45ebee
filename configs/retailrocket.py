"""RetailRocket's page views in sessions, the paper's settings.

    python -m jaxneg.main --config=configs/retailrocket.py:adaptive_mixed --workdir=runs/retailrocket \\
        --config.data.path=PATH/events.csv

Duration: not measured by us.
Expected result: the paper reports HR@10 0.0419, NDCG@10 0.0236 and Balance 0.45 for adaptive_mixed (20 runs).
"""

from jaxneg import config as config_lib
from jaxneg import tuned


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg)
    config = config_lib.base(model)
    config.dataset = "retailrocket"
    config.data.session_gap_seconds = 3600.0
    config.data.event = "view"
    config.osf = 30.0
    settings = tuned.settings(__file__, config.dataset, method, tuned.RETAILROCKET[method], model)
    return config_lib.use_method(config, method, settings)
