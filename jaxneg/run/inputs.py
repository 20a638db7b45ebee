"""The data as a run has them: what it trains on, on the devices or streamed, and the cases that are ranked."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from jaxneg.data import dataset as data
from jaxneg.data import stream
from jaxneg.devices import hosts, memory
from jaxneg.devices import mesh as mesh_lib
from jaxneg.errors import InputError
from jaxneg.models import base
from jaxneg.training import step as training
from jaxneg.types import Dataset, EvalCases, HistoryRows

SPLITS = ("valid", "test")
STREAM_SHARE = 0.25  # of what is free: data beyond that is streamed, so that weights and activations have room


class Split(NamedTuple):
    """What is evaluated: the cases as the devices get them, and what the host knows of them."""

    cases: EvalCases  # padded to the sizes of the larger split, so that one program ranks both
    place: np.ndarray  # [C] where each case is among the devices' ones
    users: np.ndarray  # [C]
    targets: np.ndarray  # [C]
    cohorts: np.ndarray  # [C] 0 head, 1 mid, 2 tail
    cold: np.ndarray  # [C] never seen in training


class Inputs(NamedTuple):
    """The data as the run has them, still on the host."""

    rows: data.Rows
    dataset: Dataset | None  # None: batches are streamed
    stream: stream.Stream | None
    history_rows: HistoryRows  # what the histories of the cases are windows of
    splits: dict[str, Split]
    history_size: int  # at least the longest history


def make_inputs(
    config, layout: mesh_lib.Layout, model: base.Model, prepared: data.Prepared, pool_size: int | None
) -> Inputs:
    """The training data, as a dataset or as a stream, and what is evaluated. Raises InputError."""
    num_items, with_times = prepared.num_items, "times" in model.needs
    rows = data.training_rows(prepared, with_times)
    splits = make_splits(
        prepared, config.eval.rolling_history, config.eval.max_users, layout.mesh.shape["data"], with_times
    )
    by_row = model.objective.unit == "interaction"
    if not is_streamed(config, prepared, layout, model):
        if layout.mesh.shape["data"] > 1:
            dataset, history_size, splits = shard_by_user(layout, rows, splits, num_items, by_row)
        else:
            dataset = data.training_set(prepared, by_row, with_times)
            history_size = data.longest_history(dataset)
        return Inputs(rows, dataset, None, HistoryRows(dataset.items, dataset.times), splits, history_size)
    history_size = data.longest_history_of_rows(rows, num_items)
    draw = functools.partial(
        training.draw_places, batch_size=config.batch_size, num_users=len(rows.train_users), pool_size=pool_size
    )
    length = model.max_len + model.objective.extra
    blocks = stream.Stream(rows, jax.jit(draw), layout.num_rows, config.batch_size, length, num_items, history_size)
    looked_at = None if config.eval.filter_seen else model.query_len or model.max_len
    columns = [rows.items, *([rows.times] if with_times else [])]
    columns, cases = stream.evaluated_rows(columns, [split.cases for split in splits.values()], looked_at)
    splits = {name: split._replace(cases=own) for (name, split), own in zip(splits.items(), cases, strict=True)}
    columns = HistoryRows(*(mesh_lib.split(layout, "data", column) for column in columns))
    return Inputs(rows, None, blocks, columns, splits, history_size)


def is_streamed(config, prepared: data.Prepared, layout: mesh_lib.Layout, model: base.Model) -> bool:
    """Whether batches are streamed, by `data.stream`: auto compares the training data with the memory that is free.

    Raises InputError for a model that draws interactions, which are not streamed.
    """
    if model.objective.unit != "user":
        if config.data.stream == "on":
            raise InputError(
                "config.data.stream is on, and the model draws single interactions, which are not "
                "streamed: use off, or config.model.unit=user"
            )
        return False
    if config.data.stream != "auto":
        return config.data.stream == "on"
    there = available_bytes(layout)
    held = data.training_bytes(prepared) // layout.mesh.shape["data"]
    return there is not None and copies_on(layout) * held > STREAM_SHARE * there


def available_bytes(layout: mesh_lib.Layout) -> int | None:
    """Memory of one of the layout's devices, the smallest of all hosts'."""
    return hosts.least(memory.device_bytes(layout.mesh.local_devices[0]))


def copies_on(layout: mesh_lib.Layout) -> int:
    """How many copies of what all devices have lie in one memory: fake devices share the host's."""
    devices = layout.mesh.local_devices
    return len(devices) if devices[0].platform == "cpu" else 1


