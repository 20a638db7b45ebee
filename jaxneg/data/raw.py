"""A raw file in a known format -> a frame with the columns user, item and time (and event, where there is one).

A format is one row of FORMATS. Ids that are all whole numbers stay integers, others become categories; times are
int64. Files may be plain, gzipped, or inside a zip (see archive.py); parquet is told by its first bytes.
"""

import csv
import io
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from jaxneg.data import archive
from jaxneg.errors import InputError

COLUMNS = ("SessionId", "ItemId", "Time")  # of a table, unless others are stated
PARQUET_MAGIC = b"PAR1"
HEAD_BYTES = 1 << 16
PREFETCH_BYTES = 1 << 23
BYTES_PER_VALUE = 8  # of a parquet column once it is read
MAX_ID_LENGTH = 256  # characters; ids are kept as fixed-width text
MAX_TIME_LENGTH = 64  # characters of a time that is text
MAX_TIME = 2**53  # above it a float64 no longer tells two whole numbers apart
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"  # "007" and "7" are two ids, so 007 keeps a column from being integers
TIME_RULE = "a time is a number >= 0 (seconds since 1970, or a rank) or a date since 1970"


class RawFormat(NamedTuple):
    """How one text format is laid out. `names` of a file without header are its fields; "" is an empty field."""

    delimiter: str  # one character: "::" is read as ":" with empty fields between
    names: tuple[str, ...]
    header: bool
    first_line: str  # a regular expression that the first line matches, and no other format's does
    example: str
    columns: tuple[str, str, str] = ("user", "item", "time")
    event: str = ""  # the column with the kind of event, if there is one
    ticks_per_second: int = 1


FORMATS = {
    "movielens_dat": RawFormat(
        ":",
        ("user", "", "item", "", "rating", "", "time"),
        False,
        r"[^:,\t]+::[^:,\t]+::[^:,\t]+::[^:,\t]+",
        "user::item::rating::time",
    ),
    "movielens_csv": RawFormat(
        ",",
        (),
        True,
        r"userId,movieId,rating,timestamp",
        "userId,movieId,rating,timestamp (a header)",
        columns=("userId", "movieId", "timestamp"),
    ),
    "movielens_100k": RawFormat(
        "\t",
        ("user", "item", "rating", "time"),
        False,
        r"[^\t]+\t[^\t]+\t[0-9.]+\t[0-9]+",
        "user<tab>item<tab>rating<tab>time, no header",
    ),
    "amazon": RawFormat(
        ",",
        ("user", "item", "rating", "time"),
        False,
        r"[^,]+,[^,]+,[0-9.]+,[0-9]+",
        "user,item,rating,time, no header",
    ),
    "amazon_csv": RawFormat(
        ",",
        (),
        True,
        r"UserId,ProductId,Rating,Timestamp",
        "UserId,ProductId,Rating,Timestamp (a header)",
        columns=("UserId", "ProductId", "Timestamp"),
    ),
    "retailrocket": RawFormat(
        ",",
        (),
        True,
        r"timestamp,visitorid,event,itemid(,transactionid)?",
        "timestamp,visitorid,event,itemid,transactionid (a header; milliseconds)",
        columns=("visitorid", "itemid", "timestamp"),
        event="event",
        ticks_per_second=1000,
    ),
}
NAMES = ("auto", *FORMATS, "table", "parquet")


