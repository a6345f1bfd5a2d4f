import json
from pathlib import Path

import pytest

from jaxlean.data.files import join, open_file
from jaxlean.errors import DataError

ROWS = [{"text": f"row {i}", "n": i} for i in range(5)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_json_lines_know_their_line(tmp_path: Path) -> None:
    rows = open_file(write(tmp_path / "a.jsonl", '{"text": "é"}\n\n  \n{"text": "b"}'))
    assert list(rows) == [{"text": "é"}, {"text": "b"}]
    assert [rows.origin(i) for i in range(2)] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:4"]
    assert rows[1] == {"text": "b"}


@pytest.mark.parametrize("bad", ['{"text": "b"', "[1, 2]", "nonsense"])
def test_malformed_json_names_file_and_line(tmp_path: Path, bad: str) -> None:
    rows = open_file(write(tmp_path / "a.jsonl", '{"text": "a"}\n\n' + bad + "\n"))
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        list(rows)


def test_json_array(tmp_path: Path) -> None:
    rows = open_file(write(tmp_path / "a.json", json.dumps(ROWS, indent=1)))
    assert list(rows) == ROWS
    assert rows.origin(1).endswith("a.json row 2")
    with pytest.raises(DataError, match=r"b\.json:2"):
        open_file(write(tmp_path / "b.json", '[{"a": 1},\n{"b" 2}]'))


def test_csv_records_may_span_lines(tmp_path: Path) -> None:
    text = '\ufefftext,category\r\n"a, ""quoted""\nsecond",x\r\n\r\nü,y\r\n'
    rows = open_file(write(tmp_path / "a.csv", text))
    assert list(rows) == [{"text": 'a, "quoted"\nsecond', "category": "x"}, {"text": "ü", "category": "y"}]
    assert [rows.origin(i).rpartition(":")[2] for i in range(2)] == ["2", "5"]
    assert rows[1]["text"] == "ü"
    assert list(open_file(write(tmp_path / "a.tsv", "p\tq\n1\t2\n"))) == [{"p": "1", "q": "2"}]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a,b\n1,2\n1,2,3\n", "a.csv:3"),
        ('a,b\n1,2\n"open,2\n1,2\n', "a.csv:3"),
        ('a,b\n1,2\n3,"open\n1,2\n', "a.csv:3"),
        ("a,a\n1,2\n", "a.csv:1"),
        (b"a,b\n1,\xff\n", "a.csv:2"),
    ],
)
def test_malformed_csv_names_file_and_line(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(DataError, match=place):
        list(open_file(write(tmp_path / "a.csv", text)))


def test_a_row_of_csv_with_too_many_values_leaves_the_others_readable(tmp_path: Path) -> None:
    rows = open_file(write(tmp_path / "a.csv", "a,b\n1,2\n\n1,2,3\n5\n3,4\n"))
    assert [rows[0], rows[3]] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    for i, place, got in ((1, "a.csv:4", "3 values"), (2, "a.csv:5", "1 values")):
        with pytest.raises(DataError) as error:
            rows.read(i, 4)
        assert place in str(error.value)
        assert got in str(error.value)


HALF = '{"text": "a \\ud83d b"}', '{"k\\uD800": 1}', '{"text": [{"a": ["\\udc00"]}]}'
ODD = {
    "half of a character": HALF,
    "malformed JSON": ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"x": ' + "1" * 5000 + "}"),
    "lists and objects within each other": ('{"x": ' + "[" * 300 + "]" * 300 + "}",),
}


@pytest.mark.parametrize(("what", "bad"), [(what, bad) for what, every in ODD.items() for bad in every])
def test_odd_json_is_an_error_of_its_row(tmp_path: Path, what: str, bad: str) -> None:
    rows = open_file(write(tmp_path / "a.jsonl", '{"text": "a"}\n' + bad + '\n{"text": "\\ud83d\\ude00"}\n'))
    assert [rows[0], rows[2]] == [{"text": "a"}, {"text": "😀"}]
    with pytest.raises(DataError, match=what) as error:
        rows.read(0, 3)
    assert "a.jsonl:2" in str(error.value)
    with pytest.raises(DataError, match=what) as error:
        list(open_file(write(tmp_path / "a.json", f'[{{"text": "a"}},\n{bad}]')))
    assert "a.json" in str(error.value)


def test_many_brackets_are_not_deep(tmp_path: Path) -> None:
    line = json.dumps({"text": "[" * 1000, "x": [[1]] * 500, "y": 5})
    assert open_file(write(tmp_path / "a.jsonl", line))[0] == json.loads(line)


def test_parquet_reads_across_row_groups(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    rows = open_file(path)
    assert list(rows) == ROWS
    assert rows.read(1, 4) == ROWS[1:4]
    assert rows.origin(0).endswith("a.parquet row 1")
    with pytest.raises(DataError, match="not a Parquet file"):
        open_file(write(tmp_path / "b.parquet", "text"))
    twice = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"the header names a column twice(.|\n)*c\.parquet"):
        open_file(tmp_path / "c.parquet")


def test_text_lines(tmp_path: Path) -> None:
    rows = open_file(write(tmp_path / "a.txt", "one\r\n\n  two\n   \n"))
    assert list(rows) == [{"text": "one"}, {"text": "  two"}]


def test_join(tmp_path: Path) -> None:
    parts = [open_file(write(tmp_path / f"{i}.json", json.dumps(ROWS[i : i + 2]))) for i in (0, 2)]
    rows = join("both", [*parts, open_file(write(tmp_path / "empty.jsonl", ""))])
    assert list(rows) == ROWS[:4]
    assert rows.read(1, 3) == ROWS[1:3]
    assert rows[3] == ROWS[3]
    assert rows.origin(2) == f"{tmp_path}/2.json row 1"


def test_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown kind of data file(.|\n)*\.jsonl"):
        open_file(write(tmp_path / "a.xlsx", "x"))
