"""Training rows that also stand in the held-out data: as a whole, or by many of a held-out row's runs of words.

Brown et al., "Language Models are Few-Shot Learners" (GPT-3), arXiv 2005.14165, appendix C, calls a test example dirty
where any run of 13 words stands in the training data. Here a share of its runs must stand in one training row. Runs
that many held-out texts have, as the opening of a prompt, say nothing of any of them and do not count; a row that
consists of such runs leaks only as a whole.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlean.data.dedupe import key
from jaxlean.data.minhash import shingles


@dataclass(frozen=True)
class Index:
    """The runs of the held-out rows, but for those that many have.

    Attributes:
        hashes: [m] uint64, sorted; a run that several rows have stands there for each. Of a row without a run of its
            own, a hash of all of it.
        owners: [m] int64: the held-out row of each; of rows that are the same, the first.
        runs: [held-out rows] int64: different runs of each that count.
    """

    hashes: np.ndarray
    owners: np.ndarray
    runs: np.ndarray


def common(texts: int) -> int:
    """Of so many different held-out texts, how many may share a run that still counts as their own.

    One in a hundred, between 10 and 100: some questions are about the same passage. Of fewer than 20, half of them.

    >>> [common(texts) for texts in (1, 6, 50, 5000, 10**6)]
    [2, 3, 10, 50, 100]
    """
    return max(2, min(texts // 2, 10), min(texts // 100, 100))


def index(texts: Sequence[str], ngram: int) -> Index:
    """Of normalised texts. One with fewer words than a run has one run: all of it."""
    different = list(dict.fromkeys(texts))
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    firsts = np.array([first[text] for text in different], np.int64)
    hashes, offsets = shingles(different, "words", ngram)
    owners, hashes = _once(np.repeat(firsts, np.diff(offsets)), hashes)
    _, run, count = np.unique(hashes, return_inverse=True, return_counts=True)
    own = count[run] <= common(len(different))
    hashes, owners = hashes[own], owners[own]
    without = np.setdiff1d(firsts, owners)
    hashes = np.concatenate([hashes, _whole(texts[i] for i in without)])
    owners = np.concatenate([owners, without])
    order = np.lexsort((owners, hashes))
    return Index(hashes[order], owners[order], np.bincount(owners, minlength=len(texts)))


def leaks(texts: Sequence[str], of: Index, ngram: int, threshold: float) -> list[tuple[int, int, float]]:
    """(text, the held-out row that it holds most of, the share of that row's runs) of each text that leaks.

    Args:
        texts: of training rows, normalised.
        of: the held-out rows.
        ngram: words in a run, as in the index.
        threshold: of the share.
    """
    hashes, offsets = shingles(texts, "words", ngram)
    every = np.arange(len(texts))
    hashes = np.concatenate([hashes, _whole(texts)])
    text_of, hashes = _once(np.concatenate([np.repeat(every, np.diff(offsets)), every]), hashes)

    # (text, held-out row) of each run that both have, then how many each pair has
    start, stop = (np.searchsorted(of.hashes, hashes, side=side) for side in ("left", "right"))
    each = stop - start
    at = np.repeat(start - (np.cumsum(each) - each), each) + np.arange(each.sum())
    pairs, counts = np.unique(np.repeat(text_of, each) * len(of.runs) + of.owners[at], return_counts=True)
    text, owner = pairs // max(len(of.runs), 1), pairs % max(len(of.runs), 1)
    share = counts / of.runs[owner]

    # of each text the row with the largest share, of equal ones the first
    order = np.lexsort((owner, -share, text))
    best = order[np.flatnonzero(np.diff(text[order], prepend=-1))]
    best = best[share[best] >= threshold]
    return list(zip(text[best].tolist(), owner[best].tolist(), share[best].tolist(), strict=True))


def _once(owners: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of (owner, hash) once."""
    order = np.lexsort((hashes, owners))
    owners, hashes = owners[order], hashes[order]
    new = np.ones(len(order), bool)
    new[1:] = (owners[1:] != owners[:-1]) | (hashes[1:] != hashes[:-1])
    return owners[new], hashes[new]


def _whole(texts: Iterable[str]) -> np.ndarray:
    """A hash of each text, [texts] uint64."""
    return np.array([int.from_bytes(key(text)[:8]) for text in texts], np.uint64)
