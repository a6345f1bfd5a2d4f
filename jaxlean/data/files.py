"""Data files -> rows, each with the place it came from.

A file is indexed (16 bytes a row) and memory-mapped, never loaded whole, so it may be larger than memory. Only a
.json array is read at once: it has no lines to find.
"""

import csv
import functools
import io
import json
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.errors import DataError

Row = dict[str, Any]
BLOCK = 1024  # rows read at a time
_DEEPEST = 256  # levels of a row's lists and objects; much deeper ones cannot be walked through
# Metadata of a Parquet column: its values are written as JSON, since no one type holds them all.
AS_JSON = {b"jaxlean": b"as JSON"}
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")


@dataclass(frozen=True)
class Rows:
    """Rows with random access.

    Attributes:
        name: what the user called the source.
        count: number of rows.
        read: `(start, stop)` -> those rows.
        origin: row number (from 0) -> the place it came from, `file:line` or `file row N`.
        files: that they are read from; none of what `datasets` holds.
        fingerprint: of what `datasets` holds: another for other rows.
    """

    name: str
    count: int
    read: Callable[[int, int], list[Row]]
    origin: Callable[[int], str]
    files: tuple[Path, ...] = ()
    fingerprint: str = ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Row:
        return self.read(i, i + 1)[0]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, self.count, BLOCK):
            yield from self.read(start, min(start + BLOCK, self.count))


def open_file(path: Path) -> Rows:
    """Open one data file, by its suffix.

    Raises:
        DataError: an unknown kind of file, or one that cannot be read. A malformed row raises with its `file:line`:
            of JSON lines and a row of CSV with too many or too few values when it is read, of other kinds here.
    """
    readers: dict[str, Callable[[Path], Rows]] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json,
        ".csv": functools.partial(_csv, delimiter=","),
        ".tsv": functools.partial(_csv, delimiter="\t"),
        ".txt": _text_lines,
        ".parquet": _parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError("an unknown kind of data file", where=path, wanted="one of " + " ".join(readers))
    try:
        return replace(reader(path), files=(path,))
    except OSError as error:
        raise DataError("the file cannot be read", where=path, got=error) from None


