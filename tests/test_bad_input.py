"""Whatever is wrong with a file, a setting, a command line, a config file, a prepared folder or a results table: one
line on stderr that names the value and what is allowed, exit code 2, no traceback, and nothing half-written.
"""

import ast
import contextlib
import errno
import gzip
import io
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxneg
from jaxneg import experiment, main, results
from jaxneg.data import archive, download, prepare, raw, store, synthetic
from jaxneg.data import dataset as data
from jaxneg.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent
INTERACTIONS, QUICKSTART = (f"--config={ROOT}/configs/{name}.py:uniform" for name in ("interactions", "quickstart"))
COLUMNS = ["--config.data.user_column=user", "--config.data.item_column=item", "--config.data.time_column=time"]
TIME = "a time is a number >= 0"
ROWS = [(1 + n % 7, 1 + n % 11, 1_000_000_000 + n) for n in range(200)]


def assert_one_line(capsys, says) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxneg: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert err[:-1].isprintable() and "Traceback" not in err and len(err) < 2100
    for words in says:
        assert words in err


def assert_refused(capsys, tmp_path, args, says) -> None:
    """The command of this line is refused as it should be, and leaves nothing."""
    before = set(tmp_path.iterdir())
    work, cache = tmp_path / "run", tmp_path / "cache"
    given = " ".join(args)
    args = [*args, *([] if "--workdir" in given else [f"--workdir={work}"]),
            *([] if "data.cache_dir" in given else [f"--config.data.cache_dir={cache}"])]  # fmt: skip
    assert main.main(["main.py", *args]) == 2
    assert_one_line(capsys, says)
    assert not work.exists() or not list(work.iterdir())
    for path in cache.iterdir() if cache.is_dir() else ():
        store.read(path)  # a whole folder may stay: it is no part of what was wrong
    assert set(tmp_path.iterdir()) - before <= {work, cache}


# ------------------------------------------------------------------ rows of each text format


def lines(pattern: str, header: str = "", rows=ROWS) -> bytes:
    return (header + "".join(pattern.format(u=u, i=i, t=t) for u, i, t in rows)).encode()


# reader -> (a line, the header, the names of user, item and time in messages)
READERS = {
    "movielens_dat": ("{u}::{i}::3.5::{t}\n", "", ("user", "item", "time")),
    "movielens_csv": ("{u},{i},3.5,{t}\n", "userId,movieId,rating,timestamp\n", ("userId", "movieId", "timestamp")),
    "movielens_100k": ("{u}\t{i}\t3\t{t}\n", "", ("user", "item", "time")),
    "amazon": ("{u},{i},5.0,{t}\n", "", ("user", "item", "time")),
    "amazon_csv": ("{u},{i},5.0,{t}\n", "UserId,ProductId,Rating,Timestamp\n", ("UserId", "ProductId", "Timestamp")),
    "retailrocket": ("{t},{u},view,{i},\n", "timestamp,visitorid,event,itemid,transactionid\n",
                     ("visitorid", "itemid", "timestamp")),
    "table_csv": ("{u},{i},{t}\n", "user,item,time\n", ("user", "item", "time")),
    "table_tsv": ("{t}\tx\t{i}\t{u}\n", "time\tnote\titem\tuser\n", ("user", "item", "time")),
}  # fmt: skip
# what is wrong with the last row -> (user, item, time, what the line says of the columns user, item, time)
WRONG_FIELDS = {
    "text as time": (5, 5, "soon", "{2} is 'soon'"),
    "negative time": (5, 5, -7, "{2} is -7"),
    "NaN as time": (5, 5, "NaN", "{2} is empty or NaN"),
    "infinite time": (5, 5, "-inf", "{2} is -inf"),
    "huge time": (5, 5, "1e30", "{2} is 1e+30"),
    "no time": (5, 5, "", "{2} is empty or NaN"),
    "no user": ("", 5, 5, "{0} is empty or NaN"),
    "blank item": (5, "  ", 5, "{1} is empty"),
    "null as item": (5, "NULL", 5, "{1} is empty or NaN"),
}


@pytest.mark.parametrize("wrong", WRONG_FIELDS)
@pytest.mark.parametrize("reader", READERS)
def test_a_wrong_field(capsys, tmp_path, reader, wrong):
    pattern, header, names = READERS[reader]
    user, item, time, says = WRONG_FIELDS[wrong]
    (tmp_path / "raw.txt").write_bytes(lines(pattern, header, [*ROWS, (user, item, time)]))
    rule = TIME if "{2}" in says else "every row needs an id"
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.txt"]
    assert_refused(capsys, tmp_path, args, [f"{tmp_path}/raw.txt: row 201: ", says.format(*names), rule])


# what is wrong with the last line -> (how it is made of a sound one, what the line says)
WRONG_LINES = {
    "too few fields": (lambda line: line[: line.rindex(b"5")].rstrip(b":,\t") + b"\n", ["row 201", "columns, got"]),
    "too many fields": (lambda line: line[:-1] + b",5\t5:5\n", ["row 201", "columns, got"]),
    "other separators": (lambda line: b"5;5;5;5\n", ["row 201", "columns, got 1: 5;5;5;5"]),
    "not UTF-8": (lambda line: line.replace(b"5", b"\xe9\xff"), ["row 201", "invalid"]),
    "NUL bytes in ids": (lambda line: line.replace(b"5", b"5\0x", 1), ["NUL byte", "whole numbers or text"]),
    "binary garbage": (lambda line: bytes(range(128, 256)) + b"\n", ["row 201", "columns, got 1"]),
}


@pytest.mark.parametrize("wrong", WRONG_LINES)
@pytest.mark.parametrize("reader", READERS)
def test_a_wrong_line(capsys, tmp_path, reader, wrong):
    pattern, header, _ = READERS[reader]
    change, says = WRONG_LINES[wrong]
    if wrong == "NUL bytes in ids" and pattern.startswith("{t}"):
        pattern = pattern.replace("{t}", "1")  # the first 5 is then an id
    last = change(pattern.format(u=5, i=5, t=5).encode())
    (tmp_path / "raw.txt").write_bytes(lines(pattern, header) + last)
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.txt"]
    assert_refused(capsys, tmp_path, args, [f"{tmp_path}/raw.txt: ", *says])


@pytest.mark.parametrize("reader", READERS)
def test_no_rows(capsys, tmp_path, reader):
    header = READERS[reader][1].encode()
    (tmp_path / "raw.txt").write_bytes(header)
    says = "there is no row of data in it" if header else "the file is empty"
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.txt"]
    assert_refused(capsys, tmp_path, args, [f"{tmp_path}/raw.txt: {says}"])


# ------------------------------------------------------------------ files as a whole

TABLE = lines(*READERS["table_csv"][:2])
HEAD = b"user,item,time\n"


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return buffer.getvalue()


