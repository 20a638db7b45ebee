"""The readers on random bytes and on damaged files: rows of the right types, or one line; nothing else, and at once.

A short, repeatable run of each reader belongs to the ordinary tests. The long one is random:

    JAXNEG_FUZZ_EXAMPLES=100000 JAXNEG_FUZZ_REPORT=results/robustness/fuzz.json \\
        python -m pytest -m slow tests/data/test_fuzz.py
"""

import collections
import gzip
import io
import json
import os
import pathlib
import platform
import time
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jaxneg.data import prepare, raw
from jaxneg.errors import InputError

SHORT_EXAMPLES = 60  # of each reader
LONG_EXAMPLES = int(os.environ.get("JAXNEG_FUZZ_EXAMPLES", 20_000))  # of all readers together
MAX_SECONDS = 5.0  # of CPU time for one input, all of which are small
LOOSE = prepare.PrepareSettings(min_user_rows=1, min_item_rows=1)
COLUMNS = ("user", "item", "time")
ROWS = [(u, 10 * i, 1_000_000_000 + 1000 * u + i) for u in range(1, 5) for i in range(1, 4)]


def lines(pattern: str, header: str = "") -> bytes:
    return (header + "".join(pattern.format(u=u, i=i, t=t) for u, i, t in ROWS)).encode()


def zipped(content: bytes, name: str = "mine.csv", method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("README.txt.md", "about")
        archive.writestr(name, content)
    return buffer.getvalue()


def parquet(compression: str = "NONE", **columns) -> bytes:
    users, items, times = zip(*ROWS, strict=True)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"user": users, "item": items, "time": times} | columns), buffer, compression=compression)
    return buffer.getvalue()


TABLE = lines("{u},{i},{t}\n", "user,item,time\n")
# reader -> sound files of it
SOUND = {
    "movielens_dat": [lines("{u}::{i}::3.5::{t}\n")],
    "movielens_csv": [lines("{u},{i},3.5,{t}\n", "userId,movieId,rating,timestamp\n")],
    "movielens_100k": [lines("{u}\t{i}\t3\t{t}\n")],
    "amazon": [lines("A{u}X,{i},5.0,{t}\n")],
    "amazon_csv": [lines("A{u}X,{i},5.0,{t}\n", "UserId,ProductId,Rating,Timestamp\n")],
    "retailrocket": [lines("{t}000,{u},view,{i},\n", "timestamp,visitorid,event,itemid,transactionid\n")],
    "table": [
        TABLE,
        lines("{u}\t{t}.25\tx\ti{i}\n", "user\ttime\tnote\titem\n"),
        lines('"{u}","{i}",2001-01-01 00:00:{u}{u}\n', "user,item,time\n"),
    ],
    "parquet": [
        parquet(),
        parquet("SNAPPY", user=[f"u{u}" for u, _, _ in ROWS]),
        parquet(
            time=pa.array([1000 * t for _, _, t in ROWS], pa.timestamp("ms")),
            item=pa.array([str(i) for _, i, _ in ROWS]).dictionary_encode(),
        ),
    ],
    "gzip": [gzip.compress(TABLE), gzip.compress(TABLE[:50]) + gzip.compress(TABLE[50:]), gzip.compress(parquet())],
    "zip": [
        zipped(TABLE),
        zipped(TABLE, method=zipfile.ZIP_STORED),
        zipped(TABLE, method=zipfile.ZIP_LZMA),
        zipped(TABLE, method=zipfile.ZIP_BZIP2),
        zipped(gzip.compress(TABLE), "ratings.csv.gz"),
        zipped(parquet(), "mine.parquet"),
    ],
}
READERS = [*SOUND, "random bytes", "random columns"]
MAGIC = [b"", b"PAR1", b"\x1f\x8b\x08", b"PK\x03\x04", b"\xef\xbb\xbf", b"\xff\xfe", b"user,item,time\n"]
TOKENS = [
    b"",
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"::",
    b'"',
    b'""',
    b"\0",
    b" ",
    b"-",
    b".",
    b"nan",
    b"NULL",
    b"inf",
    b"-1",
    b"1e400",
    b"9" * 20,
    b"9" * 400,
    b"\xff",
    b"\xc3\x28",
    b"\xef\xbb\xbf",
    b"1970-01-01",
    b"user,item,time\n",
    b"true",
    b"0x1F",
    b"\xf0\x9f\x98\x80",
    b"PK\x05\x06",
    b"PAR1",
    b"\x1f\x8b",
]


@st.composite
def damaged(draw, sound: list[bytes]) -> bytes:
    """A sound file after one to six changes: bytes flipped, cut, inserted or repeated, lines swapped or dropped."""
    content = draw(st.sampled_from(sound))
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["flip", "set", "cut", "end", "insert", "token", "repeat", "swap", "drop"]))
        size = len(content)
        at, to = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        if kind == "flip" and at < size:
            content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
        elif kind == "set" and at < size:
            content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at] + content[to:]
        elif kind == "end":
            content = content[:to]
        elif kind == "insert":
            content = content[:at] + draw(st.binary(max_size=8)) + content[at:]
        elif kind == "token":
            content = content[:at] + draw(st.sampled_from(TOKENS)) + content[at + draw(st.integers(0, 4)) :]
        elif kind == "repeat":
            content = content[:to] + content[at:to] * draw(st.integers(1, 5)) + content[to:]
        elif kind in ("swap", "drop"):
            parts = content.split(b"\n")
            one, other = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
            if kind == "swap":
                parts[one], parts[other] = parts[other], parts[one]
            else:
                del parts[one]
            content = b"\n".join(parts)
    return content


