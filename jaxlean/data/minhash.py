"""Texts that are nearly the same: shingles, MinHash signatures, buckets, and the choice of which to keep.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Buckets, which are locality-sensitive hashing
by bands: Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3. rensa computes signatures, in Rust.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from jaxlean.errors import ConfigError

Unit = Literal["characters", "words"]
# A candidate is lost with the pairs of a threshold at most this often; each pair that is found is then checked.
_MISSED = 0.03
_SEED = 42
# Texts of one bucket that another is compared with: this many, and as many more for each match that no smaller bucket
# would have found, up to the most. In a bucket of what all texts share, as the opening of a prompt, they are not alike,
# and many.
_COMPARED = 64
_COMPARED_AT_MOST = 2048


def shingles(texts: Sequence[str], unit: Unit = "characters", n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of all runs of n characters, or words, of each text; a shorter text has one run.

    Returns:
        (hashes, [m] uint64; offsets, [texts + 1] int64: text i has hashes[offsets[i]:offsets[i + 1]]).
    """
    if unit == "characters":
        lengths = np.array([max(len(text), n) for text in texts], np.int64)
        joined = "".join(text if len(text) >= n else text.ljust(n, "\0") for text in texts)
        units = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    else:
        split = [(text.split() + [""] * n)[: max(len(text.split()), n)] for text in texts]
        lengths = np.array([len(words) for words in split], np.int64)
        known: dict[str, int] = {word: _word_hash(word) for words in split for word in words}
        units = np.fromiter((known[word] for words in split for word in words), np.uint64, int(lengths.sum()))
    ends = np.cumsum(lengths)
    if not len(units):
        return units, np.zeros(1, np.int64)
    with np.errstate(over="ignore"):
        hashes = np.zeros(len(units) - n + 1, np.uint64)
        for i in range(n):  # a polynomial modulo 2^64
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + units[i : i + len(hashes)]
        hashes ^= hashes >> np.uint64(31)
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(29)
    inside = np.ones(len(hashes), bool)
    for i in range(1, n):  # runs that begin in one text and end in the next
        inside[ends[:-1] - i] = False
    return hashes[inside], np.concatenate([[0], np.cumsum(lengths - n + 1)])


def signatures(hashes: np.ndarray, offsets: np.ndarray, num_perm: int = 128) -> np.ndarray:
    """MinHash signatures, [texts, num_perm] uint32: two agree in as many places as their shingles overlap (Jaccard).

    The estimate's standard error is sqrt(J (1 - J) / num_perm), 0.035 at J = 0.8.
    """
    import rensa

    # rensa copies the hashes of a call; a few megabytes at a time keep that small
    found, texts = [], len(offsets) - 1
    start = 0
    while start < texts:
        stop = int(np.searchsorted(offsets, offsets[start] + 2**20, side="right")) - 1
        stop = min(max(stop, start + 1), texts)
        part = hashes[offsets[start] : offsets[stop]]
        own = (offsets[start : stop + 1] - offsets[start]).astype(np.uint64)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(part, own, num_perm, _SEED)
        found.append(np.array(matrix.to_rows(), np.uint32))
        start = stop
    return np.concatenate(found) if found else np.zeros((0, num_perm), np.uint32)


def bands(threshold: float, num_perm: int = 128) -> tuple[int, int]:
    """(bands, places in each): two texts meet where a whole band agrees, with probability 1 - (1 - J^places)^bands.

    The longest bands of which those with J = threshold still meet in 97 of 100 cases.

    Raises:
        ConfigError: with so few places not even bands of one let them meet as often.

    >>> bands(0.8), bands(0.5)
    ((18, 7), (42, 3))
    """
    for places in range(num_perm, 0, -1):
        number = num_perm // places
        if (1 - threshold**places) ** number <= _MISSED:
            return number, places
    needed = math.ceil(math.log(_MISSED) / math.log1p(-threshold))
    lowest = math.ceil(1000 * (1 - _MISSED ** (1 / 1024))) / 1000
    met = 1 - (1 - threshold) ** num_perm
    raise ConfigError(
        "near_duplicates: of rows that overlap by the threshold too few would be found with so few hashes",
        where="curate.steps", got=f"threshold: {threshold:g} and num_perm: {num_perm}, with which {met:.0%} are",
        wanted=f"{1 - _MISSED:.0%}",
        fix=f"num_perm: {needed}" if needed <= 1024 else f"threshold: {lowest:g} with num_perm: 1024",
    )  # fmt: skip


