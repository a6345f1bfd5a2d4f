"""Which texts are most like another one, by the words they share: BM25, the ranking of search engines.

    score(q, d) = sum over words w of q:  idf(w) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * |d| / mean |d|))
    idf(w)      = log(1 + (N - n + 0.5) / (n + 0.5))

for a word that n of N texts have, tf times in this one. Robertson and Zaragoza, "The Probabilistic Relevance Framework:
BM25 and Beyond" (2009), section 3.4; with Lucene's idf, which is never below zero.

Where words follow each other without a space (Chinese, Japanese, Thai, ...) each two characters that do are a word, as
in Lucene's CJKBigramFilter.
"""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import regex

# Of either kind; letters with the marks that belong to them, which are no \w in the standard library's re.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"([{_UNSPACED}][{_UNSPACED}\p{{M}}]*)|[\w--[{_UNSPACED}]]+", regex.V1)


class BM25:
    """An index over texts.

    Args:
        texts: what is searched.
        seed: of which of equal texts comes first.
        k1: how soon more of the same word counts for nothing.
        b: how much long texts are marked down, 0 to 1.

    >>> index = BM25(["my card is lost", "what is the fee", "a lost parcel"])
    >>> index.nearest("lost card", 2).tolist()
    [0, 2]
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 1.2, b: float = 0.75, seed: int = 0):
        found: dict[str, tuple[list[int], list[int]]] = {}
        lengths = np.zeros(len(texts))
        for i, text in enumerate(texts):
            counted = Counter(words(text))
            lengths[i] = counted.total()
            for word, times in counted.items():
                places, counts = found.setdefault(word, ([], []))
                places.append(i)
                counts.append(times)
        self._num = len(texts)
        self._tie = np.random.default_rng(seed).permutation(self._num)
        norm = k1 * (1 - b + b * lengths / max(lengths.mean() if len(texts) else 1.0, 1e-9))
        # word -> (the texts that have it, what it adds to the score of each)
        self._adds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, (places, counts) in found.items():
            at, often = np.array(places), np.array(counts, np.float64)
            idf = np.log1p((self._num - len(at) + 0.5) / (len(at) + 0.5))
            self._adds[word] = at, idf * often * (k1 + 1) / (often + norm[at])

    def scores(self, text: str) -> np.ndarray:
        """float64 [texts]: how like each text is; 0 where no word is shared. A word asked for twice counts twice."""
        total = np.zeros(self._num)
        for word in words(text):
            if word in self._adds:
                at, adds = self._adds[word]
                total[at] += adds
        return total

    def nearest(self, text: str, num: int) -> np.ndarray:
        """int [num]: the texts most like it, the nearest first; which of equal ones does not hang on their places."""
        return np.lexsort((self._tie, -self.scores(text)))[:num]


def words(text: str) -> list[str]:
    """The words of a text, without case and punctuation.

    >>> words("My CARD, 银行卡")
    ['my', 'card', '银行', '行卡']
    """
    found = []
    for match in _WORD.finditer(text.lower()):
        characters = match.group(1)
        if characters is None or len(characters) < 3:
            found.append(match.group())
        else:
            found += map("".join, itertools.pairwise(characters))
    return found
