"""The rows of all sources as one, read a few at a time: where each lies, and what it says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, TypeVar

import numpy as np

from jaxlean.config import RunConfig, SourceSection
from jaxlean.data.files import Row, Rows
from jaxlean.data.source import open_rows
from jaxlean.data.words import Reader, Words, reader, resolved
from jaxlean.errors import ConfigError, DataError

# Rows parsed together, at most; after some with more characters than this, fewer.
_TOGETHER = 64
LARGE = 2**22
Which = Literal["train", "eval"]
_T = TypeVar("_T")


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
        self.which = which
        self.sources: list[SourceSection] = sources
        self.parts: list[Rows] = [open_rows(source) for source in sources]
        self.config = config
        if config.task != "generate":
            main = self.parts[0] if which == "train" or not config.data.train else open_rows(config.data.train[0])
            self.config = self._of_first(main, lambda row: resolved(config, list(row)))
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
            together = min(2 * together, _TOGETHER) if size(rows) < LARGE else 1
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
        return self._readers[item.source][1](item.row, item.origin)

    def first(self, source: int) -> Row:
        """The row that decides how a source's rows are read.

        Raises:
            DataError: no row of it can be.
        """
        return self._readers[source][0]

    @cached_property
    def _readers(self) -> list[tuple[Row, Reader]]:
        return [
            self._of_first(part, partial(self._reader, source))
            for part, source in zip(self.parts, self.sources, strict=True)
        ]

    def _reader(self, source: SourceSection, row: Row) -> tuple[Row, Reader]:
        read = reader(row, source, self.config)
        if self.config.curate.bad_rows == "drop":
            read(row, source.path)
        return row, read

    def _of_first(self, rows: Rows, decide: Callable[[Row], _T]) -> _T:
        """What the first row decides about all of them; where bad rows are dropped, the first that is good."""
        error: DataError | None = None
        for i in range(len(rows)):
            try:
                return decide(rows[i])
            except DataError as said:
                if self.config.curate.bad_rows == "error":
                    raise
                error = error or said
        assert error is not None, "a source has a row"
        raise error


def size(value: object) -> int:
    """Characters of a value, roughly."""
    total, level = 0, [value]
    while level:
        one = level.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, dict):
            level += one.values()
        elif isinstance(one, list):
            level += one
        else:
            total += 8
    return total