@st.composite
def with_columns(draw) -> bytes:
    """A table whose header is anything, often with the wanted names in it."""
    names = draw(st.lists(st.one_of(st.sampled_from([*COLUMNS, ""]), st.text(max_size=8)), max_size=6))
    rows = draw(st.lists(st.lists(st.text(max_size=5), max_size=6), max_size=4))
    delimiter = draw(st.sampled_from([",", "\t", ";"]))
    return "\n".join(delimiter.join(row) for row in [names, *rows]).encode("utf-8", "surrogatepass")


def files(reader: str) -> st.SearchStrategy[bytes]:
    if reader == "random bytes":
        return st.builds(bytes.__add__, st.sampled_from(MAGIC), st.binary(max_size=400))
    return with_columns() if reader == "random columns" else damaged(SOUND[reader])


def outcome(path: pathlib.Path, format: str) -> str:
    """ "read" or "refused"; fails where it is neither as it should be."""
    try:
        frame = raw.read(path, format, columns=COLUMNS)
    except InputError as error:
        message = str(error)
        assert str(path) in message and message.isprintable() and len(message) <= 2000
        return "refused"
    assert list(frame)[:3] == ["user", "item", "time"] and len(frame) > 0 and frame["item"].nunique() > 1
    assert frame["time"].dtype == np.int64 and frame["time"].between(0, 1000 * raw.MAX_TIME).all()
    for name in ("user", "item"):
        assert frame[name].dtype == np.int64 or isinstance(frame[name].dtype, pd.CategoricalDtype)
        assert not frame[name].isna().any()
    assert frame.attrs["format"] in raw.NAMES and frame.attrs["ticks_per_second"] in (1, 1000)
    try:
        arrays, _ = prepare.prepare_frame(frame, LOOSE, source=str(path))
    except InputError as error:
        assert str(path) in str(error)
    else:
        assert 1 <= arrays["items"].min() and arrays["items"].max() < len(arrays["item_counts"])
    return "read"


def fuzz(reader: str, path: pathlib.Path, counts: collections.Counter, **profile) -> None:
    formats = ("auto", "table", reader) if reader in raw.FORMATS else ("auto", "table")

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **profile)
    @given(content=files(reader), format=st.sampled_from(formats))
    def run(content, format):
        path.write_bytes(content)
        start = time.process_time()  # of this process alone: the machine may be busy with something else
        counts[outcome(path, format)] += 1
        assert time.process_time() - start < MAX_SECONDS

    run()


def test_the_sound_files_are_read(tmp_path):
    for reader, sound in SOUND.items():
        for content in sound:
            (tmp_path / "f").write_bytes(content)
            assert outcome(tmp_path / "f", "auto") == "read", reader


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_read_or_refused(tmp_path, reader):
    counts = collections.Counter()
    fuzz(reader, tmp_path / "f", counts, max_examples=SHORT_EXAMPLES, derandomize=True)
    assert counts["refused"] > 0


@pytest.mark.parametrize("reader, file", [("parquet", 1), ("zip", 0)])
def test_each_byte_damaged_in_turn(tmp_path, reader, file):
    """Arrow, for one, gives a table whose dictionary codes point nowhere."""
    sound, path, counts = SOUND[reader][file], tmp_path / "f", collections.Counter()
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
        counts[outcome(path, "auto")] += 1
    assert counts["read"] > 0 and counts["refused"] > 0


@pytest.fixture(scope="module")
def report():
    """{reader: its numbers}, written to the file that JAXNEG_FUZZ_REPORT names once all of them are there."""
    numbers = {}
    yield numbers
    if os.environ.get("JAXNEG_FUZZ_REPORT") and numbers.keys() == set(READERS):
        totals = {name: sum(row[name] for row in numbers.values()) for name in next(iter(numbers.values()))}
        command = (
            f"JAXNEG_FUZZ_EXAMPLES={LONG_EXAMPLES} JAXNEG_FUZZ_REPORT=results/robustness/fuzz.json "
            "python -m pytest -m slow tests/data/test_fuzz.py"
        )
        versions = {"python": platform.python_version(), "pyarrow": pa.__version__, "pandas": pd.__version__}
        record = {
            "command": command,
            "versions": versions,
            "all": totals | {"seconds": round(totals["seconds"], 1)},
            "readers": numbers,
        }
        path = pathlib.Path(os.environ["JAXNEG_FUZZ_REPORT"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_damaged_files_are_read_or_refused(tmp_path, report, reader):
    counts, start = collections.Counter(), time.perf_counter()
    fuzz(reader, tmp_path / "f", counts, max_examples=LONG_EXAMPLES // len(READERS), phases=[Phase.generate])
    assert counts["read"] > 0 or reader.startswith("random")
    report[reader] = {
        "tried": counts.total(),
        "read": counts["read"],
        "refused": counts["refused"],
        "seconds": round(time.perf_counter() - start, 1),
    }
