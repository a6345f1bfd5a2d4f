import json

import numpy as np
import pytest

from jaxlean import config
from jaxlean.curate.corpus import Corpus
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


def test_without_data_it_says_so():
    with pytest.raises(ConfigError, match=r"no data\.train"):
        Corpus(config.build({}))