def encrypted() -> bytes:
    packed = bytearray(zipped(("ratings.csv", TABLE)))
    packed[packed.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    return bytes(packed)


def lying(size: int) -> bytes:
    """A zip whose member unpacks to more than the `size` that it declares."""
    packed = zipped(("ratings.csv", TABLE))
    true = len(TABLE).to_bytes(4, "little")
    assert packed.count(true) == 2  # in the member's own header, and in the central directory
    return packed.replace(true, size.to_bytes(4, "little"))


def linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("ratings.csv", TABLE)
        link = zipfile.ZipInfo("passwords")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def damaged_zip(method: int) -> bytes:
    packed = bytearray(zipped(("ratings.csv", TABLE), method=method))
    middle = packed.index(b"ratings.csv") + 80
    packed[middle : middle + 40] = bytes(40)
    return bytes(packed)


def parquet(**columns) -> bytes:
    users, items, times = (list(column) for column in zip(*ROWS, strict=True))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"user": users, "item": items, "time": times} | columns), buffer)
    return buffer.getvalue()


def parquet_of_doubles() -> bytes:
    buffer = io.BytesIO()
    names = ["user", "item", "time", "time"]
    pq.write_table(pa.Table.from_arrays([pa.array([1, 2])] * 4, names=names), buffer)
    return buffer.getvalue()


def constant(rows: int) -> pa.Array:
    return pa.array(np.ones(rows, np.int64))