def read(
    path: str | pathlib.Path,
    format: str = "auto",
    *,
    columns: Sequence[str] = COLUMNS,
    member: str = "",
) -> pd.DataFrame:
    """Reads a raw file into a frame with the columns user, item (integers or categories), time (int64).

    Args:
        path: a text or parquet file; plain, gzipped, or in a zip.
        format: a name in FORMATS, "table" (text with a header, or parquet), "parquet", or "auto": told by the content.
        columns: the user, item and time columns of a table.
        member: which member of a zip to read, where its name does not tell.

    Returns:
        The rows in file order. RetailRocket has a fourth column, event. `attrs["format"]` is the format found,
        `attrs["ticks_per_second"]` the unit of time: 1 for seconds, 1000 for milliseconds.

    Raises:
        InputError: the file is missing, empty, damaged or in another format than stated, a column is missing, a time
            is unparsable, NaN or negative, an id is NaN or empty, or there are fewer than two items.
    """
    if format not in NAMES:
        raise InputError(f"format is {format!r}; allowed are {', '.join(NAMES)}")
    if len(columns) != 3 or len(set(columns)) != 3 or not all(isinstance(c, str) and c for c in columns):
        raise InputError(f"columns is {tuple(columns)}; allowed are three different names: user, item, time")
    with archive.open_stream(path, member) as stream:
        head = stream.read(HEAD_BYTES)
        stream.seek(0)
        if head.startswith(PARQUET_MAGIC):
            if format in FORMATS:
                raise InputError(f"{path}: is a parquet file, not {format}; allowed for it are auto, table, parquet")
            found, wanted, spec = "parquet", tuple(columns), None
            table = _read_parquet(stream, path, wanted)
        else:
            found, spec = _detect(path, head, format, columns)
            wanted = spec.columns + ((spec.event,) if spec.event else ())
            table = _read_text(stream, path, spec, wanted)
    if table.num_rows == 0:
        raise InputError(f"{path}: there is no row of data in it")
    user, item, time = (table[name] for name in wanted[:3])
    times, ticks = _times(time, path, wanted[2])
    data = {"user": _ids(user, path, wanted[0]), "item": _ids(item, path, wanted[1]), "time": times}
    if spec is not None and spec.event:
        data["event"] = _ids(table[spec.event], path, spec.event)
    frame = pd.DataFrame(data, copy=False)
    if (frame["item"] == frame["item"].iloc[0]).all():
        raise InputError(f"{path}: all {len(frame)} rows have the same item; at least two items are needed")
    frame.attrs["format"] = found
    frame.attrs["ticks_per_second"] = ticks if spec is None else ticks * spec.ticks_per_second
    return frame


def _detect(path, head: bytes, format: str, columns: Sequence[str]) -> tuple[str, RawFormat]:
    """The format's name and layout, from the first line; a table's layout is made here from its header."""
    if format == "parquet":
        raise InputError(f"{path}: is not a parquet file; allowed are {', '.join(NAMES)}")
    line = _first_line(path, head)
    if format in FORMATS:
        if not re.fullmatch(FORMATS[format].first_line, line.replace('"', "")):
            raise InputError(
                f"{path}: is not {format}: its first line is {line[:100]!r}, where {FORMATS[format].example} is wanted"
            )
        return format, FORMATS[format]
    if format == "auto":
        for name, spec in FORMATS.items():
            if re.fullmatch(spec.first_line, line.replace('"', "")):
                return name, spec
    return "table", _table_format(path, line, columns)


def _first_line(path, head: bytes) -> str:
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    line = head.splitlines()[0] if head.strip() else b""
    if not line:
        raise InputError(f"{path}: there is no row of data in it")
    if len(line) == len(head) and len(head) > HEAD_BYTES - 4:
        shown = line[:40].decode(errors="replace")
        raise InputError(
            f"{path}: its first line, {shown!r}..., has more than {HEAD_BYTES:,} bytes; a line per row is wanted"
        )
    if b"\0" in line:
        raise InputError(f"{path}: is neither UTF-8 text nor parquet, nor a gzip or zip of one")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} in its first line)") from error


