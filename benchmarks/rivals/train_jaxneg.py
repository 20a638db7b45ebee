"""jaxneg's turn: the programs of a run of one seed, length buckets included, and top-10 recommendations."""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from turns import Turns

from jaxneg.data import dataset as data
from jaxneg.devices import mesh as mesh_lib
from jaxneg.evaluation import ranks as ranking
from jaxneg.models import base, sasrec
from jaxneg.run import config as config_lib
from jaxneg.run import experiment, loop
from jaxneg.run import programs as plan_lib
from jaxneg.types import EvalCases

DISPATCH_SECONDS = 0.5  # a run dispatches more steps at a time


def make_config(settings: dict):
    """The config of a run with uniform negatives and BCE."""
    config = config_lib.use_method(
        config_lib.base(),
        "uniform",
        {
            "batch_size": settings["batch"],
            "learning_rate": settings["learning_rate"],
            "model.max_len": settings["length"],
            "model.width": settings["width"],
            "model.num_blocks": settings["blocks"],
            "model.dropout": settings["dropout"],
            "sampler.num_uniform": settings["negatives"],
            "sampler.scope": settings["scope"],
            "data.path": settings["data"],
            "data.cache_dir": settings["folder"],
        },
    )
    return config_lib.resolve(config)


def main():
    turns = Turns()
    settings = turns.settings
    config = make_config(settings)
    prepared = data.load(experiment.prepare_data(config))
    plan = plan_lib.on_devices(plan_lib.make_plan(config, pathlib.Path(settings["folder"]), prepared, range(1)))
    keys = mesh_lib.seed_keys(plan.layout, 0)
    state = plan.programs.init(keys, mesh_lib.repeat(plan.layout, plan.hyper))
    rows = 1 if settings["scope"] == "batch" else settings["batch"]
    columns = settings["length"] if settings["scope"] == "position" else 1
    turns.describe(
        ["jax", "jaxlib", "flax", "numpy"], [rows, columns, settings["negatives"]], f"per {settings['scope']}"
    )

    def advance(count, state):
        """The state after `count` steps, and the sum of their losses; waits for the device, as a run does."""
        before = float(state.loss_sum[0])
        state = loop.advance(plan, count, state, plan.dataset)
        return state, float(state.loss_sum[0]) - before

    state, _ = advance(1, state)  # compiles
    start = time.perf_counter()
    state, loss = advance(settings["warm_up_steps"], state)
    count = max(1, round(DISPATCH_SECONDS * settings["warm_up_steps"] / (time.perf_counter() - start)))
    going = turns.stepped(settings["warm_up_steps"], 0, loss)
    while going:
        state, loss = advance(count, state)
        going = turns.stepped(count, count * settings["batch"], loss)
    turns.evaluate(recommender(settings, plan, mesh_lib.take(plan.layout, state.params), prepared.num_items))


def recommender(settings: dict, plan: plan_lib.Plan, params: dict, num_items: int):
    """A call that makes the top-10 of every training user, and returns how many those are."""
    model = sasrec.make(sasrec.Settings(settings["width"], settings["blocks"], 1, settings["length"]), num_items)
    chunks = ranking.choose_chunks(num_items, settings["width"])
    dataset = plan.dataset
    start, end = dataset.user_start[dataset.train_users], dataset.train_end[dataset.train_users]
    users = jnp.arange(len(start))
    cases = EvalCases(start, end, users, users, users)  # whose targets are not asked for

    @jax.jit
    def recommend(params, items, cases):
        encode = functools.partial(base.encode_inputs, model, params)
        hidden = ranking.encode_histories(encode, items, cases, length=model.max_len, chunk_size=chunks.case_chunk)
        return ranking.count_recommended(hidden, params["tables"]["item"], (settings["k"],), chunks=chunks)

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), params)

    def call() -> int:
        return int(np.sum(recommend(params, dataset.items, cases))) // settings["k"]

    return call


if __name__ == "__main__":
    main()
