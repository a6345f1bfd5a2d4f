"""A row of a table: what becomes of one key of another project's config, and the outcome for a value of it.

carried   it is a setting here as well, perhaps under another name and with another value
idle      it is the default here, or there is nothing to set: a compiler or the data loader does without
missing   there is nothing like it; the note says what it does there, and what comes nearest
refused   it makes the file a job that jaxlean does not do
unknown   no row knows it
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from jaxlean.convert.source import Source

Kind = Literal["carried", "idle", "missing", "refused", "unknown"]
# Where a project's default is not to be written out.
UNSET: Any = object()


@dataclass(frozen=True)
class Line:
    """What is reported of a key: its name there, its value, and what became of it.

    Attributes:
        secret: the value is not to be shown.
    """

    key: str
    value: Any
    outcome: "Outcome"
    secret: bool = False


@dataclass(frozen=True)
class Outcome:
    """What becomes of a value.

    Attributes:
        kind: of the module's docstring.
        settings: `section.key` of ours -> value. Of `missing` what comes nearest and is written.
        note: how the value changed, why nothing is needed, or what it did and what comes nearest.
        check: what cannot be known from the file, and a person should look at.
        inner: lines of the keys inside of the value, where it is a list of mappings.
    """

    kind: Kind
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    check: str = ""
    inner: tuple[Line, ...] = ()


# (value, all of the file) -> an outcome, or our value of the row's `to`.
Becomes = Callable[[Any, Source], Any]


@dataclass(frozen=True)
class Row:
    """One key.

    Attributes:
        keys: its names, today's first; `liger_*` stands for all that begin so.
        kind: what becomes of it, unless `becomes` says otherwise.
        to: our key.
        note: as of `Outcome`.
        becomes: a value -> an outcome or our value; default: the value as it is.
        default: what the project takes where the key is missing, or a function of the file that says so; `UNSET`: that
            is no matter of meaning, or jaxlean takes the same.
        secret: its value is neither shown nor carried over.
    """

    keys: tuple[str, ...]
    kind: Kind
    to: str = ""
    note: str = ""
    becomes: Becomes | None = None
    default: Any = UNSET
    secret: bool = False

    def knows(self, key: str) -> bool:
        """Whether the row is of this key."""
        return any(key == own or ("*" in own and fnmatchcase(key, own)) for own in self.keys)

    def outcome(self, value: Any, source: Source) -> Outcome:
        """For one value."""
        if self.becomes is not None:
            made = self.becomes(value, source)
            return made if isinstance(made, Outcome) else Outcome("carried", {self.to: made}, self.note)
        if self.kind == "carried":
            return Outcome("carried", {self.to: value}, self.note)
        if self.kind == "missing" and is_off(value):
            return Outcome("idle", note="off there")
        return Outcome(self.kind, note=self.note)


def carried(keys: str, to: str, note: str = "", *, becomes: Becomes | None = None, default: Any = UNSET) -> Row:
    """A row of a setting that jaxlean has too; `keys` apart by spaces."""
    return Row(tuple(keys.split()), "carried", to, note, becomes, default)


def idle(keys: str, why: str) -> Row:
    """A row of keys that need nothing here."""
    return Row(tuple(keys.split()), "idle", note=why)


def missing(keys: str, does: str, nearest: str = "", *, secret: bool = False) -> Row:
    """A row of keys that have no counterpart: what they do there, and what comes nearest here."""
    return Row(tuple(keys.split()), "missing", note=f"{does}; nearest: {nearest}" if nearest else does, secret=secret)


def refused(keys: str, what: str, when: Callable[[Any], bool] | None = None) -> Row:
    """A row of keys that make the file another job: `what` it is, where `when(value)`; default: where it is on."""

    def becomes(value: Any, source: Source) -> Outcome:
        makes_it = when(value) if when is not None else not is_off(value)
        return Outcome("refused", note=what) if makes_it else Outcome("idle", note="off there")

    return Row(tuple(keys.split()), "refused", note=what, becomes=becomes)


def is_off(value: Any) -> bool:
    """Whether a value switches its key off.

    >>> [is_off(value) for value in (False, 0, "none", "", [], 1, "yes")]
    [True, True, True, True, True, False, False]
    """
    return value in (None, False, 0, "", [], {}) or (
        isinstance(value, str) and value.lower() in ("none", "no", "false")
    )
