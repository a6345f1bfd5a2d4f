"""The rows of all sources as one, read a few at a time: where each lies, and what it says."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.files import Row, Rows
from jaxlean.data.source import open_rows
from jaxlean.data.words import Reader, Words, reader, resolved
from jaxlean.errors import ConfigError, DataError

# Rows parsed together, at most; after some with more characters than this, fewer.
_TOGETHER = 64
_LARGE = 2**22
Which = Literal["train", "eval"]


@dataclass(frozen=True)
class Item:
    """A row and where it is from.

    Attributes:
        number: in the corpus, from 0.
        row: its columns, as the source has them.
        origin: `file:line` or `file row N`, for people.
        source: number of the source in `data.train`.
    """

    number: int
    row: Row
    origin: str
    source: int


class Corpus:
    """All rows of `data.train` (or `data.eval`), numbered from 0 in the order of the sources.

    Made anew in every process that works on rows, from the config; nothing but indices is held.
    """

    def __init__(self, config: RunConfig, which: Which = "train") -> None:
        """Open the sources.

        Raises:
            ConfigError: none is named.
            DataError: one that cannot be opened.
        """
        sources = config.data.train if which == "train" else config.data.eval
        if not sources:
            raise ConfigError(f"no data.{which}", wanted="a file, a folder or a hub id")
        self.config = resolved(config)
        self.which = which
        self.sources: list[SourceSection] = sources
        self.parts: list[Rows] = [open_rows(source) for source in sources]
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, number: int) -> tuple[int, int]:
        """(the source, the row in it) of a row."""
        source = int(np.searchsorted(self.starts, number, side="right")) - 1
        return source, number - int(self.starts[source])

    def origin(self, number: int) -> str:
        """Where a row is from, for people."""
        source, own = self.place(number)
        return self.parts[source].origin(own)

    def source_of(self, numbers: np.ndarray) -> np.ndarray:
        """The source of each row, [n] int64."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def items(self, numbers: np.ndarray) -> Iterator[Item]:
        """Rows by their numbers; ascending ones are read fastest.

        Raises:
            DataError: a row that cannot be read.
        """
        for item in self.attempts(numbers):
            if isinstance(item, DataError):
                raise item
            yield item

    def attempts(self, numbers: np.ndarray) -> Iterator[Item | DataError]:
        """As `items`, with the error in the place of a row that cannot be read."""
        at, together = 0, 1
        while at < len(numbers):
            first = int(numbers[at])
            source, own = self.place(first)
            most = min(at + together, len(numbers), at + int(self.starts[source + 1]) - first)
            gaps = np.flatnonzero(np.diff(numbers[at:most]) != 1)
            stop = at + 1 + int(gaps[0]) if len(gaps) else most
            part = self.parts[source]
            try:
                rows = part.read(own, own + stop - at)
            except DataError as error:
                if stop > at + 1:
                    together = 1
                    continue
                yield error
                at = stop
                continue
            # after a row of megabytes, one at a time again
            together = min(2 * together, _TOGETHER) if sum(map(_size, rows)) < _LARGE else 1
            for i, row in enumerate(rows):
                yield Item(first + i, row, part.origin(own + i), source)
            at = stop

    def words(self, numbers: np.ndarray) -> Iterator[Words]:
        """What rows say, in the order of their numbers.

        Raises:
            DataError: a row that cannot be read, or says nothing.
        """
        for item in self.items(numbers):
            yield self.read(item)

    def read(self, item: Item) -> Words:
        """What a row says."""
        return self._readers[item.source](item.row, item.origin)

    @cached_property
    def _readers(self) -> list[Reader]:
        found = []
        for part, source in zip(self.parts, self.sources, strict=True):
            try:
                first = list(part[0])
            except DataError:
                if self.config.curate.bad_rows == "error":
                    raise
                first = list(next(_good_rows(part)))
            found.append(reader(first, source, self.config))
        return found


def _size(value: object) -> int:
    """Characters of a value, roughly."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def _good_rows(rows: Rows) -> Iterator[Row]:
    for i in range(len(rows)):
        try:
            yield rows[i]
        except DataError:
            continue
    raise DataError("no row of the source can be read", where=rows.name)
