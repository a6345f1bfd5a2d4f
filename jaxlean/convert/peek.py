"""What the data of a config say about it: the columns of the first row and the number of rows, where they lie here."""

from pathlib import Path

from jaxlean.convert.source import Source
from jaxlean.data.files import KINDS, Rows, open_file
from jaxlean.errors import DataError


def place(path: str, source: Source) -> Path | None:
    """The file that a path means: from the current folder, or from the config's own; None where there is none."""
    for found in (Path(path), source.file.parent / path):
        if found.is_file():
            return found
    return None


def columns(path: str, source: Source) -> list[str] | None:
    """The columns of a file's first row; None where it is not here or cannot be read."""
    rows = _open(path, source)
    try:
        return list(rows[0]) if rows is not None and len(rows) else None
    except DataError:
        return None


def count(path: str, source: Source, limit: int | None = None) -> int | None:
    """The rows of a file, of which no more than `limit` are taken; None where it is not here or cannot be read."""
    rows = _open(path, source)
    return None if rows is None else len(rows) if limit is None else min(limit, len(rows))


def _open(path: str, source: Source) -> Rows | None:
    file = place(path, source)
    if file is None or file.suffix.lower() not in KINDS:
        return None
    try:
        return open_file(file)
    except DataError:
        return None
