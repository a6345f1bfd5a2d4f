"""The projects whose configs are read: what each is called, and the table of its keys."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlean.convert.row import Line, Outcome, Row
from jaxlean.convert.source import Source, flat
from jaxlean.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Format:
    """A project's config.

    Attributes:
        name: for `--from`.
        title: how it is called.
        rows: the first that knows a key decides.
        sections: keys whose values are mappings of keys, which rows name `section.key`.
        others: (the file) -> what follows from several keys, or holds whatever the file says; written where no key says
            otherwise.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    sections: Sequence[str] = ()
    others: Callable[[Source], Iterable[Outcome]] = lambda source: ()

    def read(self, file: Path, values: Mapping[str, Any]) -> Source:
        """The file as this format's."""
        return flat(file, values, self.sections)

    def row(self, key: str) -> Row | None:
        """The row of a key; None: it is unknown."""
        exact = (row for row in self.rows if key in row.keys)
        return next(exact, None) or next((row for row in self.rows if row.knows(key)), None)

    def lines(self, source: Source) -> list[Line]:
        """What becomes of every key, in the file's order.

        Raises:
            ConfigError: the file is of a job that jaxlean does not do.
        """
        found = []
        for key, value in source.values.items():
            row = self.row(key)
            if row is None:
                found.append(Line(key, value, Outcome("unknown", note=self.unknown(key)), secret=True))
                continue
            outcome = row.outcome(value, source)
            if outcome.kind == "refused":
                raise ConfigError(
                    f"jaxlean does not do this: {outcome.note}", where=source.file, got=f"{key}: {str(value)[:80]}",
                    wanted="supervised fine-tuning on texts, prompts with completions, or conversations",
                )  # fmt: skip
            found.append(Line(key, value, outcome, secret=row.secret))
        return found

    def unknown(self, key: str) -> str:
        """What to say of a key that no row knows."""
        known = [own for row in self.rows for own in row.keys if "*" not in own]
        hint = did_you_mean(key, known)
        return hint if hint.startswith("did") else f"not a key of {self.title}"
