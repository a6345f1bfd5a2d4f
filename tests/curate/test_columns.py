import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.curate.columns import describe, merge, table
from jaxlean.data.files import open_file

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def nest(levels, key=None):
    value = 1
    for _ in range(levels):
        value = [value] if key is None else {key: value}
    return value


def through(rows, tmp_path, parts=1):
    """Rows described in parts, written and read again."""
    step = -(-len(rows) // parts)
    schema = merge(describe(rows[i : i + step]) for i in range(0, len(rows), step))
    pyarrow.parquet.write_table(table(rows, schema), tmp_path / "rows.parquet")
    return list(open_file(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "a"}, {"text": "b"}],
        [{"text": "a", "n": 1, "x": 1.5, "ok": True}, {"text": None, "n": None, "x": None, "ok": None}],
        [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "b"}] * 3}],
        [{"tokens": ["a", "b"]}, {"tokens": []}],
        [{"a": {"b": [1, 2]}}, {"a": {"b": [3]}}],
        [{"v": [[1, 2]]}, {"v": [[1.5, 2]]}],
        [{"v": [1, None]}, {"v": [2.5]}],
        [{"a": {"b": [1, 2]}}, {"a": {"b": [0.5]}}],
        [{"v": [2**60]}, {"v": [1]}],
        [{"x": [1.0]}, {"x": None}],
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
        [[2**60 + 1], [1.5]],
        [[1.5], [2**60 + 1]],
        [{"a": [2**60 + 1]}, {"a": [1.5]}],
        [{"a": 1}, {"a": 1.5}],
        [[{"a": 1}], [{"a": 1.5}]],
        [nest(200), nest(1)],
        [nest(33), nest(33)],
        [nest(200, key="a"), nest(200, key="a")],
    ],
)
def test_what_parquet_cannot_hold_as_it_is_becomes_json_and_is_read_as_it_was(values, parts, tmp_path):
    found = [row["c"] for row in through([{"c": value} for value in values], tmp_path, parts)]
    assert found == values
    assert list(map(type, found)) == list(map(type, values))
    written = pyarrow.parquet.read_table(tmp_path / "rows.parquet")["c"].to_pylist()
    assert written == list(map(json.dumps, values))


@pytest.mark.parametrize("key", [None, "a"])
def test_nested_values_stay_as_they_are(key, tmp_path):
    rows = [{"c": nest(32, key)}, {"c": nest(32, key)}]
    assert through(rows, tmp_path, 2) == rows


def test_lists_of_numbers_are_one_type_however_they_are_cut(tmp_path):
    for parts in (1, 2):
        through([{"v": [[1, 2]]}, {"v": [[1.5, 2]]}], tmp_path, parts)
        assert pyarrow.parquet.read_schema(tmp_path / "rows.parquet").field("v").type == pa.list_(
            pa.list_(pa.float64())
        )


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("ns", "Europe/Berlin"), pa.duration("ns")])
def test_times_are_kept_to_the_nanosecond(kind, tmp_path):
    wanted = pa.table({"t": pa.array([1, None, 10**18 + 1], kind)})
    pyarrow.parquet.write_table(wanted, tmp_path / "before.parquet")
    rows = list(open_file(tmp_path / "before.parquet"))
    through(rows, tmp_path, 3)
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").equals(wanted)


def test_columns_that_only_some_rows_have(tmp_path):
    assert through([{"a": 1}, {"b": "x"}], tmp_path, 2) == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, min_size=1, max_size=6), st.integers(1, 3))
def test_whatever_json_holds_comes_out_as_it_went_in(values, parts):
    with tempfile.TemporaryDirectory() as folder:
        rows = through([{"c": value} for value in values], Path(folder), parts)
    assert [row["c"] for row in rows] == values
