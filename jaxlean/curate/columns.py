"""Columns of rows -> columns of Parquet: what comes out of the file is what went in, or the same as text.

Parquet wants one kind of value in a column, Python rows have what they like: 1 and "one", lists whose objects have
other keys each. Filled up with nulls these would be rendered otherwise by a chat template, so such a column is written
as text: texts as they are, anything else as JSON, which is how `data/format.py` reads both.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from jaxlean.data.files import Row

_TEXT = {b"jaxlean": b"as text"}


def describe(rows: Sequence[Row]) -> pa.Schema:
    """The columns of some rows, in the order in which they come up; those that cannot keep their values are text."""
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name in row:
            columns.setdefault(name, [])
    return pa.schema([_field(name, [row.get(name) for row in rows]) for name in columns])


def merge(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """One schema for all; a column that is described in two ways is text."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            before = fields.get(field.name)
            fields[field.name] = field if before is None else _merged(before, field)
    return pa.schema(fields.values())


def table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows as a table with these columns; what a row lacks is null."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        arrays.append(pa.array(map(_as_text, values) if field.metadata == _TEXT else values, field.type))
    return pa.table(arrays, schema=schema)


def _field(name: str, values: list[Any]) -> pa.Field:
    kinds = {type(value) for value in values} - {type(None)}
    try:
        array = pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.field(name, pa.string(), metadata=_TEXT)
    nested = bool(kinds & {list, dict})
    if len(kinds) > 1 or (nested and (_has_empty_struct(array.type) or array.to_pylist() != values)):
        return pa.field(name, pa.string(), metadata=_TEXT)
    return pa.field(name, array.type)


def _merged(a: pa.Field, b: pa.Field) -> pa.Field:
    kind = a.type if a.type.equals(b.type) and a.metadata == b.metadata else _either(a.type, b.type)
    if kind is None or a.metadata != b.metadata:
        # a null column of one part takes what the other part has
        if pa.types.is_null(a.type) or pa.types.is_null(b.type):
            return b if pa.types.is_null(a.type) else a
        return pa.field(a.name, pa.string(), metadata=_TEXT)
    return pa.field(a.name, kind, metadata=a.metadata)


def _either(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both as they are, or None."""
    if a.equals(b) or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_list(a) and pa.types.is_list(b):
        inner = _either(a.value_type, b.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        names = [field.name for field in a]
        if names != [field.name for field in b]:
            return None
        inners = [_either(a.field(name).type, b.field(name).type) for name in names]
        return None if None in inners else pa.struct(list(zip(names, inners, strict=True)))
    return None


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields: the type of {}."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
