import json

import pytest

from jaxlean import config
from jaxlean.data.words import Words, reader, resolved
from jaxlean.errors import DataError


def said(row, source=None, **values):
    run = config.build(values)
    made = config.SourceSection(path="rows.jsonl", **(source or {}))
    return reader(row, made, run)(row, "rows.jsonl:1")


def test_a_text_is_all_a_row_says():
    assert said({"text": "one"}) == Words("one", "one")


def test_templates_system_messages_and_tools_are_not_the_rows_own_words():
    row = {"question": "2 + 2?", "answer": "4"}
    data = {"prompt": "Solve this very long task: {question}", "completion": "{answer}", "system": "You are kind."}
    assert said(row, data=data) == Words("2 + 2?\n4", "2 + 2?")
    messages = [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "and 3 + 3?"},
        {"role": "assistant", "content": "6"},
    ]
    found = said({"messages": messages, "tools": [{"name": "sum"}]})
    assert found == Words("2 + 2?\n4\nand 3 + 3?\n6", "2 + 2?\nand 3 + 3?")


def test_a_call_of_a_tool_is_said():
    call = {"type": "function", "function": {"name": "sum", "arguments": {"a": 2}}}
    row = {"messages": [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert '"name": "sum"' in said(row).text


def test_prompt_and_completion_and_alpaca():
    assert said({"prompt": "q", "completion": "a"}) == Words("q\na", "q")
    assert said({"instruction": "do", "input": "this", "output": "done"}) == Words("do\n\nthis\ndone", "do\n\nthis")


def test_labels_stand_apart():
    row = {"text": "where is it", "category": "lost"}
    data = {"text_column": "text", "label_column": "category"}
    assert said(row, task="classify", data=data) == Words("where is it", "where is it", "lost")
    row = {"tokens": ["Ada", "sleeps"], "ner_tags": ["B-PER", "O"]}
    data = {"text_column": "tokens", "label_column": "ner_tags"}
    assert said(row, task="tag", data=data) == Words("Ada sleeps", "Ada sleeps", "B-PER O")
    row = {"anchor": "a", "positive": "b"}
    assert said(row, task="embed", data={"text_column": ["anchor", "positive"]}) == Words("a\nb", "a")


def test_columns_of_ones_own_choice():
    assert said({"a": "x", "b": 3}, curate={"text_column": ["a", "b"]}).text == "x\n3"
    with pytest.raises(DataError) as error:
        said({"body": "x"}, curate={"text_column": "bdy"})
    assert "curate.text_column: there is no column 'bdy'" in str(error.value)
    assert "did you mean 'body'?" in str(error.value)


@pytest.mark.parametrize("data", [{}, {"text_column": "text", "label_column": "label"}])
def test_a_column_of_ones_own_choice_leaves_the_label_where_it_is(data, tmp_path):
    row = {"text": "hello there", "label": "A", "summary": "a greeting"}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    values = {"task": "classify", "data": {"train": str(file)} | data, "curate": {"text_column": "summary"}}
    run = resolved(config.build(values))
    assert run.data.text_column == data.get("text_column"), "what is trained on is not what is compared"
    found = reader(row, run.data.train[0], run)(row, "rows.jsonl:1")
    assert found == Words("a greeting", "a greeting", "A")


def test_a_column_of_ones_own_choice_needs_no_guess_of_the_tasks(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"body": "hello", "image": "1.png", "label": "A"}) + "\n")
    values = {"task": "classify", "data": {"train": str(file)}, "curate": {"text_column": "body"}}
    assert resolved(config.build(values)).data.label_column == "label"
    with pytest.raises(DataError, match="text_column"):
        resolved(config.build(values | {"curate": {}}))


def test_an_empty_answer_is_said_with_its_place():
    with pytest.raises(DataError) as error:
        said({"q": "2?", "a": " "}, data={"prompt": "{q}", "completion": "{a}"})
    assert "the completion is empty" in str(error.value)
    assert "rows.jsonl:1" in str(error.value)
