"""The same run with its batches, its data and its item table split over eight devices, and on one.

The same draws, nearly the same weights, the same ranks from the same weights; and no table travels between devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/on_mesh.py [MODEL]

Another model than sasrec is tried in one layout, in which seeds, data, items and users are all split.
"""

import functools
import math
import pathlib
import re
import sys
import tempfile

import jax
import numpy as np

from jaxneg import settings
from jaxneg.data import dataset as data
from jaxneg.devices import mesh as mesh_lib
from jaxneg.run import config as config_lib
from jaxneg.run import experiment
from jaxneg.run import programs as plan_lib
from jaxneg.training import step as training

NUM_SEEDS, NUM_STEPS = 2, 20
LAYOUTS = {  # devices for data and for items, and whether the data is streamed
    "on one device": (1, 1, "off"),
    "data over 4, streamed": (4, 1, "on"),
    "items over 8": (1, 8, "off"),
    "both": (2, 2, "off"),
}
KEY_BIAS = "['key']['bias']"  # moves by rounding alone: a softmax over keys does not feel it, and Adam scales it up
COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
COLLECTIVE = re.compile(rf"= (\(?[^=]*?) (?:{COLLECTIVES})(?:-start)?\(")
COMMENT = re.compile(r"/\*.*?\*/")  # a tuple's fifth array is marked, with a "="
SHAPE = re.compile(r"([a-z]+\d+)\[([\d,]*)\]")


def main(folder: pathlib.Path, model: str) -> None:
    assert jax.local_device_count() == 8
    names = LAYOUTS if model == "sasrec" else ("on one device", "both")
    runs = {name: run(folder, model, *LAYOUTS[name]) for name in names}
    draws, first, (weights, loss), _ = runs["on one device"]
    assert np.ptp(weights["tables"]["item"], axis=0).max() > 1e-2, "the seeds do differ"
    for name, (other_draws, other_first, (other_weights, other_loss), ranks) in runs.items():
        equal = functools.partial(np.testing.assert_array_equal, err_msg=name)
        if other_draws is not None:
            jax.tree.map(equal, other_draws, draws)
        jax.tree.map(equal, other_first, first)
        np.testing.assert_allclose(other_loss, loss, atol=1e-4, err_msg=name)
        leaves = zip(jax.tree.leaves_with_path(other_weights), jax.tree.leaves(weights), strict=True)
        for (path, other), own in leaves:
            where = jax.tree_util.keystr(path)
            if KEY_BIAS not in where:
                np.testing.assert_allclose(other, own, atol=1e-4, err_msg=f"{name}: {where}")
        for found, wanted in zip(ranks(weights), runs["on one device"][3](weights), strict=True):
            # Products of other shapes round differently: two items whose scores differ by a rounding may change places.
            differ = np.abs(found - wanted)
            assert differ.max() <= 1 and (differ > 0).mean() < 3e-3, name


def run(folder: pathlib.Path, model: str, data_axis: int, model_axis: int, streamed: str):
    """(draws, initial weights, weights and loss after the steps, ranks of given weights) of a layout.

    What a streamed run draws, the host has drawn: None.
    """
    config = config_lib.base(model)
    sizes = {"model.width": 8, "model.num_blocks": 1, "model.max_len": 5}
    config.update_from_flattened_dict(
        {
            "method": "adaptive_mixed",
            "num_seeds": NUM_SEEDS,
            "batch_size": 8,
            "data.format": "synthetic",
            "data.synthetic.num_users": 300,
            "data.synthetic.num_items": 60_000 if model == "sasrec" else 6_000,
            "data.synthetic.num_rows": 60_000,
            "data.min_user_rows": 2,
            "data.min_item_rows": 1,
            "data.cache_dir": str(folder),
            "optimizer.item_table": "sparse",
            "learning_rate": 0.01,
            "sampler.mixture": ("in_batch", "popularity", "popularity_cohort"),
            "sampler.num_in_batch": 3,
            "sampler.num_popularity": 1,
            "sampler.num_kept": 2,
            "eval.ks": (5, 10),
            "eval.filter_seen": True,
            "mesh.data": data_axis,
            "mesh.model": model_axis,
            "data.stream": streamed,
        }
        | {name: size for name, size in sizes.items() if name in settings.FIELDS[model]}
    )
    config = config_lib.resolve(config)
    prepared = data.load(experiment.prepare_data(config))
    made = plan_lib.on_devices(plan_lib.make_plan(config, folder, prepared, range(NUM_SEEDS)))
    layout = made.layout
    assert layout.devices_per_seed == data_axis * model_axis and layout.mesh.size == min(8, 2 * data_axis * model_axis)
    state = made.programs.init(mesh_lib.seed_keys(layout, 5), mesh_lib.repeat(layout, made.hyper))
    first = own(layout, made.programs.weights(state.params))
    source = next(plan_lib.drawn_from(made, state, 0))[1]
    draws = (
        None
        if made.dataset is None
        else own(
            layout,
            mesh_lib.over_seeds(
                drawing(config, layout, prepared),
                layout,
                (mesh_lib.specs(state, mesh_lib.SEED), mesh_lib.specs(made.tables), mesh_lib.specs(made.dataset)),
            )(state, made.tables, made.dataset),
        )
    )
    advance = made.programs.advance.lower(np.int32(NUM_STEPS), state, made.tables, source).compile()
    evaluate = made.programs.evaluate.lower(
        made.programs.weights(state.params), made.history_rows, made.splits["test"].cases
    ).compile()
    # Numbers in what one of eight devices would hold of its seeds' tables.
    held = layout.seeds_per_device * first["tables"]["item"][0].size // 8
    moved = [*travelling(advance.as_text()), *travelling(evaluate.as_text(), "f32")]  # histories' ids are not a table
    assert bool(moved) == (layout.devices_per_seed > 1) and max(moved, default=0) < held, (moved, held)
    state = advance(np.int32(NUM_STEPS), state, made.tables, source)
    reached = own(layout, (made.programs.weights(state.params), state.loss_sum))

    def ranks(weights):
        params = mesh_lib.fill(layout, weights, like=made.programs.weights(state.params))
        place = made.splits["test"].place
        above, tied, exposure = own(layout, evaluate(params, made.history_rows, made.splits["test"].cases))
        return above[:, place], tied[:, place], exposure[:, :, : prepared.num_items + 1]

    return draws, first, reached, ranks


def own(layout: mesh_lib.Layout, tree):
    return jax.tree.map(np.asarray, mesh_lib.take(layout, tree))


def drawing(config, layout: mesh_lib.Layout, prepared: data.Prepared):
    """A function (state, tables, dataset) of one seed: its next batch, and the candidates that are proposed for it."""
    parts = plan_lib.make_parts(config, layout, prepared.num_items)
    history_size = data.longest_history(data.training_set(prepared))
    step = training.Step(
        parts.model, parts.method, parts.loss, parts.optimizer, config.batch_size, prepared.num_items, history_size
    )

    def draw(state, tables, dataset):
        keys, batch = training.draw(step, state, dataset)
        candidates = parts.method.proposal.sample(keys.proposal, tables, batch)
        return batch, candidates.item_ids, candidates.mask

    return draw


def travelling(program: str, kind: str = ""):
    """How many numbers each collective operation of a compiled program moves, array by array."""
    for shapes in COLLECTIVE.findall(COMMENT.sub("", program)):
        yield from (
            math.prod(int(size) for size in dims.split(",") if size)
            for name, dims in SHAPE.findall(shapes)
            if name.startswith(kind)
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(pathlib.Path(folder), sys.argv[1] if len(sys.argv) > 1 else "sasrec")
