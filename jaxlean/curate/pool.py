"""A pool of texts that are to have labels, and what has some already."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.files import Rows
from jaxlean.data.labelled import Example, LabelEncoder, Labelled
from jaxlean.data.source import open_rows
from jaxlean.data.tokenize import Counts, Tokens


@dataclass(frozen=True)
class Pool:
    """The rows that may be chosen, and those that have labels.

    Attributes:
        rows: of the pool's file.
        at: int [n], their places in it.
        tokens: of each.
        labelled: tokens of the texts that have a label.
        left_out: what was not taken into account, in words.
    """

    rows: Rows
    at: np.ndarray
    tokens: list[Tokens]
    labelled: list[Tokens]
    left_out: str


def read_pool(
    config: RunConfig, rows: Rows, sources: Sequence[SourceSection], tokenizer: Any, *, vocab_size: int | None = None
) -> Pool:
    """Read a pool: of equal texts the first may be chosen, and none that has a label there or elsewhere.

    Args:
        config: resolved; its `data` names columns, `max_length` and `on_long`.
        rows: of the pool.
        sources: of what has labels.
        tokenizer: a transformers fast tokenizer.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: a column that is missing, a row without a text.
    """
    encoder = LabelEncoder(config, tokenizer, vocab_size=vocab_size, blind=True)
    known: dict[tuple[str, ...], tuple[Example, str]] = {}
    for source in sources:
        for example, origin in _examples(open_rows(source), encoder):
            known.setdefault(_plain(example), (example, origin))
    seen, column = set(known), config.data.label_column or "label"
    chosen: list[tuple[int, tuple[Example, str]]] = []
    times = {"have a label": 0, "are like a labelled one": 0, "come twice": 0, "dropped for their length": 0}
    for i, ((example, origin), row) in enumerate(zip(_examples(rows, encoder), rows, strict=True)):
        text = _plain(example)
        if str(row.get(column) or "").strip():
            times["have a label"] += 1
            known.setdefault(text, (example, origin))
        elif text in seen:
            times["are like a labelled one" if text in known else "come twice"] += 1
        else:
            chosen.append((i, (example, origin)))
        seen.add(text)
    # a row may stand before its twin that has a label
    own = [one for one in chosen if _plain(one[1][0]) not in known]
    times["are like a labelled one"] += len(chosen) - len(own)
    tokens = list(encoder.encode((one for _, one in own), Counts()))
    kept = [i for i, found in enumerate(tokens) if found is not None]
    times["dropped for their length"] = len(own) - len(kept)
    return Pool(
        rows, np.array([own[i][0] for i in kept], np.int64), [found for found in tokens if found is not None],
        [found for found in encoder.encode(known.values(), Counts()) if found is not None],
        "".join(f"; {num:,} {what}" for what, num in times.items() if num),
    )  # fmt: skip


def _examples(rows: Rows, encoder: LabelEncoder) -> Iterator[tuple[Example, str]]:
    make = encoder.reader(rows[0], rows.name)
    for i, row in enumerate(rows):
        origin = rows.origin(i)
        yield make(row, origin), origin


def _plain(example: Example) -> tuple[str, ...]:
    assert isinstance(example, Labelled), "of task: classify"
    return tuple(text.strip() for text in example.texts)
