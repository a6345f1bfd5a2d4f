"""A row's own words: what it says by itself, without templates, system messages and tools that it shares with others.

Rows are compared by these. A system message of 3,000 letters before each question would make all rows near duplicates
of each other, and so would the fixed part of a prompt template.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.columns import items, label_name, need, resolve
from jaxlean.data.format import Chat, Pair, places, recogniser
from jaxlean.errors import DataError


@dataclass(frozen=True)
class Words:
    """What a row says.

    Attributes:
        text: all of it, in order.
        prompt: what is asked; of a row without an answer, all of it.
        label: its name, of `task: classify` and `tag`.
    """

    text: str
    prompt: str
    label: str = ""


Reader = Callable[[dict[str, Any], str], Words]


def resolved(config: RunConfig, names: Sequence[str] | None = None) -> RunConfig:
    """The config with the columns of its task filled in (`columns.resolve`), its labels left unread.

    Where `curate.text_column` says what is compared, the task's own column of texts may be one that cannot be guessed,
    or none (images): it stays as it is. That of labels is needed nevertheless.

    Args:
        config: of the job.
        names: of the columns; default: those of the first row of the first source.

    Raises:
        ConfigError: no data.
        DataError: columns that fit twice or not at all.
    """
    own, data = config.curate.text_column, config.data
    if own is None:
        return resolve(config, known=(), names=names)
    compared = config.model_copy(update={"data": data.model_copy(update={"text_column": own})})
    found = resolve(compared, known=(), names=names)
    return found.model_copy(update={"data": found.data.model_copy(update={"text_column": data.text_column})})


def reader(columns: Iterable[str], source: SourceSection, config: RunConfig) -> Reader:
    """Decide from the columns of a source's first row and the config what a row says.

    Args:
        columns: of the first row.
        source: its `format` and templates win over those of `data`.
        config: `curate.text_column`; of other tasks than generate, `data.text_column` and `data.label_column`, as
            `resolved` fills them in.

    Returns:
        A function of (row, origin), which raises a `DataError` that names the origin where the row has no such words.

    Raises:
        DataError: a column that is not there, columns that fit no shape or several.
    """
    columns = list(columns)
    label = config.data.label_column if config.task in ("classify", "tag") else None
    if config.curate.text_column is not None:
        return _of_columns(config.curate.text_column, label, columns, source.path, "curate.text_column")
    if config.task != "generate":
        assert config.data.text_column is not None
        return _of_columns(config.data.text_column, label, columns, source.path, "data.text_column")
    recognise = recogniser(columns, source, config.data, chat=True)
    prompt, completion = source.prompt or config.data.prompt, source.completion or config.data.completion
    if source.format in ("auto", "template") and (prompt or completion):
        return _of_template(places(prompt or "{prompt}"), places(completion or "{completion}"))

    def read(row: dict[str, Any], origin: str) -> Words:
        example = recognise(row, origin)
        if isinstance(example, Chat):
            return _of_chat(example)
        if isinstance(example, Pair):
            return Words(f"{example.prompt}\n{example.completion}", example.prompt)
        return Words(example.text, example.text)

    return read


def _of_chat(chat: Chat) -> Words:
    said = [
        (message["role"], _said(message)) for message in chat.messages if message["role"] not in ("system", "developer")
    ]
    return Words(
        "\n".join(text for _, text in said), "\n".join(text for role, text in said if role not in ("assistant", "tool"))
    )


def _said(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls")
    content: str = message["content"]
    return content if not calls else f"{content}\n{json.dumps(calls, ensure_ascii=False, default=str)}".lstrip()


def _of_template(prompt: list[str], completion: list[str]) -> Reader:
    def read(row: dict[str, Any], origin: str) -> Words:
        asked = "\n".join(_text(row, column, origin) for column in prompt)
        answered = "\n".join(_text(row, column, origin) for column in completion)
        if not answered.strip():
            raise DataError(
                "the completion is empty: the row has no token to learn", where=origin, fix="fill or remove the row"
            )
        return Words(f"{asked}\n{answered}", asked)

    return read


def _of_columns(text: str | list[str], label: str | None, columns: list[str], path: str, key: str) -> Reader:
    names = [text] if isinstance(text, str) else text
    need(names, columns, path, key)
    if label is not None:
        need([label], columns, path, "data.label_column")

    def read(row: dict[str, Any], origin: str) -> Words:
        said = "\n".join(_text(row, column, origin) for column in names)
        value = None if label is None else row.get(label)
        if isinstance(value, list):  # the tags of the words
            name = " ".join(str(tag) for tag in items(row, label or "", origin))
        else:
            name = "" if label is None else label_name(value, label, origin)
        return Words(said, _text(row, names[0], origin), name)

    return read


def _text(row: dict[str, Any], column: str, origin: str) -> str:
    """A column as text: words of a list with spaces between them, anything else as JSON."""
    value = row.get(column)
    if value is None:
        what = f"the column {column!r} is empty" if column in row else f"the column {column!r} is missing"
        raise DataError(what, where=origin, got=f"columns {', '.join(row)}", fix="fill or remove the row")
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
