"""Twenty seeds on one device and on eight, and one of them alone: the same draws, and nearly the same weights.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/on_devices.py
"""

import functools
import pathlib
import sys
import tempfile

import jax
import numpy as np

from jaxneg import losses, samplers
from jaxneg.data import dataset as data
from jaxneg.data import prepare, synthetic
from jaxneg.devices import mesh as mesh_lib
from jaxneg.models import sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.training import buckets
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training

NUM_SEEDS, NUM_STEPS, ALONE = 20, 20, 13
KEY_BIAS = "['key']['bias']"  # moves by rounding alone: a softmax over keys does not feel it, and Adam scales it up


def main(method_name: str, folder: str) -> None:
    made = synthetic.SyntheticSettings(num_rows=2000, num_users=100, num_items=60)
    prepared = data.load(synthetic.prepare_synthetic(made, prepare.DEFAULT, cache_dir=pathlib.Path(folder)))
    dataset = data.training_set(prepared)
    settings = samplers.Settings(num_in_batch=3, num_uniform=3, num_kept=2)
    method = samplers.make(method_name, prepared.num_items, settings)
    model = sasrec.make(sasrec.Settings(width=8, num_blocks=1, max_len=6), prepared.num_items)
    adam = adam_lib.adam()
    step = training.Step(
        model=model,
        method=method,
        loss=losses.bce,
        optimizer=adam,
        batch_size=16,
        num_items=prepared.num_items,
        history_size=data.longest_history(dataset),
        buckets=(buckets.Bucket(8, 6), buckets.Bucket(8, 4)),
    )
    sizes = {"num_items": prepared.num_items, "num_users": prepared.num_users}
    init = functools.partial(training.init_state, model=model, optimizer=adam, **sizes)
    tables = method.proposal.init(np.asarray(prepared.item_counts))
    hyper = training.HyperParams(np.float32(1e-2), np.float32(0.2), np.float32(1.0))

    def draw(state, tables, dataset):
        keys, batch = training.draw(step, state, dataset)
        candidates = method.proposal.sample(keys.proposal, tables, batch)
        return (batch, candidates.item_ids, candidates.mask), candidates.log_q

    def run(layout, first=0):
        """(the draws of the step after the last, their log q and the weights) of a layout's seeds."""
        keys = mesh_lib.seed_keys(layout, 5, first)
        state = mesh_lib.over_seeds(init, layout, (True, True))(keys, mesh_lib.repeat(layout, hyper))
        shared = mesh_lib.put_shared(layout, (tables, dataset))
        steps = functools.partial(training_loop.run_steps, step)
        advance = mesh_lib.over_devices(steps, layout, (False, True, False, False))
        state = advance(np.int32(NUM_STEPS), state, *shared)
        draws, log_q = mesh_lib.over_seeds(draw, layout, (True, False, False))(state, *shared)
        return jax.tree.map(np.asarray, mesh_lib.take(layout, (draws, (log_q, state.params))))

    devices = jax.local_devices()
    draws, floats = run(mesh_lib.seed_layout(NUM_SEEDS, devices[:1]))
    others = {f"on {len(devices)} devices": run(mesh_lib.seed_layout(NUM_SEEDS, devices))}
    alone = run(mesh_lib.seed_layout(1, devices[:1]), ALONE)
    mine = jax.tree.map(lambda x: x[ALONE : ALONE + 1], (draws, floats))
    pairs = [(others[name], (draws, floats), name) for name in others] + [(alone, mine, "alone")]
    for (other_draws, other_floats), (own_draws, own_floats), name in pairs:
        jax.tree.map(functools.partial(np.testing.assert_array_equal, err_msg=name), other_draws, own_draws)
        leaves = zip(jax.tree.leaves_with_path(other_floats), jax.tree.leaves(own_floats), strict=True)
        for (path, other), own in leaves:
            where = jax.tree_util.keystr(path)
            if KEY_BIAS not in where:
                np.testing.assert_allclose(other, own, atol=1e-4, err_msg=f"{name}: {where}")
    spread = np.ptp(floats[1]["tables"]["item"], axis=0).max()
    assert len(devices) == 8 and spread > 1e-2, "the seeds do differ"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1], folder)
