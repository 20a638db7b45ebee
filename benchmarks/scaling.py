"""Operations and bytes of a training step as formulas, beside what is counted in the program; and what they say about a
catalogue of a billion items.

    python benchmarks/scaling.py [--no_compile]

SASRec (one head) with BCE and popularity negatives that a sequence shares, batches padded. First, at three sizes, the
formulas against the traced program (its matrix products, its gathers from and scatters to arrays of the catalogue's
size, the bytes of its state), and against what the compiler says of the compiled one. No array of the catalogue's size
is made. Then, from the same formulas and the chips' published peaks, memory per chip and a bound on the step time for 1
billion items: nothing in that part is measured. docs/scaling.md tells what the layout is and what the columns mean.
"""

import argparse
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

from jaxneg import losses, samplers
from jaxneg.devices import memory as memory_lib
from jaxneg.devices import mesh as mesh_lib
from jaxneg.evaluation import ranks as ranking_lib
from jaxneg.models import layers, sasrec
from jaxneg.optim import adam as adam_lib
from jaxneg.optim import row_tables
from jaxneg.training import loop as training_loop
from jaxneg.training import step as training
from jaxneg.types import Dataset, EvalCases

FLOAT = INT = 4  # bytes
DENSE_LAYERS = 5  # of a block: query, key, value and two of the feed-forward part
BACKWARD = 2  # a product's gradient is two products of its size, one for each factor


class Size(NamedTuple):
    """What a step's cost depends on."""

    items: int  # V
    width: int  # D
    blocks: int
    length: int  # L
    batch: int  # B
    negatives: int  # N, per sequence
    history: int = 100  # H, the longest history

    @property
    def positions(self) -> int:
        return self.batch * self.length

    @property
    def looked_up(self) -> int:
        """n: the places of inputs, targets and negatives in a batch, repeated items included."""
        return 2 * self.positions + self.batch * self.negatives


WORKING_ROWS = 7  # arrays of n x D floats alive at once in the row-sparse step, as counted in the traced program
USERS = 1000
HISTORIES, CASES = 512, 1024  # of the evaluation that is checked: whole chunks
CHUNKS, EVALUATION_BYTES = ranking_lib.Chunks(256, 16_384), 2**28  # as eval.memory_mb gives them by default
MEMORY_SHARE = 0.9  # of a chip's memory, for a layout that is said to fit
BILLION = Size(items=10**9, width=128, blocks=2, length=50, batch=4096, negatives=50)
BILLION_CASES = (10_000, 10_000)

SIZES = {
    "small": Size(items=2_000, width=16, blocks=1, length=20, batch=32, negatives=10),
    "paper": Size(items=60_000, width=50, blocks=2, length=50, batch=128, negatives=50),
    "large": Size(items=1_000_000, width=128, blocks=2, length=200, batch=64, negatives=200, history=300),
}


class Product(NamedTuple):
    """Matrix products [rows, inner] x [inner, columns], `number` of them; `passes`: 1 forward, more with gradients."""

    rows: int
    inner: int
    columns: int
    number: int = 1
    passes: int = 1 + BACKWARD

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inner * self.columns * self.number * self.passes

    @property
    def bytes(self) -> int:
        """Both factors read and the result written; a gradient reads and writes the same arrays, in other roles."""
        each = self.rows * self.inner + self.inner * self.columns + self.rows * self.columns
        return FLOAT * each * self.number * self.passes


def encoder_products(size: Size, query_chunk: int | None = None) -> dict[str, list[Product]]:
    """Of the encoder, by part. `query_chunk`: queries attend in chunks, each with the keys up to its own end."""
    positions, width, length = size.positions, size.width, size.length
    chunk = query_chunk if query_chunk and length > query_chunk else length
    attention = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        number = size.batch * size.blocks
        attention += [Product(end, width, end - start, number), Product(end - start, end, width, number)]
    norms = 2 * size.blocks + 1
    # The two means of a LayerNorm are products with a column; so are the two of its gradient.
    return {
        "dense layers": [Product(positions, width, width, DENSE_LAYERS * size.blocks)],
        "attention": attention,
        "LayerNorm's means": [Product(positions, width, 1, 2 * norms, passes=2)],
    }


