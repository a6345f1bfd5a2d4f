"""The first pass: every row is read once; what cannot be used is left out, or an error. Notes lengths and columns."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from jaxlean.curate.columns import describe, merge
from jaxlean.curate.corpus import LARGE, Corpus, size
from jaxlean.curate.found import Found
from jaxlean.curate.work import Arrays, Work
from jaxlean.errors import DataError

_DESCRIBED = 1024  # rows whose columns are described together, of long ones fewer
TOO_LONG = "longer than curate.max_chars"


def reading(corpus: Corpus, alive: np.ndarray, work: Work) -> Found:
    """The rows that are too long, or (`bad_rows: drop`) cannot be read or hold nothing to learn.

    Raises:
        DataError: such a row, with `bad_rows: error`.
    """
    reasons: list[str] = [TOO_LONG]
    rows, codes = [], []
    for numbers, found in work.shards(_read, corpus, alive):
        said = json.loads(bytes(found["reasons"]))
        reasons += [reason for reason in said if reason not in reasons]
        bad = np.flatnonzero(found["code"] >= 0)
        rows.append(numbers[bad])
        codes.append(np.array([reasons.index(said[code]) for code in found["code"][bad]], np.int16))
    return Found(np.concatenate(rows), np.concatenate(codes), tuple(reasons))


def lengths(corpus: Corpus, alive: np.ndarray, work: Work) -> np.ndarray:
    """Characters of what each row says, [rows] int64; -1 where it could not be read."""
    return np.concatenate([found["chars"] for _, found in work.shards(_read, corpus, alive)])


def schemas(corpus: Corpus, alive: np.ndarray, work: Work) -> list[pa.Schema]:
    """The columns of each source's rows that could be read and were not too long."""
    parts: list[list[pa.Schema]] = [[] for _ in corpus.sources]
    for _, found in work.shards(_read, corpus, alive):
        for number, of_source in enumerate(parts):
            name = f"schema-{number}"
            if name in found:
                of_source.append(pa.ipc.read_schema(pa.py_buffer(bytes(found[name]))))
    return [merge(of_source) for of_source in parts]


def _read(corpus: Corpus, numbers: np.ndarray) -> Arrays:
    """`chars` [n] int64, -1 where unreadable; `code` [n] int16, of `reasons` (JSON) or -1; `schema-N` of source N."""
    settings = corpus.config.curate
    chars, code = np.full(len(numbers), -1, np.int64), np.full(len(numbers), -1, np.int16)
    reasons: list[str] = []
    rows: list[dict[str, Any]] = []
    described: dict[int, list[pa.Schema]] = {}
    held, source = 0, 0

    def bad(i: int, reason: str) -> None:
        if reason not in reasons:
            reasons.append(reason)
        code[i] = reasons.index(reason)

    def described_so_far() -> None:
        nonlocal rows, held
        if rows:
            described.setdefault(source, []).append(describe(rows))
        rows, held = [], 0

    for i, item in enumerate(corpus.attempts(numbers)):
        try:
            if isinstance(item, DataError):
                raise item
            chars[i] = 0
            chars[i] = len(corpus.read(item).text)
        except DataError as error:
            if settings.bad_rows == "error":
                raise
            bad(i, error.what)
        if chars[i] > settings.max_chars:
            bad(i, TOO_LONG)
        elif not isinstance(item, DataError):
            if item.source != source or len(rows) == _DESCRIBED or held > LARGE:
                described_so_far()
            source = item.source
            rows.append(item.row)
            held += size(item.row)
    described_so_far()
    found: Arrays = {"chars": chars, "code": code, "reasons": np.frombuffer(json.dumps(reasons).encode(), np.uint8)}
    for number, parts in described.items():
        found[f"schema-{number}"] = np.frombuffer(merge(parts).serialize().to_pybytes(), np.uint8)
    return found
