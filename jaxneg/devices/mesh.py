"""The one place that knows of several seeds and several devices.

The devices of a run are a mesh with three axes. Seeds are independent runs of one program: a vmap over seeds on each
device, spread over the axis "seed", with nothing to say to each other. The devices of one seed share its batches; the
axis "data" also splits the training data's rows among them, and the axis "model" those of the item table, its moments
and the samplers' tables (see `jaxneg.devices.sharded`). Everywhere else a function is written for a single seed,
and for what one device holds.
"""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Traced
from jaxtyping import Array, Int, Shaped

from jaxneg.devices import hosts
from jaxneg.devices.sharded import Sharded
from jaxneg.errors import InputError

SEED = PartitionSpec("seed")
SHARED = PartitionSpec()
DATA = PartitionSpec("data")
OF_A_SEED = ("data", "model")  # the axes of the devices that share a seed
# Of an evaluation: counts by case, twice, and how often each item is recommended.
EVALUATED = (PartitionSpec("seed", "data"), PartitionSpec("seed", "data"), PartitionSpec("seed", None, "model"))

# On CPU, XLA hands small products and reductions to YNNPACK, which here takes a fifth longer than XLA's own code.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
COMPILER_OPTIONS = {
    "cpu": {
        "evaluate": CPU_OPTIONS,
        # Without threads in a product, products of short sequences get kernels of their own: a tenth off such a step.
        "train": CPU_OPTIONS | {"xla_cpu_multi_thread_eigen": False},
        "once": CPU_OPTIONS | {"xla_backend_optimization_level": 1},  # compiled in two thirds of the time
    }
}


class BatchShard(NamedTuple):
    """The share of a batch that one device processes, of those that have a seed in common."""

    number: int  # of shares
    take: Callable  # an array with a row for each sequence of the batch -> the rows of this share
    psum: Callable  # a tree of arrays -> their sums over all shares


WHOLE_BATCH = BatchShard(1, take=lambda rows: rows, psum=lambda tree: tree)


def every(number: int, first: Int[Array, ""] | int, rows: Shaped[Array, "B ..."]) -> Shaped[Array, "b ..."]:
    """Every `number`-th of the rows from `first` on, so that all shares of a batch have as many long sequences."""
    if number == 1:
        return rows
    rows = rows.reshape(-1, number, *rows.shape[1:])
    return lax.dynamic_index_in_dim(rows, first, axis=1, keepdims=False)


class Layout(NamedTuple):
    """Where the seeds live. Axis 0 of every per-seed array has `num_rows` rows: the seeds, then copies that fill up."""

    mesh: Mesh
    num_seeds: int
    num_rows: int

    @property
    def seeds_per_device(self) -> int:
        return self.num_rows // self.mesh.shape["seed"]

    @property
    def devices_per_seed(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in OF_A_SEED)