def step_products(size: Size, query_chunk: int | None = None) -> dict[str, list[Product]]:
    """All of a training step, by part."""
    scores = [Product(size.length, size.width, size.negatives, size.batch)]
    return encoder_products(size, query_chunk) | {"negatives' scores": scores}


def total(products: Mapping[str, list[Product]], what: str) -> int:
    """The sum of `flops` or `bytes` of all parts."""
    return sum(getattr(product, what) for part in products.values() for product in part)


def encoder_floats(size: Size) -> int:
    """Weights of the encoder: position embeddings, dense layers with biases, LayerNorms with scale and offset."""
    width = size.width
    block = DENSE_LAYERS * (width * width + width) + 2 * 2 * width
    return size.length * width + size.blocks * block + 2 * width


MOMENT_BYTES: dict[str, Callable[[int], int]] = {  # of both moments of a row
    "float32": lambda width: 2 * FLOAT * width,
    "bfloat16": lambda width: 2 * 2 * width,
    "int8": lambda width: 2 * (width + FLOAT),  # a scale for each row
}


def row_bytes(width: int, moments: str = "float32") -> int:
    """An item's value and both moments."""
    return FLOAT * width + MOMENT_BYTES[moments](width)


def state_bytes(size: Size, form: str, moments: str = "float32") -> int:
    """What a seed carries from step to step: item table, encoder, both with their moments; a slot for each item."""
    slot = INT if form == "sparse" else 0
    return (size.items + 1) * (row_bytes(size.width, moments) + slot) + 3 * FLOAT * encoder_floats(size)


def draw_table_bytes(size: Size) -> int:
    """The alias table (threshold and alias) and the probabilities."""
    return 2 * INT * size.items + FLOAT * (size.items + 1)


