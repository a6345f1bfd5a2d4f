"""Training rows that also stand in the held-out data: as a whole, or by many of a held-out row's runs of words.

Brown et al., "Language Models are Few-Shot Learners" (GPT-3), arXiv 2005.14165, appendix C, calls a test example dirty
where any run of 13 words stands in the training data. Here a share of its runs must stand in one training row, so that
a phrase which many rows share is no leak.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlean.data.minhash import shingles


@dataclass(frozen=True)
class Index:
    """The runs of the held-out rows.

    Attributes:
        hashes: [m] uint64, sorted; a run that several rows have stands there for each.
        owners: [m] int64: the held-out row of each.
        runs: [held-out rows] int64: different runs of each.
    """

    hashes: np.ndarray
    owners: np.ndarray
    runs: np.ndarray


def index(texts: Sequence[str], ngram: int) -> Index:
    """Of normalised texts. One with fewer words than a run has one run: all of it."""
    hashes, offsets = shingles(texts, "words", ngram)
    owners = np.repeat(np.arange(len(texts)), np.diff(offsets))
    pairs = np.unique(np.stack([hashes, owners.astype(np.uint64)], axis=1), axis=0) if len(hashes) else hashes[:, None]
    found = pairs[:, 0], pairs[:, -1].astype(np.int64)
    return Index(*found, np.bincount(found[1], minlength=len(texts)))


def leaks(texts: Sequence[str], of: Index, ngram: int, threshold: float) -> list[tuple[int, int, float]]:
    """(text, the held-out row that it holds most of, the share of that row's runs) of each text that leaks.

    Args:
        texts: of training rows, normalised.
        of: the held-out rows.
        ngram: words in a run, as in the index.
        threshold: of the share.
    """
    hashes, offsets = shingles(texts, "words", ngram)
    start = np.searchsorted(of.hashes, hashes, side="left")
    stop = np.searchsorted(of.hashes, hashes, side="right")
    found = []
    hit = np.flatnonzero(stop > start)
    text_of = np.searchsorted(offsets, hit, side="right") - 1
    for text in np.unique(text_of).tolist():
        mine = hit[text_of == text]
        met = {(int(hashes[i]), int(owner)) for i in mine.tolist() for owner in of.owners[start[i] : stop[i]]}
        owners, counts = np.unique([owner for _, owner in met], return_counts=True)
        shares = counts / of.runs[owners]
        best = int(np.argmax(shares))
        if shares[best] >= threshold:
            found.append((text, int(owners[best]), float(shares[best])))
    return found
