"""Row shapes: a row of columns -> what is to be learned from it.

| shape | columns |
|---|---|
| messages | `messages`: [{role, content}, ...], perhaps `tools` |
| prompt_completion | `prompt`, `completion`: texts or message lists |
| alpaca | `instruction`, `output`, perhaps `input`, `system` |
| sharegpt | `conversations`: [{from, value}, ...], perhaps `system` |
| text | `text` |
| template | any; `prompt` and `completion` of the config name them: '{question}' |

A guess that could be wrong is not made: columns that fit two shapes, or none, are an error that lists both.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxlean.config import DataSection, SourceSection
from jaxlean.errors import DataError, did_you_mean

Message = dict[str, Any]


@dataclass(frozen=True)
class Chat:
    """A conversation for the chat template; the assistant turns from message `learn_from` on are learned."""

    messages: list[Message]
    tools: list[Any] | None = None
    learn_from: int = 0


@dataclass(frozen=True)
class Pair:
    """Plain text: `completion` is learned, and the end after it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Plain text, all of it learned, and the end after it."""

    text: str


Example = Chat | Pair | Text
Recogniser = Callable[[dict[str, Any], str], Example]

SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "text": ("text",),
}
# The Stanford Alpaca prompts, for tokenizers without a chat template (github.com/tatsu-lab/stanford_alpaca).
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
# A column of what `jaxlean curate` writes: the place that a row came from.
ORIGIN = "jaxlean_origin"
_HOW_CURATED = "rows of `jaxlean curate` whose sources were read in several ways: report.md says with which data.train"
_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
    "system": "system",
}
# Only {name} is a place for a column, so that templates may hold JSON: '{"intent": "{intent}"}'.
_PLACE = re.compile(r"\{([^\W\d]\w*(?:[ .-]\w+)*)\}")


def recogniser(columns: Iterable[str], source: SourceSection, data: DataSection, *, chat: bool) -> Recogniser:
    """Decide the shape of a source's rows from the columns of its first row and the config.

    Args:
        columns: of the first row.
        source: its `format`, `prompt`, `completion` and `system` win over those of `data`.
        data: the defaults.
        chat: the tokenizer has a chat template and `data.chat` wants it used for prompts and completions.

    Returns:
        A function of (row, origin) that makes the `Example`, or raises a `DataError` that names the origin.

    Raises:
        DataError: columns that fit no shape or several, a template that names a column which is not there.
    """
    columns = list(columns)
    prompt, completion = source.prompt or data.prompt, source.completion or data.completion
    system = source.system or data.system
    shape: str = source.format
    if shape == "auto":
        shape = "template" if prompt or completion else _guess(columns, source.path)
    if shape == "template":
        prompt, completion = _templates(prompt, completion, columns, source.path)
    else:
        _need(SHAPES[shape], columns, source.path, shape)

    def make(row: dict[str, Any], origin: str) -> Example:
        if shape == "template":
            assert prompt is not None
            assert completion is not None
            return _pair(fill(prompt, row, origin), fill(completion, row, origin), system, chat, origin)
        if shape == "text":
            return Text(_string(row, "text", origin))
        if shape == "messages":
            return _chat(_messages(row.get("messages"), origin), row, system, origin)
        if shape == "sharegpt":
            return _chat(_messages(row.get("conversations"), origin), row, system, origin)
        if shape == "alpaca":
            return _alpaca(row, system, chat, origin)
        if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
            return _pair(row["prompt"], row["completion"], system, chat, origin)
        if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
            before = _messages(row["prompt"], origin)
            made = _chat(before + _messages(row["completion"], origin), row, system, origin, learn_from=len(before))
            return made
        raise DataError(
            "prompt and completion are neither two texts nor two lists of messages",
            where=origin,
            got=f"{type(row.get('prompt')).__name__} and {type(row.get('completion')).__name__}",
        )

    return make


def fill(template: str, row: dict[str, Any], origin: str) -> str:
    """Put the columns of a row into a template.

    >>> fill('{"intent": "{intent}"}', {"intent": "refund"}, "data.csv:2")
    '{"intent": "refund"}'
    """
    return _PLACE.sub(lambda place: _string(row, place[1], origin), template)


def places(template: str) -> list[str]:
    """The columns that a template names, in order.

    >>> places('{question} -> {"is": "{answer}"}')
    ['question', 'answer']
    """
    return _PLACE.findall(template)


def _guess(columns: list[str], path: str) -> str:
    fits = [shape for shape, needed in SHAPES.items() if set(needed) <= set(columns)]
    if len(fits) == 1:
        return fits[0]
    raise DataError(
        "the columns fit several row shapes" if fits else "the columns fit no known row shape",
        where=path,
        got=f"columns {', '.join(columns)}" + (f", which fit {' and '.join(fits)}" if fits else ""),
        wanted="one of " + "; ".join(f"{shape} ({', '.join(needed)})" for shape, needed in SHAPES.items()),
        fix=_HOW_CURATED
        if ORIGIN in columns
        else f"set the source's format: {fits[0]}"
        if fits
        else "name the columns with data.prompt='{column}' and data.completion='{column}'",
    )


def _templates(prompt: str | None, completion: str | None, columns: list[str], path: str) -> tuple[str, str]:
    for name, template in (("prompt", prompt), ("completion", completion)):
        if template is None and name not in columns:
            raise DataError(
                f"the format is a template, and {name} has none",
                where=path,
                got=f"columns {', '.join(columns)}",
                fix=f"set data.{name}='... {{column}} ...'",
            )
    prompt, completion = prompt or "{prompt}", completion or "{completion}"
    for name, template in (("prompt", prompt), ("completion", completion)):
        named = places(template)
        for place in named:
            if place not in columns:
                raise DataError(
                    f"the {name} template names a column that is not there",
                    where=path,
                    got=f"{{{place}}} in {template!r}",
                    wanted=f"columns {', '.join(columns)}",
                    fix=did_you_mean(place, columns),
                )
        if not named:
            raise DataError(
                f"the {name} template names no column: every row would be the same",
                where=path,
                got=repr(template),
                wanted="'{column}' with one of " + ", ".join(columns),
            )
    return prompt, completion


def _need(needed: tuple[str, ...], columns: list[str], path: str, shape: str) -> None:
    missing = [column for column in needed if column not in columns]
    if missing:
        raise DataError(
            f"a {shape} source needs the column {missing[0]!r}", where=path, got=f"columns {', '.join(columns)}"
        )


def _string(row: dict[str, Any], column: str, origin: str) -> str:
    """A column as text; what is not text becomes JSON."""
    value = row.get(column)
    if value is None:
        what = f"the column {column!r} is empty" if column in row else f"the column {column!r} is missing"
        raise DataError(what, where=origin, got=f"columns {', '.join(row)}", fix="fill or remove the row")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _pair(prompt: str, completion: str, system: str | None, chat: bool, origin: str) -> Example:
    if not completion.strip():
        raise DataError(
            "the completion is empty: the row has no token to learn", where=origin, fix="fill or remove the row"
        )
    if not chat:
        return Pair(f"{system}\n\n{prompt}" if system else prompt, completion)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return _with_system(Chat(messages), system)


def _alpaca(row: dict[str, Any], system: str | None, chat: bool, origin: str) -> Example:
    instruction, output = _string(row, "instruction", origin), _string(row, "output", origin)
    extra = row.get("input") or ""
    system = row.get("system") or system
    if chat:
        return _pair(f"{instruction}\n\n{extra}" if extra else instruction, output, system, chat, origin)
    template = _ALPACA_INPUT if extra else _ALPACA
    return _pair(fill(template, {"instruction": instruction, "input": extra}, origin), output, system, chat, origin)


def _chat(messages: list[Message], row: dict[str, Any], system: str | None, origin: str, learn_from: int = 0) -> Chat:
    tools = row.get("tools") or None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise DataError("the column 'tools' is not JSON", where=origin, got=error) from None
    learned = [m for m in messages[learn_from:] if m["role"] == "assistant"]
    if not any(m["content"].strip() or m.get("tool_calls") for m in learned):
        raise DataError(
            "the conversation has no assistant text: the row has no token to learn",
            where=origin,
            got="roles " + ", ".join(m["role"] for m in messages),
            fix="add an assistant message or remove the row",
        )
    return _with_system(Chat(messages, tools, learn_from), row.get("system") or system)


def _with_system(chat: Chat, system: str | None) -> Chat:
    """Put the system message first; one that the row brings itself stays."""
    if not system or chat.messages[0]["role"] in ("system", "developer"):
        return chat
    return replace(
        chat, messages=[{"role": "system", "content": system}, *chat.messages], learn_from=chat.learn_from + 1
    )


def _messages(value: Any, origin: str) -> list[Message]:
    """Messages with role and content, from either spelling ({role, content} or {from, value})."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise DataError("the conversation is no list of messages", where=origin, got=repr(value[:80])) from None
    if not isinstance(value, list) or not value:
        raise DataError("the conversation is not a list of messages", where=origin, got=repr(value)[:80])
    return [_message(message, f"{origin}, message {i}") for i, message in enumerate(value, 1)]


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise DataError("a message is an object", where=where, got=type(message).__name__, wanted="{role, content}")
    # Arrow fills the keys that only other rows have with None.
    message = {key: value for key, value in message.items() if value is not None}
    if "from" in message:
        role = _ROLES.get(str(message["from"]).lower())
        if role is None:
            raise DataError("an unknown speaker", where=where, got=message["from"], wanted=", ".join(_ROLES))
        message = {"role": role, "content": message.get("value", "")}
    role, content = message.get("role"), message.get("content", "")
    if not isinstance(role, str):
        raise DataError("a message without a role", where=where, got=", ".join(message), wanted="role, content")
    if isinstance(content, list):
        texts = [str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) != len(content):
            raise DataError("a message holds more than text", where=where, fix="jaxlean trains on text only")
        content = "".join(texts)
    if not isinstance(content, str):
        raise DataError("the content of a message is not text", where=where, got=type(content).__name__)
    if "content" not in message and "tool_calls" not in message:
        raise DataError("a message without content", where=where, got=f"keys {', '.join(message)}")
    return {**message, "content": content}
