"""Files of a run: rows of JSON that only ever grow, and files that appear whole or not at all."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxneg.errors import InputError


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The working directory, made if need be, and unmade if what is done with it fails and left it empty.

    Raises InputError where nothing can be written there.
    """
    path = pathlib.Path(workdir)
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"workdir {path} cannot be written ({error.strerror}): name a writable folder") from error
    try:
        yield path
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):  # it is not empty: something worth keeping is there
                path.rmdir()
        raise


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary name to write to; the file gets its own name once it is complete, replacing an older one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
    """One JSON document, written whole."""
    with whole(path) as temporary:
        temporary.write_text(json.dumps(plain(value), indent=2) + "\n")


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """An .npz of plain arrays, written whole."""
    with whole(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def write_csv(path: pathlib.Path, rows: Sequence[dict]) -> None:
    """A table with one line per row, written whole; what is not a number is an empty field."""
    with whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def append_rows(path: pathlib.Path, rows: Iterable[dict]) -> int:
    """Appends one line of JSON per row and syncs it to disk; returns the file's size in bytes."""
    with path.open("a") as file:
        file.writelines(json.dumps(plain(row)) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def cut(path: pathlib.Path, size: int) -> None:
    """Drops all that was appended after the file had `size` bytes (a run that resumes writes it again)."""
    with path.open("ab") as file:
        file.truncate(size)


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NumPy scalars unpacked, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
