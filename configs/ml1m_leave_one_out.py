"""MovieLens-1M, leave-one-out with full ranking: thousands of negatives that the batch shares, and sampled softmax.

    python -m jaxneg.main --config=configs/ml1m_leave_one_out.py --workdir=runs/ml1m_leave_one_out \\
        --config.data.path=PATH/ratings.dat

With another model, as in `:catalogue,gru4rec`, it is the setting of that model's published figure (RECIPES).

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
SASREC = {
    "num_epochs": 60,
    "batch_size": 64,
    "learning_rate": 1.5e-3,
    "learning_rate_half_life": 18.0,
    "model.width": 128,
    "model.dropout": 0.2,
}
# As the figures were published that docs/models.md holds them against: how long, how wide, how many negatives.
RECIPES = {
    "gru4rec": {"num_epochs": 100, "model.width": 64},
    "bert4rec": {"num_epochs": 200, "model.width": 64, "model.mask_rate": 0.2},
    "ligr": {"num_epochs": 100, "model.width": 64, "model.dropout": 0.1, "sampler.num_uniform": 256},
    "hstu": {"num_epochs": 101, "model.width": 50, "sampler.num_uniform": 128},
    "mf": {"num_epochs": 60, "batch_size": 1024, "model.width": 128, "sampler.num_uniform": 1, "loss.name": "bpr"},
    "neumf": {"num_epochs": 20, "batch_size": 256, "sampler.num_uniform": 4, "loss.name": "bce"},
}


def get_config(arg: str | None = None):
    method, model = config_lib.split_arg(arg, "uniform")
    config = config_lib.use_method(config_lib.base(model), method, tuned.DEFAULT[method])
    config.dataset = "ml1m_leave_one_out"
    config.data.split = "leave_one_out"
    config.data.min_user_rows = 5
    config.eval_every = 5
    config.eval.filter_seen = True
    config.model.max_len = 200
    drawn = config_lib.distributions(config_lib.flatten(config))
    if model == "sasrec":
        config.sampler.scope = "batch"
        numbers = {config_lib.DISTRIBUTIONS[part]: NUM_NEGATIVES // len(drawn) for part in drawn}
        config.update_from_flattened_dict(SASREC | numbers)
    else:
        recipe = {name: value for name, value in RECIPES.get(model, {}).items() if drawn or name != "loss.name"}
        config.update_from_flattened_dict({"batch_size": 128, "learning_rate": 1e-3} | recipe)
    if drawn and "loss.name" not in RECIPES.get(model, {}):
        config.loss.name = "infonce" if method in config_lib.BY_SCORE else "sampled_softmax"
    return config
