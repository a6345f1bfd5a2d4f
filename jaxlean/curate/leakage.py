"""`leakage`: rows of the training data that also stand in the held-out data, which would then measure memory."""

import functools
from pathlib import Path

import numpy as np

from jaxlean.config.curation import LeakageSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, write_arrays
from jaxlean.curate.work import Arrays, Work
from jaxlean.data.dedupe import normalise
from jaxlean.data.leakage import Index, index, leaks
from jaxlean.data.words import Words
from jaxlean.errors import DataError

_SHOWN = 5
_AT_ONCE = 256  # texts


def leakage(corpus: Corpus, alive: np.ndarray, settings: LeakageSection, work: Work) -> Found:
    """Training rows that hold a held-out one: all of its words, or `threshold` of its runs of `ngram` words.

    Raises:
        ConfigError: there is no `data.eval`.
        DataError: there are such rows, and `action` is error; names the first of them.
    """
    held_out = Corpus(corpus.config, "eval")
    _index.cache_clear()  # another job of this process may have written the same file
    file = work.folder / "index.npz"
    if not file.exists():
        made = index([_text(words, settings) for words in held_out.words(np.arange(len(held_out)))], settings.ngram)
        write_arrays(file, vars(made))
    rows, of, share = [], [], []
    for numbers, found in work.shards(_find, corpus, alive, settings, str(file.absolute())):
        rows.append(numbers[found["row"]])
        of.append(found["of"])
        share.append(found["share"])
    found_rows, found_of, found_share = np.concatenate(rows), np.concatenate(of), np.concatenate(share)
    if settings.action == "error" and len(found_rows):
        raise _error(corpus, held_out, found_rows, found_of, found_share)
    notes = {"held-out rows": len(held_out), "of them in the training data": len(set(found_of.tolist()))}
    if settings.action == "keep":
        notes["training rows that were kept nevertheless"] = len(found_rows)
        found_rows, found_of, found_share = found_rows[:0], found_of[:0], found_share[:0]
    return Found(
        found_rows, (found_share < 1).astype(np.int16), ("stands in the held-out data", "stands there in part"),
        of=found_of, beside="eval", value=found_share, notes=notes,
    )  # fmt: skip


def _text(words: Words, settings: LeakageSection) -> str:
    return normalise(words.prompt if settings.over == "prompt" else words.text)


def _find(corpus: Corpus, numbers: np.ndarray, settings: LeakageSection, file: str) -> Arrays:
    """`row` [m]: which of the shard's rows leak; `of` [m]: the held-out row; `share` [m] float32 of its runs."""
    held_out, found = _index(file), []
    texts: list[str] = []
    start = 0
    for i, words in enumerate(corpus.words(numbers), 1):
        texts.append(_text(words, settings))
        if len(texts) == _AT_ONCE or i == len(numbers):
            for row, of, share in leaks(texts, held_out, settings.ngram, settings.threshold):
                found.append((start + row, of, share))
            texts, start = [], i
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    return {
        "row": np.array(columns[0], np.int64),
        "of": np.array(columns[1], np.int64),
        "share": np.array(columns[2], np.float32),
    }


@functools.lru_cache(maxsize=1)
def _index(file: str) -> Index:
    with np.load(Path(file)) as arrays:
        return Index(**arrays)


def _error(corpus: Corpus, held_out: Corpus, rows: np.ndarray, of: np.ndarray, share: np.ndarray) -> DataError:
    first = [
        f"{corpus.origin(int(row))} is {held_out.origin(int(other))}" + (f" ({part:.0%} of it)" if part < 1 else "")
        for row, other, part in zip(rows[:_SHOWN], of[:_SHOWN], share[:_SHOWN], strict=True)
    ]
    more = f", and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    return DataError(
        f"{len(rows):,} training row{'s' if len(rows) > 1 else ''} stand{'' if len(rows) > 1 else 's'} in the held-out "
        "data: what is measured there would be memory",
        where="data.train and data.eval",
        got="; ".join(first) + more,
        fix="curate.steps: put leakage: {action: drop} first to leave them out, or {action: keep} to allow them",
    )
