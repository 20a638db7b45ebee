"""How often head, mid and tail items are positives, and how often negatives, for each way of drawing; on a real file.

    python benchmarks/cohort_terms.py FILE [--config configs/ml1m.py] [--length 50] [--batches 300]

Counted are the terms of the loss (BCE: a positive for each position, and the mean of its negatives), over batches as
training draws them, with each method's own settings. Nothing is trained, so methods that choose by score are left out:
what they choose from is counted under the name of the distribution.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import main, samplers
from jaxneg.data import dataset as data
from jaxneg.evaluation import rows as results
from jaxneg.models import objectives
from jaxneg.run import config as config_lib
from jaxneg.run import experiment
from jaxneg.types import Batch

METHODS = ("uniform", "popularity", "inverse_popularity", "popularity_cohort", "in_batch", "mixed")


def shares(config, prepared: data.Prepared, num_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Positives' and negatives' terms of each cohort [3], as shares of all positives."""
    settings = samplers.Settings(**{name: config.sampler[name] for name in samplers.Settings._fields})
    method = samplers.make(config.method, prepared.num_items, settings)
    dataset = data.training_set(prepared)
    targets = data.target_counts(dataset, config.model.max_len, prepared.num_items)
    tables = method.proposal.init(np.asarray(prepared.item_counts), targets)
    cohorts = jnp.asarray(prepared.item_cohorts)
    objective = objectives.next_item()

    @jax.jit
    def terms(key):
        batch_key, proposal_key = jax.random.split(key)
        window = data.draw_users(
            batch_key,
            dataset,
            batch_size=config.batch_size,
            length=config.model.max_len + objective.extra,
            num_items=prepared.num_items,
            history_size=data.longest_history(dataset),
        )
        batch = Batch(*objective.make(proposal_key, window.items), *window[1:])
        candidates = method.proposal.sample(proposal_key, tables, batch)
        counted = (batch.targets > 0).astype(jnp.float32)
        weight = candidates.mask / jnp.maximum(jnp.sum(candidates.mask, axis=-1, keepdims=True), 1)
        weight = weight * counted[..., None]  # [B, L, N]: a position's negatives are 1 in all
        ids = jnp.broadcast_to(candidates.item_ids, weight.shape)
        positive = jnp.bincount(cohorts[batch.targets].reshape(-1), counted.reshape(-1), length=len(results.COHORTS))
        return positive, jnp.bincount(cohorts[ids].reshape(-1), weight.reshape(-1), length=len(results.COHORTS))

    keys = jax.random.split(jax.random.key(config.seed), num_batches)
    found = np.sum([jax.device_get(terms(key)) for key in keys], axis=0, dtype=np.float64)
    return found[0] / found[0].sum(), found[1] / found[0].sum()


def report() -> None:
    """Prints the table of all methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the interaction file")
    parser.add_argument("--config", default="configs/ml1m.py", help="config file, without a method")
    parser.add_argument("--length", type=int, help="as in the config file unless told")
    parser.add_argument("--batches", type=int, default=300, help="batches to draw for each method; default 300")
    options = parser.parse_args()
    lines, prepared = [], None
    for name in METHODS:
        config = main.load_config(f"{options.config}:{name}")
        config.data.path = options.file
        config.model.max_len = options.length or config.model.max_len
        config = config_lib.resolve(config)
        prepared = prepared or data.load(experiment.prepare_data(config))
        positive, negative = shares(config, prepared, options.batches)
        lines.append((name, negative, positive / negative))
    print(
        f"{prepared.num_items:,} items; of the positives, head, mid and tail are "
        + ", ".join(f"{share:.2f}" for share in positive)
    )
    print("| method | head among the negatives | mid | tail | positives per negative: head | mid | tail |")
    print("|---|---|---|---|---|---|---|")
    for name, negative, ratio in lines:
        print(f"| `{name}` | " + " | ".join(f"{value:.2f}" for value in (*negative, *ratio)) + " |")


if __name__ == "__main__":
    report()
