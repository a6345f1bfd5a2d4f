"""Rows that read like a target set: importance weights of hashed n-grams, DSIR (arXiv 2302.03169). numpy.

Words and pairs of words are hashed into buckets; a bag of buckets is drawn from a distribution over them, one for the
target and one for all rows. A row's weight is how much likelier the target's distribution makes it.
"""

import itertools
import re
import zlib
from collections.abc import Iterable

import numpy as np

# As the paper's code splits texts (nltk's WordPunctTokenizer), in lower case.
_WORD = re.compile(r"\w+|[^\w\s]+")
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


def importance(rows: Iterable[str], target: Iterable[str], buckets: int = BUCKETS) -> np.ndarray:
    """The logarithm of each row's importance weight: sum over its n-grams of log(p_target / p_rows).

    Long rows have large weights, of either sign, as in the paper: what is drawn by them is a sample of the target's
    n-grams and not an average. Rows are read once; of each n-gram 4 bytes are held.

    Args:
        rows: texts to be chosen from.
        target: texts to be resembled.
        buckets: of the hash.

    Returns:
        float64 [rows].
    """
    found = [hashed(text, buckets) for text in rows]
    wanted = sum((np.bincount(hashed(text, buckets), minlength=buckets) for text in target), np.zeros(buckets))
    flat = np.concatenate([np.zeros(0, np.uint32), *found])
    there = np.bincount(flat, minlength=buckets)
    ratio = np.log(_probability(wanted)) - np.log(_probability(there))
    return np.array([ratio[one].sum() for one in found])


def _probability(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1) + _SMOOTHING


def resample(log_weights: np.ndarray, num: int, *, seed: int = 0) -> np.ndarray:
    """Rows drawn without replacement, each with a probability in proportion to its weight, by the Gumbel top-k trick.

    Adding Gumbel noise to the logarithms and taking the largest is the same as drawing one after the other
    (arXiv 1903.06059).

    Args:
        log_weights: [rows].
        num: rows to draw.
        seed: of the noise.

    Returns:
        int64 [num], in the order of drawing.
    """
    noisy = np.asarray(log_weights, np.float64) + np.random.default_rng(seed).gumbel(size=len(log_weights))
    return np.argsort(-noisy, kind="stable")[:num]
