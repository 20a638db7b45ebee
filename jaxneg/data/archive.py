"""Raw files as streams of bytes: plain, gzipped, or one member of a zip. Nothing is ever unpacked to disk."""

import contextlib
import gzip
import io
import lzma
import os
import pathlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from jaxneg.errors import InputError

# The interaction table in the archives that people have: MovieLens, Amazon ratings, RetailRocket.
KNOWN_MEMBERS = re.compile(r"(ratings\.(dat|csv)|u\.data|events\.csv|ratings_[^/]*\.csv)(\.gz)?", re.IGNORECASE)
TABLE_MEMBERS = re.compile(r".*\.(csv|tsv|txt|dat|data|inter|parquet)(\.gz)?", re.IGNORECASE)
GZIP_MAGIC, ZIP_MAGIC, EMPTY_ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06"
MAX_RATIO = 100  # a file may unpack to this many times its own size (interactions: 3 to 20 times) ...
FREE_BYTES = 1 << 28  # ... or to 256 MiB, whichever is more
# What the standard library raises for a damaged archive, depending on where the damage is.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
)


def check_is_file(path: pathlib.Path) -> None:
    """Raises InputError unless the path is a regular file: a folder, a pipe or a device cannot be read twice."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; a file of interactions is wanted")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a pipe or a device; a regular file of interactions is wanted")


def reason(error: Exception) -> str:
    """The system's words for an error, without the path that a message has already named."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def max_unpacked(path: pathlib.Path) -> int:
    """How many bytes a file may unpack to."""
    return max(FREE_BYTES, MAX_RATIO * path.stat().st_size)


def too_large(path: pathlib.Path, limit: int) -> InputError:
    """What is raised, before the rest is unpacked, for a file that unpacks to more than `limit` bytes."""
    return InputError(
        f"{path}: unpacks to more than {limit:,} bytes; allowed are {MAX_RATIO} times the file's own "
        f"size, or {FREE_BYTES:,} bytes if that is more; unpack it first if you trust it"
    )


def choose_member(names: Sequence[str], path: str, member: str = "") -> str:
    """The member of a zip that holds the interactions: the stated one, the one known name, or the only table.

    Raises InputError when no member or more than one fits (naming them).
    """
    files = [n for n in names if not n.endswith("/") and not n.startswith("__MACOSX/")]
    base = {n: n.replace("\\", "/").rsplit("/", 1)[-1] for n in files}
    if member:
        fitting = [n for n in files if member in (n, base[n])]
    else:
        fitting = [n for n in files if KNOWN_MEMBERS.fullmatch(base[n])]
        fitting = fitting or [n for n in files if TABLE_MEMBERS.fullmatch(base[n])]
    if len(fitting) != 1:
        found = f"{len(fitting)} members fit" if fitting else "no member fits"
        wanted = repr(member) if member else "ratings.dat, ratings.csv, u.data, events.csv, or one single table"
        listed = ", ".join(name[:80] for name in (fitting or files)[:10]) or "nothing"
        raise InputError(f"{path}: {found} ({wanted} is wanted); the zip holds {listed}; state one as member")
    return fitting[0]


def check_members(members: Sequence[zipfile.ZipInfo], path: str) -> None:
    """Raises InputError where a member, the chosen one or not, has a path that climbs out, or is a symbolic link."""
    for info in members:
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
            raise InputError(
                f"{path}: member {info.filename[:200]!r} has a path that leaves the archive; "
                f"a zip with such a member is not read"
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(
                f"{path}: member {info.filename[:200]!r} is a symbolic link; a zip with such a member is not read"
            )


@contextlib.contextmanager
def open_stream(path: str | pathlib.Path, member: str = "") -> Iterator[BinaryIO]:
    """Opens `path` and yields its unpacked bytes as a stream; what it is (plain, gzip, zip) is told by its content.

    Raises InputError for a missing or empty file, a folder, a broken, truncated or encrypted archive, one that is
    packed more than once, and one that unpacks to more than `max_unpacked`; also when that is met only while the
    caller reads (a zip member may not unpack to another size than it declares).
    """
    path = pathlib.Path(path)
    check_is_file(path)
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open(path, "rb"))
            limit = max_unpacked(path)
            stream = _unpack_zip(stack, stream, path, member, limit)
            stream = _unpack_gzip(stack, stream, path, limit)
            if _peek(stream, 2) == GZIP_MAGIC or _peek(stream, 4) == ZIP_MAGIC:
                raise InputError(f"{path}: is packed more than once; allowed are .gz, .zip, and a .gz in a .zip")
            yield stream
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({reason(error)})") from error


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file: damage is told as InputError, and so is a byte beyond the limit."""

    def __init__(self, stream: BinaryIO, path: pathlib.Path, limit: int):
        self._stream, self._path, self._limit = stream, path, limit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            left = self._limit + 1 - self._stream.tell()
            data = self._stream.read(left if size < 0 else min(size, left))
        except InputError:
            raise
        except DAMAGE as error:
            raise InputError(
                f"{self._path}: the packed file is truncated or damaged, or a member is not what it "
                f"declares ({reason(error)})"
            ) from error
        if len(data) == left:
            raise too_large(self._path, self._limit)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _peek(stream: BinaryIO, size: int) -> bytes:
    head = stream.read(size)
    stream.seek(0)
    return head


def _unpack_zip(stack: contextlib.ExitStack, stream: BinaryIO, path: pathlib.Path, member: str, limit: int) -> BinaryIO:
    head = _peek(stream, 4)
    if not head:
        raise InputError(f"{path}: the file is empty")
    if head not in (ZIP_MAGIC, EMPTY_ZIP_MAGIC):
        if path.suffix.lower() == ".zip":
            raise InputError(f"{path}: is named .zip but is not a zip file")
        if member:
            raise InputError(f"{path}: member {member!r} is stated, but the file is not a zip file")
        return stream
    try:
        archive = stack.enter_context(zipfile.ZipFile(stream))
    except DAMAGE as error:
        raise InputError(f"{path}: is not a sound zip file ({reason(error)})") from error
    check_members(archive.infolist(), str(path))
    chosen = archive.getinfo(choose_member(archive.namelist(), str(path), member))
    shown = repr(chosen.filename[:200])
    if chosen.flag_bits & 1:
        raise InputError(f"{path}: member {shown} is encrypted; unpack it first")
    if chosen.file_size == 0:
        raise InputError(f"{path}: member {shown} is empty")
    if chosen.file_size > limit:
        raise too_large(path, limit)
    try:  # zipfile reads no more than the declared size, and then compares the checksum
        return _Unpacked(stack.enter_context(archive.open(chosen)), path, limit)
    except DAMAGE as error:
        raise InputError(f"{path}: member {shown} cannot be unpacked ({reason(error)})") from error


def _unpack_gzip(stack: contextlib.ExitStack, stream: BinaryIO, path: pathlib.Path, limit: int) -> BinaryIO:
    if _peek(stream, 2) == GZIP_MAGIC:
        unpacked = _Unpacked(stack.enter_context(gzip.open(stream)), path, limit)
        if not _peek(unpacked, 1):
            raise InputError(f"{path}: the unpacked file is empty")
        return unpacked
    if path.suffix.lower() == ".gz":
        raise InputError(f"{path}: is named .gz but is not a gzip file")
    return stream
