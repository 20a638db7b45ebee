"""Files of a run: rows of JSON that only ever grow, and files that appear whole or not at all."""

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxneg.errors import InputError

# What the system says of a disk that is full, over quota, read-only, or broken.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The working directory, made if need be, and for this process alone; unmade if it fails and left it empty.

    The folder itself is locked, so no file has to be cleared away and a killed process holds nothing.
    Raises InputError where nothing can be written there, another process is at work in it, or the disk turns full.
    """
    path = pathlib.Path(workdir)
    try:
        existed = path.exists()
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
        folder = os.open(path, os.O_RDONLY)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system takes
        told = f"{str(path)[:100]!r}" if len(str(path)) > 100 or not str(path).isprintable() else str(path)
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"workdir {told} cannot be written ({reason}): name a writable folder") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise InputError(f"workdir {path} is in use by another process: wait for it, or name another folder") from error
    try:
        yield path
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise InputError(
            f"workdir {path} cannot be written any more ({error.strerror}): what was saved is good, and "
            "the same command goes on once there is room"
        ) from error
    finally:
        os.close(folder)
        if not existed:
            with contextlib.suppress(OSError):  # it is not empty: something worth keeping is there
                path.rmdir()


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


def append_rows(path: pathlib.Path, rows: Iterable[dict]) -> None:
    """Appends one line of JSON per row and syncs it to disk."""
    with path.open("a") as file:
        file.writelines(json.dumps(plain(row)) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a file that `append_rows` made; a last line that a kill cut short is left out.

    Raises InputError where any other line is not JSON.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line's end is no whole line
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not JSON: remove the file and train from the start") from error
    return rows


def keep_rows(path: pathlib.Path, wanted: Callable[[dict], bool]) -> None:
    """Drops the rows that are not wanted, and a line cut short: a run that resumes writes them again."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if wanted(row)]
    with whole(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))


def read_json(path: pathlib.Path) -> Any:
    """A JSON document. Raises InputError where it is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON: name another --workdir") from error


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz. Raises InputError where it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}): name another --workdir") from error


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NumPy scalars unpacked, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
