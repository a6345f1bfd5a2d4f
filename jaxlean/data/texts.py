"""The plain texts of the training data, without templates or tokens: for what looks at words."""

import itertools
from collections.abc import Iterator
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.data.format import Chat, Pair, Text, recogniser
from jaxlean.data.labelled import LabelEncoder, Labelled, Related, Tagged
from jaxlean.data.loader import part_of
from jaxlean.data.source import open_rows, stream_rows
from jaxlean.errors import ConfigError


def training_texts(config: RunConfig, tokenizer: Any, *, most_rows: int = 200_000) -> Iterator[str]:
    """Each text of the rows that train, prompts and completions apart; nothing of what is held out.

    Args:
        config: resolved.
        tokenizer: the model's.
        most_rows: looked at of each source, its first ones.

    Raises:
        ConfigError: no training data.
        DataError: anything wrong with a row, with its place.
    """
    data = config.data
    if not data.train:
        raise ConfigError("no training data", wanted="data.train: a file, a folder or a hub id")
    labelled = LabelEncoder(config, tokenizer) if config.task != "generate" else None
    for source in data.train:
        rows: Iterator[tuple[dict[str, Any], str]]
        if data.streaming:
            rows = ((row, origin) for _, row, origin in itertools.islice(stream_rows(source), most_rows))
        else:
            held = open_rows(source)
            chosen = set(part_of(len(held), data, False, config.seed)) if data.eval_fraction else range(len(held))
            rows = ((row, held.origin(i)) for i, row in enumerate(held) if i in chosen)
        make = None
        for row, origin in itertools.islice(rows, most_rows):
            if make is None:
                make = (
                    labelled.reader(row, source.path)
                    if labelled is not None
                    else recogniser(row, source, data, chat=False)
                )
            yield from _texts(make(row, origin))


def _texts(example: Any) -> Iterator[str]:
    match example:
        case Text(text):
            yield text
        case Pair(prompt, completion):
            yield prompt
            yield completion
        case Chat(messages):
            yield from (message["content"] for message in messages)
        case Labelled(texts):
            yield from texts
        case Tagged(words):
            yield " ".join(words)
        case Related(anchor, positive):
            yield anchor
            if positive is not None:
                yield positive
