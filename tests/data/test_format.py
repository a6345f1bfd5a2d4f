from typing import Any

import pytest

from jaxlean.config import DataSection, SourceSection
from jaxlean.data.format import Chat, Example, Pair, Text, fill, recogniser
from jaxlean.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}


def made(row: dict[str, Any], *, chat: bool = True, data: dict[str, Any] | None = None, **source: Any) -> Example:
    section = SourceSection(path="f", **source)
    return recogniser(row, section, DataSection(**(data or {})), chat=chat)(row, "f:7")


def test_messages_pass_through() -> None:
    tool = {"role": "tool", "content": "42"}
    example = made({"messages": [USER, ASSISTANT, tool, ASSISTANT], "tools": '[{"name": "f"}]', "id": 3})
    assert example == Chat([USER, ASSISTANT, tool, ASSISTANT], tools=[{"name": "f"}])


def test_none_that_arrow_put_in_is_taken_out() -> None:
    assert made({"messages": [{**USER, "tool_calls": None}, ASSISTANT]}) == Chat([USER, ASSISTANT])


def test_content_in_parts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}
    assert made({"messages": [parts, ASSISTANT]}) == Chat([USER, ASSISTANT])
    with pytest.raises(DataError, match="more than text"):
        made({"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]})


def test_sharegpt() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    assert made({"conversations": turns, "system": "Be."}) == Chat(
        [{"role": "system", "content": "Be."}, USER, ASSISTANT], learn_from=1
    )
    assert made({"conversations": [USER, ASSISTANT]}) == Chat([USER, ASSISTANT])
    with pytest.raises(DataError, match=r"unknown speaker(.|\n)*f:7, message 1(.|\n)*alien"):
        made({"conversations": [{"from": "alien", "value": "x"}]})


def test_prompt_and_completion() -> None:
    row = {"prompt": "Hi", "completion": "Ho"}
    assert made(row) == Chat([USER, ASSISTANT])
    assert made(row, chat=False) == Pair("Hi", "Ho")
    assert made({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}) == Chat(
        [USER, ASSISTANT, USER, ASSISTANT], learn_from=3
    )
    with pytest.raises(DataError, match=r"f:7(.|\n)*str and list"):
        made({"prompt": "Hi", "completion": [ASSISTANT]})


def test_alpaca() -> None:
    row = {"instruction": "Add", "input": "2 2", "output": "4"}
    assert made(row) == Chat([{"role": "user", "content": "Add\n\n2 2"}, {"role": "assistant", "content": "4"}])
    assert made({**row, "input": ""}) == Chat(
        [{"role": "user", "content": "Add"}, {"role": "assistant", "content": "4"}]
    )
    plain = made(row, chat=False)
    assert isinstance(plain, Pair)
    assert plain.prompt.endswith("### Instruction:\nAdd\n\n### Input:\n2 2\n\n### Response:\n")
    # A column's own braces are no place for a column.
    braces = made({"instruction": "{input}", "input": "x", "output": "4"}, chat=False)
    assert isinstance(braces, Pair)
    assert "### Instruction:\n{input}\n" in braces.prompt


def test_text() -> None:
    assert made({"text": "abc", "id": 1}) == Text("abc")


def test_templates_win_over_columns_and_the_source_over_the_default() -> None:
    row = {"text": "Hi", "category": "Ho", "n": 3}
    data = {"prompt": "{text}", "completion": "{category}"}
    assert made(row, data=data, chat=False) == Pair("Hi", "Ho")
    assert made(row, data=data, chat=False, completion='{"n": {n}}') == Pair("Hi", '{"n": 3}')
    assert made(row, data=data, format="text") == Text("Hi")
    assert made({"prompt": "Hi", "answer": "Ho"}, completion="{answer}", chat=False) == Pair("Hi", "Ho")


def test_system() -> None:
    own = {"role": "system", "content": "Own."}
    assert made({"messages": [USER, ASSISTANT]}, data={"system": "All."}, system="This.") == Chat(
        [{"role": "system", "content": "This."}, USER, ASSISTANT], learn_from=1
    )
    assert made({"messages": [own, USER, ASSISTANT]}, system="This.") == Chat([own, USER, ASSISTANT])
    assert made({"prompt": "Hi", "completion": "Ho"}, chat=False, system="This.") == Pair("This.\n\nHi", "Ho")


@pytest.mark.parametrize(
    ("row", "source", "message"),
    [
        ({"a": 1, "b": 2}, {}, r"columns a, b(.|\n)*alpaca \(instruction, output\)"),
        ({"instruction": "x", "output": "y", "text": "z"}, {}, r"fit alpaca and text(.|\n)*format: alpaca"),
        ({"text": "x"}, {"format": "messages"}, "needs the column 'messages'"),
        ({"text": "x"}, {"prompt": "{txt}", "completion": "{text}"}, "did you mean 'text'"),
        ({"text": "x"}, {"prompt": "{text}"}, "completion has none"),
        ({"text": "x"}, {"prompt": "{text}", "completion": "yes"}, "names no column"),
    ],
)
def test_columns_that_are_not_clear(row: dict[str, Any], source: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(row, **source)


def test_what_curate_wrote_says_how_it_is_read() -> None:
    with pytest.raises(DataError, match="no known row shape") as error:
        made({"question": "a", "answer": "b", "jaxlean_origin": "x.jsonl:1"})
    assert "report.md says with which data.train" in str(error.value)


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"prompt": "Hi", "completion": "  "}, {}),
        ({"text": None}, {}),
        ({"x": None, "y": "a"}, {"prompt": "{x}", "completion": "{y}"}),
        ({"messages": []}, {}),
        ({"messages": "no"}, {}),
        ({"messages": [USER]}, {}),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, {}),
        ({"messages": [USER, {"role": "assistant"}]}, {}),
        ({"messages": [USER, {"content": "x"}]}, {}),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, {}),
        ({"messages": [USER, "x"]}, {}),
    ],
)
def test_rows_with_nothing_to_learn_name_their_place(row: dict[str, Any], source: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="f:7"):
        made(row, **source)


def test_fill() -> None:
    row = {"a b": "x", "n": 1.5, "l": [1], "é": "y"}
    assert fill("{a b}{n}{l}{é}{}{ }", row, "f:1") == "x1.5[1]y{}{ }"