# id -> (file name, its content, further flags, what the line says)
FILES = {
    "empty file": ("a.csv", b"", [], ["the file is empty"]),
    "blank lines only": ("a.csv", b"\n\r\n\n", [], ["there is no row of data in it"]),
    "byte order mark only": ("a.csv", b"\xef\xbb\xbf", [], ["there is no row of data in it"]),
    "binary garbage": ("a.csv", bytes(range(256)) * 20, [], ["is neither UTF-8 text nor parquet"]),
    "UTF-16": ("a.csv", TABLE.decode().encode("utf-16"), [], ["is neither UTF-8 text nor parquet"]),
    "UTF-32": ("a.csv", TABLE.decode().encode("utf-32"), [], ["is neither UTF-8 text nor parquet"]),
    "Latin-1 header": ("a.csv", "usér,item,time\n1,2,3\n".encode("latin-1"), [], ["is not UTF-8 text"]),
    "a web page": ("a.csv", b"<html><body>Not found</body></html>\n", [], ["'<html><body>Not found", "no column user"]),
    "JSON lines": ("a.csv", b'{"user": 1, "item": 2, "time": 3}\n', [], ["no column user, item, time"]),
    "semicolons": ("a.csv", TABLE.replace(b",", b";"), [], ["'user;item;time'", "tab- or comma-separated"]),
    "no header": ("a.csv", TABLE[len(HEAD) :], [], ["no column user, item, time", "'1', '1', '1000000000'"]),
    "a column missing": ("a.csv", TABLE.replace(b"item", b"thing", 1), [], ["no column item", "'user', 'thing'"]),
    "a column twice": ("a.csv", b"user,item,time,item\n1,2,3,4\n", [], ["column item is there more than once"]),
    "spaces around names": ("a.csv", b"user , item,time\n1,2,3\n", [], ["no column user, item", "'user '"]),
    "a line of spaces first": ("a.csv", b"   \n" + TABLE, [], ["no column user, item, time", "'   '"]),
    "an endless first line": ("a.csv", b"x" * 70_000, [], ["its first line", "more than 65,536 bytes"]),
    "an open quote": ("a.csv", TABLE + b'1,"2,3\n4,5,6\n', [], ["row 201", "Expected 3 columns, got 2"]),
    "quotes in the header": ("a.csv", b'user,"item,time\n' + TABLE, [], ["no column item, time"]),
    "a long id": ("a.csv", TABLE + b"x" * 300 + b",2,3\n", [], ["an id in user has 300 characters", "at most 256"]),
    "one item": ("a.csv", HEAD + b"1,5,3\n2,5,4\n", [], ["all 2 rows have the same item", "at least two items"]),
    "all filtered away": ("a.csv", HEAD + b"1,2,3\n1,3,4\n2,5,6\n", [], ["0 items are left of 3 rows",
                                                                         "min_item_rows=5"]),
    "every user once": ("a.csv", lines("{u},{i},{t}\n", "user,item,time\n", [(n, n % 5, n) for n in range(99)]), [],
                        ["0 items are left of 99 rows", "min_user_rows=2"]),
    "no test row of a known user": ("a.csv", HEAD + b"".join(b"%d,%d,%d\n" % (n // 95, n % 5, n) for n in range(100)),
                                    ["--config.data.min_item_rows=1"], ["temporal split has no test case"]),
    "too short for leave-one-out": ("a.csv", HEAD + b"1,1,1\n1,2,2\n2,1,3\n2,2,4\n",
                                    ["--config.data.split=leave_one_out", "--config.data.min_item_rows=1"],
                                    ["leave_one_out split has no test case"]),
    "times of day": ("a.csv", HEAD + b"1,2,10:00\n1,3,11:00\n", [], ["column time has the type time32", TIME]),
    "true and false as times": ("a.csv", HEAD + b"1,2,true\n1,3,false\n", [], ["the type bool", TIME]),
    "a date before 1970": ("a.csv", HEAD + b"1,2,1969-12-31\n1,3,2001-01-01\n", [], ["row 1: time is -86400", TIME]),
    "dates and numbers": ("a.csv", HEAD + b"1,2,2001-01-01\n1,3,77\n", [], ["row 1: time is '2001-01-01'", TIME]),
    "thousands separators": ("a.csv", TABLE + b'1,2,"1,000"\n', [], ["row 201: time is '1,000'", TIME]),
    "an unknown event": ("a.csv", lines(*READERS["retailrocket"][:2]), ["--config.data.event=purchase"],
                         ["no row has the event 'purchase'", "the events are view"]),
    "another format than stated": ("a.csv", TABLE, ["--config.data.format=movielens_dat"],
                                   ["is not movielens_dat: its first line is 'user,item,time'", "user::item::rating"]),
    "text stated as parquet": ("a.csv", TABLE, ["--config.data.format=parquet"], ["is not a parquet file"]),
    "parquet stated as text": ("a.csv", parquet(), ["--config.data.format=amazon"], ["is a parquet file, not amazon"]),
    # packed
    "a name in .gz, but text": ("a.csv.gz", TABLE, [], ["is named .gz but is not a gzip file"]),
    "gzip of nothing": ("a.csv.gz", gzip.compress(b""), [], ["the unpacked file is empty"]),
    "gzip cut short": ("a.csv.gz", gzip.compress(TABLE)[:-100], [], ["truncated or damaged", "ended before"]),
    "gzip cut in its header": ("a.csv.gz", gzip.compress(TABLE)[:7], [], ["truncated or damaged"]),
    "gzip with a wrong checksum": ("a.csv.gz", gzip.compress(TABLE)[:-8] + b"12345678", [], ["CRC check failed"]),
    "gzip damaged inside": ("a.csv.gz", gzip.compress(TABLE)[:60] + b"\xff" * 50, [], ["truncated or damaged"]),
    "gzip with rubbish after it": ("a.csv.gz", gzip.compress(TABLE) + b"rubbish", [], ["Not a gzipped file"]),
    "gzip in gzip": ("a.csv.gz", gzip.compress(gzip.compress(TABLE)), [], ["packed more than once", "a .gz in a .zip"]),
    "zip in gzip": ("a.csv.gz", gzip.compress(zipped(("a.csv", TABLE))), [], ["packed more than once"]),
    "zip in zip": ("a.zip", zipped(("a.csv", zipped(("a.csv", TABLE)))), [], ["packed more than once"]),
    "a name in .zip, but text": ("a.zip", TABLE, [], ["is named .zip but is not a zip file"]),
    "zip of nothing": ("a.zip", zipped(), [], ["no member fits", "the zip holds nothing", "one single table"]),
    "zip cut short": ("a.zip", zipped(("a.csv", TABLE))[:-40], [], ["is not a sound zip file"]),
    "zip damaged inside": ("a.zip", damaged_zip(zipfile.ZIP_DEFLATED), [], ["truncated or damaged"]),
    "zip damaged inside, lzma": ("a.zip", damaged_zip(zipfile.ZIP_LZMA), [], ["truncated or damaged"]),
    "zip damaged inside, bzip2": ("a.zip", damaged_zip(zipfile.ZIP_BZIP2), [], ["truncated or damaged"]),
    "zip damaged inside, stored": ("a.zip", damaged_zip(zipfile.ZIP_STORED), [], ["truncated or damaged"]),
    "zip of two tables": ("a.zip", zipped(("a.csv", TABLE), ("b.csv", TABLE)), [], ["2 members fit", "a.csv, b.csv"]),
    "zip without a table": ("a.zip", zipped(("a.pdf", b"x"), ("b.png", b"x")), [], ["no member fits", "a.pdf, b.png"]),
    "zip without the stated member": ("a.zip", zipped(("a.csv", TABLE)), ["--config.data.member=b.csv"],
                                      ["no member fits ('b.csv' is wanted)", "holds a.csv"]),
    "a member of what is no zip": ("a.csv", TABLE, ["--config.data.member=b.csv"], ["'b.csv' is stated", "not a zip"]),
    "zip of an empty table": ("a.zip", zipped(("a.csv", b"")), [], ["member 'a.csv' is empty"]),
    "zip with a password": ("a.zip", encrypted(), [], ["member 'ratings.csv' is encrypted", "unpack it first"]),
    "zip that climbs out": ("a.zip", zipped(("../../ratings.csv", TABLE)), [], ["'../../ratings.csv'", "leaves"]),
    "zip whose other member climbs out": ("a.zip", zipped(("ratings.csv", TABLE), ("x/../../y", b"")), [],
                                          ["'x/../../y'", "leaves the archive"]),
    "zip with an absolute path": ("a.zip", zipped(("/etc/ratings.csv", TABLE)), [], ["'/etc/ratings.csv'", "leaves"]),
    "zip with a drive letter": ("a.zip", zipped(("C:/ratings.csv", TABLE)), [], ["'C:/ratings.csv'", "leaves"]),
    "zip with a symbolic link": ("a.zip", linked(), [], ["'passwords' is a symbolic link"]),
    "zip that unpacks to more than it says": ("a.zip", lying(1000), [], ["is not what it declares"]),
    "zip that says it is huge": ("a.zip", lying(4_000_000_000), [], ["unpacks to more than 268,435,456 bytes",
                                                                     "100 times"]),
    # parquet
    "parquet cut short": ("a.parquet", parquet()[:-200], [], ["is not a sound parquet file"]),
    "parquet of nothing": ("a.parquet", b"PAR1", [], ["is not a sound parquet file"]),
    "parquet damaged inside": ("a.parquet", parquet()[:30] + b"\xff" * 40 + parquet()[70:], [], ["sound parquet file"]),
    "parquet without a row": ("a.parquet", parquet(user=pa.array([], pa.int64()), item=pa.array([], pa.int64()),
                                                   time=pa.array([], pa.int64())), [], ["no row of data in it"]),
    "parquet without a column": ("a.parquet", parquet(), ["--config.data.user_column=who"],
                                 ["no column who", "'user', 'item', 'time'"]),
    "parquet with a column twice": ("a.parquet", parquet_of_doubles(), [], ["column time is there more than once"]),
    "parquet with lists as ids": ("a.parquet", parquet(item=[[n] for n in range(200)]), [], ["item has the type list"]),
    "parquet with structs as times": ("a.parquet", parquet(time=[{"t": n} for n in range(200)]), [],
                                      ["time has the type struct", TIME]),
    "parquet with bytes as ids": ("a.parquet", parquet(item=[b"x%d" % n for n in range(200)]), [], ["the type binary"]),
    "parquet with fractions as ids": ("a.parquet", parquet(item=[n + 0.5 for n in range(200)]), [], ["item is 0.5"]),
    "parquet with a null id": ("a.parquet", parquet(item=[None, *range(199)]), [], ["row 1: item is empty or NaN"]),
    "parquet with a null time": ("a.parquet", parquet(time=[*range(199), None]), [], ["row 200: time is empty", TIME]),
    "parquet with durations": ("a.parquet", parquet(time=pa.array(range(200), pa.duration("s"))), [],
                               ["type duration[s]", TIME]),
    "parquet with text as times": ("a.parquet", parquet(time=["soon"] * 200), [], ["row 1: time is 'soon'", TIME]),
    "parquet with a text of a page as time": ("a.parquet", parquet(time=["9" * 5000] * 200), [], ["5000 characters"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file(capsys, tmp_path, case):
    name, content, flags, says = FILES[case]
    (tmp_path / name).write_bytes(content)
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/{name}", *flags]
    assert_refused(capsys, tmp_path, args, [f"{tmp_path}/{name}: ", *says])


# id -> (what lies at the path, the path, what the line says)
PLACES = {
    "nothing": (lambda path: None, "raw.csv", ["there is no such file"]),
    "a folder": (lambda path: path.mkdir(), "raw.csv", ["is a folder", "a file of interactions is wanted"]),
    "a link to itself": (lambda path: path.symlink_to(path), "raw.csv", ["cannot be read", "symbolic links"]),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "raw.csv", ["there is no such file"]),
    "a pipe": (lambda path: os.mkfifo(path), "raw.csv", ["is a pipe or a device", "a regular file"]),
    "a device": (lambda path: None, "/dev/zero", ["/dev/zero: is a pipe or a device"]),
    "below a file": (lambda path: path.parent.joinpath("file").touch(), "file/raw.csv", ["Not a directory"]),
    "a name too long": (lambda path: None, "x" * 5000, ["File name too long"]),
    "a name with a NUL": (lambda path: None, "a\0b", ["a\\x00b", "null"]),
    "a name with a line break": (lambda path: None, "a\nb", ["a\\nb: there is no such file"]),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_bad_place(capsys, tmp_path, case):
    make, name, says = PLACES[case]
    make(tmp_path / "raw.csv")
    assert_refused(capsys, tmp_path, [INTERACTIONS, f"--config.data.path={tmp_path / name}"], says)


def test_a_line_of_fifty_megabytes(capsys, tmp_path):
    (tmp_path / "raw.csv").write_bytes(TABLE + b"1," + b"x" * 50_000_000 + b",5\n")
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.csv"]
    assert_refused(capsys, tmp_path, args, ["raw.csv: cannot be parsed: a row has more than 8,388,608 bytes"])


@pytest.fixture
def public_folder():
    """A folder that every user may enter: the parents of pytest's own are closed."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


@contextlib.contextmanager
def ordinary_user():
    """The tests may run as the system's administrator, whom no permission stops: then, as somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_that_may_not_be_read(public_folder):
    (public_folder / "raw.csv").write_bytes(TABLE)
    (public_folder / "raw.csv").chmod(0)
    with ordinary_user(), pytest.raises(InputError, match="raw.csv: cannot be read .Permission denied"):
        prepare.prepare(public_folder / "raw.csv", cache_dir=public_folder / "cache")
    assert os.listdir(public_folder) == ["raw.csv"]


# ------------------------------------------------------------------ what is harmless

HARMLESS = {
    "CRLF": TABLE.replace(b"\n", b"\r\n"),
    "CR alone": TABLE.replace(b"\n", b"\r"),
    "a byte order mark": b"\xef\xbb\xbf" + TABLE,
    "blank lines before and after": b"\r\n\n" + TABLE + b"\n\n\n",
    "no last line break": TABLE.rstrip(b"\n"),
    "all fields quoted": b"".join(b",".join(b'"%s"' % f for f in row.split(b",")) + b"\n" for row in TABLE.split()),
    "other columns": TABLE.replace(b"\n", b",x\n"),
    "times with .0": TABLE[: len(HEAD)] + TABLE[len(HEAD) :].replace(b"\n", b".0\n"),
    "gzip with zeros after it": gzip.compress(TABLE) + bytes(512),
    "zip with an empty folder": zipped(("data/", b""), ("data/a.csv", TABLE)),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_harmless_is_read(tmp_path, case):
    (tmp_path / "raw.data").write_bytes(HARMLESS[case])
    frame = raw.read(tmp_path / "raw.data", columns=("user", "item", "time"))
    assert list(zip(frame["user"], frame["item"], frame["time"], strict=True)) == ROWS


def test_whole_times_first_and_fractions_later(tmp_path):
    """Beyond the first block, from which types are guessed."""
    rows = raw.BLOCK_BYTES // len(b"1,1,1000\n") + 1000
    text = HEAD + b"1,1,1000\n" * rows + b"1,2,1000.5\n"
    (tmp_path / "raw.csv").write_bytes(text)
    frame = raw.read(tmp_path / "raw.csv", columns=("user", "item", "time"))
    assert frame["time"].iloc[[0, -1]].tolist() == [1_000_000, 1_000_500] and frame.attrs["ticks_per_second"] == 1000


@pytest.mark.parametrize("case", ["one user", "one moment"])
def test_few_of_anything_can_be_prepared(tmp_path, case):
    rows = [(1 if case == "one user" else u, i, 5 if case == "one moment" else t) for u, i, t in ROWS]
    (tmp_path / "raw.csv").write_bytes(lines("{u},{i},{t}\n", "user,item,time\n", rows))
    folder = prepare.prepare(tmp_path / "raw.csv", columns=("user", "item", "time"), cache_dir=tmp_path / "cache")
    assert data.load(folder).meta["num_rows"] == 200


def test_any_file_name_will_do(tmp_path):
    """The folder's name is for people: what does not fit in it is replaced."""
    for name, starts in ((".hidden", "data-"), ("my file.csv", "my_file-"), ("-x.csv", "x-")):
        (tmp_path / name).write_bytes(TABLE)
        folder = prepare.prepare(tmp_path / name, columns=("user", "item", "time"), cache_dir=tmp_path / "cache")
        assert folder.name.startswith(starts)


# ------------------------------------------------------------------ archives that unpack to more than is allowed


def bomb(rows: int) -> bytes:
    return HEAD + b"1,2,3\n" * rows


BOMBS = {
    "gzip": lambda: gzip.compress(bomb(1_000_000)),
    "gzip in zip": lambda: zipped(("a.csv.gz", gzip.compress(bomb(1_000_000)))),
    "gzip of line breaks": lambda: gzip.compress(HEAD + b"\n" * 6_000_000),
    "gzip of zeros as parquet": lambda: gzip.compress(b"PAR1" + bytes(6_000_000)),
    "zip": lambda: zipped(("a.csv", bomb(1_000_000))),
    "zip by bzip2": lambda: zipped(("a.csv", bomb(1_000_000)), method=zipfile.ZIP_BZIP2),
    "parquet of one value": lambda: parquet(user=constant(10**6), item=constant(10**6), time=constant(10**6)),
}


@pytest.mark.parametrize("case", BOMBS)
def test_an_archive_that_unpacks_to_too_much(capsys, tmp_path, monkeypatch, case):
    """Refused at the limit (here 1 MB): what is read stays little more than that, however much there is."""
    content = BOMBS[case]()
    monkeypatch.setattr(archive, "FREE_BYTES", 1_000_000)
    monkeypatch.setattr(archive, "MAX_RATIO", 2)
    read, inside = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda *args: read.append(inside(*args)) or read[-1])
    (tmp_path / "raw.data").write_bytes(content)
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.data"]
    assert_refused(capsys, tmp_path, args, ["raw.data: unpacks to more than 1,000,000 bytes", "2 times the file's own"])
    assert sum(map(len, read)) < 1_200_000
    monkeypatch.setattr(archive, "FREE_BYTES", 30_000_000)  # the same file is read where so much is allowed
    if "parquet" not in case and "breaks" not in case:
        with pytest.raises(InputError, match="all 1000000 rows have the same item"):
            raw.read(tmp_path / "raw.data", columns=("user", "item", "time"))


def test_a_text_that_every_row_repeats_is_held_once(capsys, tmp_path):
    """Unpacked, 200,000 times 100 kB would be 20 GB."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200_000, np.int32)), pa.array(["x" * 100_000]))
    numbers = pa.array(np.arange(200_000))
    for name, says in (("user", "an id in user has 100000 characters"), ("time", "a time has 100000 characters")):
        columns = {"user": numbers, "item": numbers, "time": numbers} | {name: text}
        (tmp_path / "raw.parquet").write_bytes(parquet(**columns))
        args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.parquet"]
        assert_refused(capsys, tmp_path, args, [says])


# ------------------------------------------------------------------ settings

# id: the flag after --config. -> what the line says
VALUES = {
    "seed=-1": ["config.seed=-1", "0 or more"],
    "seed=4294967296": ["config.seed=4294967296", "4294967295 at most"],  # JAX would take it for 0
    "seed=1.5": ["config.seed=1.5", "a whole number"],
    "seed=99999999999999999999999": ["config.seed=99999999999999999999999", "at most"],
    "num_seeds=0": ["config.num_seeds=0", "1 or more"],
    "num_seeds=100000000": ["config.num_seeds=100000000", "10000 at most"],
    "num_epochs=-3": ["config.num_epochs=-3", "1 or more"],
    "num_epochs=1e3": ["config.num_epochs=1e3", "a whole number"],
    "eval_every=0": ["config.eval_every=0", "1 or more"],
    "batch_size=zero": ["config.batch_size=zero", "a whole number, 1 or more"],
    "batch_size=": ["config.batch_size= ", "a whole number, 1 or more"],
    "batch_size=1000000000": ["config.batch_size=1000000000", "1000000 at most"],
    "learning_rate=0": ["config.learning_rate=0.0", "finite and above 0"],
    "learning_rate=nan": ["config.learning_rate=nan", "finite and above 0"],
    "learning_rate=1e-50": ["config.learning_rate=1e-50", "from 1e-30 to 1e30"],  # 0 in float32
    "learning_rate=1e39": ["config.learning_rate=1e+39", "from 1e-30 to 1e30"],  # inf in float32
    "learning_rate=fast": ["config.learning_rate=fast", "a number"],
    "osf=-1": ["config.osf=-1.0", "above 0, or inf"],
    "osf=1e308": ["config.osf=1e+308", "1e6 at most"],
    "learning_rate_half_life=0": ["config.learning_rate_half_life=0.0", "above 0, or inf"],
    "osf=nan": ["config.osf=nan", "above 0, or inf"],
    "reference=perhaps": ["config.reference=perhaps", "true or false"],
    "steps_per_dispatch=-1": ["config.steps_per_dispatch=-1", "0 or more"],
    "seeds_per_chunk=-2": ["config.seeds_per_chunk=-2", "0 or more"],
    "checkpoint_seconds=nan": ["config.checkpoint_seconds=nan", "0 or more"],
    "debug=maybe": ["config.debug=maybe", "true or false"],
    "num_buckets=1001": ["config.num_buckets=1001", "1000 at most"],
    "method=mixd": ["config.method='mixd'", "one of uniform, popularity"],
    "dataset=": ["config.dataset=''", "1 to 60 letters"],
    "dataset=../../etc": ["config.dataset='../../etc'", "letters, digits"],
    "dataset=a b": ["config.dataset='a b'", "letters, digits"],
    f"dataset={'x' * 5000}": ["config.dataset='xxxxxxxx", "1 to 60 letters"],
    "data.format=csv": ["config.data.format='csv'", "one of auto, movielens_dat"],
    "data.split=random": ["config.data.split='random'", "temporal, leave_one_out"],
    "data.test_fraction=1": ["config.data.test_fraction=1.0", "above 0 and below 1"],
    "data.test_fraction=0.97": ["config.data.test_fraction + config.data.valid_fraction must be below 1"],
    "data.min_user_rows=0": ["config.data.min_user_rows=0", "1 or more"],
    "data.session_gap_seconds=-1": ["config.data.session_gap_seconds=-1.0", "0 or more"],
    "data.recent_days=inf": ["config.data.recent_days=inf", "finite and above 0"],
    "data.path=mine.csv": ["config.data.path='mine.csv' would not be read", "--config.data.format=auto"],
    "data.user_column=": ["user_column, item_column and time_column must be three different names", "''"],
    "data.user_column=Time": ["must be three different names", "'Time', 'ItemId', 'Time'"],
    "data.synthetic.num_users=200000": ["num_rows is 100000", "num_users"],
    "data.synthetic.num_items=1": ["config.data.synthetic.num_items=1", "2 or more"],
    "data.synthetic.num_items=30": ["num_tastes is 20", "num_items / 2"],
    "data.min_item_rows=100000": ["synthetic data: 0 items are left", "min_item_rows=100000"],
    "data.cache_dir=/dev/null": ["cache_dir /dev/null cannot be", "--config.data.cache_dir=DIR"],
    "data.cache_dir=~nobody-is-called-so/x": ["cache_dir ~nobody-is-called-so/x cannot be used", "a folder"],
    "data.cache_dir=a\0b": ["cache_dir a\\x00b cannot be used", "a folder"],
    f"data.cache_dir={'x' * 3000}": ["cannot be used (File name too long)"],
    "sampler.num_uniform=0": ["config.sampler.num_uniform=0 leaves method uniform without negatives"],
    "sampler.num_uniform=10000000": ["config.sampler.num_uniform=10000000", "1000000 at most"],
    "sampler.scope=user": ["config.sampler.scope='user'", "sequence, position, batch"],
    "sampler.pool=all": ["config.sampler.pool='all'", "uniform, in_batch, popularity"],
    "sampler.exponent=1000": ["config.sampler.exponent=1000.0", "10 at most"],
    "model.num_heads=7": ["config.model.num_heads=7 must divide config.model.width=50"],
    "model.width=1000000000": ["config.model.width=1000000000", "10000 at most"],  # XLA would abort the process
    "model.max_len=0": ["config.model.max_len=0", "1 or more"],
    "model.dropout=1": ["config.model.dropout=1.0", "below 1"],
    "optimizer.b2=1": ["config.optimizer.b2=1.0", "below 1"],
    "optimizer.item_table=lazy": ["config.optimizer.item_table='lazy'", "auto, dense, sparse"],
    "optimizer.epsilon=0": ["config.optimizer.epsilon=0.0", "above 0"],
    "loss.name=bpq": ["config.loss.name='bpq'", "one of bce"],
    "loss.negative_weight=1e300": ["config.loss.negative_weight=1e+300", "1e30 at most"],
    "eval.ks=()": ["config.eval.ks=()", "as in (5, 10)"],
    "eval.ks=ten": ["config.eval.ks=('ten',)", "as in (5, 10)"],
    "eval.ks=0": ["config.eval.ks=(0,)", "whole numbers of 1 or more"],
    "eval.ks=1000000000000": ["config.eval.ks=(1000000000000,)", "1000000 at most"],  # a table of 7 TiB
    f"eval.ks={'(' * 3000}": ["config.eval.ks=('(((((", "as in (5, 10)"],
    f"eval.ks={'9' * 6000}": ["config.eval.ks=('99999", "as in (5, 10)"],
    "eval.memory_mb=0": ["config.eval.memory_mb=0", "1 or more"],
    "eval.empty_balance=2": ["config.eval.empty_balance=2.0", "nan or 1"],
    "batchsize=3": ["no field 'batchsize'", "did you mean 'batch_size'"],
    "sampler=3": ["config.sampler is a group of fields", "sampler.scope"],
    "=3": ["no field ''", "--help lists them all"],
    "__class__=3": ["no field '__class__'"],
}


@pytest.mark.parametrize("flag", VALUES, ids=lambda flag: flag[:50].replace("\0", "NUL"))
def test_a_bad_setting(capsys, tmp_path, flag):
    assert_refused(capsys, tmp_path, [QUICKSTART, f"--config.{flag}"], VALUES[flag])


def test_more_negatives_than_items_is_found_when_the_data_is_there(capsys, tmp_path):
    config = [QUICKSTART, "--config.data.synthetic.num_items=90", "--config.data.synthetic.num_rows=5000",
              "--config.data.synthetic.num_users=100", "--config.sampler.num_uniform=91",
              f"--config.data.cache_dir={tmp_path}/cache"]  # fmt: skip
    main.main(["main.py", *config, f"--workdir={tmp_path}/run"])  # prepares the data, and says so
    capsys.readouterr()
    assert_refused(capsys, tmp_path, config, ["sampler.num_uniform is 91", "at most the number of items, 88"])
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ command lines

COMMANDS = {
    "nothing at all": ([], ["--config is needed", "configs/quickstart.py"]),
    "no config": (["--workdir=x"], ["--config is needed"]),
    "an empty config": (["--config="], ["--config is needed"]),
    "no workdir": ([QUICKSTART, "--workdir="], ["--workdir is needed", "--workdir=runs/first"]),
    "a flag without its value": ([QUICKSTART, "--workdir=x", "--config.data.cache_dir=x", "--config.seed"],
                                  ["Missing value for flag --config.seed"]),
    "a flag as the value of another": ([QUICKSTART, "--config.seed", "--config.seed"], ["config.seed=--config.seed"]),
    "an unknown flag": ([QUICKSTART, "--wrokdir=x", "--workdir=x"], ["wrokdir", "workdir"]),
    "three dashes": ([QUICKSTART, "---config.seed=1"], ["-config.seed"]),
    "a word too many": ([QUICKSTART, "again"], ["unexpected argument 'again'", "every setting is a flag"]),
    "a control character": ([QUICKSTART, "\x1b[31mred"], ["unexpected argument '\\x1b[31mred'"]),
    "bytes that are no text": ([QUICKSTART, "\udcff"], ["unexpected argument '\\udcff'"]),
    "no- with a value": ([QUICKSTART, "--noconfig.reference=true"], ["--noconfig.reference", "argument"]),
    "no- before what is no switch": ([QUICKSTART, "--noconfig.seed"], ["noconfig.seed"]),
    "no- in the middle": ([QUICKSTART, "--config.noreference"], ["no field 'noreference'", "'reference'"]),
    "capital letters": ([QUICKSTART, "--config.Seed=1"], ["no field 'Seed'", "did you mean 'seed'"]),
    "a file of flags": ([QUICKSTART, f"--flagfile={sys.executable}"], ["--flagfile", "on the command line"]),
    "flags excused": ([QUICKSTART, "--undefok=sed", "--sed=3"], ["--undefok=sed", "is not allowed"]),
    "a config that is not there": (["--config=configs/ml1.py"], ["there is no file configs/ml1.py"]),
    "a folder as config": ([f"--config={ROOT}/configs"], ["there is no file", "configs"]),
    "a long name as config": (["--config=" + "x" * 5000], ["File name too long"]),
    "a device as config": (["--config=/dev/null"], ["there is no file /dev/null"]),
    "a program as config": ([f"--config={sys.executable}"], ["SyntaxError"]),
    "an unknown method": ([QUICKSTART.replace("uniform", "hard")], ["unknown method 'hard'", "known: uniform"]),
    "two methods": ([QUICKSTART + ":mixed"], ["unknown method 'uniform:mixed'", "known: uniform"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_line(capsys, tmp_path, case):
    args, says = COMMANDS[case]
    if case == "no workdir":
        assert main.main(["main.py", *args]) == 2
        assert_one_line(capsys, says)
    else:
        assert_refused(capsys, tmp_path, args, says)


BASE = "from jaxneg import config\ndef get_config():\n    c = config.base()\n"
CONFIG_FILES = {
    "empty": ("", ["KeyError: get_config"]),
    "not Python": ("def get_config(:\n", ["SyntaxError"]),
    "not text": (b"\xff\xfe\x00c", ["SyntaxError"]),
    "raises": ("raise RuntimeError('two\\nlines')\n", ["RuntimeError in line 1: two lines"]),
    "leaves": ("import sys\nsys.exit('enough')\n", ["SystemExit in line 2: enough"]),
    "never ends its calls": ("def get_config():\n    return get_config()\n", ["RecursionError"]),
    "imports what is not there": ("import nowhere_to_be_found\n", ["ModuleNotFoundError in line 1"]),
    "a number as get_config": ("get_config = 5\n", ["TypeError", "not callable"]),
    "gives nothing": ("def get_config():\n    pass\n", ["get_config must return a config made by jaxneg.config"]),
    "gives a dict": ("def get_config():\n    return {'seed': 1}\n", ["made by jaxneg.config.base()"]),
    "a misspelt field": (BASE + "    c.batchsize = 3\n    return c\n", ['Did you mean "batch_size"']),
    "a wrong type": (BASE + "    c.batch_size = 'x'\n    return c\n", ["TypeError in line 4"]),
    "a wrong value": (BASE + "    c.batch_size = 0\n    return c\n", ["config.batch_size=0", "1 or more"]),
    "a field more": (BASE + "    c.unlock()\n    c.extra = 1\n    return c\n", ["no field 'extra'"]),
    "a field less": (BASE + "    c.unlock()\n    del c.osf\n    return c\n", ["lacks the fields osf"]),
    "a list": (BASE + "    c.osf = [1]\n    return c\n", ["TypeError in line 4", "'osf'", "list"]),
    "a list, typed anew": (BASE + "    c.unlock()\n    del c.osf\n    c.osf = [1]\n    return c\n",
                           ["config.osf=[1]", "a number"]),
    "None": (BASE + "    c.unlock()\n    c.osf = None\n    return c\n", ["config.osf=None", "a number"]),
    "text for a group": (BASE + "    c.unlock()\n    del c.model\n    c.model = 'x'\n    return c\n",
                         ["config.model is a group of fields"]),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_a_bad_config_file(capsys, tmp_path, case):
    text, says = CONFIG_FILES[case]
    path = tmp_path / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(capsys, tmp_path, [f"--config={path}"], says)


# ------------------------------------------------------------------ prepared folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A raw file and the cache in which it is prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "raw.csv").write_bytes(TABLE)
    prepare.prepare(folder / "raw.csv", columns=("user", "item", "time"), cache_dir=folder / "cache")
    return folder


def change_array(name, change):
    def damage(folder):
        array = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", change(array))

    return damage


def change_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def change_meta(change):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


class Bait:
    """Pickled, it makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def pickled(folder):
    bait = np.array([Bait(folder.parent / "loaded")], dtype=object)
    np.save(folder / "items.npy", bait, allow_pickle=True)


def sealed(damage):
    """The damage, by somebody who brings meta.json's sizes and checksums in line with it."""

    def forge(folder):
        damage(folder)
        meta = json.loads((folder / "meta.json").read_text())
        for name, stated in meta["arrays"].items():
            content = (folder / f"{name}.npy").read_bytes()
            stated.update(bytes=len(content), crc32=zlib.crc32(content))
        (folder / "meta.json").write_text(json.dumps(meta))

    return forge


def set_at(index, value):
    def change(array):
        array[index] = value
        return array

    return change


def a_file_instead(folder):
    shutil.rmtree(folder)
    folder.touch()


# id -> (what is done to the folder, what the warning says)
DAMAGES = {
    "no meta.json": (lambda folder: (folder / "meta.json").unlink(), ["meta.json", "No such file"]),
    "empty meta.json": (change_bytes("meta.json", lambda b: b""), ["meta.json is damaged"]),
    "meta.json cut short": (change_bytes("meta.json", lambda b: b[:200]), ["meta.json is damaged"]),
    "meta.json of garbage": (change_bytes("meta.json", lambda b: b"\xff\0" * 50), ["meta.json is damaged"]),
    "meta.json of a list": (change_bytes("meta.json", lambda b: b"[1, 2]"), ["meta.json is damaged"]),
    "meta.json nested deeply": (change_bytes("meta.json", lambda b: b"[" * 100_000), ["meta.json is damaged"]),
    "meta.json without checksums": (change_meta(lambda m: m.pop("arrays")), ["meta.json is damaged", "arrays"]),
    "meta.json with text as a count": (change_meta(lambda m: m.update(num_users="7")), ["meta.json is damaged"]),
    "meta.json with another count": (change_meta(lambda m: m.update(num_users=8)), ["the shape and type"]),
    "meta.json of another data set": (change_meta(lambda m: m.update(fingerprint="0" * 16)), ["another fingerprint"]),
    "meta.json without a fingerprint": (change_meta(lambda m: m.pop("fingerprint")), ["another fingerprint, None"]),
    "an array missing": (lambda folder: (folder / "times.npy").unlink(), ["times.npy: cannot be read", "No such file"]),
    "an array cut short": (change_bytes("items.npy", lambda b: b[:-8]), ["items.npy: has 920 bytes, and 928 were"]),
    "an empty array file": (change_bytes("valid_end.npy", lambda b: b""), ["valid_end.npy: has 0 bytes"]),
    "a folder as an array": (lambda folder: ((folder / "items.npy").unlink(), (folder / "items.npy").mkdir()),
                             ["items.npy: "]),
    "one bit flipped": (change_bytes("times.npy", lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:]),
                        ["times.npy: is damaged", "checksum"]),
    "one bit flipped in a header": (change_bytes("items.npy", lambda b: b[:20] + bytes([b[20] ^ 4]) + b[21:]),
                                    ["items.npy: is damaged", "checksum"]),
    "two items exchanged": (change_array("items", lambda a: a[::-1].copy()), ["items.npy: is damaged", "checksum"]),
    "another type": (sealed(change_array("items", lambda a: a.astype(np.int64))), ["items.npy", "'<i4'"]),
    "another shape": (sealed(change_array("items", lambda a: a[None])), ["items.npy", "shape and type ((1, 200)"]),
    "a row less": (sealed(change_array("items", lambda a: a[1:])), ["items.npy: has the shape"]),
    "an item that is not there": (sealed(change_array("items", set_at(3, 12))), ["items goes from 1 to 12", "1 to 11"]),
    "the pad as an item": (sealed(change_array("items", set_at(3, 0))), ["items goes from 0", "allowed are 1 to 11"]),
    "users in disorder": (sealed(change_array("user_start", set_at(3, 5))), ["of user 2", "should ascend"]),
    "users beyond the rows": (sealed(change_array("user_start", set_at(-1, 201))), ["from 0 to 201", "200 rows"]),
    "training beyond its user": (sealed(change_array("train_end", set_at(0, 199))), ["of user 0", "should ascend"]),
    "validation before training": (sealed(change_array("valid_end", set_at(1, 0))), ["of user 1", "should ascend"]),
    "a negative count": (sealed(change_array("item_counts", set_at(1, -1))), ["item_counts goes from -1"]),
    "more users than there are": (sealed(change_array("item_counts", set_at(1, 8))), ["item_counts", "to 8", "0 to 7"]),
    "an unknown cohort": (sealed(change_array("item_cohorts", set_at(1, 3))), ["item_cohorts", "to 3", "0 to 2"]),
    "a pickled array": (pickled, ["items.npy: has "]),
    "a pickled array, sealed": (sealed(pickled), ["items.npy: is not an array that can be read", "Python objects"]),
    "a zip as an array": (sealed(change_bytes("items.npy", lambda b: zipped(("a.npy", b)))), ["items.npy: is not an"]),
    "text as an array": (sealed(change_bytes("items.npy", lambda b: b"1,2,3\n")), ["items.npy: is not an array"]),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_refused_when_read_and_made_again_from_the_raw_file(capsys, prepared, tmp_path, case):
    damage, says = DAMAGES[case]
    cache = tmp_path / "cache"
    shutil.copytree(prepared / "cache", cache)
    (folder,) = cache.iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    damage(folder)
    if "fingerprint" not in says[0]:  # of which only the caller knows what it should be
        with pytest.raises(InputError) as error:
            data.load(folder)
        assert str(error.value).startswith(str(folder)) and all(words in str(error.value) for words in says)
    assert prepare.prepare(prepared / "raw.csv", columns=("user", "item", "time"), cache_dir=cache) == folder
    warning, done = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"jaxneg: {folder}") and warning.endswith("; it is made again")
    assert all(words in warning for words in says) and "prepared 200" in done
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(cache.iterdir()) == [folder]  # and no file that a loaded pickle would have made


def test_the_pickled_array_would_do_harm_if_it_were_loaded(tmp_path):
    (tmp_path / "folder").mkdir()
    pickled(tmp_path / "folder")
    np.load(tmp_path / "folder" / "items.npy", allow_pickle=True)
    assert (tmp_path / "loaded").exists()


def test_a_sound_folder_of_others_is_used_and_a_closed_cache_refused(public_folder, capsys):
    raw_file, cache = public_folder / "raw.csv", public_folder / "cache"
    raw_file.write_bytes(TABLE)
    arguments = {"columns": ("user", "item", "time"), "cache_dir": cache}
    folder = prepare.prepare(raw_file, **arguments)
    cache.chmod(0o555)
    with ordinary_user():
        assert prepare.prepare(raw_file, **arguments) == folder
        with pytest.raises(InputError, match="cache_dir .*cache cannot be written .Permission denied.: name a folder"):
            prepare.prepare(raw_file, prepare.PrepareSettings(min_item_rows=1), **arguments)
    cache.chmod(0o755)
    assert list(cache.iterdir()) == [folder]


def test_a_cache_that_is_a_file_or_a_link_to_nothing(capsys, tmp_path):
    (tmp_path / "raw.csv").write_bytes(TABLE)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, says in (("file", "File exists"), ("file/below", "Not a directory"), ("link", "File exists")):
        args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.csv"]
        args += [f"--config.data.cache_dir={tmp_path}/{name}"]
        assert_refused(capsys, tmp_path, args, [f"cache_dir {tmp_path}/{name} cannot be written ({says})"])


# ------------------------------------------------------------------ a full disk


def test_a_full_disk(capsys, tmp_path, monkeypatch):
    written = []

    def full(self, content):
        written.append(len(content))
        if len(written) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.write(content)
        self.bytes += len(content)

    (tmp_path / "raw.csv").write_bytes(TABLE)
    monkeypatch.setattr(store._Summed, "write", full)
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.csv"]
    says = [f"cache_dir {tmp_path}/cache cannot be written (No space left on device)", "--config.data.cache_dir=DIR"]
    preparing = len(written)
    assert main.main(["main.py", *args, f"--workdir={tmp_path}/run", f"--config.data.cache_dir={tmp_path}/cache"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert all(words in last for words in says) and len(written) == preparing + 10
    assert list((tmp_path / "cache").iterdir()) == [] and not (tmp_path / "run").exists()


def test_files_may_not_grow_beyond_a_limit(tmp_path):
    """The system itself refuses to write, in the middle of an array."""
    rows = [(n % 500, n % 90, n) for n in range(60_000)]
    (tmp_path / "raw.csv").write_bytes(lines("{u},{i},{t}\n", "user,item,time\n", rows))
    args = ["main.py", INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.csv",
            f"--config.data.cache_dir={tmp_path}/cache", f"--workdir={tmp_path}/run"]  # fmt: skip
    code = ("import resource, sys; from jaxneg import experiment, main; "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.exit(main.main({args!r}))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert last.startswith(f"jaxneg: cache_dir {tmp_path}/cache cannot be written (File too large)")
    assert list((tmp_path / "cache").iterdir()) == [] and not (tmp_path / "run").exists()


def test_too_little_memory_is_one_line(capsys, tmp_path, monkeypatch):
    def run(config, workdir, extend, join_hosts):
        np.empty(2**60, np.int8)

    monkeypatch.setattr(experiment, "run", run)
    assert_refused(capsys, tmp_path, [QUICKSTART], ["not enough memory", "Unable to allocate 1.00 EiB"])


# ------------------------------------------------------------------ tables of results


@pytest.fixture(scope="module")
def finished():
    return ROOT / "results" / "eight_methods" / "ml1m" / "uniform"


def rows_of(finished):
    return (finished / "results.csv").read_bytes().splitlines(keepends=True)


# id -> (how results.csv is made of its lines, what the line says)
TABLES = {
    "empty": (lambda rows: b"", ["results.csv: is not a table as a run writes it"]),
    "a header only": (lambda rows: rows[0], ["results.csv: has a header and no row", "one row per seed"]),
    "garbage": (lambda rows: bytes(range(256)) * 9, ["is not a table as a run writes it"]),
    "NUL bytes": (lambda rows: bytes(500), ["is not a table as a run writes it"]),
    "UTF-16": (lambda rows: b"".join(rows).decode().encode("utf-16"), ["is not a table as a run writes it"]),
    "another table": (lambda rows: b"a,b\n1,2\n", ["no column dataset, method, seed"]),
    "JSON": (lambda rows: b'{"seed": 1}\n', ["is not a table as a run writes it"]),
    "cut in a row": (lambda rows: b"".join(rows)[:-300], ["row 2 has ", "fields, and the header has "]),
    "a field more": (lambda rows: rows[0] + rows[1][:-1] + b",5\n", ["row 1 has ", "and the header has "]),
    "text as a number": (lambda rows: rows[0] + rows[1].replace(b",0.0", b",many", 1), ["is 'many", "a number"]),
    "a huge number": (lambda rows: rows[0] + rows[1].replace(b",ok,", b",ok," + b"9" * 400, 1), ["is '9999", "number"]),
    "no method": (lambda rows: rows[0] + rows[1].replace(b"uniform", b""), ["row 1: method is empty"]),
    "an open quote": (lambda rows: rows[0] + b'"' + rows[1], ["is not a table as a run writes it"]),
    "an endless field": (lambda rows: rows[0] + b"x" * 200_000 + b"\n", ["is not a table", "field limit"]),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("name", ["results.csv", "baselines.csv"])
def test_a_broken_table(capsys, finished, tmp_path, name, case):
    change, says = TABLES[case]
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(change(rows_of(finished)))
    assert results.main([str(tmp_path)]) == 2
    assert_one_line(capsys, [f"{tmp_path}/run/{name}: ", *(words.replace("results.csv", name) for words in says)])


RESULT_FOLDERS = {
    "no such folder": (lambda folder: ["nowhere"], ["nowhere: no results.csv in or below it", "a finished run"]),
    "an empty folder": (lambda folder: [str(folder)], ["no results.csv in or below it"]),
    "a file": (lambda folder: [__file__], ["no results.csv in or below it"]),
    "a name too long": (lambda folder: ["x" * 5000], ["xxx"]),
    "a NUL": (lambda folder: ["a\0b"], ["a\\x00b: "]),
    "no folder named": (lambda folder: [], ["the following arguments are required: DIR"]),
    "an unknown flag": (lambda folder: ["--all", "x"], ["unrecognized arguments: --all"]),
    "a folder as results.csv": (lambda folder: (folder / "results.csv").mkdir() or [str(folder)],
                                ["baselines.csv: there is no such file"]),
    "no baselines.csv": (lambda folder: (folder / "results.csv").touch() or [str(folder)],
                         ["baselines.csv: there is no such file", "a finished run writes it"]),
}  # fmt: skip


@pytest.mark.parametrize("case", RESULT_FOLDERS)
def test_a_wrong_folder_of_results(capsys, tmp_path, case):
    make, says = RESULT_FOLDERS[case]
    assert results.main(make(tmp_path)) == 2
    assert_one_line(capsys, says)


# ------------------------------------------------------------------ the other commands

TOOLS = {
    "synthetic: no file": (synthetic, ["--rows=5"], ["required: --out"]),
    "synthetic: negative rows": (synthetic, ["--rows=-5", "--out=x.csv"], ["--rows=-5", "from 1 to 2^31 - 1"]),
    "synthetic: too many rows": (synthetic, ["--rows", "9" * 400, "--out=x.csv"], ["--rows=999", "2^31 - 1"]),
    "synthetic: text as rows": (synthetic, ["--rows=many", "--out=x.csv"], ["--rows: invalid int value: 'many'"]),
    "synthetic: one item": (synthetic, ["--rows=90", "--items=1", "--out=x.csv"], ["num_items is 1", "from 2"]),
    "synthetic: no days": (synthetic, ["--rows=90", "--days=nan", "--out=x.csv"], ["days is nan", "a number > 0"]),
    "synthetic: an unknown kind": (synthetic, ["--rows=90", "--out=x.xlsx"], ["out is x.xlsx", ".parquet, .csv"]),
    "synthetic: no such folder": (synthetic, ["--rows=90", "--out=no/such/x.csv"], ["out no/such/x.csv cannot be"]),
    "download: nothing": (download, [], ["required: dataset"]),
    "download: an unknown file": (download, ["ml-2m"], ["invalid choice: 'ml-2m'", "ml-1m"]),
    "download: a file that needs a login": (download, ["retailrocket", "--out=no/such"], ["events.csv needs a login"]),
    "download: a file as folder": (download, ["ml-1m", f"--out={__file__}"], ["cannot be written"]),
    "download: a NUL": (download, ["ml-1m", "--out=a\0b"], ["out a\\x00b cannot be written"]),
}


@pytest.mark.parametrize("case", TOOLS)
def test_a_bad_command_line_of_the_other_commands(capsys, tmp_path, monkeypatch, case):
    tool, args, says = TOOLS[case]
    monkeypatch.chdir(tmp_path)
    assert tool.main(args) == 2
    assert_one_line(capsys, says)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ no pickle, nothing evaluated

FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
FORBIDDEN_CALLS = {"eval", "exec", "read_pickle", "to_pickle", "fromfile"}


def risks(source: str) -> list[str]:
    """The places in a Python source that could run what a data file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if called in FORBIDDEN_CALLS and owner != "re":
            found.append(f"line {node.lineno}: {called}")
        if called == "load" and owner in ("np", "numpy"):
            allow = {keyword.arg: keyword.value for keyword in node.keywords}.get("allow_pickle")
            if not (isinstance(allow, ast.Constant) and allow.value is False):
                found.append(f"line {node.lineno}: np.load without allow_pickle=False")
    return found


def test_nothing_in_jaxneg_loads_a_pickle_or_evaluates_text():
    sources = sorted(pathlib.Path(jaxneg.__file__).parent.rglob("*.py"))
    assert len(sources) > 20
    assert {path.name: risks(path.read_text()) for path in sources if risks(path.read_text())} == {}


@pytest.mark.parametrize("source", [
    "import pickle", "from torch import load", "import numpy as np\nnp.load('x')", "np.load('x', allow_pickle=True)",
    "np.load('x', allow_pickle=flag)", "pd.read_pickle('x')", "eval('1')", "exec(text)", "import joblib.numpy_pickle",
])  # fmt: skip
def test_the_search_for_pickles_finds_them(source):
    assert len(risks(source)) == 1