def shard_by_user(
    layout: mesh_lib.Layout, rows: data.Rows, splits: dict[str, Split], num_items: int, by_row: bool
) -> tuple[Dataset, int, dict[str, Split]]:
    """(dataset, longest history, splits) where the devices of the data axis each hold some users' rows.

    A host reads the rows of its own devices' users; of the others it knows where they begin and end.
    """
    parts = layout.mesh.shape["data"]
    users = data.share_out(rows, parts)
    own_parts = mesh_lib.own_parts(layout, "data")
    shares = {part: data.share_of(rows, *users[part : part + 2], num_items) for part in own_parts}
    length = np.zeros(len(rows.user_start), np.int32)
    for part, (_, of_users, _) in shares.items():
        length[users[part] : users[part + 1]] = of_users
    length = hosts.largest(length)
    first_row = np.append(rows.user_start, len(rows.items))[users]
    before = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
    num_rows, num_history = int(np.diff(first_row).max()), int(np.diff(before[users]).max())
    part_of = np.repeat(np.arange(parts), np.diff(users))

    def moved(row, part):
        """Where a row is in the parts, each filled up to as many rows."""
        return (row - first_row[part] + part * num_rows).astype(np.int32)

    start = (before[:-1] - before[users][part_of] + part_of * num_history).astype(np.int32)
    bounds = (moved(rows.user_start, part_of), moved(rows.train_end, part_of))
    starts, ends, train_users, *history = (
        mesh_lib.split(layout, "data", one) for one in (*bounds, rows.train_users, start, start + length)
    )
    before_users = mesh_lib.split(layout, "data", data.rows_before(rows)) if by_row else None

    def in_parts(values, size):
        return mesh_lib.from_parts(layout, "data", values, size)

    items = in_parts({part: share[0] for part, share in shares.items()}, num_rows)
    own_histories = in_parts({part: share[2] for part, share in shares.items()}, num_history)
    times = None
    if rows.times is not None:
        times = in_parts({part: rows.times[slice(*first_row[part : part + 2])] for part in own_parts}, num_rows)
    for name, split in splits.items():
        cases = split.cases
        part = np.searchsorted(first_row, cases.history_start, side="right") - 1
        where = (moved(bound, part) for bound in (cases.history_start, cases.history_end))
        splits[name] = split._replace(cases=EvalCases(*where, *cases[2:]))
    dataset = Dataset(items, starts, ends, train_users, own_histories, *history, before_users, times)
    return dataset, int(length.max()), splits


def make_splits(
    prepared: data.Prepared, rolling: bool, max_users: int, parts: int = 1, with_times: bool = False
) -> dict[str, Split]:
    """The cases of every split, of equal shapes, each split cut in `parts` of equal shapes for as many devices."""
    found = {name: data.evaluation_cases(prepared, name, rolling, max_users, with_times) for name in SPLITS}
    cut = {name: data.cut_cases(cases, parts) for name, cases in found.items()}
    pieces = [piece for own in cut.values() for piece in own]
    sizes = jax.tree.map(lambda *fields: max(map(len, fields)), *pieces)
    splits = {}
    for name, cases in found.items():
        padded = jax.tree.map(
            lambda size, *fields: np.concatenate([np.pad(field, (0, size - len(field))) for field in fields]),
            sizes,
            *cut[name],
        )
        numbers = [len(piece.targets) for piece in cut[name]]
        place = np.concatenate([part * sizes.targets + np.arange(number) for part, number in enumerate(numbers)])
        cold = np.asarray(prepared.item_counts)[cases.targets] == 0
        cohorts = np.asarray(prepared.item_cohorts)[cases.targets]
        splits[name] = Split(padded, place, cases.users, cases.targets, cohorts, cold)
    return splits


def max_history(prepared: data.Prepared, rolling: bool) -> int:
    """The longest history of any case, in rows."""
    cases = [data.evaluation_cases(prepared, name, rolling) for name in SPLITS]
    return max(int((case.history_end - case.history_start).max()) for case in cases)
