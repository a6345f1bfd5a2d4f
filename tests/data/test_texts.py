"""The texts that train: of every shape of row, none that is held out."""

import json

import pytest

from jaxlean.config import build
from jaxlean.data.texts import training_texts
from jaxlean.errors import ConfigError


def texts(tmp_path, rows, **values):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build({"data": {"train": str(file), **values.pop("data", {})}, **values})
    return list(training_texts(config, None))


def test_of_texts_pairs_and_conversations(tmp_path):
    assert texts(tmp_path, [{"text": "a"}, {"text": "b"}]) == ["a", "b"]
    assert texts(tmp_path, [{"prompt": "a", "completion": "b"}]) == ["a", "b"]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert texts(tmp_path, [{"messages": turns}]) == ["a", "b"]
    rows = [{"question": "q", "answer": "a"}]
    assert texts(tmp_path, rows, data={"prompt": "Q {question}", "completion": "{answer}"}) == ["Q q", "a"]


def test_of_labelled_rows(tmp_path):
    data = {"text_column": "text", "label_column": "label", "labels": ["x", "y"]}
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert texts(tmp_path, rows, task="classify", data=data) == ["a", "b"]
    data = {"text_column": "words", "label_column": "tags", "labels": ["x", "y"]}
    assert texts(tmp_path, [{"words": ["a", "b"], "tags": ["x", "y"]}], task="tag", data=data) == ["a b"]
    data = {"text_column": ["anchor", "positive"]}
    assert texts(tmp_path, [{"anchor": "a", "positive": "b"}], task="embed", data=data) == ["a", "b"]


def test_what_is_held_out_is_not_looked_at(tmp_path):
    rows = [{"text": str(i)} for i in range(20)]
    found = texts(tmp_path, rows, data={"eval_fraction": 0.25})
    assert len(found) == 15
    assert len(texts(tmp_path, rows, data={"streaming": True}, train={"max_steps": 1})) == 20


def test_only_the_first_rows_where_there_are_many(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(9)))
    config = build({"data": {"train": str(file)}})
    assert list(training_texts(config, None, most_rows=4)) == ["0", "1", "2", "3"]


def test_no_data_is_an_error():
    with pytest.raises(ConfigError, match="no training data"):
        next(training_texts(build({}), None))
