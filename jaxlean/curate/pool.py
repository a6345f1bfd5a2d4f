"""A pool of texts that are to have labels, and what has some already."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.columns import label_ids, need
from jaxlean.data.dedupe import normalise
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
        tokens: of each, for its vector.
        judged: of each, for the model that knows the labels, whose tokenizer may have new tokens.
        labelled: tokens of the texts that have a label.
        left_out: what was not taken into account, in words.
    """

    rows: Rows
    at: np.ndarray
    tokens: list[Tokens]
    judged: list[Tokens]
    labelled: list[Tokens]
    left_out: str


def read_pool(
    config: RunConfig,
    rows: Rows,
    sources: Sequence[SourceSection],
    held_out: Sequence[SourceSection],
    encoder: LabelEncoder,
    judge: LabelEncoder | None = None,
) -> Pool:
    """Read a pool: of equal texts the first may be chosen, none that has a label there or elsewhere, none held out.

    Args:
        config: resolved; its `data` names columns, and labels where there are sources.
        rows: of the pool.
        sources: of what has labels.
        held_out: what a trained model is judged by. Rows that stand there would measure memory, once they are trained
            with; case, marks and blanks make no other row, as `leakage` of `jaxlean curate` has it.
        encoder: of the model that gives vectors, `blind`.
        judge: of the model that knows the labels; None: there is none.

    Raises:
        DataError: a column that is missing, a row without a text, one that is too long for a model; of the sources, a
            row without a label, or with another than the config's.
    """
    known: dict[tuple[str, ...], tuple[Example, str]] = {}
    column = config.data.label_column or "label"
    find = label_ids(config.data.labels or [], column)
    for source in sources:
        there = open_rows(source)
        need([column], there[0], there.name, "data.label_column")
        for (example, origin), row in zip(_examples(there, encoder), there, strict=True):
            find(row.get(column), origin)
            known.setdefault(_plain(example), (example, origin))
    held = {_bare(example) for source in held_out for example, _ in _examples(open_rows(source), encoder)}
    seen = set(known)
    chosen: list[tuple[int, tuple[Example, str]]] = []
    times = {"have a label": 0, "are like a labelled one": 0, "stand in the held-out data": 0, "come twice": 0}
    for i, ((example, origin), row) in enumerate(zip(_examples(rows, encoder), rows, strict=True)):
        text = _plain(example)
        if row.get(column) is not None and str(row[column]).strip():  # 0 is a label
            times["have a label"] += 1
            known.setdefault(text, (example, origin))
        elif held and _bare(example) in held:
            times["stand in the held-out data"] += 1
        elif text in seen:
            times["are like a labelled one" if text in known else "come twice"] += 1
        else:
            chosen.append((i, (example, origin)))
        seen.add(text)
    # a row may stand before its twin that has a label
    own = [one for one in chosen if _plain(one[1][0]) not in known]
    times["are like a labelled one"] += len(chosen) - len(own)
    texts = [one for _, one in own]
    tokens = list(encoder.encode(texts, Counts()))
    judged = tokens if judge is None else list(judge.encode(texts, Counts()))
    kept = [i for i, both in enumerate(zip(tokens, judged, strict=True)) if None not in both]
    times["dropped for their length"] = len(own) - len(kept)
    return Pool(
        rows, np.array([own[i][0] for i in kept], np.int64), _there(tokens[i] for i in kept),
        _there(judged[i] for i in kept), _there(encoder.encode(known.values(), Counts())),
        "".join(f"; {num:,} {what}" for what, num in times.items() if num),
    )  # fmt: skip


def _there(tokens: Iterable[Tokens | None]) -> list[Tokens]:
    return [one for one in tokens if one is not None]


def _examples(rows: Rows, encoder: LabelEncoder) -> Iterator[tuple[Example, str]]:
    make = encoder.reader(rows[0], rows.name)
    for i, row in enumerate(rows):
        origin = rows.origin(i)
        yield make(row, origin), origin


def _plain(example: Example) -> tuple[str, ...]:
    assert isinstance(example, Labelled), "of task: classify"
    return tuple(text.strip() for text in example.texts)


def _bare(example: Example) -> tuple[str, ...]:
    return tuple(normalise(text) for text in _plain(example))
