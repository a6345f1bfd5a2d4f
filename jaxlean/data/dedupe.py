"""Which texts are the same, and which nearly: keys of normalised texts, shingles, MinHash signatures, buckets."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

# Marks that come and go without changing what is said. Not among them: what computes or means (+ * / = < > % # @ & $),
# letters' accents, and a mark right before a digit, as in -4, .5 and 3-4.
_MARKS = re.compile(r"""[-.,;:!?"'`´()\[\]{}…—–−«»“”„‘’‚_·¡¿。、「」『』؟،؛]+(?!\d)""")  # noqa: RUF001

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


def normalise(text: str, ignore: Iterable[str] = ("unicode", "case", "punctuation", "whitespace")) -> str:
    """The text without what makes no difference.

    >>> normalise("It's  FINE - don\\u2019t!")
    'it s fine don t'
    >>> normalise("3 - 4 and 3-4 and $1,000.")
    '3 4 and 3-4 and $1,000'
    """
    ignore = frozenset(ignore)
    if "unicode" in ignore and not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    if "case" in ignore:
        text = text.casefold()
        if "unicode" in ignore and not text.isascii():  # İ folds to two characters, which NFKC may join again
            text = unicodedata.normalize("NFKC", text)
    if "punctuation" in ignore:
        text = _MARKS.sub(" ", text)
    if "whitespace" in ignore or "punctuation" in ignore:
        text = " ".join(text.split())
    return text


def numbers_of(text: str) -> str:
    """The numbers in a text, sorted.

    >>> numbers_of("from 3 apples to 1,000 of 2024")
    '1,000 2024 3'
    """
    return " ".join(sorted(_NUMBER.findall(text)))


def key(text: str) -> bytes:
    """16 bytes that are the same for the same text: of 10^9 different ones no two agree, but once in 10^20 times."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def repeated(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The entries whose key stood there before.

    Args:
        keys: [n, 2] uint64.

    Returns:
        (their numbers, ascending; of each the first with that key), both [m] int64.
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: among equals the first stays first
    ordered = keys[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]) if len(keys) else np.zeros(0, bool)
    firsts = order[np.flatnonzero(new)][np.cumsum(new) - 1] if len(keys) else order
    rows, of = order[~new], firsts[~new]
    ascending = np.argsort(rows)
    return rows[ascending].astype(np.int64), of[ascending].astype(np.int64)
