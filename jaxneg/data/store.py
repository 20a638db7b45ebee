"""Prepared folders: found by a fingerprint, checked when found, written under a temporary name and renamed."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable

import numpy as np

import jaxneg
from jaxneg.errors import InputError

FORMAT_VERSION = 1  # raise it when the arrays or their meaning change
DTYPES = {
    "items": "int32", "times": "int64", "user_start": "int64", "train_end": "int64", "valid_end": "int64",
    "item_counts": "int64", "recent_counts": "int64", "item_cohorts": "int8", "user_ids": None, "item_ids": None,
}  # fmt: skip


def default_cache_dir() -> pathlib.Path:
    """$JAXNEG_CACHE, or jaxneg in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("JAXNEG_CACHE"):
        return pathlib.Path(os.environ["JAXNEG_CACHE"])
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxneg"


def content_hash(path: pathlib.Path) -> str:
    """BLAKE2b of the file's bytes, read in full each time: about a second per gigabyte. Raises InputError."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; a file of interactions is wanted")
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def cached(cache_dir, name: str, key: dict, build: Callable[[], tuple[dict, dict]]) -> pathlib.Path:
    """The folder `cache_dir/name-fingerprint`; `build()` gives its arrays and meta where it is missing or damaged.

    Two processes may do this at once: each writes its own temporary folder, the first rename wins, and the other
    takes that one. Raises InputError where the name is unfit or the folder cannot be written.
    """
    if not re.fullmatch(r"[\w.-]{1,100}", name) or name.startswith("."):
        raise InputError(f"name is {name!r}; allowed are letters, digits, '_', '-' and '.', not first")
    root = pathlib.Path(cache_dir or default_cache_dir()).expanduser()
    fingerprint = hashlib.blake2b(
        json.dumps({**key, "version": FORMAT_VERSION}, sort_keys=True).encode(), digest_size=8
    ).hexdigest()
    folder = root / f"{name}-{fingerprint}"
    if is_sound(folder, fingerprint):
        return folder
    temporary = root / f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        try:
            temporary.mkdir(parents=True)  # before the work: a folder that cannot be written is told at once
        except OSError as error:
            raise InputError(f"cache_dir {root} cannot be written ({error})") from error
        arrays, meta = build()
        meta = {"name": name, "fingerprint": fingerprint, **meta, "jaxneg_version": jaxneg.__version__}
        try:
            _write(temporary, arrays, meta)
        except OSError as error:
            raise InputError(f"cache_dir {root} cannot be written ({error})") from error
        _move_into_place(temporary, folder, fingerprint)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write(folder: pathlib.Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    meta = {**meta, "arrays": {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _move_into_place(temporary: pathlib.Path, folder: pathlib.Path, fingerprint: str) -> None:
    for _ in range(10):
        try:
            os.rename(temporary, folder)
            return
        except OSError:
            if is_sound(folder, fingerprint):  # another process was first, with the same content
                return
            broken = temporary.with_name(f"{temporary.name}.broken")
            with contextlib.suppress(OSError):  # another process may be moving it away, too
                os.rename(folder, broken)
            shutil.rmtree(broken, ignore_errors=True)
    raise InputError(f"cache_dir {folder.parent}: {folder.name} cannot be replaced; remove it by hand")


def is_sound(folder: pathlib.Path, fingerprint: str) -> bool:
    """Whether a prepared folder is there, is of this fingerprint, and its arrays have the right types and shapes."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        users, items, rows = meta["num_users"], meta["num_items"], meta["num_rows"]
        shapes = {"items": rows, "times": rows, "user_start": users + 1, "train_end": users, "valid_end": users,
                  "user_ids": users}  # fmt: skip
        if meta["fingerprint"] != fingerprint:
            return False
        for name, dtype in DTYPES.items():
            array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if array.shape != (shapes.get(name, items + 1),) or array.dtype != (dtype or meta["arrays"][name][0]):
                return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True
