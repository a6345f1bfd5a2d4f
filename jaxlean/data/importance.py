"""Rows that read like a target set: importance weights of hashed n-grams, DSIR (arXiv 2302.03169). numpy.

Words and pairs of words are hashed into buckets; a bag of buckets is drawn from a distribution over them, one for the
target and one for all rows. A row's weight is how much likelier the target's distribution makes it.
"""

import itertools
import zlib
from collections.abc import Iterable

import numpy as np
import regex

# As the paper's code splits texts (nltk's WordPunctTokenizer), in lower case.
_WORD = regex.compile(r"\w+|[^\w\s]+")  # whose \w has the vowel signs of Hindi too
# What the paper's code adds to every probability.
_SMOOTHING = 1e-8
BUCKETS = 10_000


def hashed(text: str, buckets: int = BUCKETS) -> np.ndarray:
    """The bucket of every word and of every pair of words that follow each other: uint32 [n].

    >>> len(hashed("No, thanks."))  # 4 words, 3 pairs
    7
    """
    words = [word.encode() for word in _WORD.findall(text.lower())]
    grams = words + [one + b" " + other for one, other in itertools.pairwise(words)]
    return np.fromiter((zlib.crc32(gram) % buckets for gram in grams), np.uint32, len(grams))


def counts(texts: Iterable[str], buckets: int = BUCKETS) -> np.ndarray:
    """How many n-grams of all texts are in each bucket: int64 [buckets]."""
    found = np.zeros(buckets, np.int64)
    for text in texts:
        np.add.at(found, hashed(text, buckets), 1)
    return found


def log_ratio(target: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What an n-gram of each bucket adds to a row's weight, log(p_target / p_rows): float64 [buckets].

    Args:
        target: `counts` of the texts to be resembled.
        rows: `counts` of the texts to be chosen from.
    """
    return np.asarray(np.log(_probability(target)) - np.log(_probability(rows)))


def log_weights(texts: Iterable[str], ratio: np.ndarray) -> np.ndarray:
    """The logarithm of each text's importance weight: the sum of the ratio over its n-grams.

    Long texts have large weights, of either sign, as in the paper: what is drawn by them is a sample of the target's
    n-grams and not an average.

    Args:
        texts: any of those to be chosen from.
        ratio: `log_ratio`.

    Returns:
        float64 [texts].
    """
    return np.fromiter((ratio[hashed(text, len(ratio))].sum() for text in texts), np.float64)


def _probability(of: np.ndarray) -> np.ndarray:
    return of / max(of.sum(), 1) + _SMOOTHING