def draw_bytes(size: Size) -> int:
    """Read from those tables in a step: for draws, a quarter more than needed, and for probabilities."""
    drawn = size.batch * (size.negatives + max(size.negatives // 4, 4))
    return 2 * INT * drawn + FLOAT * size.batch * (size.negatives + size.history)


def moved_bytes(size: Size, form: str) -> int:
    """Rows that a step gathers from the item table and scatters to it (or to its gradient), slots included."""
    if form == "dense":
        return 2 * size.looked_up * FLOAT * size.width
    places = size.looked_up + 1  # and the pad
    return 2 * places * (row_bytes(size.width) + INT)


def sparse_traffic(size: Size, moments: str = "float32", shards: int = 1) -> float:
    """Bytes through a device's memory for the item table of a step, row-sparse Adam, on one of `shards` shards.

    A shard's table has 1 / shards of the rows that are looked up. Beside it there are all n of them, those of other
    shards masked: the gathered rows (written, read), the values' look-up and its gradient (each read, written), Adam
    (value, moments and gradient read, value and moments written), and the rows to scatter (written, read).
    """
    rows, value = size.looked_up, FLOAT * size.width
    row = row_bytes(size.width, moments)
    table = 2 * (row + INT) / shards
    beside = 2 * row + 2 * 2 * value + (2 * row + value) + 2 * row
    return rows * (table + beside)


def dense_traffic(size: Size) -> int:
    """The same for dense Adam: every row's value and moments read and written, its gradient made, written and read."""
    table = (size.items + 1) * (2 * row_bytes(size.width) + 2 * FLOAT * size.width)
    return table + 2 * 2 * size.looked_up * FLOAT * size.width


def evaluation_products(size: Size, histories: int, cases: int, chunk: int, tile: int) -> list[Product]:
    """Scores of all items, `chunk` rows and `tile` items at a time, for the ranks of the cases and for the histories'
    recommendations. Several tiles need one more for the targets' own scores.

    The scores are read once more, to be counted or sorted. Encoding the histories comes on top.
    """
    tile = min(tile, -(-size.items // ranking_lib.ITEM_MULTIPLE) * ranking_lib.ITEM_MULTIPLE)
    tiles = -(-size.items // tile)
    number = -(-cases // chunk) * (tiles + (tiles > 1)) + -(-histories // chunk) * tiles
    return [Product(chunk, size.width, tile, number, passes=1)]


class Chip(NamedTuple):
    """A chip's published peaks, in bytes and operations per second, and how many of them are how connected."""

    memory: float
    flops: float  # of the products as JAX computes them from float32 by default: bfloat16 on a TPU, TF32 on a GPU
    exact_flops: float  # of products at full float32 precision, as evaluation asks for them
    bandwidth: float  # of its memory
    link: float  # to the other chips of its pod or node, all its links, one direction
    per_node: int  # chips that those links connect
    network: float = 0.0  # to other nodes, one direction


CHIPS = {  # docs/scaling.md has the sources
    "TPU v5e": Chip(16e9, 197e12, 197e12 / 6, 819e9, 200e9, 256),
    "TPU v6e": Chip(32e9, 918e12, 918e12 / 6, 1638e9, 400e9, 256),
    "H100 SXM": Chip(80e9, 494.7e12, 67e12, 3.35e12, 450e9, 8, 50e9),
    "H200 SXM": Chip(141e9, 494.7e12, 67e12, 4.8e12, 450e9, 8, 50e9),
}


def all_reduce_seconds(number: float, chips: int, chip: Chip) -> float:
    """Of `number` bytes on each of `chips`: every chip sends and receives 2 (k - 1) / k of them, on all links at once.

    Over several nodes: scattered within each node, reduced among the nodes, each chip its part, and gathered again.
    """
    inside = min(chips, chip.per_node)
    nodes = chips // inside
    seconds = 2 * number * (inside - 1) / inside / chip.link
    if nodes > 1:
        seconds += 2 * number / inside * (nodes - 1) / nodes / chip.network
    return seconds


class Layout(NamedTuple):
    """One seed on data x model chips: batches split over all of them, rows of the tables over `model`."""

    data: int
    model: int

    @property
    def chips(self) -> int:
        return self.data * self.model


def step_seconds(size: Size, layout: Layout, chip: Chip, moments: str = "float32") -> dict[str, float]:
    """Least seconds of a step by what limits it; the step takes the longest of them at least."""
    products = step_products(size)
    values = size.looked_up * FLOAT * size.width
    traffic = total(products, "bytes") / layout.chips + sparse_traffic(size, moments, layout.model) + draw_bytes(size)
    exchanged = all_reduce_seconds(values, layout.model, chip) if layout.model > 1 else 0.0
    if layout.chips > 1:
        exchanged += all_reduce_seconds(values + FLOAT * encoder_floats(size), layout.chips, chip)
    return {
        "products": total(products, "flops") / layout.chips / chip.flops,
        "memory": traffic / chip.bandwidth,
        "interconnect": exchanged,
    }


def step_bytes(size: Size, chips: int = 1) -> float:
    """What is alive in a step beside state and tables: rows for all that is looked up, and the chip's own activations.

    Kept for the gradient are the factors and results of the forward products.
    """
    rows = WORKING_ROWS * size.looked_up * FLOAT * size.width
    return rows + total(step_products(size), "bytes") / (1 + BACKWARD) / chips


def chip_bytes(size: Size, layout: Layout, moments: str = "float32") -> dict[str, float]:
    """Memory per chip: tables, which are there all the time, and what a step or an evaluation needs beside them.

    An evaluation has a copy of the values, without moments, and its bound on scores.
    """
    tables = (state_bytes(size, "sparse", moments) + draw_table_bytes(size)) / layout.model
    ranking = size.items * FLOAT * size.width / layout.model + EVALUATION_BYTES
    return {"tables": tables, "a step": step_bytes(size, layout.chips), "an evaluation": ranking}


def evaluation_seconds(size: Size, layout: Layout, chip: Chip, histories: int, cases: int) -> float:
    """Least seconds to rank cases and to recommend to histories, each chip its items; merging is not counted."""
    shard = size._replace(items=-(-size.items // layout.model))
    products = evaluation_products(shard, -(-histories // layout.data), -(-cases // layout.data), *CHUNKS)
    scores = sum(FLOAT * product.rows * product.columns * product.number for product in products)
    return max(
        sum(product.flops for product in products) / chip.exact_flops,
        (sum(product.bytes for product in products) + scores) / chip.bandwidth,
    )


def smallest_layout(size: Size, chip: Chip, moments: str) -> Layout:
    """As few chips, a power of two, as hold the tables on their `model` axis; the rest of the pod or node is `data`."""
    for power in range(20):
        model = 2**power
        needed = chip_bytes(size, Layout(1, model), moments)
        if needed["tables"] + max(needed["a step"], needed["an evaluation"]) <= MEMORY_SHARE * chip.memory:
            return Layout(max(1, chip.per_node // model), model)
    raise ValueError(f"{size} fits on no number of chips")


class Counted(NamedTuple):
    """What is counted in a traced program."""

    flops: int  # of matrix products
    product_bytes: int  # of their factors and results
    item_rows: int  # bytes gathered from and scattered to a seed's own arrays: V + 1 rows, and V + 1 slots (int32)
    draw_rows: int  # bytes gathered from arrays that all seeds share: V of any kind, and V + 1 probabilities


def count(jaxpr: Any, items: int) -> Counted:
    """Of a program in which no other array has V or V + 1 rows. A loop of unknown length counts as one turn."""
    found = np.zeros(len(Counted._fields), np.int64)
    for equation, times in equations(jaxpr):
        name, first = equation.primitive.name, equation.invars[0].aval if equation.invars else None
        if name == "dot_general":
            arrays = [*(var.aval for var in equation.invars), equation.outvars[0].aval]
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(first.shape[axis] for axis in contracted)
            found[0] += times * 2 * arrays[2].size * inner
            found[1] += times * FLOAT * sum(array.size for array in arrays)
        elif name == "gather" or name.startswith("scatter"):
            moved = equation.outvars[0].aval if name == "gather" else equation.invars[2].aval
            is_own = first.shape[:1] == (items + 1,) and (first.ndim == 2 or first.dtype == jnp.int32)
            if is_own:
                found[2] += times * moved.size * moved.dtype.itemsize
            elif first.shape in ((items,), (items + 1,)):
                found[3] += times * moved.size * moved.dtype.itemsize
    return Counted(*found.tolist())


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """All operations, those of inner programs too, with how often each is done."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation, times
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inside in memory_lib.jaxprs_inside(equation.params):
            yield from equations(inside, times * turns)


class Traced(NamedTuple):
    """The step's program for one seed, and the shapes that it takes."""

    program: Any
    state: Any
    shared: Any  # draw tables and dataset


def traced_step(size: Size, form: str) -> Traced:
    """jaxneg's own training step, traced for arrays of these shapes."""
    method = samplers.make("popularity", size.items, samplers.Settings(num_popularity=size.negatives))
    model = sasrec.make(sasrec.Settings(size.width, size.blocks, 1, size.length), size.items)
    adam, storage = adam_lib.adam(), row_tables.STORAGES[form]
    step = training.Step(
        model=model,
        method=method,
        loss=losses.make("bce", size.items),
        optimizer=adam,
        storage=storage,
        batch_size=size.batch,
        num_items=size.items,
        history_size=size.history,
    )
    init = functools.partial(
        training.init_state, model=model, num_items=size.items, num_users=USERS, optimizer=adam, storage=storage
    )
    keys, hyper = (
        jax.random.split(jax.random.key(0), 1),
        training.HyperParams(*(jnp.ones(1) for _ in training.HyperParams._fields)),
    )
    state = jax.eval_shape(jax.vmap(init), keys, hyper)
    counts = np.concatenate([[0], np.ones(size.items, np.int64)])
    shared = jax.tree.map(shape_of, (method.proposal.init(counts), dataset_shapes(size)))
    options = mesh_lib.compiler_options(jax.default_backend())
    advance = jax.jit(functools.partial(training_loop.run_steps, step), donate_argnums=1, compiler_options=options)
    return Traced(advance.trace(np.int32(1), state, *shared), state, shared)


def shape_of(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def dataset_shapes(size: Size) -> Dataset:
    """Of users with histories of the longest length; not as many rows as there are items."""
    users = USERS + (USERS * size.history in (size.items, size.items + 1))
    lengths = (users * size.history, users, users, users, users * size.history, users, users)
    return Dataset(*(jax.ShapeDtypeStruct((length,), jnp.int32) for length in lengths))


def traced_evaluation(size: Size, histories: int, cases: int) -> Any:
    """Ranks and recommendations, traced."""

    def rank(hidden, item_table, eval_cases):
        ranks = ranking_lib.rank_cases(hidden, item_table, eval_cases, chunks=CHUNKS)
        return ranks, ranking_lib.count_recommended(hidden, item_table, (10,), chunks=CHUNKS)

    lengths = (histories, histories, cases, cases, cases)
    eval_cases = EvalCases(*(jax.ShapeDtypeStruct((length,), jnp.int32) for length in lengths))
    floats = [jax.ShapeDtypeStruct((rows, size.width), jnp.float32) for rows in (histories, size.items + 1)]
    return jax.jit(rank).trace(*floats, eval_cases)


class Check(NamedTuple):
    """A formula beside what is measured."""

    name: str
    formula: float
    measured: float


def checks(size: Size, form: str) -> Iterator[Check]:
    """The formulas against the traced step, which is counted, not run."""
    step = traced_step(size, form)
    counted = count(step.program.jaxpr, size.items)
    products = step_products(size, layers.QUERY_CHUNK if jax.default_backend() == "cpu" else None)
    yield Check("operations of products", total(products, "flops"), counted.flops)
    yield Check("bytes of products", total(products, "bytes"), counted.product_bytes)
    yield Check("item rows moved", moved_bytes(size, form), counted.item_rows)
    yield Check("bytes read to draw", draw_bytes(size), counted.draw_rows)
    yield Check("state", state_bytes(size, form), memory_lib.tree_bytes(step.state))
    yield Check("draw tables", draw_table_bytes(size), memory_lib.tree_bytes(step.shared[0]))
    if form == "sparse":
        given = memory_lib.tree_bytes((step.state, step.shared))
        yield Check(
            "alive beside them", step_bytes(size), memory_lib.peak_bytes(step.program.jaxpr, donated=True) - given
        )


def evaluation_checks(size: Size) -> Iterator[Check]:
    """The same for an evaluation."""
    counted = count(traced_evaluation(size, HISTORIES, CASES).jaxpr, size.items)
    products = {"scores": evaluation_products(size, HISTORIES, CASES, *CHUNKS)}
    yield Check("evaluation, operations", total(products, "flops"), counted.flops)
    yield Check("evaluation, bytes", total(products, "bytes"), counted.product_bytes)


def compiler_checks(size: Size, form: str) -> Iterator[Check]:
    """The formulas against what the compiler says of the program for this backend."""
    program = traced_step(size, form).program.lower().compile()
    cost = program.cost_analysis()
    traffic = sparse_traffic(size) if form == "sparse" else dense_traffic(size)
    products = step_products(size, layers.QUERY_CHUNK if jax.default_backend() == "cpu" else None)
    yield Check("operations", total(products, "flops"), cost["flops"])
    yield Check("bytes through memory", total(products, "bytes") + traffic + draw_bytes(size), cost["bytes accessed"])
    if form == "sparse":
        yield Check("alive beside arguments", step_bytes(size), program.memory_analysis().temp_size_in_bytes)


def per_item_check(size: Size, form: str) -> Check:
    """Bytes through memory for one more item in the catalogue: the difference between V and 2 V items, compiled."""
    twice = size._replace(items=2 * size.items)
    programs = [traced_step(one, form).program.lower().compile() for one in (size, twice)]
    costs = [program.cost_analysis()["bytes accessed"] for program in programs]
    formula = (dense_traffic(twice) - dense_traffic(size)) / size.items if form == "dense" else 0
    return Check(f"bytes per item of the catalogue, {form}", formula, (costs[1] - costs[0]) / size.items)


def table(header: str, rows: list[list[str]]) -> None:
    names = header.split(" | ")
    print(f"| {header} |\n|{'---|' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def check_table(found: Mapping[str, list[tuple[str, Check]]], measured: str) -> None:
    """A row for each formula, and for each size its value and the ratio of what is measured to it."""
    columns = [f"{name}: formula | {measured} / formula" for name in found]
    rows = []
    for checked in zip(*found.values(), strict=True):
        form, first = checked[0]
        figures = [(f"{check.formula:,.0f}", f"{check.measured / check.formula:.3f}") for _, check in checked]
        rows.append([first.name, form, *(text for pair in figures for text in pair)])
    table(" | ".join(["what", "item table", *columns]), rows)


def print_checks(compiled: bool) -> None:
    """The tables of what is measured."""
    forms = list(row_tables.STORAGES)
    print("Counted in the traced program:\n")
    counted = {name: [(form, check) for form in forms for check in checks(size, form)] for name, size in SIZES.items()}
    ranked = {name: [("", check) for check in evaluation_checks(size)] for name, size in SIZES.items()}
    check_table({name: counted[name] + ranked[name] for name in SIZES}, "counted")
    if not compiled:
        return
    print(f"Said by the compiler ({jax.devices()[0].device_kind}):\n", flush=True)
    check_table(
        {
            name: [(form, check) for form in forms for check in compiler_checks(size, form)]
            for name, size in SIZES.items()
        },
        "compiler",
    )
    for form in forms:
        check = per_item_check(SIZES["paper"], form)
        print(f"{check.name}: {check.formula:,.0f} by the formula, {check.measured:,.1f} by the compiler\n")


def print_predictions(size: Size) -> None:
    """The tables of what is computed."""
    print(f"Computed, nothing measured: {size}, row-sparse Adam\n")
    rows, evaluations = [], []
    for name, chip in CHIPS.items():
        for moments in MOMENT_BYTES:
            layout = smallest_layout(size, chip, moments)
            held, seconds = chip_bytes(size, layout, moments), step_seconds(size, layout, chip, moments)
            longest = max(seconds, key=seconds.get)
            rows.append(
                [
                    name,
                    moments,
                    f"{layout.data} x {layout.model}",
                    *(f"{each / 1e9:.1f}" for each in held.values()),
                    *(f"{1e3 * each:.3g}" for each in seconds.values()),
                    f"{1e3 * seconds[longest]:.1f}",
                    f"{size.batch / seconds[longest]:,.0f}",
                ]
            )
            spent = evaluation_seconds(size, layout, chip, *BILLION_CASES)
            evaluations.append([name, moments, f"{layout.data} x {layout.model}", f"{spent:.1f}"])
    table(
        "chip | moments | data x model | tables, GB per chip | + step | or + evaluation | products, ms | memory, ms "
        "| interconnect, ms | step at least, ms | sequences/s at most",
        rows,
    )
    print(f"To recommend to {BILLION_CASES[0]:,} histories and to rank {BILLION_CASES[1]:,} cases exactly:\n")
    table("chip | moments | data x model | seconds at least", evaluations)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no_compile", action="store_true", help="leave out what needs the compiler")
    options = parser.parse_args()
    print(f"jax {jax.__version__}; sizes: {SIZES}\n", flush=True)
    print_checks(not options.no_compile)
    print_predictions(BILLION)


if __name__ == "__main__":
    main()
