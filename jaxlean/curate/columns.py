"""Columns of rows -> columns of Parquet: what comes out of the file is what went in.

Parquet wants one kind of value in a column, Python rows have what they like: 1 and "one", lists whose objects have
other keys each. Filled up with nulls these would be rendered otherwise by a chat template, so such a column is written
as JSON, and says so to `data/files.py`, which reads it. So is one whose lists and objects stand in each other too deep.
Lists of numbers, of which some are whole, are lists of floats.

Times within a day, and times in lists, are kept to the microsecond: Python has no finer ones.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from jaxlean.data.files import AS_JSON, Row

_LARGE = {b"jaxlean": b"large integers"}
_EXACT = 2**53  # whole numbers up to this are floats as well
_DEEPEST = 32  # levels; Arrow writes what it does not read again from 50 lists on


def describe(rows: Sequence[Row]) -> pa.Schema:
    """The columns of some rows, in the order in which they come up; those that cannot keep their values are JSON."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name in row:
            columns.setdefault(name, [])
    return pa.schema([_field(name, [row.get(name) for row in rows]) for name in columns])


def merge(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """One schema for all; a column that is described in two ways is JSON."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            before = fields.get(field.name)
            fields[field.name] = field if before is None else _merged(before, field)
    return pa.schema(fields.values())


def as_json(schema: pa.Schema) -> list[str]:
    """Names of the columns whose values are written as JSON."""
    return [field.name for field in schema if field.metadata == AS_JSON]


def table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table with these columns; what a row lacks is null."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        arrays.append(pa.array(map(_as_json, values) if field.metadata == AS_JSON else values, field.type))
    return pa.table(arrays, schema=schema)


def _field(name: str, values: list[Any]) -> pa.Field:
    kinds = {type(value) for value in values} - {type(None)}
    nested = bool(kinds & {list, dict})
    if len(kinds) > 1 or (nested and any(_deep(value) for value in values)):
        return pa.field(name, pa.string(), metadata=AS_JSON)
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.field(name, pa.string(), metadata=AS_JSON)
    if nested and (_has_empty_struct(array.type) or not _same(array.to_pylist(), values)):
        return pa.field(name, pa.string(), metadata=AS_JSON)
    if nested and _has_large(array.type, values):
        return pa.field(name, array.type, metadata=_LARGE)
    return pa.field(name, _to_the_nanosecond(array.type, values))


def _merged(a: pa.Field, b: pa.Field) -> pa.Field:
    # a null column of one part takes what the other part has
    if pa.types.is_null(a.type) or pa.types.is_null(b.type):
        return b if pa.types.is_null(a.type) else a
    written = pa.field(a.name, pa.string(), metadata=AS_JSON)
    if AS_JSON in (a.metadata, b.metadata):
        return written
    metadata = a.metadata or b.metadata
    kind = _either(a.type, b.type, floats=False if metadata == _LARGE else None)
    return written if kind is None else pa.field(a.name, kind, metadata=metadata)


def _either(a: pa.DataType, b: pa.DataType, floats: bool | None = None) -> pa.DataType | None:
    """The type that holds the values of both as they are, or None.

    `floats`: whether whole numbers may become floats: where they stand in a list, unless some are too large (False).
    """
    if a.equals(b) or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_list(a) and pa.types.is_list(b):
        inner = _either(a.value_type, b.value_type, floats if floats is False else True)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        names = [field.name for field in a]
        if names != [field.name for field in b]:
            return None
        inners = [_either(a.field(name).type, b.field(name).type, floats and None) for name in names]
        return None if None in inners else pa.struct(list(zip(names, inners, strict=True)))
    return pa.float64() if floats and {str(a), str(b)} == {"int64", "double"} else None


def _same(got: Any, wanted: Any) -> bool:
    """Whether values came through: of the same kinds, but that numbers of a list may all have become floats."""
    if type(got) is not type(wanted) and isinstance(wanted, bool | int | float | None):
        return False
    if isinstance(got, list):
        if len(got) == len(wanted) and all(type(x) in (int, float, type(None)) for x in wanted):
            return all(x == y or (x != x and y != y) for x, y in zip(got, wanted, strict=True))
        return len(got) == len(wanted) and all(map(_same, got, wanted))
    if isinstance(got, dict):
        return got.keys() == wanted.keys() and all(_same(got[key], wanted[key]) for key in got)
    return bool(got == wanted) or (got != got and wanted != wanted)


def _deep(value: Any) -> bool:
    """Whether lists and objects stand in each other deeper than a Parquet file's schema has them."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _has_large(kind: pa.DataType, values: Any) -> bool:
    """Whether a list holds whole numbers that a float does not."""
    if not pa.types.is_list(kind):
        return pa.types.is_struct(kind) and any(
            _has_large(field.type, [one[field.name] for one in values if one is not None]) for field in kind
        )
    inner = [x for one in values if one is not None for x in one]
    if pa.types.is_int64(kind.value_type):
        return any(x is not None and abs(x) > _EXACT for x in inner)
    return _has_large(kind.value_type, inner)


def _to_the_nanosecond(kind: pa.DataType, values: list[Any]) -> pa.DataType:
    """Times of Parquet that are finer than Python's come as pandas'; Arrow takes these for Python's."""
    first = next((value for value in values if value is not None), None)
    if pa.types.is_timestamp(kind) and hasattr(first, "nanosecond"):
        return pa.timestamp("ns", kind.tz)
    return pa.duration("ns") if pa.types.is_duration(kind) and hasattr(first, "nanoseconds") else kind


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields: the type of {}."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _as_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
