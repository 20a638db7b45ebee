"""Whatever is wrong with a raw file: one line on stderr that names the value and what is allowed, exit code 2, no
traceback, and nothing half-written. And what is harmless is read.
"""

import gzip
import io
import os
import stat
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from refusals import COLUMNS, INTERACTIONS, ROWS, TABLE, TIME, assert_refused, lines, ordinary_user, zipped

from jaxneg.data import archive, prepare, raw
from jaxneg.data import dataset as data
from jaxneg.errors import InputError

# ------------------------------------------------------------------ rows of each text format

# reader -> (a line, the header, the names of user, item and time in messages)
READERS = {
    "movielens_dat": ("{u}::{i}::3.5::{t}\n", "", ("user", "item", "time")),
    "movielens_csv": ("{u},{i},3.5,{t}\n", "userId,movieId,rating,timestamp\n", ("userId", "movieId", "timestamp")),
    "movielens_100k": ("{u}\t{i}\t3\t{t}\n", "", ("user", "item", "time")),
    "amazon": ("{u},{i},5.0,{t}\n", "", ("user", "item", "time")),
    "amazon_csv": ("{u},{i},5.0,{t}\n", "UserId,ProductId,Rating,Timestamp\n", ("UserId", "ProductId", "Timestamp")),
    "retailrocket": (
        "{t},{u},view,{i},\n",
        "timestamp,visitorid,event,itemid,transactionid\n",
        ("visitorid", "itemid", "timestamp"),
    ),
    "table_csv": ("{u},{i},{t}\n", "user,item,time\n", ("user", "item", "time")),
    "table_tsv": ("{t}\tx\t{i}\t{u}\n", "time\tnote\titem\tuser\n", ("user", "item", "time")),
}
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