def _table_format(path, line: str, columns: Sequence[str]) -> RawFormat:
    headers = {d: next(csv.reader(io.StringIO(line), delimiter=d)) for d in ("\t", ",")}
    delimiter = max(headers, key=lambda d: (len(set(columns) & set(headers[d])), len(headers[d])))
    header = headers[delimiter]
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)} in its first line, which has {_listed(header)} "
            f"(tab- or comma-separated); "
            f"state the user, item and time columns, or the format: {', '.join(NAMES)}"
        )
    double = [name for name in columns if header.count(name) > 1]
    if double:
        raise InputError(f"{path}: column {double[0]} is there more than once")
    return RawFormat(delimiter, (), True, "", "", tuple(columns))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _read_text(stream, path, spec: RawFormat, wanted: Sequence[str]) -> pa.Table:
    """Parses the wanted columns in blocks: ids as dictionaries of text, times as what they look like at first."""
    names = [name or f"empty_{i}" for i, name in enumerate(spec.names)]
    empty = [name for name in names if name.startswith("empty_")]
    text = pa.dictionary(pa.int32(), pa.string())
    time = spec.columns[2]
    types = {name: text for name in wanted if name != time} | {name: pa.null() for name in empty}
    # Without threads: the message of an error then names the row, and Arrow's pool of threads, left by an error with
    # work undone, makes the process hang or abort at its end (pyarrow 26).
    read_options = pacsv.ReadOptions(column_names=names or None, block_size=PREFETCH_BYTES, use_threads=False)
    parse_options = pacsv.ParseOptions(delimiter=spec.delimiter)

    def parse(types: dict) -> pa.Table:
        options = pacsv.ConvertOptions(include_columns=[*wanted, *empty], column_types=types, strings_can_be_null=True)
        return pacsv.read_csv(stream, read_options, parse_options, options).select(list(wanted))

    try:
        return parse(types)
    except pa.ArrowException:
        stream.seek(0)
    try:  # with times as text: whole numbers in the first block and fractions in a later one are no fault
        return parse(types | {time: pa.string()})
    except pa.ArrowException as error:
        raise InputError(f"{path}: cannot be parsed: {_problem(str(error), spec)}") from error


def _problem(told: str, spec: RawFormat) -> str:
    """What the parser says, with rows counted from 1 after the header, and what a row should be."""
    told = told.removeprefix("CSV parse error: ")
    if "straddling" in told:
        told = f"a row has more than {PREFETCH_BYTES:,} bytes: is a line break missing?"
    told = re.sub(r"Row #(\d+)", lambda found: f"row {int(found[1]) - spec.header}", told)[:300]
    return told + (f"; a row is {spec.example}" if spec.example else "")


def _read_parquet(stream, path, wanted: Sequence[str]) -> pa.Table:
    source = stream if isinstance(stream, io.BufferedReader) else pa.BufferReader(stream.read())
    try:
        file = pq.ParquetFile(source)
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is not a sound parquet file ({_line(error)})") from error
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}; the file has {_listed(schema.names)}")
    double = [name for name in wanted if schema.names.count(name) > 1]
    if double:
        raise InputError(f"{path}: column {double[0]} is there more than once")
    limit = archive.max_unpacked(pathlib.Path(path))
    if num_rows * len(wanted) * BYTES_PER_VALUE > limit:
        raise archive.too_large(path, limit)
    text = [name for name in wanted if _is_text(schema.field(name).type)]
    try:  # text stays a dictionary: a long one that every row repeats is then held once
        file = pq.ParquetFile(source, metadata=file.metadata, read_dictionary=text)
        table = file.read(columns=list(wanted), use_threads=False).select(list(wanted))
        table.validate(full=True)  # codes within the dictionary, text in UTF-8: Arrow does not look by itself
        return table
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: is not a sound parquet file ({_line(error)})") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _ids(column: pa.ChunkedArray, path, name: str) -> np.ndarray | pd.Categorical:
    """Ids as int64 where all of them are whole numbers, otherwise as categories of text."""
    if column.null_count:
        raise InputError(f"{path}: row {_first(pc.is_null(column))}: {name} is empty or NaN; every row needs an id")
    kind = column.type
    if pa.types.is_dictionary(kind) and not _is_text(kind.value_type):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_floating(kind):
        values = column.to_numpy().astype(np.float64, copy=False)
        wrong = ~(np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < MAX_TIME))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(f"{path}: row {row + 1}: {name} is {values[row]}; ids are whole numbers or text")
        return values.astype(np.int64)
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return column.cast(pa.int64()).to_numpy()
    if not (_is_text(kind) or pa.types.is_dictionary(kind) or kind == pa.uint64()):
        raise InputError(f"{path}: column {name} has the type {kind}; ids are whole numbers or text")
    if not pa.types.is_dictionary(kind):
        column = pc.dictionary_encode(column.cast(pa.string()))
    encoded = column.unify_dictionaries().combine_chunks()
    codes, values = encoded.indices.to_numpy(), encoded.dictionary.cast(pa.string())
    if values.null_count:
        raise InputError(f"{path}: {name} has an empty or NaN id; every row needs an id")
    return _decode(codes, values, path, name)


