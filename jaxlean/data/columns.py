"""What a task learns from: which columns of a row, and which labels there are; told by the config, else recognised.

| task | text | label |
|---|---|---|
| classify | `text`; or two: `sentence1`, `sentence2` | `label` |
| tag | `tokens`: [word, ...] | `ner_tags`: [tag of each word, ...] |
| embed | two: `anchor`, `positive` | |

A model of images classifies `image` instead of a text.

A guess that could be wrong is not made: columns that fit twice, or not at all, are an error that names the setting.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.source import open_rows
from jaxlean.errors import ConfigError, DataError, did_you_mean

Row = dict[str, Any]
_IMAGES = ("image", "img", "file_name", "image_path")
# Names that a column, or a pair of them, often has.
_TEXTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "classify": (
        ("text",), ("sentence",), ("content",), ("utterance",), ("text", "text_pair"), ("sentence1", "sentence2"),
        ("premise", "hypothesis"), ("question1", "question2"),
    ),
    "tag": (("tokens",), ("words",)),
    "embed": (
        ("anchor", "positive"), ("query", "positive"), ("query", "answer"), ("query", "passage"), ("query", "document"),
        ("question", "answer"), ("sentence1", "sentence2"),
    ),
}  # fmt: skip
_LABELS: dict[str, tuple[str, ...]] = {
    "classify": ("label", "labels", "category", "intent", "class", "target"),
    "tag": ("ner_tags", "tags", "pos_tags", "chunk_tags", "labels"),
    "embed": (),
}


def resolve(
    config: RunConfig,
    known: Sequence[str] | None = None,
    *,
    labelled: bool = True,
    images: bool = False,
    names: Sequence[str] | None = None,
) -> RunConfig:
    """The config with its columns and labels filled in; of `task: generate`, the config itself.

    Args:
        config: where `data.text_column`, `data.label_column` and `data.labels` are set they stay.
        known: the labels of a trained head, in the order of its ids; win over those in the data.
        labelled: False: rows will be judged, so that their column of labels is needed only to find out which there are.
        images: the model is one of images.
        names: of the columns; default: those of the first row of the first source.

    Raises:
        ConfigError: no training data, and nothing that says what the columns and labels are.
        DataError: columns that fit twice or not at all, a label that is missing, fewer than two labels.
    """
    if config.task == "generate":
        return config
    data, task = config.data, config.task
    sources = data.train or data.eval
    if not sources:
        raise ConfigError("no data", wanted="data.train or data.eval: a file, a folder or a hub id")
    first = functools.cache(lambda: list(open_rows(sources[0])[0]) if names is None else list(names))
    found: dict[str, Any] = {"packing": False} if task == "embed" else {}
    if images:
        found["packing"] = False
        if data.image_column is None:
            found["image_column"] = _image_column(first(), sources[0].path)
    elif data.text_column is None:
        found["text_column"] = _text_column(task, first(), sources[0].path)
    labels = data.labels if data.labels is not None or known is None else list(known)
    if data.label_column is None and task != "embed" and (labelled or labels is None):
        found["label_column"] = _label_column(task, first(), sources[0].path)
    if task != "embed":
        found["labels"] = labels if labels is not None else find_labels(_with(config, found))
    return _with(config, found)


def _with(config: RunConfig, found: dict[str, Any]) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=found)})


def find_labels(config: RunConfig) -> list[str]:
    """The labels in the training data, sorted: numbers by value, names by letters.

    Args:
        config: with `data.label_column`.

    Raises:
        ConfigError: no training data is named.
        DataError: a row without a label, or fewer than two labels in all.
    """
    column = config.data.label_column
    assert column is not None
    if not config.data.train:
        raise ConfigError("the labels are not known", fix="set data.labels: the names in the order of their ids")
    names: set[str] = set()
    for source in config.data.train:
        rows = open_rows(source)
        need([column], rows[0], source.path, "data.label_column")
        for i, row in enumerate(rows):
            names.update(labels_of(row, config.task, column, rows.origin(i)))
    return in_order(names, column, ", ".join(source.path for source in config.data.train))


def label_column(task: str, source: SourceSection) -> str:
    """The column of a source that holds the label of a row.

    Raises:
        DataError: there is none of the names that such columns have, or several.
    """
    return _label_column(task, list(open_rows(source)[0]), source.path)


def labels_of(row: Row, task: str, column: str, origin: str) -> list[str]:
    """The label of a row, or those of its words.

    Raises:
        DataError: it has none.
    """
    values = items(row, column, origin) if task == "tag" else [row.get(column)]
    return [label_name(value, column, origin) for value in values]


def in_order(names: Iterable[str], column: str, where: str) -> list[str]:
    """Labels as ids number them: numbers by value, names by letters.

    Raises:
        DataError: fewer than two.
    """
    names = set(names)
    if len(names) < 2:
        raise DataError(
            "there is nothing to tell apart: the training data have one label only",
            where=where,
            got=f"{column}={next(iter(names), None)!r} in every row",
            fix="name the right data.label_column, or all labels in data.labels",
        )
    return sorted(names, key=lambda name: (int(name), "") if _is_number(name) else (0, name))


def label_ids(labels: Sequence[str], column: str) -> Callable[[Any, str], int]:
    """(a row's label, its origin) -> the label's id.

    A number is the id itself where the labels have names.

    Raises (when called):
        DataError: a label that is not among them.
    """
    ids = {name: i for i, name in enumerate(labels)}
    by_number = not any(_is_number(name) for name in labels)

    def find(value: Any, origin: str) -> int:
        name = label_name(value, column, origin)
        if name in ids:
            return ids[name]
        if by_number and _is_number(name) and 0 <= int(name) < len(labels):
            return int(name)
        raise DataError(
            f"a label in the column {column!r} that the model does not have",
            where=origin,
            got=repr(name),
            wanted=f"one of {len(labels)} labels of the training data (or of data.labels)",
            fix=did_you_mean(name, labels),
        )

    return find


def label_name(value: Any, column: str, origin: str) -> str:
    """A label as text, as it stands in `id2label`.

    Raises:
        DataError: there is none, or several.
    """
    if isinstance(value, list | dict):
        raise DataError(f"the column {column!r} holds several labels", where=origin, got=str(value)[:80])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = "" if value is None else str(value).strip()
    if not name:
        raise DataError(f"the column {column!r} has no label", where=origin, fix="fill or remove the row")
    return name


def items(row: Row, column: str, origin: str) -> list[Any]:
    """A column that holds a list, perhaps written as JSON.

    Raises:
        DataError: it holds none.
    """
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            pass  # said below
    if not isinstance(value, list) or not value:
        got = repr(row.get(column))[:80] if column in row else f"columns {', '.join(row)}"
        raise DataError(
            f"the column {column!r} is not a list with one entry a word", where=origin, got=got,
            wanted='a row like {"tokens": ["Ada", "sleeps"], "ner_tags": ["B-PER", "O"]}',
            fix="JSON lines hold lists; a CSV's cell holds one as JSON",
        )  # fmt: skip
    return value


def need(wanted: Iterable[str], columns: Iterable[str], path: str, key: str) -> None:
    """Check that a source has the columns.

    Raises:
        DataError: names the first that is missing, and what was perhaps meant.
    """
    columns = list(columns)
    for column in wanted:
        if column not in columns:
            raise DataError(
                f"{key}: there is no column {column!r}",
                where=path,
                got=f"columns {', '.join(columns)}",
                fix=did_you_mean(column, columns),
            )


def _text_column(task: str, columns: list[str], path: str) -> str | list[str]:
    fits = [names for names in _TEXTS[task] if set(names) <= set(columns)]
    # of `text` and (`text`, `text_pair`) the pair says more
    fits = [names for names in fits if not any(set(names) < set(other) for other in fits)]
    if len(fits) != 1:
        what = {"classify": "the text", "tag": "the list of words", "embed": "the two texts that belong together"}[task]
        example = "[anchor,positive]" if task == "embed" else "NAME"
        raise _unclear(what, [" and ".join(names) for names in fits], columns, path, f"data.text_column={example}")
    return fits[0][0] if len(fits[0]) == 1 else list(fits[0])


def _image_column(columns: list[str], path: str) -> str:
    fits = [name for name in _IMAGES if name in columns]
    if len(fits) != 1:
        raise _unclear("the image", fits, columns, path, "data.image_column=NAME")
    return fits[0]


def _label_column(task: str, columns: list[str], path: str) -> str:
    fits = [name for name in _LABELS[task] if name in columns]
    if len(fits) != 1:
        what = "the list of tags" if task == "tag" else "the label"
        raise _unclear(what, fits, columns, path, "data.label_column=NAME")
    return fits[0]


def _unclear(what: str, fits: list[str], columns: list[str], path: str, fix: str) -> DataError:
    return DataError(
        f"it is not clear which column holds {what}",
        where=path,
        got=f"columns {', '.join(columns)}" + (f", of which {'; '.join(fits)} could be meant" if fits else ""),
        fix=fix,
    )


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()
