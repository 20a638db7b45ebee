"""Raw files: every format, plain and packed, reads to the rows that are in it; what is wrong is told in one line."""

import gzip
import io
import re
import string
import zipfile

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxneg.data import raw
from jaxneg.errors import InputError

HEADER = "SessionId,ItemId,Time\n"
# format -> the text, and the rows that it means
FORMATS = {
    "movielens_dat": ("1::122::5::838985046\n2::185::4.5::838983525\n", [(1, 122, 838985046), (2, 185, 838983525)], 1),
    "movielens_csv": (
        "userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,3.5,1112484676\n",
        [(1, 2, 1112486027), (1, 29, 1112484676)],
        1,
    ),
    "movielens_100k": (
        "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
        [(196, 242, 881250949), (186, 302, 891717742)],
        1,
    ),
    "amazon": (
        "A39HTATAQ9V7YF,0205616461,5.0,1369699200\nA3JM6GV9MNOF9X,0558925278,3.0,1355443200\n",
        [("A39HTATAQ9V7YF", "0205616461", 1369699200), ("A3JM6GV9MNOF9X", "0558925278", 1355443200)],
        1,
    ),
    "amazon_csv": (
        "UserId,ProductId,Rating,Timestamp\nA39HTATAQ9V7YF,0205616461,5.0,1369699200\nA1,B2,3.0,7\n",
        [("A39HTATAQ9V7YF", "0205616461", 1369699200), ("A1", "B2", 7)],
        1,
    ),
    "retailrocket": (
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n"
        "1433224214164,992329,transaction,248676,4000\n",
        [(257597, 355908, 1433221332117), (992329, 248676, 1433224214164)],
        1000,
    ),
    "table": (
        "ItemId\tRating\tTime\tSessionId\n85123A\t\t1291191960\t17850\n71053\t3\t1291191961\t17851\n",
        [(17850, "85123A", 1291191960), (17851, "71053", 1291191961)],
        1,
    ),
}


