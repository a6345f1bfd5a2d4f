import json

import numpy as np
import pytest

from jaxlean import config
from jaxlean.curate.corpus import Corpus, size
from jaxlean.errors import ConfigError, DataError


@pytest.fixture
def two(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a{i}"}) + "\n" for i in range(100)))
    (tmp_path / "b.csv").write_text("text,other\n" + "".join(f"b{i},x\n" for i in range(50)))
    return Corpus(config.build({"data": {"train": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv")]}}))


def test_sources_are_one_after_the_other(two, tmp_path):
    assert len(two) == 150
    assert two.place(99) == (0, 99)
    assert two.place(100) == (1, 0)
    assert two.origin(100) == f"{tmp_path / 'b.csv'}:2"
    assert two.source_of(np.array([0, 99, 100, 149])).tolist() == [0, 0, 1, 1]


def test_any_rows_come_in_their_order(two):
    for numbers in (np.arange(150), np.arange(1, 150, 3), np.array([149, 0, 1, 100, 99]), np.arange(0)):
        wanted = [f"a{n}" if n < 100 else f"b{n - 100}" for n in numbers.tolist()]
        assert [words.text for words in two.words(numbers)] == wanted
        items = list(two.items(numbers))
        assert [item.number for item in items] == numbers.tolist()
        assert [item.origin for item in items] == [two.origin(n) for n in numbers.tolist()]


def test_a_row_that_cannot_be_read_is_an_error_in_its_place(tmp_path):
    lines = [json.dumps({"text": str(i)}) for i in range(20)]
    lines[7] = '{"text": '
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    corpus = Corpus(config.build({"data": {"train": str(tmp_path / "rows.jsonl")}}))
    found = list(corpus.attempts(np.arange(20)))
    assert [i for i, item in enumerate(found) if isinstance(item, DataError)] == [7]
    assert [item.number for item in found if not isinstance(item, DataError)] == [*range(7), *range(8, 20)]
    with pytest.raises(DataError, match=r"rows\.jsonl:8"):
        list(corpus.items(np.arange(20)))


@pytest.mark.parametrize(
    "first", ['{"text": ', '{"other": 1}', '{"text": null}', '{"prompt": "a", "text": "b", "completion": "c"}']
)
def test_bad_rows_at_the_start_do_not_decide_how_the_others_are_read(tmp_path, first):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(line + "\n" for line in [first, first, '{"text": "a"}', '{"text": "b"}']))
    values = {"data": {"train": str(file)}, "curate": {"bad_rows": "drop"}}
    corpus = Corpus(config.build(values))
    assert corpus.first(0) == {"text": "a"}
    assert [words.text for words in corpus.words(np.arange(2, 4))] == ["a", "b"]
    with pytest.raises(DataError):
        list(Corpus(config.build({"data": {"train": str(file)}})).words(np.arange(4)))
    file.write_text(first + "\n")
    with pytest.raises(DataError):
        Corpus(config.build(values)).first(0)


def test_nor_which_columns_a_task_has(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\nfirst,A,B\nsecond,A\n")
    corpus = Corpus(config.build({"task": "classify", "data": {"train": str(file)}, "curate": {"bad_rows": "drop"}}))
    assert [words.label for words in corpus.words(np.array([1]))] == ["A"]
    with pytest.raises(DataError, match=r"rows\.csv:2"):
        Corpus(config.build({"task": "classify", "data": {"train": str(file)}}))


@pytest.mark.parametrize(
    ("value", "want"), [("abc", 3), (5, 8), ({"a": ["bc", {"d": b"e"}], "f": None}, 11), ([[]], 0)]
)
def test_characters_of_a_value(value, want):
    assert size(value) == want


def test_without_data_it_says_so():
    with pytest.raises(ConfigError, match=r"no data\.train"):
        Corpus(config.build({}))
