"""Raw files as streams of bytes: plain, gzipped, or one member of a zip. Nothing is ever unpacked to disk."""

import contextlib
import gzip
import pathlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from jaxneg.errors import InputError

# The interaction table in the archives that people have: MovieLens, Amazon ratings, RetailRocket.
KNOWN_MEMBERS = re.compile(r"(ratings\.(dat|csv)|u\.data|events\.csv|ratings_[^/]*\.csv)(\.gz)?", re.IGNORECASE)
TABLE_MEMBERS = re.compile(r".*\.(csv|tsv|txt|dat|data|inter|parquet)(\.gz)?", re.IGNORECASE)
GZIP_MAGIC, ZIP_MAGIC, EMPTY_ZIP_MAGIC = b"\x1f\x8b", b"PK\x03\x04", b"PK\x05\x06"


def choose_member(names: list[str], path: str, member: str = "") -> str:
    """The member of a zip that holds the interactions: the stated one, the one known name, or the only table.

    Raises InputError when no member or more than one fits (naming them), or when its path climbs out of the archive.
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
        listed = ", ".join((fitting or files)[:10]) or "nothing"
        raise InputError(f"{path}: {found} ({wanted} is wanted); the zip holds {listed}; state one as member")
    parts = fitting[0].replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
        raise InputError(f"{path}: member {fitting[0]!r} has a path that leaves the archive; it is not read")
    return fitting[0]


@contextlib.contextmanager
def open_stream(path: str | pathlib.Path, member: str = "") -> Iterator[BinaryIO]:
    """Opens `path` and yields its unpacked bytes as a stream; what it is (plain, gzip, zip) is told by its content.

    Raises InputError for a missing or empty file, a folder, a broken, truncated or encrypted archive, also when
    the damage is met only while the caller reads (a zip member may not unpack to another size than it declares).
    """
    path = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        try:
            if path.is_dir():
                raise InputError(f"{path}: is a folder; a file of interactions is wanted")
            stream = stack.enter_context(open(path, "rb"))
            stream = _unpack_zip(stack, stream, path, member)
            stream = _unpack_gzip(stack, stream, path)
            yield stream
        except FileNotFoundError as error:
            raise InputError(f"{path}: there is no such file") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: the packed file is truncated or damaged ({error})") from error
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{path}: is not a sound zip file, or a member is not what it declares ({error})"
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error


def _peek(stream: BinaryIO, size: int) -> bytes:
    head = stream.read(size)
    stream.seek(0)
    return head


def _unpack_zip(stack: contextlib.ExitStack, stream: BinaryIO, path: pathlib.Path, member: str) -> BinaryIO:
    head = _peek(stream, 4)
    if not head:
        raise InputError(f"{path}: the file is empty")
    if head not in (ZIP_MAGIC, EMPTY_ZIP_MAGIC):
        if path.suffix.lower() == ".zip":
            raise InputError(f"{path}: is named .zip but is not a zip file")
        if member:
            raise InputError(f"{path}: member {member!r} is stated, but the file is not a zip file")
        return stream
    archive = stack.enter_context(zipfile.ZipFile(stream))
    chosen = archive.getinfo(choose_member(archive.namelist(), str(path), member))
    if chosen.flag_bits & 1:
        raise InputError(f"{path}: member {chosen.filename!r} is encrypted; unpack it first")
    if chosen.file_size == 0:
        raise InputError(f"{path}: member {chosen.filename!r} is empty")
    try:  # zipfile reads no more than the declared size, and then compares the checksum
        return stack.enter_context(archive.open(chosen))
    except NotImplementedError as error:
        raise InputError(f"{path}: member {chosen.filename!r} cannot be unpacked ({error})") from error


def _unpack_gzip(stack: contextlib.ExitStack, stream: BinaryIO, path: pathlib.Path) -> BinaryIO:
    if _peek(stream, 2) == GZIP_MAGIC:
        unpacked = stack.enter_context(gzip.open(stream))
        if not _peek(unpacked, 1):
            raise InputError(f"{path}: the unpacked file is empty")
        return unpacked
    if path.suffix.lower() == ".gz":
        raise InputError(f"{path}: is named .gz but is not a gzip file")
    return stream
