import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.curate.columns import describe, merge, table

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def through(rows, tmp_path, parts=1):
    """Rows described in parts, written and read again."""
    step = -(-len(rows) // parts)
    schema = merge(describe(rows[i : i + step]) for i in range(0, len(rows), step))
    pyarrow.parquet.write_table(table(rows, schema), tmp_path / "rows.parquet")
    return pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "a"}, {"text": "b"}],
        [{"text": "a", "n": 1, "x": 1.5, "ok": True}, {"text": None, "n": None, "x": None, "ok": None}],
        [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "b"}] * 3}],
        [{"tokens": ["a", "b"]}, {"tokens": []}],
        [{"a": {"b": [1, 2]}}, {"a": {"b": [3]}}],
    ],
)
def test_what_goes_in_comes_out(rows, parts, tmp_path):
    assert through(rows, tmp_path, parts) == rows


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "values",
    [
        [1, "one"],
        [1, 2.5],
        [1, True],
        [[{"role": "user", "content": "a"}], [{"role": "assistant", "content": "", "tool_calls": [CALL]}]],
        [[{"role": "user", "content": "a"}], "[]"],
        [{}, {"a": 1}],
        [2**70, 1],
    ],
)
def test_what_parquet_cannot_hold_as_it_is_becomes_text(values, parts, tmp_path):
    found = [row["c"] for row in through([{"c": value} for value in values], tmp_path, parts)]
    assert found == [value if isinstance(value, str) else json.dumps(value) for value in values]


def test_columns_that_only_some_rows_have(tmp_path):
    assert through([{"a": 1}, {"b": "x"}], tmp_path, 2) == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, min_size=1, max_size=6), st.integers(1, 3))
def test_whatever_json_holds_is_the_same_or_the_same_as_text(values, parts):
    rows = [{"c": value} for value in values]
    step = -(-len(rows) // parts)
    schema = merge(describe(rows[i : i + step]) for i in range(0, len(rows), step))
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table(rows, schema), sink)
    found = pyarrow.parquet.read_table(pa.BufferReader(sink.getvalue())).to_pylist()
    for value, row in zip(values, found, strict=True):
        if isinstance(row["c"], str) and not isinstance(value, str):
            assert json.loads(row["c"]) == value
        else:
            assert row["c"] == value
