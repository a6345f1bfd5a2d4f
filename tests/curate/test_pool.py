"""What may be chosen of a pool: each text once, and none that has a label."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlean.config import SourceSection, build
from jaxlean.curate.pool import Pool, read_pool
from jaxlean.data.labelled import LabelEncoder
from jaxlean.data.source import open_rows
from jaxlean.errors import DataError


@pytest.fixture
def read(lines: Callable[..., Path], tiny_base: Path) -> Callable[..., Pool]:
    from jaxlean.hub.load import load_tokenizer

    def of(pool: list[dict[str, Any]], labelled: list[dict[str, Any]] | None = None, **data: Any) -> Pool:
        settings = {"text_column": "text", "label_column": "label", "labels": ["a", "b"], "max_length": 16} | data
        config = build({"task": "classify", "data": settings})
        sources = [SourceSection(path=str(lines("labelled.jsonl", labelled)))] if labelled else []
        rows = open_rows(SourceSection(path=str(lines("pool.jsonl", pool))))
        return read_pool(config, rows, sources, [], LabelEncoder(config, load_tokenizer(str(tiny_base)), blind=True))

    return of


def test_each_text_once_and_none_that_has_a_label(read):
    pool = [
        {"text": "one"}, {"text": "two", "label": ""}, {"text": " one "}, {"text": "three"},
        {"text": "four", "label": "a"}, {"text": "five"}, {"text": "five", "label": "b"},
    ]  # fmt: skip
    found = read(pool, [{"text": "three", "label": "a"}, {"text": "six", "label": "b"}])
    assert found.at.tolist() == [0, 1]
    assert len(found.tokens) == 2
    assert found.tokens[1].origin.endswith("pool.jsonl:2")
    # three and six, and four and five of the pool
    assert len(found.labelled) == 4
    assert found.left_out == "; 2 have a label; 2 are like a labelled one; 1 come twice"


def test_zero_is_a_label(read):
    found = read([{"text": "one", "label": 0}, {"text": "two", "label": 1}, {"text": "three", "label": None}])
    assert found.at.tolist() == [2]
    assert found.left_out == "; 2 have a label"


def test_a_pool_without_a_column_of_labels(read):
    assert read([{"text": "one"}, {"text": "two"}]).at.tolist() == [0, 1]
    assert read([{"text": "one"}]).left_out == ""


def test_long_rows_are_dropped_as_the_config_says(read):
    rows = [{"text": "word " * 40}, {"text": "one"}]
    found = read(rows, on_long="drop")
    assert found.at.tolist() == [1]
    assert found.left_out == "; 1 dropped for their length"
    assert read(rows, on_long="truncate").at.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"longer than data\.max_length"):
        read(rows)


def test_a_missing_column_and_an_empty_text(read):
    with pytest.raises(DataError, match="there is no column 'text'"):
        read([{"texts": "one"}])
    with pytest.raises(DataError, match=r"(?s)the column 'text' is empty.*pool\.jsonl:2"):
        read([{"text": "one"}, {"text": ""}])


def test_a_row_is_read_as_each_model_reads_it(lines, tiny_base):
    """One with new tokens has fewer of a text; what is too long for either is left out."""
    from jaxlean.data.terms import grown
    from jaxlean.hub.load import load_tokenizer

    tokenizer = load_tokenizer(str(tiny_base))
    settings = {"text_column": "text", "max_length": 8, "on_long": "drop"}
    config = build({"task": "classify", "data": settings})
    rows = [{"text": "chargeback"}, {"text": "chargeback " * 5}]
    encoders = [LabelEncoder(config, one, blind=True) for one in (tokenizer, grown(tokenizer, ["chargeback"]))]
    found = read_pool(config, open_rows(SourceSection(path=str(lines("pool.jsonl", rows)))), [], [], *encoders)
    assert found.at.tolist() == [0]
    assert len(found.judged[0].input_ids) < len(found.tokens[0].input_ids)
    assert found.judged[0].input_ids.max() == len(tokenizer)
    assert found.left_out == "; 1 dropped for their length"
