"""The files: the rows that stay, as one dataset or several, and those that do not, each with its reason."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from jaxlean.curate.columns import merge, table
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.layout import parts_of
from jaxlean.data.files import Row
from jaxlean.data.format import ORIGIN
from jaxlean.errors import DataError

# Of the columns that are written beside the rows' own. A row's own of the same name is replaced, but for the origin.
PREFIX = "jaxlean_"
DROPPED = "dropped.parquet"
_GROUP_ROWS, _GROUP_CHARS = 8192, 2**24  # of a row group


def write(
    folder: Path,
    corpus: Corpus,
    schemas: Sequence[pa.Schema],
    chars: np.ndarray,
    alive: np.ndarray,
    answers: Sequence[tuple[str, Found]],
    other: Corpus | None,
) -> None:
    """Write the files, each whole or not at all.

    The rows that stay have their own columns, `jaxlean_origin`, and the scores of the steps as `jaxlean_<score>`;
    those that do not, also `jaxlean_dropped_by` (the step), `jaxlean_reason`, `jaxlean_value` (the number that decided)
    and `jaxlean_duplicate_of` (the origin of the row that stayed in its place, or stands in the held-out data).

    Args:
        folder: that they are written into.
        corpus: all rows.
        schemas: the columns of each source.
        chars: [rows] int64, characters of each; -1 of one that could not be read.
        alive: [rows] bool: stays.
        answers: (step, what it found), in order.
        other: the held-out rows, where a step names some.
    """
    scores = {name: score for _, found in answers for name, score in found.scores.items()}
    added = {ORIGIN: pa.string()} | {f"{PREFIX}{name}": pa.float32() for name in scores}
    why = {
        f"{PREFIX}dropped_by": pa.string(),
        f"{PREFIX}reason": pa.string(),
        f"{PREFIX}value": pa.float32(),
        f"{PREFIX}duplicate_of": pa.string(),
    }
    reasons = _Reasons(corpus, answers, other)

    def kept(number: int, row: Row, origin: str) -> Row:
        more: Row = {f"{PREFIX}{name}": _number(score[number]) for name, score in scores.items()}
        return row | {ORIGIN: str(row.get(ORIGIN) or origin)} | more

    def dropped(number: int, row: Row, origin: str) -> Row:
        return kept(number, row, origin) | reasons.of(number)

    numbers = np.flatnonzero(alive)
    of = corpus.source_of(numbers)
    for part in parts_of(corpus):
        own = numbers[np.isin(of, part.sources)]
        if len(own):
            columns = _with(merge(schemas[source] for source in part.sources), added)
            _write(folder / part.name, columns, _groups(corpus, own, chars, kept))
    columns = _with(_with(merge(schemas), added), why)
    _write(folder / DROPPED, columns, _groups(corpus, np.flatnonzero(~alive), chars, dropped))


class _Reasons:
    """Why a row is dropped: looked up by its number."""

    def __init__(self, corpus: Corpus, answers: Sequence[tuple[str, Found]], other: Corpus | None) -> None:
        self._corpus, self._answers, self._other = corpus, answers, other

    def of(self, number: int) -> Row:
        for step, found in self._answers:
            at = int(np.searchsorted(found.rows, number))
            if at < len(found.rows) and found.rows[at] == number:
                return {
                    f"{PREFIX}dropped_by": step,
                    f"{PREFIX}reason": found.reasons[found.codes[at]],
                    f"{PREFIX}value": None if found.value is None else _number(found.value[at]),
                    f"{PREFIX}duplicate_of": self.beside(found, at),
                }
        raise AssertionError(f"row {number} is dropped by no step")

    def beside(self, found: Found, at: int) -> str | None:
        """The origin of the row that the one at this place is a duplicate of."""
        if found.of is None or found.of[at] < 0:
            return None
        corpus = self._corpus if found.beside == "train" else self._other
        assert corpus is not None
        return corpus.origin(int(found.of[at]))


def _groups(corpus: Corpus, numbers: np.ndarray, chars: np.ndarray, made: Any) -> Iterator[list[Row]]:
    """Rows, as many as a row group has. Of what is not a usable row there is only its origin."""
    usable = (chars >= 0) & (chars <= corpus.config.curate.max_chars)
    rows: list[Row] = []
    held = 0
    items = corpus.attempts(numbers[usable[numbers]])
    for number in numbers.tolist():
        item = next(items) if usable[number] else None
        assert not isinstance(item, DataError)
        rows.append(made(number, item.row if item else {}, item.origin if item else corpus.origin(number)))
        held += max(int(chars[number]), 0)
        if len(rows) == _GROUP_ROWS or held > _GROUP_CHARS:
            yield rows
            rows, held = [], 0
    yield rows


def _write(file: Path, schema: pa.Schema, groups: Iterator[list[Row]]) -> None:
    file.parent.mkdir(exist_ok=True)
    partial = file.with_name(f".{file.name}.part")
    with pyarrow.parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        for rows in groups:
            writer.write_table(table(rows, schema))
    os.replace(partial, file)


def _with(schema: pa.Schema, more: Mapping[str, pa.DataType]) -> pa.Schema:
    own = (field for field in schema if field.name not in more)
    return pa.schema([*own, *(pa.field(name, kind) for name, kind in more.items())])


def _number(value: Any) -> float | None:
    """A number, or null for NaN."""
    return None if np.isnan(value) else float(value)