def band_keys(signature: np.ndarray, groups: np.ndarray, threshold: float) -> np.ndarray:
    """What a text's bands are, [texts, bands] uint64.

    Args:
        signature: [texts, num_perm] uint32.
        groups: [texts] uint64; texts of different groups never meet.
    """
    number, places = bands(threshold, signature.shape[1])
    keys = np.empty((len(signature), number), np.uint64)
    with np.errstate(over="ignore"):
        for band in range(number):
            key = groups + np.uint64(band)
            for column in signature[:, band * places : (band + 1) * places].T:
                key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(32)
            keys[:, band] = key
    return keys


def buckets(keys: np.ndarray) -> np.ndarray:
    """For each entry the number of its bucket, -1 where it is alone in it: [n] int64.

    Args:
        keys: [n] uint64, of one band.
    """
    _, bucket, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return np.where(counts[bucket] > 1, bucket, -1)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The overlap of two sets, |a and b| / |a or b|; each sorted, without repeats."""
    if not len(a) or not len(b):
        return 0.0
    at = np.searchsorted(a, b)
    both = int((a[np.minimum(at, len(a) - 1)] == b).sum())
    return both / (len(a) + len(b) - both)


def distinct(
    order: Iterable[int],
    meeting: np.ndarray,
    signature: np.ndarray,
    similarity: Callable[[int, int], float],
    threshold: float,
) -> list[tuple[int, int, float]]:
    """Go through texts in order and leave out each that is nearly one which was kept before it.

    So a text that is left out is by itself near the one that stays; chains, in which each is near the next and the
    ends are not, are not drawn together. What is kept has no two that are near, so that doing it again changes nothing,
    but for pairs that do not meet in a bucket, whose signatures agree by 2.5 standard errors less than the threshold (6
    in 1,000 at the threshold itself), or that only meet in buckets of so many kept texts that not all are compared:
    64, and 64 more for each match that the bucket led to where the two met in no smaller one, up to 2,048.

    Args:
        order: the texts, those to be preferred first.
        meeting: [texts, bands] int64: the bucket of each in each band, -1 where it is alone.
        signature: [texts, num_perm] uint32.
        similarity: of two texts; computed where signatures agree well enough.
        threshold: of the similarity.

    Returns:
        (text, the one kept in its place, their similarity) of those left out.
    """
    # what is this far below the threshold is not worth to be looked at
    doubtful = threshold - 2.5 * np.sqrt(threshold * (1 - threshold) / signature.shape[1]) - 1e-9
    kept: list[dict[int, list[int]]] = [{} for _ in range(meeting.shape[1])]
    matches: Counter[tuple[int, int]] = Counter()
    out = []
    for text in order:
        met = [(band, bucket) for band, bucket in enumerate(meeting[text].tolist()) if bucket >= 0]
        others = sorted({other for band, bucket in met for other in kept[band].get(bucket, ())})
        best = None
        if others:
            agree = (signature[others] == signature[text]).mean(axis=1)
            likely = np.flatnonzero(agree >= doubtful)
            for i in likely[np.argsort(-agree[likely], kind="stable")].tolist():
                found = similarity(text, others[i])
                if found >= threshold:
                    best = (text, others[i], found)
                    break
        if best is not None:
            out.append(best)
            led = [(band, bucket) for band, bucket in met if best[1] in kept[band].get(bucket, ())]
            matches[min(led, key=lambda place: len(kept[place[0]][place[1]]))] += 1
            continue
        for band, bucket in met:
            members = kept[band].setdefault(bucket, [])
            if len(members) < min(_COMPARED * (1 + matches[band, bucket]), _COMPARED_AT_MOST):
                members.append(text)
    return out


def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def sets(hashes: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    """The shingles of each text as a sorted set, uint32: 4 bytes each, of which two are the same once in 10^9 times."""
    short = (hashes >> np.uint64(32)).astype(np.uint32)
    return [np.unique(short[a:b]) for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]