def seed_layout(
    num_seeds: int, devices: Sequence[jax.Device] | None = None, *, data: int = 1, model: int = 1, batch_size: int = 0
) -> Layout:
    """Spreads the seeds over as many groups of `data` x `model` devices (default: all there are) as there are seeds.

    `data` 0: as many devices as the seeds leave over and as divide the batch. Several hosts use all of their devices.
    Raises InputError where the devices, the seeds and the batch do not go together.
    """
    devices = jax.devices() if devices is None else list(devices)
    most = len(devices) // model
    sizes = [data] if data else [size for size in range(1, most + 1) if batch_size % (size * model) == 0]
    named = f"config.mesh.data={data} and config.mesh.model={model}"
    if max(data, 1) > most:
        there = f"{len(devices)} device{'s are' if len(devices) > 1 else ' is'} there"
        raise InputError(f"{named} need {max(data, 1) * model} devices, and {there}")
    if not sizes or batch_size % (sizes[-1] * model):
        raise InputError(
            f"config.batch_size={batch_size} must be a multiple of config.mesh.data times config.mesh.model: {named}"
        )
    if len({device.process_index for device in devices}) == 1:
        groups = min(most // sizes[0], num_seeds)
        data = max(size for size in sizes if groups * size <= most)
    else:  # a host without work would not take part in the others' programs
        sizes = [
            size
            for size in sizes
            if len(devices) % (size * model) == 0 and num_seeds % (len(devices) // (size * model)) == 0
        ]
        if not sizes:
            raise InputError(
                f"the {len(devices)} devices of all hosts can not share {num_seeds} seeds evenly with "
                f"{named} and config.batch_size={batch_size}: set mesh.data so that devices / data / "
                "model divides config.num_seeds"
            )
        data = sizes[0]
        groups = len(devices) // (data * model)
    num_rows = -(-num_seeds // groups) * groups
    mesh = Mesh(np.array(devices[: groups * data * model]).reshape(groups, data, model), ("seed", *OF_A_SEED))
    return Layout(mesh, num_seeds, num_rows)


def use_cores(num_seeds: int) -> None:
    """Makes a device of each core, up to `num_seeds`, where the CPU is the device: seeds need no word of each other.

    Leaves it as it is where the environment says how many there are, or where JAX has begun and so has its devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", min(num_seeds, cores))


def group_size(layout: Layout) -> int:
    """How many of a device's seeds train side by side; the others take their turns.

    An accelerator is filled by many. A core is filled by one, and turns need the memory of one step only.
    """
    return 1 if layout.mesh.devices.flat[0].platform == "cpu" else layout.seeds_per_device


def batch_shard(layout: Layout) -> BatchShard:
    """The share of each of a seed's devices: every n-th row, so that all have as many long sequences.

    For use inside of a program of `over_devices`.
    """
    number = layout.devices_per_seed
    if number == 1:
        return WHOLE_BATCH

    def take(rows):
        return every(number, jax.lax.axis_index(OF_A_SEED), rows)

    return BatchShard(number, take, lambda tree: jax.lax.psum(tree, OF_A_SEED))


def total_over_data(layout: Layout, values: jax.Array) -> jax.Array:
    """The sum over the devices that have different cases. For use inside of a program of `over_devices`."""
    return jax.lax.psum(values, "data") if layout.mesh.shape["data"] > 1 else values


def split(layout: Layout, axis: str, table: Any) -> Any:
    """A table [n, ...], its rows (and as many zeros as make them even) to be split over a mesh axis of several devices.

    With one device on the axis it is the table itself. Of several hosts, each reads its own rows only, and at once.
    """
    number = layout.mesh.shape[axis]
    if number == 1:
        return table
    missing = -len(table) % number
    if isinstance(table, np.ndarray) and jax.process_count() > 1:
        shape = (len(table) + missing, *table.shape[1:])
        sharding = NamedSharding(layout.mesh, PartitionSpec(axis))
        return Sharded(jax.make_array_from_callback(shape, sharding, lambda at: _rows(table, at)), len(table), axis)
    pad = np.pad if isinstance(table, np.ndarray) else jnp.pad
    rows = pad(table, [(0, missing)] + [(0, 0)] * (table.ndim - 1)) if missing else table
    return Sharded(rows, len(table), axis)


def from_parts(layout: Layout, axis: str, parts: dict[int, np.ndarray], size: int) -> Sharded:
    """A table of which the i-th device of a mesh axis holds `parts[i]`, up to `size` rows, and zeros behind them.

    A host needs the parts of its own devices only (see `own_parts`).
    """

    def rows(at):
        part = parts[(at[0].start or 0) // size]
        return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))

    shape = (layout.mesh.shape[axis] * size, *next(iter(parts.values())).shape[1:])
    sharding = NamedSharding(layout.mesh, PartitionSpec(axis))
    return Sharded(jax.make_array_from_callback(shape, sharding, rows), shape[0], axis)


def own_parts(layout: Layout, axis: str) -> list[int]:
    """The places of this host's devices on a mesh axis."""
    number = layout.mesh.axis_names.index(axis)
    return sorted(
        {
            where[number]
            for where, device in np.ndenumerate(layout.mesh.devices)
            if device.process_index == jax.process_index()
        }
    )


def specs(tree: Any, first: PartitionSpec = SHARED) -> Any:
    """How each array of a tree lies on the mesh: its first axes by `first`, and the rows of a `Sharded` by its axis."""

    def spec(leaf):
        return PartitionSpec(*first, leaf.axis) if isinstance(leaf, Sharded) else first

    return jax.tree.map(spec, tree, is_leaf=_is_sharded)


def put(layout: Layout, tree: Any, first: PartitionSpec = SHARED) -> Any:
    """A tree onto the devices, as `specs` says. Each device is sent its own rows only."""

    def placed(spec, part):
        return jax.tree.map(lambda x: _placed(x, NamedSharding(layout.mesh, spec)), part)

    return jax.tree.map(placed, specs(tree, first), tree, is_leaf=_is_spec)


def seed_keys(layout: Layout, root: int, first: int = 0) -> jax.Array:
    """One key for each row: seed s has fold_in(root, s), whatever the number of seeds or devices."""

    def make():
        seeds = first + jnp.arange(layout.num_rows) % layout.num_seeds
        return jax.vmap(lambda s: jax.random.fold_in(jax.random.key(root), s))(seeds)

    return jax.jit(make, out_shardings=NamedSharding(layout.mesh, SEED))()


def put_per_seed(layout: Layout, tree: Any) -> Any:
    """Arrays [num_rows, ...] onto the devices, each device its seeds' rows."""
    return put(layout, tree, SEED)


def put_shared(layout: Layout, tree: Any) -> Any:
    """The same arrays for all seeds, whole onto every device unless they are `Sharded`."""
    return put(layout, tree)


def repeat(layout: Layout, tree: Any) -> Any:
    """One copy per seed, on the devices, of values that all seeds begin with."""
    rows = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (layout.num_rows, *np.shape(x))), tree)
    return put_per_seed(layout, rows)


def take(layout: Layout, tree: Any) -> Any:
    """The seeds' own rows, [num_seeds, ...], without those that only fill up; tables without their fill.

    Where other hosts hold some of them, they are fetched.
    """

    def own(leaf):
        rows = hosts.fetched(leaf.own if isinstance(leaf, Sharded) else leaf)[: layout.num_seeds]
        return rows[:, : leaf.length] if isinstance(leaf, Sharded) else rows

    return jax.tree.map(own, tree, is_leaf=_is_sharded)


def shapes_of_taken(layout: Layout, tree: Any) -> Any:
    """The shapes of what `take` gives."""

    def shape(leaf):
        array = leaf.own if isinstance(leaf, Sharded) else leaf
        rest = (leaf.length, *array.shape[2:]) if isinstance(leaf, Sharded) else array.shape[1:]
        return jax.ShapeDtypeStruct((layout.num_seeds, *rest), array.dtype)

    return jax.tree.map(shape, tree, is_leaf=_is_sharded)


def stored(layout: Layout, tree: Any) -> Any:
    """What to save of a tree with a seed axis: what `take` gives; of several hosts, arrays that they share."""
    if jax.process_count() == 1:
        return take(layout, tree)
    return jax.tree.map(lambda leaf: leaf.own if isinstance(leaf, Sharded) else leaf, tree, is_leaf=_is_sharded)


def fill(layout: Layout, tree: Any, like: Any = None) -> Any:
    """Arrays [num_seeds, ...] onto the devices as [num_rows, ...]: the way back from `take`, on any layout.

    `like`: what `take` took them from, or its shapes; needed where it has tables that are split.
    """
    number = np.arange(layout.num_rows) % layout.num_seeds

    def filled(old, leaf):
        rows = leaf[number]
        if not isinstance(old, Sharded):
            return rows
        rows = rows[:, : old.length]
        missing = old.own.shape[1] - old.length
        return Sharded(np.pad(rows, [(0, 0), (0, missing)] + [(0, 0)] * (rows.ndim - 2)), old.length, old.axis)

    return put_per_seed(layout, jax.tree.map(filled, tree if like is None else like, tree, is_leaf=_is_sharded))


def over_devices(
    function: Callable,
    layout: Layout,
    in_specs: Sequence[Any],
    donate: Sequence[int] = (),
    out_specs: Any = SEED,
    use: str = "train",
) -> Callable:
    """Compiles a function of what a device holds into one of all.

    `in_specs`: for each argument True where it has a seed axis, False where it is the same for all seeds, or a tree of
    `specs`. Outputs have a seed axis, unless `out_specs` says more. Arguments in `donate` are given up to the outputs.
    `use`: what the program is for, as in `compiler_options`.
    """
    # A shard of its own for each device: a loop whose length depends on a seed then asks no other device.
    sharded = jax.shard_map(
        function, mesh=layout.mesh, in_specs=tuple(map(_spec, in_specs)), out_specs=out_specs, check_vma=False
    )
    return jax.jit(sharded, donate_argnums=tuple(donate), compiler_options=_options(layout, use))


def over_seeds(
    function: Callable,
    layout: Layout,
    in_specs: Sequence[Any],
    donate: Sequence[int] = (),
    out_specs: Any = SEED,
    use: str = "train",
) -> Callable:
    """Like `over_devices`, from a function of one seed: an argument that is not False has a seed axis."""
    mapped = jax.vmap(function, in_axes=tuple(None if spec is False or _has_no_seed(spec) else 0 for spec in in_specs))
    return over_devices(mapped, layout, in_specs, donate, out_specs, use)


def made_on_devices(function: Callable, layout: Layout) -> Callable:
    """Compiles a function of one seed's key and values into one of all seeds', whose results are made where they lie.

    The compiler cuts the function up, so each device makes its own rows of a `Sharded` table, and no other.
    """

    def place(tree):
        sharded = jax.tree.map(
            lambda spec, part: jax.tree.map(
                lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec)), part
            ),
            specs(tree, SEED),
            tree,
            is_leaf=_is_spec,
        )
        return sharded

    return jax.jit(lambda *args: place(jax.vmap(function)(*args)), compiler_options=_options(layout, "once"))


