"""Prepared folders: found by a fingerprint, verified when read, written under a temporary name and renamed."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

import jaxneg
from jaxneg.data.archive import check_is_file, reason
from jaxneg.errors import InputError

FORMAT_VERSION = 2  # raise it when the arrays, their meaning or meta.json change
DTYPES = {
    "items": "int32",
    "times": "int64",
    "user_start": "int64",
    "train_end": "int64",
    "valid_end": "int64",
    "item_counts": "int64",
    "recent_counts": "int64",
    "item_cohorts": "int8",
    "user_ids": None,
    "item_ids": None,
}
NAME = r"\w[\w.-]{0,99}"
LOCKS = re.compile(rf"\.{NAME}-[0-9a-f]{{16}}\.[0-9a-f]{{16}}\.lock")


def say(line: str) -> None:
    """A line of progress, or a warning, on stderr."""
    print(f"jaxneg: {line}", file=sys.stderr, flush=True)


def default_cache_dir() -> pathlib.Path:
    """$JAXNEG_CACHE, or jaxneg in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("JAXNEG_CACHE"):
        return pathlib.Path(os.environ["JAXNEG_CACHE"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxneg"


def content_hash(path: pathlib.Path) -> str:
    """BLAKE2b of the file's bytes, read in full each time: about a second per gigabyte. Raises InputError."""
    check_is_file(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error


def cached(cache_dir, name: str, key: dict, build: Callable[[], tuple[dict, dict]]) -> pathlib.Path:
    """The folder `cache_dir/name-fingerprint`; `build()` gives its arrays and meta where it is missing or damaged.

    Damage is said on stderr before the folder is made again. Two processes may do this at once: each writes its own
    temporary folder, the first rename wins, and the other takes that one. What a killed process left behind is
    removed. Raises InputError where the name is unfit or the folder cannot be written.
    """
    if not re.fullmatch(NAME, name):
        raise InputError(
            f"name is {name[:120]!r}; allowed are 1 to 100 letters, digits, '_', '-' and '.', the first "
            f"one a letter, a digit or '_'"
        )
    fingerprint = hashlib.blake2b(
        json.dumps({**key, "version": FORMAT_VERSION}, sort_keys=True).encode(), digest_size=8
    ).hexdigest()
    root = pathlib.Path(cache_dir or default_cache_dir())
    try:
        root = root.expanduser()
        folder = root / f"{name}-{fingerprint}"
        there = bool(os.lstat(folder))
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except (OSError, RuntimeError, ValueError) as error:  # no such home; a NUL in the name
        raise InputError(f"cache_dir {root} cannot be used ({reason(error)}); a folder is wanted") from error
    if there:
        problem = _problem(folder, fingerprint)
        if not problem:
            return folder
        say(f"{problem}; it is made again")
    with _temporary_folder(root, folder.name) as temporary:
        arrays, meta = build()
        try:
            _write(temporary, arrays, {"name": name, "fingerprint": fingerprint, **meta})
        except OSError as error:
            raise _unwritable(root, error) from error
        _move_into_place(temporary, folder, fingerprint)
    return folder


def read(folder: pathlib.Path, verify: bool = True) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a prepared folder, memory-mapped, and its meta; no pickle is ever loaded.

    Raises InputError, naming the file, where one is missing, has not the size and the checksum that meta.json states,
    or has values that contradict the others. Without `verify` the values are not read.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        stated = {name: meta["arrays"][name] for name in DTYPES}
        stated = {name: (s["bytes"], s["crc32"], s["dtype"]) for name, s in stated.items()}
        shapes = _shapes(meta["num_users"], meta["num_items"], meta["num_rows"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{folder}: meta.json is damaged ({type(error).__name__}: {reason(error)})") from error
    arrays = {}
    for name, (size, crc32, dtype) in stated.items():
        path = folder / f"{name}.npy"
        try:
            found = path.stat().st_size
            if found != size:
                raise InputError(f"{path}: has {found:,} bytes, and {size} were written")
            if verify and _crc32(path) != crc32:
                raise InputError(f"{path}: is damaged (its checksum is not the one in meta.json)")
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error
        try:  # of .npy files alone: np.load would open a zip, too, whatever its name
            array = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, TypeError, OverflowError) as error:  # it is as written, but who wrote it?
            raise InputError(f"{path}: is not an array that can be read ({reason(error)})") from error
        got = (array.shape, array.dtype.str)
        wanted = (shapes[name], np.dtype(DTYPES[name]).str if DTYPES[name] else dtype)
        if got != wanted:
            raise InputError(f"{path}: has the shape and type {got}, and {wanted} are wanted")
        arrays[name] = array
    wrong = _contradiction(arrays, meta["num_users"]) if verify else ""
    if wrong:
        raise InputError(f"{folder}: {wrong}")
    return arrays, meta


def _problem(folder: pathlib.Path, fingerprint: str) -> str:
    """What is wrong with a prepared folder, in words; "" if nothing is."""
    try:
        found = read(folder)[1]["fingerprint"]
    except InputError as error:
        return str(error)
    except KeyError:
        found = None
    return "" if found == fingerprint else f"{folder}: is of another fingerprint, {found!r}, and not {fingerprint!r}"


def _shapes(num_users: int, num_items: int, num_rows: int) -> dict[str, tuple[int]]:
    of_rows = dict.fromkeys(("items", "times"), num_rows)
    of_users = {"user_start": num_users + 1, "train_end": num_users, "valid_end": num_users, "user_ids": num_users}
    return {name: ((of_rows | of_users).get(name, num_items + 1),) for name in DTYPES}


def _contradiction(arrays: dict[str, np.ndarray], num_users: int) -> str:
    """In which array, and how, the values contradict the others; "" if they do not."""
    start, train_end, valid_end = (arrays[name] for name in ("user_start", "train_end", "valid_end"))
    items, num_items = arrays["items"], len(arrays["item_counts"]) - 1
    if start[0] != 0 or start[-1] != len(items):
        return f"user_start goes from {start[0]} to {start[-1]}, and there are {len(items)} rows"
    for low, high, names in (
        (start[:-1], train_end, "user_start, train_end"),
        (train_end, valid_end, "train_end, valid_end"),
        (valid_end, start[1:], "valid_end, user_start"),
    ):
        if (low > high).any():
            user = int(np.argmax(low > high))
            return f"{names} of user {user} are {low[user]}, {high[user]}, and should ascend"
    for name, least, most in (
        ("items", 1, num_items),
        ("item_counts", 0, num_users),
        ("recent_counts", 0, len(items)),
        ("item_cohorts", 0, 2),
    ):
        values = arrays[name] if name == "items" else arrays[name][1:]  # the others have a row for the pad
        low, high = int(values.min()), int(values.max())
        if low < least or high > most:
            return f"{name} goes from {low} to {high}; allowed are {least} to {most}"
    return ""


@contextlib.contextmanager
def _temporary_folder(root: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """A hidden folder in `root`, removed in the end, with a lock file beside it for as long as this process lives.

    The lock tells other processes that the folder is in use: the system gives it up however this process ends.
    """
    lock = None
    try:
        root.mkdir(parents=True, exist_ok=True)  # before the work: what cannot be written is told at once
        _remove_leftovers(root)
        lock = _lock(root, name)
        temporary = pathlib.Path(lock.name).with_suffix("")
        temporary.mkdir()
    except OSError as error:
        if lock:
            _give_up(lock)
        raise _unwritable(root, error) from error
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _give_up(lock)


def _lock(root: pathlib.Path, name: str) -> BinaryIO:
    """A new lock file, locked. Raises OSError."""
    while True:
        path = root / f".{name}.{secrets.token_hex(8)}.lock"
        file = open(path, "xb")
        with contextlib.suppress(OSError):  # a file system without locks: then nobody else can lock it, either
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return file
        file.close()  # another process took the file for a leftover before it was locked


def _give_up(lock: BinaryIO) -> None:
    with contextlib.suppress(OSError):
        os.unlink(lock.name)
    lock.close()


def _remove_leftovers(root: pathlib.Path) -> None:
    """Removes the temporary folders of processes that are gone: those whose lock can be had."""
    for path in root.iterdir():
        if not LOCKS.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), open(path, "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for folder in (path.with_suffix(""), path.with_suffix(".broken")):
                shutil.rmtree(folder, ignore_errors=True)
            path.unlink()


def _unwritable(root: pathlib.Path, error: OSError) -> InputError:
    return InputError(
        f"cache_dir {root} cannot be written ({reason(error)}): name a folder with room, as in "
        f"--config.data.cache_dir=DIR"
    )


class _Summed:
    """A file to write to that counts the bytes and their CRC-32 as they pass."""

    def __init__(self, file: BinaryIO):
        self._file, self.bytes, self.crc32 = file, 0, 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)


def _write(folder: pathlib.Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    written = {}
    for name, array in arrays.items():
        with open(folder / f"{name}.npy", "wb") as file:
            summed = _Summed(file)
            np.save(summed, array, allow_pickle=False)
        written[name] = {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "bytes": summed.bytes,
            "crc32": summed.crc32,
        }
    meta = {**meta, "jaxneg_version": jaxneg.__version__, "arrays": written}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _crc32(path: pathlib.Path) -> int:
    return zlib.crc32(np.memmap(path, np.uint8, mode="r"))


def _move_into_place(temporary: pathlib.Path, folder: pathlib.Path, fingerprint: str) -> None:
    for _ in range(10):
        try:
            os.rename(temporary, folder)
            return
        except OSError:
            if folder.exists() and not _problem(folder, fingerprint):  # another process was first: the same content
                return
            broken = temporary.with_name(f"{temporary.name}.broken")
            with contextlib.suppress(OSError):  # another process may be moving it away, too
                os.rename(folder, broken)
            shutil.rmtree(broken, ignore_errors=True)
    raise InputError(f"cache_dir {folder.parent}: {folder.name} cannot be replaced; remove it by hand")
