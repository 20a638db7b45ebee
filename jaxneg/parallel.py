"""The one place that knows of several seeds and several devices.

Seeds are independent runs of one program: a vmap over seeds on each device, sharded over the devices by the
mesh axis "seed", with nothing to say to each other. Everywhere else a function is written for a single seed.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SEED = PartitionSpec("seed")
SHARED = PartitionSpec()

# On CPU, XLA hands small products and reductions to YNNPACK, which here takes a fifth longer than XLA's own code.
COMPILER_OPTIONS = {"cpu": {"xla_cpu_experimental_ynn_fusion_type": ""}}


class Layout(NamedTuple):
    """Where the seeds live. Axis 0 of every per-seed array has `num_rows` rows: the seeds, then copies that fill up."""

    mesh: Mesh
    num_seeds: int
    num_rows: int

    @property
    def seeds_per_device(self) -> int:
        return self.num_rows // self.mesh.size


def seed_layout(num_seeds: int, devices: Sequence[jax.Device] | None = None) -> Layout:
    """Spreads the seeds over as many of the devices (default: all local ones) as there are seeds."""
    devices = (jax.local_devices() if devices is None else list(devices))[:num_seeds]
    num_rows = -(-num_seeds // len(devices)) * len(devices)
    return Layout(Mesh(np.array(devices), ("seed",)), num_seeds, num_rows)


def seed_keys(layout: Layout, root: int, first: int = 0) -> jax.Array:
    """One key for each row: seed s has fold_in(root, s), whatever the number of seeds or devices."""
    seeds = first + jnp.arange(layout.num_rows) % layout.num_seeds
    return put_per_seed(layout, jax.vmap(lambda s: jax.random.fold_in(jax.random.key(root), s))(seeds))


def put_per_seed(layout: Layout, tree: Any) -> Any:
    """Arrays [num_rows, ...] onto the devices, each device its seeds' rows."""
    return jax.device_put(tree, NamedSharding(layout.mesh, SEED))


def put_shared(layout: Layout, tree: Any) -> Any:
    """The same arrays onto every device."""
    return jax.device_put(tree, NamedSharding(layout.mesh, SHARED))


def repeat(layout: Layout, tree: Any) -> Any:
    """One copy per seed, on the devices, of values that all seeds begin with."""
    rows = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (layout.num_rows, *np.shape(x))), tree)
    return put_per_seed(layout, rows)


def take(layout: Layout, tree: Any) -> Any:
    """The seeds' own rows, [num_seeds, ...], without those that only fill up."""
    return jax.tree.map(lambda x: x[: layout.num_seeds], tree)


def fill(layout: Layout, tree: Any) -> Any:
    """Arrays [num_seeds, ...] onto the devices as [num_rows, ...]: the way back from `take`, on any layout."""
    rows = np.arange(layout.num_rows) % layout.num_seeds
    return put_per_seed(layout, jax.tree.map(lambda x: x[rows], tree))


def over_devices(function: Callable, layout: Layout, per_seed: Sequence[bool], donate: Sequence[int] = ()) -> Callable:
    """Compiles a function of a device's seeds into one of all: `per_seed` says which arguments have a seed axis.

    All outputs have a seed axis. Arguments in `donate` are given up to the outputs.
    """
    specs = tuple(SEED if own else SHARED for own in per_seed)
    # A shard of its own for each device: a loop whose length depends on a seed then asks no other device.
    sharded = jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=SEED, check_vma=False)
    options = compiler_options(layout.mesh.devices.flat[0].platform)
    return jax.jit(sharded, donate_argnums=tuple(donate), compiler_options=options)


def compiler_options(platform: str) -> dict:
    """What makes jaxneg's programs faster on this platform, for `jax.jit`."""
    return COMPILER_OPTIONS.get(platform, {})


def over_seeds(function: Callable, layout: Layout, per_seed: Sequence[bool], donate: Sequence[int] = ()) -> Callable:
    """Like `over_devices`, from a function of one seed."""
    mapped = jax.vmap(function, in_axes=tuple(0 if own else None for own in per_seed))
    return over_devices(mapped, layout, per_seed, donate)


def on_one_device(program: Callable, layout: Layout, per_seed: Sequence[bool], *args: Any) -> Any:
    """The jaxpr that each device runs of a program that `over_devices` made, for arguments of these shapes.

    A later call with such arguments, where `put_per_seed` and `put_shared` put them, is not traced again.
    """
    def placed(tree, own):
        sharding = NamedSharding(layout.mesh, SEED if own else SHARED)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding), tree)

    shapes = [placed(tree, own) if own is not None else tree for tree, own in zip(args, per_seed, strict=True)]
    return _shard(program.trace(*shapes).jaxpr.eqns)


def _shard(equations) -> Any:
    for equation in equations:
        if "jaxpr" in equation.params:
            inside = equation.params["jaxpr"]
            inside = getattr(inside, "jaxpr", inside)
            return inside if equation.primitive.name == "shard_map" else _shard(inside.eqns)
    raise ValueError("not a program of over_devices")