HEAD = b"user,item,time\n"


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
    "all filtered away": (
        "a.csv",
        HEAD + b"1,2,3\n1,3,4\n2,5,6\n",
        [],
        ["0 items are left of 3 rows", "min_item_rows=5"],
    ),
    "every user once": (
        "a.csv",
        lines("{u},{i},{t}\n", "user,item,time\n", [(n, n % 5, n) for n in range(99)]),
        [],
        ["0 items are left of 99 rows", "min_user_rows=2"],
    ),
    "no test row of a known user": (
        "a.csv",
        HEAD + b"".join(b"%d,%d,%d\n" % (n // 95, n % 5, n) for n in range(100)),
        ["--config.data.min_item_rows=1"],
        ["temporal split has no test case"],
    ),
    "too short for leave-one-out": (
        "a.csv",
        HEAD + b"1,1,1\n1,2,2\n2,1,3\n2,2,4\n",
        ["--config.data.split=leave_one_out", "--config.data.min_item_rows=1"],
        ["leave_one_out split has no test case"],
    ),
    "times of day": ("a.csv", HEAD + b"1,2,10:00\n1,3,11:00\n", [], ["column time has the type time32", TIME]),
    "true and false as times": ("a.csv", HEAD + b"1,2,true\n1,3,false\n", [], ["the type bool", TIME]),
    "a date before 1970": ("a.csv", HEAD + b"1,2,1969-12-31\n1,3,2001-01-01\n", [], ["row 1: time is -86400", TIME]),
    "dates and numbers": ("a.csv", HEAD + b"1,2,2001-01-01\n1,3,77\n", [], ["row 1: time is '2001-01-01'", TIME]),
    "thousands separators": ("a.csv", TABLE + b'1,2,"1,000"\n', [], ["row 201: time is '1,000'", TIME]),
    "an unknown event": (
        "a.csv",
        lines(*READERS["retailrocket"][:2]),
        ["--config.data.event=purchase"],
        ["no row has the event 'purchase'", "the events are view"],
    ),
    "another format than stated": (
        "a.csv",
        TABLE,
        ["--config.data.format=movielens_dat"],
        ["is not movielens_dat: its first line is 'user,item,time'", "user::item::rating"],
    ),
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
    "zip without the stated member": (
        "a.zip",
        zipped(("a.csv", TABLE)),
        ["--config.data.member=b.csv"],
        ["no member fits ('b.csv' is wanted)", "holds a.csv"],
    ),
    "a member of what is no zip": ("a.csv", TABLE, ["--config.data.member=b.csv"], ["'b.csv' is stated", "not a zip"]),
    "zip of an empty table": ("a.zip", zipped(("a.csv", b"")), [], ["member 'a.csv' is empty"]),
    "zip with a password": ("a.zip", encrypted(), [], ["member 'ratings.csv' is encrypted", "unpack it first"]),
    "zip that climbs out": ("a.zip", zipped(("../../ratings.csv", TABLE)), [], ["'../../ratings.csv'", "leaves"]),
    "zip whose other member climbs out": (
        "a.zip",
        zipped(("ratings.csv", TABLE), ("x/../../y", b"")),
        [],
        ["'x/../../y'", "leaves the archive"],
    ),
    "zip with an absolute path": ("a.zip", zipped(("/etc/ratings.csv", TABLE)), [], ["'/etc/ratings.csv'", "leaves"]),
    "zip with a drive letter": ("a.zip", zipped(("C:/ratings.csv", TABLE)), [], ["'C:/ratings.csv'", "leaves"]),
    "zip with a symbolic link": ("a.zip", linked(), [], ["'passwords' is a symbolic link"]),
    "zip that unpacks to more than it says": ("a.zip", lying(1000), [], ["is not what it declares"]),
    "zip that says it is huge": (
        "a.zip",
        lying(4_000_000_000),
        [],
        ["unpacks to more than 268,435,456 bytes", "100 times"],
    ),
    # parquet
    "parquet cut short": ("a.parquet", parquet()[:-200], [], ["is not a sound parquet file"]),
    "parquet of nothing": ("a.parquet", b"PAR1", [], ["is not a sound parquet file"]),
    "parquet damaged inside": ("a.parquet", parquet()[:30] + b"\xff" * 40 + parquet()[70:], [], ["sound parquet file"]),
    "parquet without a row": (
        "a.parquet",
        parquet(user=pa.array([], pa.int64()), item=pa.array([], pa.int64()), time=pa.array([], pa.int64())),
        [],
        ["no row of data in it"],
    ),
    "parquet without a column": (
        "a.parquet",
        parquet(),
        ["--config.data.user_column=who"],
        ["no column who", "'user', 'item', 'time'"],
    ),
    "parquet with a column twice": ("a.parquet", parquet_of_doubles(), [], ["column time is there more than once"]),
    "parquet with lists as ids": ("a.parquet", parquet(item=[[n] for n in range(200)]), [], ["item has the type list"]),
    "parquet with structs as times": (
        "a.parquet",
        parquet(time=[{"t": n} for n in range(200)]),
        [],
        ["time has the type struct", TIME],
    ),
    "parquet with bytes as ids": ("a.parquet", parquet(item=[b"x%d" % n for n in range(200)]), [], ["the type binary"]),
    "parquet with fractions as ids": ("a.parquet", parquet(item=[n + 0.5 for n in range(200)]), [], ["item is 0.5"]),
    "parquet with a null id": ("a.parquet", parquet(item=[None, *range(199)]), [], ["row 1: item is empty or NaN"]),
    "parquet with a null time": ("a.parquet", parquet(time=[*range(199), None]), [], ["row 200: time is empty", TIME]),
    "parquet with durations": (
        "a.parquet",
        parquet(time=pa.array(range(200), pa.duration("s"))),
        [],
        ["type duration[s]", TIME],
    ),
    "parquet with text as times": ("a.parquet", parquet(time=["soon"] * 200), [], ["row 1: time is 'soon'", TIME]),
    "parquet with a text of a page as time": ("a.parquet", parquet(time=["9" * 5000] * 200), [], ["5000 characters"]),
}


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
    rows = raw.PREFETCH_BYTES // len(b"1,1,1000\n") + 1000
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
