"""Fetches the public raw files, with a progress bar, a checksum, and a resume of a download that broke.

python -m jaxneg.data.download ml-1m --out DIR
"""

import argparse
import hashlib
import http.client
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request
from typing import NamedTuple

from tqdm import tqdm

from jaxneg.data.archive import check_is_file
from jaxneg.errors import InputError, refuse

PREFETCH_BYTES = 1 << 20
TIMEOUT_SECONDS = 30
GROUPLENS = "https://files.grouplens.org/datasets/movielens"


class Source(NamedTuple):
    """One public file. Where nobody publishes a checksum, `num_lines` of the text stands in for it."""

    url: str  # "" where a login is needed
    filename: str
    page: str  # where a person finds it
    config: str  # the config file that takes it
    md5: str = ""  # as published beside the file
    num_lines: int = 0


SOURCES = {
    "ml-100k": Source(
        f"{GROUPLENS}/ml-100k.zip",
        "ml-100k.zip",
        "https://grouplens.org/datasets/movielens/100k/",
        "interactions",
        "0e33842e24a9c977be4e0107933c0723",
    ),
    "ml-1m": Source(
        f"{GROUPLENS}/ml-1m.zip",
        "ml-1m.zip",
        "https://grouplens.org/datasets/movielens/1m/",
        "ml1m",
        "c4d9eecfca2ab87c1945afe126590906",
    ),
    "ml-10m": Source(
        f"{GROUPLENS}/ml-10m.zip",
        "ml-10m.zip",
        "https://grouplens.org/datasets/movielens/10m/",
        "ml10m",
        "ce571fd55effeba0271552578f2648bd",
    ),
    "ml-20m": Source(
        f"{GROUPLENS}/ml-20m.zip",
        "ml-20m.zip",
        "https://grouplens.org/datasets/movielens/20m/",
        "interactions",
        "cd245b17a1ae2cc31bb14903e1204af3",
    ),
    "ml-32m": Source(
        f"{GROUPLENS}/ml-32m.zip",
        "ml-32m.zip",
        "https://grouplens.org/datasets/movielens/32m/",
        "interactions",
        "d472be332d4daa821edc399621853b57",
    ),
    "beauty": Source(
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/ratings_Beauty.csv",
        "ratings_Beauty.csv",
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        "beauty",
        num_lines=2_023_070,
    ),
    "retailrocket": Source(
        "", "events.csv", "https://www.kaggle.com/datasets/retailrocket/ecommerce-dataset", "retailrocket"
    ),
}


def download(source: Source, out_dir: str | pathlib.Path) -> pathlib.Path:
    """The path of the file in `out_dir`, fetched if it is not there yet; the file appears only once it is checked.

    Raises InputError: the file needs a login, the network or the server fails (saying which file to put where), the
    checksum or the number of lines differs, or the folder cannot be written.
    """
    path = pathlib.Path(out_dir) / source.filename
    if os.path.lexists(path):
        check_is_file(path)
        _check(path, source, f"remove {path} to fetch it again")
        return path
    if not source.url:
        raise InputError(f"{source.filename} needs a login: {by_hand(source, path)}")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"out {out_dir} cannot be written ({error})") from error
    _fetch(source, part, path)
    try:
        _check(part, source, "the download is removed; run the command again")
    except InputError:
        part.unlink()
        raise
    part.replace(path)
    return path


def by_hand(source: Source, path: pathlib.Path) -> str:
    """What to do without this program: which file to put where, and the command after that."""
    return f"get {source.filename} from {source.page}, put it at {path}, and run: {next_command(source, path)}"


def next_command(source: Source, path: pathlib.Path) -> str:
    """The command that trains on the file."""
    where = f"--workdir=runs/{source.config} --config.data.path={path}"
    return f"python -m jaxneg.main --config=configs/{source.config}.py {where}"


def _fetch(source: Source, part: pathlib.Path, path: pathlib.Path) -> None:
    """Appends what is missing to `part`, or starts it anew where the server cannot resume."""
    have = part.stat().st_size
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(source.url, headers={"User-Agent": "jaxneg", **headers})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
            resumed = reply.status == 206 and _starts_at(reply.headers.get("Content-Range", ""), have)
            if reply.status == 206 and not resumed:
                raise InputError(f"{source.url}: the server sent another part than asked for; remove {part}")
            _receive(reply, part, have if resumed else 0, source)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not have:
            told = f"{source.url}: the server says {error.code} {error.reason}"
            raise InputError(f"{told}; {by_hand(source, path)}") from error
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if not total or int(total[1]) != have:  # nothing left to send, and not because it is all here
            part.unlink()
            raise InputError(f"{source.url}: the part fetched before does not fit and is removed; run again") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        kept = part.stat().st_size
        again = f"{kept:,} bytes are kept, the same command resumes; or " if kept else ""
        if not kept:
            part.unlink()
        raise InputError(f"cannot fetch {source.url} ({reason}); {again}{by_hand(source, path)}") from error


def _starts_at(content_range: str, offset: int) -> bool:
    return content_range.startswith(f"bytes {offset}-")


def _receive(reply: http.client.HTTPResponse, part: pathlib.Path, have: int, source: Source) -> None:
    length = reply.headers.get("Content-Length")
    total = have + int(length) if length else None
    with (
        open(part, "ab" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=source.filename) as bar,
    ):
        while block := reply.read(PREFETCH_BYTES):
            file.write(block)
            bar.update(len(block))
        size = file.tell()
    if total is not None and size < total:
        raise ConnectionError(f"the connection broke after {size:,} of {total:,} bytes")


def _check(path: pathlib.Path, source: Source, remedy: str) -> None:
    """Raises InputError where the published checksum, or the known number of lines, differs."""
    md5, num_lines = hashlib.md5(usedforsecurity=False), 0
    with open(path, "rb") as file:
        while block := file.read(PREFETCH_BYTES):
            md5.update(block)
            num_lines += block.count(b"\n")
    if source.md5 and md5.hexdigest() != source.md5:
        raise InputError(f"{path}: its md5 is {md5.hexdigest()}, the published one is {source.md5}; {remedy}")
    if source.num_lines and num_lines != source.num_lines:
        raise InputError(f"{path}: it has {num_lines:,} lines, the published file has {source.num_lines:,}; {remedy}")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m jaxneg.data.download", description=__doc__.split("\n")[0])
    parser.add_argument("dataset", choices=list(SOURCES), help="which file")
    parser.add_argument("--out", default=".", help="the folder to put it in (this one)")
    parser.error = refuse
    try:
        given = parser.parse_args(arguments)
        source = SOURCES[given.dataset]
        path = download(source, given.out)
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes", file=sys.stderr)
        return 130
    if not source.md5:  # say honestly what could not be compared
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"no checksum is published for {path.name}; its sha256 is {digest}", file=sys.stderr)
    print(f"{path}\nnext: {next_command(source, path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
