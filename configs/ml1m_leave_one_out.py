"""MovieLens-1M, leave-one-out with full ranking: thousands of negatives that the batch shares, and sampled softmax.

    python -m jaxneg.main --config=configs/ml1m_leave_one_out.py --workdir=runs/ml1m_leave_one_out \\
        --config.data.path=PATH/ratings.dat

Each user's last item is the test, the one before it the validation; histories are up to 200 items long. Without a
method it is `uniform`. The paper has no such protocol; the recipe is that of Klenitskiy & Vasilev (RecSys 2023,
"Turning Dross Into Gold Loss"), whose figures leave a user's earlier items out of the ranking, as is done here. Not to
be set beside the results of the temporal split.
Duration: one seed of 60 epochs took 101 minutes on one CPU core.
Expected result: NDCG@10 0.190 and HR@10 0.323 on the test (results/ml1m_leave_one_out, one seed).
"""

from jaxneg import config as config_lib
from jaxneg import tuned

NUM_NEGATIVES = 3000  # of the 3,416 items, in equal parts where several distributions are mixed


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg, "uniform")
    config = config_lib.use_method(config_lib.base(model), method, tuned.DEFAULT[method])
    config.dataset = "ml1m_leave_one_out"
    config.data.split = "leave_one_out"
    config.data.min_user_rows = 5
    config.num_epochs = 60
    config.eval_every = 5
    config.batch_size = 64
    config.learning_rate = 1.5e-3
    config.learning_rate_half_life = 18.0
    config.model.width = 128
    config.model.max_len = 200
    config.model.dropout = 0.2
    config.eval.filter_seen = True
    config.sampler.scope = "batch"
    drawn = config_lib.distributions(config_lib.flatten(config))
    config.update_from_flattened_dict({config_lib.DISTRIBUTIONS[part]: NUM_NEGATIVES // len(drawn) for part in drawn})
    if method != "catalogue":
        config.loss.name = "infonce" if method in config_lib.BY_SCORE else "sampled_softmax"
    return config