def _lines(path: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """(the mapped bytes, byte offset of each line that is not blank and the end, its line number from 1)."""
    offsets, numbers, end = [], [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                offsets.append(end)
                numbers.append(number)
            end += len(line)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if end else b""
    return content, np.array([*offsets, end], np.int64), np.array(numbers, np.int64)


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("the file is not UTF-8 text", where=where, got=error, fix="save it as UTF-8") from None


def _json_lines(path: Path) -> Rows:
    content, offsets, numbers = _lines(path)

    def parse(i: int) -> Row:
        text = _decode(content[offsets[i] : offsets[i + 1]], origin(i))
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                "malformed JSON",
                where=origin(i),
                got=f"{said}: {text.strip()[:80]!r}",
                wanted="one JSON object a line",
            ) from None
        return _object(row, origin(i), _doubtful(text))

    def origin(i: int) -> str:
        return f"{path}:{numbers[i]}"

    return Rows(str(path), len(numbers), lambda start, stop: [parse(i) for i in range(start, stop)], origin)


def _json(path: Path) -> Rows:
    """A .json file: an array of objects, or JSON lines under another name."""
    with open(path, "rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"["):
        return _json_lines(path)
    text = _decode(path.read_bytes(), str(path))
    try:
        array = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError("malformed JSON", where=f"{path}:{error.lineno}", got=error.msg) from None
    except (ValueError, RecursionError) as error:
        raise DataError("malformed JSON", where=path, got=error) from None
    doubtful = _doubtful(text)

    def origin(i: int) -> str:
        return f"{path} row {i + 1}"

    def read(start: int, stop: int) -> list[Row]:
        return [_object(array[i], origin(i), doubtful) for i in range(start, stop)]

    return Rows(str(path), len(array), read, origin)


def _object(row: Any, where: str, doubtful: bool) -> Row:
    if not isinstance(row, dict):
        raise DataError("a row is a JSON object", where=where, got=type(row).__name__)
    if doubtful:
        _check_values(row, where)
    return row


def _doubtful(text: str) -> bool:
    """Whether JSON may hold what `_check_values` looks for: half of a character, or a nest that is too deep."""
    return "\\ud" in text or "\\uD" in text or text.count("[") + text.count("{") > _DEEPEST


def _check_values(row: Row, where: str) -> None:
    level: list[Any] = [row]
    for _ in range(_DEEPEST):
        texts = [key for value in level if isinstance(value, dict) for key in value]
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
        for text in (*texts, *(value for value in level if isinstance(value, str))):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    "half of a character: a surrogate without its pair is no text",
                    where=where,
                    got=f"\\u{ord(text[error.start]):04x} in {text.encode(errors='replace').decode()[:80]!r}",
                    fix="write the text anew, as UTF-8",
                ) from None
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return
    raise DataError("lists and objects within each other without end", where=where, wanted=f"at most {_DEEPEST} levels")


def _text_lines(path: Path) -> Rows:
    """Plain text: a row with the one column `text` for every line that is not blank."""
    content, offsets, numbers = _lines(path)

    def origin(i: int) -> str:
        return f"{path}:{numbers[i]}"

    def parse(i: int) -> Row:
        return {"text": _decode(content[offsets[i] : offsets[i + 1]], origin(i)).partition("\n")[0].rstrip("\r")}

    return Rows(str(path), len(numbers), lambda start, stop: [parse(i) for i in range(start, stop)], origin)


def _csv(path: Path, delimiter: str) -> Rows:
    """A table with a header; every value is text. A quoted value may span lines, so a record has its own offset."""
    csv.field_size_limit(2**31 - 1)
    bytes_read = 0

    def lines(file: Any) -> Iterator[str]:
        nonlocal bytes_read
        for number, line in enumerate(file, 1):
            bytes_read += len(line)
            yield _decode(line, f"{path}:{number}")

    header: list[str] | None = None
    offsets, numbers = [], []
    with open(path, "rb") as file:
        reader = csv.reader(lines(file), delimiter=delimiter, strict=True)
        while True:
            offset, number = bytes_read, reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                raise DataError("malformed CSV", where=f"{path}:{number}", got=error, fix="check the quotes") from None
            if not record:
                continue
            if header is None:
                header = record
                _check_header(header, f"{path}:1")
                continue
            offsets.append(offset)
            numbers.append(number)
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if bytes_read else b""
    ends = np.array([*offsets, bytes_read], np.int64)
    at_line = np.array(numbers, np.int64)
    names = header or []

    def origin(i: int) -> str:
        return f"{path}:{at_line[i]}"

    def read(start: int, stop: int) -> list[Row]:
        text = io.StringIO(_decode(content[ends[start] : ends[stop]], origin(start)), newline="")
        records = csv.reader(text, delimiter=delimiter, strict=True)
        return [row(record, start + i) for i, record in enumerate(record for record in records if record)]

    def row(record: list[str], i: int) -> Row:
        if len(record) != len(names):
            raise DataError(
                "a row with another number of values than the header",
                where=origin(i),
                got=f"{len(record)} values: {record[:4]}",
                wanted=f"{len(names)}: {', '.join(names)}",
                fix=f"quote values that hold {delimiter!r}",
            )
        return dict(zip(names, record, strict=True))

    return Rows(str(path), len(numbers), read, origin)


def _check_header(header: list[str], where: object) -> None:
    twice = len(set(header)) < len(header)
    if twice or "" in header:
        raise DataError(
            "the header names a column twice" if twice else "a column without a name",
            where=where,
            got=", ".join(header),
            wanted="one distinct name for each column",
        )


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    except pyarrow.ArrowInvalid as error:
        raise DataError("not a Parquet file", where=path, got=error) from None
    if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
        _check_header(file.schema_arrow.names, path)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    group = functools.lru_cache(maxsize=2)(file.read_row_group)
    as_json = [field.name for field in file.schema_arrow if AS_JSON.items() <= (field.metadata or {}).items()]

    def read(start: int, stop: int) -> list[Row]:
        rows: list[Row] = []
        while start < stop:
            g = int(np.searchsorted(starts, start, side="right")) - 1
            end = min(stop, int(starts[g + 1]))
            rows += group(g).slice(start - int(starts[g]), end - start).to_pylist()
            start = end
        for name in as_json:
            for row in rows:
                row[name] = None if row[name] is None else json.loads(row[name])
        return rows

    return Rows(str(path), int(starts[-1]), read, lambda i: f"{path} row {i + 1}")


def join(name: str, parts: list[Rows]) -> Rows:
    """The rows of several files, one after the other."""
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)

    def place(i: int) -> tuple[Rows, int]:
        p = int(np.searchsorted(starts, i, side="right")) - 1
        return parts[p], i - int(starts[p])

    def read(start: int, stop: int) -> list[Row]:
        rows: list[Row] = []
        while start < stop:
            part, i = place(start)
            end = min(len(part), i + stop - start)
            rows += part.read(i, end)
            start += end - i
        return rows

    def origin(i: int) -> str:
        part, own = place(i)
        return part.origin(own)

    return Rows(name, int(starts[-1]), read, origin, tuple(file for part in parts for file in part.files))
