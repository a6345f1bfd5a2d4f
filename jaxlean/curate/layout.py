"""Which files the rows that stay go into: one for all, or one for each source, so that they train as their sources did.

One file has one shape of rows. Sources that are read by templates of their own, that have other columns, or a weight in
the mix, would be read wrongly from it, or not at all.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlean.config import SourceSection
from jaxlean.curate.corpus import Corpus
from jaxlean.data.format import SHAPES

KEPT, KEPT_OF_SOURCES = "train.parquet", "train_by_source"
# What a file of the rows that stay is read by as its source was.
_HOW = ("weight", "format", "prompt", "completion", "system")


@dataclass(frozen=True)
class Part:
    """A file of rows that stay.

    Attributes:
        name: in the output folder.
        sources: numbers of those whose rows it holds.
    """

    name: str
    sources: tuple[int, ...]


def parts_of(corpus: Corpus) -> list[Part]:
    """The files: one, where all sources are read alike, else one for each source."""
    every = range(len(corpus.sources))
    if len(every) == 1 or _are_read_alike(corpus):
        return [Part(KEPT, tuple(every))]
    return [Part(f"{KEPT_OF_SOURCES}/{n + 1}-{_stem(corpus.sources[n])}.parquet", (n,)) for n in every]


def data_train(folder: Path, corpus: Corpus, kept: Sequence[int]) -> list[dict[str, Any]]:
    """`data.train` that trains on the outcome as on what it was made of, as the config has it.

    Args:
        folder: the output folder.
        corpus: all rows.
        kept: rows that stay of each source; a file without any is not written.
    """
    told = []
    for part in parts_of(corpus):
        if not sum(kept[number] for number in part.sources):
            continue
        source = corpus.sources[part.sources[0]]
        how = {name: getattr(source, name) for name in _HOW if name in source.model_fields_set}
        if len(part.sources) == len(corpus.sources):
            how.pop("weight", None)  # of one source
        told.append({"path": str(folder / part.name)} | {name: value for name, value in how.items() if value})
    return told


def _are_read_alike(corpus: Corpus) -> bool:
    every = range(len(corpus.sources))
    if any(source.weight is not None for source in corpus.sources):
        return False
    if corpus.config.task != "generate":
        return True
    ways = {_way(corpus, number) for number in every}
    together = {column for number in every for column in corpus.first(number)}
    return len(ways) == 1 and (next(iter(ways))[0] in (*SHAPES, "template") or _fits(together) == next(iter(ways))[0])


def _way(corpus: Corpus, number: int) -> tuple[Any, ...]:
    """What must be the same of two sources whose rows stand in one file: (shape, ...)."""
    source, data, first = corpus.sources[number], corpus.config.data, corpus.first(number)
    prompt, completion, system = (
        getattr(source, name) or getattr(data, name) for name in ("prompt", "completion", "system")
    )
    shape: Any = source.format
    if shape == "auto":
        shape = "template" if prompt or completion else _fits(first)
    # texts, or lists of messages
    kind = type(first.get("prompt")) if shape in ("prompt_completion", ("prompt_completion",)) else None
    return shape, prompt, completion, system, kind


def _fits(columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(shape for shape, needed in SHAPES.items() if set(needed) <= set(columns))


def _stem(source: SourceSection) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(source.path).stem) or "rows"