def compiler_options(platform: str, use: str = "train") -> dict:
    """What makes jaxneg's programs faster on this platform, for `jax.jit`: "train", "evaluate", or run but "once"."""
    return COMPILER_OPTIONS.get(platform, {}).get(use, {})


def traced(program: Callable, layout: Layout, in_specs: Sequence[Any], *args: Any) -> Traced:
    """A program that `over_devices` made, traced for arguments of these shapes.

    A later call with such arguments, where `put` puts them, is not traced again. None among `in_specs`: as it is.
    """

    def placed(tree, spec):
        if spec is None:
            return tree
        return jax.tree.map(
            lambda one, part: jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=NamedSharding(layout.mesh, one)), part
            ),
            _spec(spec),
            tree,
            is_leaf=_is_spec,
        )

    return program.trace(*(placed(tree, spec) for tree, spec in zip(args, in_specs, strict=True)))


def on_one_device(traced_program: Traced) -> Any:
    """The jaxpr that each device runs of a program that `traced` traced."""
    return _shard(traced_program.jaxpr.eqns)


def compiled_ahead(program: Callable, traced_program: Traced) -> Callable:
    """The program, which is compiled in the background from now on; its first call waits for that.

    A compiler works without Python, so that what else a run has to begin with goes on meanwhile.
    """
    compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")
    compiled = compiler.submit(lambda: traced_program.lower().compile())
    compiler.shutdown(wait=False)

    def call(*args):
        compiled.result()
        return program(*args)

    return call