def _decode(codes: np.ndarray, values: pa.Array, path, name: str) -> np.ndarray | pd.Categorical:
    if pc.any(pc.match_substring_regex(values, r"^\s*$")).as_py():
        blank = np.flatnonzero(pc.match_substring_regex(values, r"^\s*$").to_numpy(zero_copy_only=False))
        used = np.isin(codes, blank)
        if used.any():
            raise InputError(f"{path}: row {int(np.argmax(used)) + 1}: {name} is empty; every row needs an id")
    if pc.any(pc.match_substring(values, "\0")).as_py():
        raise InputError(f"{path}: an id in {name} has a NUL byte in it; ids are whole numbers or text")
    longest = pc.max(pc.utf8_length(values)).as_py()
    if longest > MAX_ID_LENGTH:
        raise InputError(f"{path}: an id in {name} has {longest} characters; at most {MAX_ID_LENGTH} are allowed")
    if pc.all(pc.match_substring_regex(values, INTEGER)).as_py():
        return values.cast(pa.int64()).to_numpy()[codes]
    return pd.Categorical.from_codes(codes, pd.Index(values.to_pylist(), dtype="str"))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _times(column: pa.ChunkedArray, path, name: str) -> tuple[np.ndarray, int]:
    """Times as int64 and how many of them make a second: 1, or 1000 where fractions of a second are there."""
    if column.null_count:
        raise InputError(f"{path}: row {_first(pc.is_null(column))}: {name} is empty or NaN; {TIME_RULE}")
    kind = column.type
    if pa.types.is_dictionary(kind):
        if _is_text(kind.value_type):
            for chunk in column.chunks:
                _check_length(chunk.dictionary, path, name)
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        whole = pa.types.is_date(kind) or kind.unit == "s"
        values = column.cast(pa.timestamp("s" if whole else "ms"), safe=False).cast(pa.int64()).to_numpy()
        return _checked(values, path, name), 1 if whole else 1000
    if _is_text(kind):
        text = column.to_pandas()
        values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isnan(values).any():
            row = int(np.argmax(np.isnan(values)))
            raise InputError(f"{path}: row {row + 1}: {name} is {str(text.iloc[row])[:60]!r}; {TIME_RULE}")
    elif pa.types.is_integer(kind):
        values = column.to_numpy()
    elif pa.types.is_floating(kind):
        values = column.to_numpy().astype(np.float64, copy=False)
    else:
        raise InputError(f"{path}: column {name} has the type {kind}; {TIME_RULE}")
    values = _checked(values, path, name)
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int64, copy=False), 1
    if (values == np.floor(values)).all():
        return values.astype(np.int64), 1
    return np.round(values * 1000.0).astype(np.int64), 1000


def _check_length(texts: pa.Array, path, name: str) -> None:
    longest = pc.max(pc.utf8_length(texts)).as_py() or 0
    if longest > MAX_TIME_LENGTH:
        raise InputError(
            f"{path}: a {name} has {longest} characters, at most {MAX_TIME_LENGTH} are allowed: {TIME_RULE}"
        )


def _checked(values: np.ndarray, path, name: str) -> np.ndarray:
    wrong = ~((values >= 0) & (values <= MAX_TIME))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"{path}: row {row + 1}: {name} is {values[row]}; {TIME_RULE}")
    return values


def _first(mask: pa.ChunkedArray) -> int:
    """The first true row, counted from 1 after the header."""
    return int(np.argmax(mask.to_numpy())) + 1