def rows_of(frame: pd.DataFrame) -> list[tuple]:
    return list(zip(frame["user"].tolist(), frame["item"].tolist(), frame["time"].tolist(), strict=True))


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PACKINGS = {
    "plain": ("file.txt", lambda b: b),
    "crlf": ("file.txt", lambda b: b.replace(b"\n", b"\r\n")),
    "bom": ("file.txt", lambda b: b"\xef\xbb\xbf" + b),
    "no last newline": ("file.txt", lambda b: b.rstrip(b"\n")),
    "gzip": ("file.gz", gzip.compress),
    "gzip in two parts": ("file.gz", lambda b: gzip.compress(b[:30]) + gzip.compress(b[30:])),
    "gzip without the name": ("file.txt", gzip.compress),
    "zip": ("file.zip", lambda b: zip_of({"ml/": b"", "ml/README": b"x", "ml/ratings.dat": b, "ml/users.dat": b""})),
    "zip of one table": ("file.zip", lambda b: zip_of({"LICENSE": b"x", "mine.tsv": b, "__MACOSX/._mine.tsv": b"x"})),
    "gzip in zip": ("file.zip", lambda b: zip_of({"mine.tsv.gz": gzip.compress(b)})),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_in_every_packing(tmp_path, format, packing):
    text, expected, ticks = FORMATS[format]
    name, pack = PACKINGS[packing]
    (tmp_path / name).write_bytes(pack(text.encode()))
    for stated in ("auto", format):
        frame = raw.read(tmp_path / name, stated)
        assert rows_of(frame) == expected
        assert frame.attrs == {"format": format, "ticks_per_second": ticks}
        assert frame["time"].dtype == "int64"
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing is unpacked beside it


@pytest.mark.parametrize("format", FORMATS)
def test_a_wrong_stated_format_is_refused(tmp_path, format):
    path = tmp_path / "file.txt"
    path.write_text(FORMATS[format][0])
    for other in set(FORMATS) - {format, "table"}:
        with pytest.raises(InputError, match=f"is not {other}: its first line is"):
            raw.read(path, other)


def test_events_come_with_retailrocket(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(FORMATS["retailrocket"][0])
    assert raw.read(path)["event"].tolist() == ["view", "transaction"]


TIMES = {
    "whole": (["0", "12"], [0, 12], 1),
    "whole floats": (["1318896000.0", "1.5e9"], [1318896000, 1500000000], 1),
    "fractions": (["978300019.25", "978300020"], [978300019250, 978300020000], 1000),
    "dates": (["1970-01-02", "2000-03-01"], [86400, 951868800], 1),
    "moments": (["1970-01-01 00:01:00", "1970-01-01 01:00:00"], [60, 3600], 1),
    "moments with fractions": (["1970-01-01 00:00:01.5", "1970-01-01 00:00:02"], [1500, 2000], 1000),
}


@pytest.mark.parametrize("case", TIMES)
def test_times(tmp_path, case):
    texts, expected, ticks = TIMES[case]
    (tmp_path / "t.csv").write_text(HEADER + "".join(f"1,{i},{t}\n" for i, t in enumerate(texts)))
    frame = raw.read(tmp_path / "t.csv")
    assert (frame["time"].tolist(), frame.attrs["ticks_per_second"]) == (expected, ticks)


IDS = st.one_of(
    st.lists(st.integers(0, 10**17), min_size=2, unique=True),
    st.lists(st.text(string.ascii_letters + string.digits + "_-é", min_size=1, max_size=12), min_size=2, unique=True),
)
MISSING = {"NA", "NaN", "nan", "null", "NULL"}  # what pyarrow reads as missing: such ids are refused


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(users=IDS, items=IDS, data=st.data(), kind=st.sampled_from(["csv", "tsv", "parquet", "dat", "tsv.gz"]))
def test_a_written_file_reads_back(tmp_path, users, items, data, kind):
    row = st.tuples(st.sampled_from(users), st.sampled_from(items), st.integers(0, 2**50))
    rows = data.draw(st.lists(row, min_size=1, max_size=30))
    rows += [(users[0], items[0], 5), (users[1], items[1], 6)]
    if any(str(value) in MISSING for row in rows for value in row):
        return
    frame = pd.DataFrame(rows, columns=["who", "what", "when"])
    path = tmp_path / f"file.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "dat":
        path.write_text("".join(f"{u}::{i}::3::{t}\n" for u, i, t in rows))
    else:
        frame.to_csv(path, index=False, sep="," if kind == "csv" else "\t")
    read = rows_of(raw.read(path, columns=("who", "what", "when")))
    # text that is a whole number in every row comes back as numbers: compare as text, which is exact either way
    assert [tuple(map(str, row)) for row in read] == [tuple(map(str, row)) for row in rows]


def test_007_is_not_7(tmp_path):
    (tmp_path / "t.csv").write_text(HEADER + "1,007,1\n1,7,2\n-3,8,3\n")
    frame = raw.read(tmp_path / "t.csv")
    assert frame["item"].tolist() == ["007", "7", "8"]
    assert frame["user"].tolist() == [1, 1, -3]


BAD = {
    "unparsable time": ("t.csv", HEADER + "1,2,3\n1,5,x\n", r"row 2: Time is 'x'; a time is a number >= 0"),
    "negative time": ("t.csv", HEADER + "1,2,3\n1,5,-4\n", r"row 2: Time is -4"),
    "infinite time": ("t.csv", HEADER + "1,2,3\n1,5,inf\n", r"row 2: Time is inf"),
    "huge time": ("t.csv", HEADER + "1,2,3\n1,5,99999999999999999999\n", r"row 2: Time is 1e\+20"),
    "NaN time": ("t.csv", HEADER + "1,2,3\n1,5,NaN\n", r"row 2: Time is empty or NaN"),
    "time of day": ("t.csv", HEADER + "1,2,10:00\n1,5,11:00\n", r"column Time has the type time32"),
    "NaN item": ("t.csv", HEADER + "1,2,3\n1,nan,4\n", r"row 2: ItemId is empty or NaN"),
    "empty user": ("t.csv", HEADER + "1,2,3\n1,2,4\n,5,4\n", r"row 3: SessionId is empty or NaN"),
    "blank user": ("t.csv", HEADER + "1,2,3\n   ,5,4\n", r"row 2: SessionId is empty"),
    "long id": ("t.csv", HEADER + f"1,{'x' * 300},3\n1,5,4\n", r"an id in ItemId has 300 characters; at most 256"),
    "one item": ("t.csv", HEADER + "1,2,3\n2,2,4\n", r"all 2 rows have the same item; at least two"),
    "missing column": ("t.csv", "SessionId,Item,Time\n1,2,3\n", r"no column ItemId .* 'SessionId', 'Item', 'Time'"),
    "double column": ("t.csv", "SessionId,ItemId,Time,Time\n1,2,3,4\n", r"column Time is there more than once"),
    "wrong delimiter": ("t.csv", "SessionId;ItemId;Time\n1;2;3\n", r"has 'SessionId;ItemId;Time' \(tab- or comma-sep"),
    "short row": ("t.csv", HEADER + "1,2,3\n1,5\n1,6,7\n", r"row 2: Expected 3 columns, got 2: 1,5"),
    "short :: row": ("t.dat", "1::2::3::4\n1::2::3:4\n", r"row 2: Expected 7 columns, got 6: .*user::item::rating"),
    "filled :: gap": ("t.dat", "1::2::3::4\n1:9:2::3::4\n", r"row 2: .* invalid value '9'"),
    "header only": ("t.csv", HEADER, r"there is no row of data in it"),
    "blank lines": ("t.csv", "\n\n\n", r"there is no row of data in it"),
    "empty": ("t.csv", "", r"the file is empty"),
    "bad encoding, first line": ("t.csv", b"\xe9,b\n1,2\n", r"is not UTF-8 text"),
    "bad encoding, later": ("t.csv", HEADER.encode() + b"1,2,3\n1,\xe9\xff,3\n", r"row 2: .* invalid UTF8 data"),
    "UTF-16": ("t.csv", HEADER.encode("utf-16"), r"is neither UTF-8 text nor parquet"),
    "no gzip": ("t.csv.gz", HEADER, r"is named .gz but is not a gzip file"),
    "empty gzip": ("t.csv.gz", gzip.compress(b""), r"the unpacked file is empty"),
    "truncated gzip": ("t.gz", gzip.compress((HEADER + "1,2,3\n1,3,4\n").encode())[:-9], r"truncated or damaged"),
    "damaged gzip": ("t.gz", gzip.compress(HEADER.encode())[:15] + b"\0" * 20, r"truncated or damaged"),
    "no zip": ("t.zip", HEADER, r"is named .zip but is not a zip file"),
    "cut zip": ("t.zip", zip_of({"a.csv": HEADER.encode()})[:-30], r"is not a sound zip file"),
    "empty zip": ("t.zip", zip_of({}), r"no member fits .* the zip holds nothing"),
    "two tables": ("t.zip", zip_of({"a.csv": b"1", "b.csv": b"1"}), r"2 members fit .* holds a.csv, b.csv"),
    "two known": ("t.zip", zip_of({"a/ratings.csv": b"1", "u.data": b"1"}), r"2 members fit .* a/ratings.csv, u.data"),
    "climbing": ("t.zip", zip_of({"../../etc/ratings.csv": HEADER.encode()}), r"has a path that leaves the archive"),
    "absolute": ("t.zip", zip_of({"/etc/ratings.csv": HEADER.encode()}), r"has a path that leaves the archive"),
    "empty member": ("t.zip", zip_of({"ratings.csv": b""}), r"member 'ratings.csv' is empty"),
    "no parquet": ("t.parquet", b"PAR1abc", r"is not a sound parquet file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=message) as caught:
        raw.read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_row_far_down_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "1,2,3\n" * 400_000 + "1,4,y\n1,3,4\n")
    with pytest.raises(InputError, match=r"row 400001: Time is 'y'"):
        raw.read(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        raw.read(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder"):
        raw.read(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"format": "movielenz"}, "format is 'movielenz'; allowed are auto, movielens_dat"),
        ({"format": "parquet"}, "is not a parquet file"),
        ({"columns": ("a", "b")}, "allowed are three different names"),
        ({"columns": ("a", "b", "b")}, "allowed are three different names"),
        ({"member": "x.csv"}, "'x.csv' is stated, but the file is not a zip"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    (tmp_path / "t.csv").write_text(HEADER + "1,2,3\n1,3,4\n")
    with pytest.raises(InputError, match=message):
        raw.read(tmp_path / "t.csv", **arguments)


def test_stated_member(tmp_path):
    good = (HEADER + "1,2,3\n1,3,4\n").encode()
    (tmp_path / "t.zip").write_bytes(zip_of({"x/a.csv": good, "b.csv": b"no"}))
    assert rows_of(raw.read(tmp_path / "t.zip", member="a.csv")) == [(1, 2, 3), (1, 3, 4)]
    with pytest.raises(InputError, match=r"no member fits \('c.csv' is wanted\)"):
        raw.read(tmp_path / "t.zip", member="c.csv")


def test_member_that_unpacks_to_more_than_it_declares(tmp_path):
    content = (HEADER + "1,2,3\n" * 200_000 + "1,3,4\n").encode()
    packed = bytearray(zip_of({"ratings.csv": content}))
    true_size = len(content).to_bytes(4, "little")
    assert packed.count(true_size) == 2  # in the member's own header, and in the central directory
    lie = packed.replace(true_size, (1000).to_bytes(4, "little"))
    (tmp_path / "t.zip").write_bytes(lie)
    with pytest.raises(InputError, match="a member is not what it declares"):
        raw.read(tmp_path / "t.zip")


def test_encrypted_member(tmp_path):
    packed = bytearray(zip_of({"ratings.csv": HEADER.encode()}))
    packed[packed.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    (tmp_path / "t.zip").write_bytes(packed)
    with pytest.raises(InputError, match="is encrypted"):
        raw.read(tmp_path / "t.zip")


PARQUET = {
    "missing column": ({"SessionId": [1], "Item": [2], "Time": [3]}, r"no column ItemId; the file has 'SessionId'"),
    "NaN id": ({"SessionId": [1, 1], "ItemId": [2, None], "Time": [3, 4]}, r"row 2: ItemId is"),
    "fraction as id": ({"SessionId": [1, 1], "ItemId": [2, 2.5], "Time": [3, 4]}, r"row 2: ItemId is 2.5"),
    "list as id": ({"SessionId": [1, 1], "ItemId": [[2], [3]], "Time": [3, 4]}, r"column ItemId has the type list"),
    "NaN time": ({"SessionId": [1, 1], "ItemId": [2, 3], "Time": [3, None]}, r"row 2: Time is"),
    "text as time": ({"SessionId": [1, 1], "ItemId": [2, 3], "Time": ["3", "x"]}, r"row 2: Time is 'x'"),
    "no row": ({"SessionId": [], "ItemId": [], "Time": []}, r"there is no row of data in it"),
}


@pytest.mark.parametrize("case", PARQUET)
def test_bad_parquet(tmp_path, case):
    data, message = PARQUET[case]
    pd.DataFrame(data).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        raw.read(tmp_path / "t.parquet")


def test_parquet_with_categories_and_moments_in_a_zip(tmp_path):
    frame = pd.DataFrame(
        {
            "SessionId": pd.Categorical(["b", "a", "b"]),
            "ItemId": pd.Categorical([30, 10, 20]),
            "Time": pd.to_datetime([1000, 2000, 3500], unit="ms"),
        }
    )
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    (tmp_path / "t.zip").write_bytes(zip_of({"t.parquet": buffer.getvalue()}))
    read = raw.read(tmp_path / "t.zip")
    assert rows_of(read) == [("b", 30, 1000), ("a", 10, 2000), ("b", 20, 3500)]
    assert read.attrs == {"format": "parquet", "ticks_per_second": 1000}


def test_integers_pattern_fits_int64():
    assert re.fullmatch(raw.INTEGER, str(10**18 - 1)) and not re.fullmatch(raw.INTEGER, str(2**63))