def bytes_per_device(layout: Layout, tree: Any, first: PartitionSpec = SHARED) -> int:
    """What of a tree's arrays (or of their shapes), laid out by `specs`, is on each device."""

    def of_one(spec, part):
        number = math.prod(layout.mesh.shape[axis] for axis in spec if axis)
        return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(part)) // number

    return sum(jax.tree.leaves(jax.tree.map(of_one, specs(tree, first), tree, is_leaf=_is_spec)))


def _rows(table: np.ndarray, at: tuple[slice, ...]) -> np.ndarray:
    """Some rows of a table, zeros where it has no more."""
    first, end, _ = at[0].indices(len(table) + (at[0].stop or 0))
    rows = np.asarray(table[first:end])
    return np.pad(rows, [(0, end - first - len(rows))] + [(0, 0)] * (rows.ndim - 1))


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array onto the devices, of which each host sends what its own get."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_placed(np.asarray(jax.random.key_data(x)), sharding))
    return jax.make_array_from_callback(np.shape(x), sharding, lambda at: np.asarray(x)[at])


def _options(layout: Layout, use: str) -> dict:
    return compiler_options(layout.mesh.devices.flat[0].platform, use)


def _spec(spec: Any) -> Any:
    return {True: SEED, False: SHARED}[spec] if isinstance(spec, bool) else spec


def _has_no_seed(spec: Any) -> bool:
    return all("seed" not in one for one in jax.tree.leaves(_spec(spec), is_leaf=_is_spec))


def _is_sharded(node: Any) -> bool:
    return isinstance(node, Sharded)


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def _shard(equations) -> Any:
    for equation in equations:
        if "jaxpr" in equation.params:
            inside = equation.params["jaxpr"]
            inside = getattr(inside, "jaxpr", inside)
            return inside if equation.primitive.name == "shard_map" else _shard(inside.eqns)
    raise ValueError("not a program of over_devices")
