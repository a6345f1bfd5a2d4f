"""Vectors of words from a file, read for the words that are wanted.

Text, as fastText, word2vec and GloVe write it: a word and its numbers a line, perhaps after a line with how many words
and numbers there are (fasttext.cc/docs/en/crawl-vectors.html). Or numpy's .npz with `words` and `vectors`.
"""

import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from jaxlean.errors import DataError

Vectors = dict[str, np.ndarray]


def read_vectors(file: Path, wanted: Collection[str]) -> Vectors:
    """The vectors float32 [dims] of those of the words that the file has.

    A word that it has in lower case only gets that one's.

    Args:
        file: `.npz`, or text.
        wanted: words; of a file of millions only these are held.

    Raises:
        DataError: no such file, a line that is not a word and its numbers, a number that is none.
    """
    if not file.is_file():
        raise DataError("no such file of vectors", where=file, wanted="a .vec or .txt file of words, or .npz")
    asked = {*wanted, *(word.lower() for word in wanted)}
    found = _npz(file, asked) if file.suffix == ".npz" else _text(file, asked)
    best = {word: word if word in found else word.lower() for word in wanted}
    return {word: found[key] for word, key in best.items() if key in found}


def _npz(file: Path, asked: set[str]) -> Vectors:
    try:
        with np.load(file, allow_pickle=False) as held:
            words, table = held["words"], np.asarray(held["vectors"], np.float32)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError("not a file of vectors", where=file, got=error, wanted="arrays `words` and `vectors`") from None
    if table.ndim != 2 or words.shape != table.shape[:1]:
        raise DataError(
            "words and vectors do not belong together", where=file, got=f"words {words.shape}, vectors {table.shape}",
            wanted="[words] and [words, numbers]",
        )  # fmt: skip
    found = {str(word): row for word, row in zip(words, table, strict=True) if str(word) in asked}
    for word, row in found.items():
        _check(row, f"{file}: {word}")
    return found


def _text(file: Path, asked: set[str]) -> Vectors:
    found: Vectors = {}
    dims = None
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            word, *numbers = line.rstrip().split(" ")
            if number == 1 and len(numbers) == 1:  # how many words, of how many numbers
                dims = int(numbers[0]) if numbers[0].isdecimal() else None
                continue
            if not word:
                continue
            dims = dims or len(numbers)
            if not dims:
                raise DataError(
                    "a word without numbers", where=f"{file}:{number}", got=repr(line.rstrip()[:60]),
                    wanted="a word and its numbers, with spaces between them",
                )  # fmt: skip
            # some files have words with spaces in them: the numbers are the last ones
            word, numbers = " ".join([word, *numbers[:-dims]]), numbers[-dims:]
            if len(numbers) != dims:
                raise DataError(
                    "a line of another length", where=f"{file}:{number}", got=f"{len(numbers)} numbers", wanted=dims,
                    fix="is the file cut short?",
                )  # fmt: skip
            if word not in asked:
                continue
            try:
                row = np.array(numbers, np.float32)
            except ValueError as error:
                raise DataError("not a word and its numbers", where=f"{file}:{number}", got=error) from None
            _check(row, f"{file}:{number}")
            found.setdefault(word, row)
    return found


def _check(row: np.ndarray, where: str) -> None:
    if not np.isfinite(row).all():
        raise DataError("a vector that is not of finite numbers", where=where, fix="leave out that word")
