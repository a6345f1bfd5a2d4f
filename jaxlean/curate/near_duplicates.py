"""`near_duplicates`: rows whose words are nearly those of another one, which stays."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxlean.config.curation import NearDuplicatesSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.work import Arrays, Work
from jaxlean.data.dedupe import key, normalise, numbers_of
from jaxlean.data.minhash import band_keys, bands, buckets, distinct, jaccard, sets, shingles, signatures

_CHARS_AT_ONCE = 2**20  # whose shingles are made together
_KEYS_AT_ONCE = 2**25  # of bands that are looked at together: 256 MiB

Walk = Callable[[], Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]]

NEEDS = ("rensa",)


def check(settings: NearDuplicatesSection) -> None:
    """What can be told before anything is read.

    Raises:
        ConfigError: too few hashes for so low a threshold.
    """
    bands(settings.threshold, settings.num_perm)


def near_duplicates(corpus: Corpus, alive: np.ndarray, settings: NearDuplicatesSection, work: Work) -> Found:
    """MinHash finds the pairs that may be near; the overlap of their shingles decides.

    Every row that is left out overlaps by `threshold` or more with one that stays, and no two that stay do, but for
    pairs that MinHash missed: 3 to 4 in 100 at the threshold itself, fewer above, and of those that have in common only
    what hundreds of rows share (a row is compared with 64 of a bucket: `minhash.distinct`), more.

    False merges, where labels tell (benchmarks/dedupe.py): of banking77's 10,003 messages of 11 words, not shown the
    labels, it leaves out 488 at 0.7, 5.5 % of them for a message of another label (0.6: 8.5 %, 0.8: 3.6 %); so labels
    are looked at. Of GSM8K's 7,473 questions, without `same_numbers`, 16, of which 14 have another answer; with it one,
    which has the same.
    """
    number, places = bands(settings.threshold, settings.num_perm)

    def signed() -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:
        return work.shards(_sign, corpus, alive, settings, name="signed")

    rows, meeting = _meeting(signed, np.flatnonzero(alive), number)
    met = np.zeros(len(corpus), bool)
    met[rows] = True
    of_met: dict[str, list[np.ndarray]] = {"signature": [], "size": [], "content": []}
    for numbers, found in signed():
        for name, parts in of_met.items():
            parts.append(found[name][met[numbers]])
    signature, size, content = (np.concatenate(parts) for parts in of_met.values())
    # of the longest the first in the alphabet of hashes, so that the choice does not hang on the order of the rows
    order = np.lexsort((content, -size)) if settings.keep == "longest" else np.arange(len(rows))
    file, ends = _shingles_of(corpus, met, settings, work)

    def overlap(a: int, b: int) -> float:
        return jaccard(file[ends[a] : ends[a + 1]], file[ends[b] : ends[b + 1]])

    out = sorted(distinct(order.tolist(), meeting, signature, overlap, settings.threshold))
    return Found(
        rows[[row for row, _, _ in out]],
        np.zeros(len(out), np.int16),
        ("nearly the same text",),
        of=rows[[kept for _, kept, _ in out]],
        value=np.array([similarity for _, _, similarity in out], np.float32),
        notes={"MinHash": f"{number} bands of {places} places", "rows that met another in a band": len(rows)},
    )


def _meeting(signed: Walk, rows: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that share a band with another, [m]; the bucket of each in each band, -1 where alone, [m, bands])."""
    together = max(1, _KEYS_AT_ONCE // max(len(rows), 1))
    shared: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, number, together):
        some = range(first, min(first + together, number))
        parts = [np.stack([found[f"key:{band}"] for band in some]) for _, found in signed()]
        for keys in np.concatenate(parts, axis=1):
            bucket = buckets(keys)
            at = np.flatnonzero(bucket >= 0)
            shared.append((at, bucket[at]))
    met = np.zeros(len(rows), bool)
    for at, _ in shared:
        met[at] = True
    place = np.cumsum(met) - 1
    meeting = np.full((int(met.sum()), number), -1, np.int64)
    for band, (at, bucket) in enumerate(shared):
        meeting[place[at], band] = bucket
    return rows[met], meeting


def _shingles_of(
    corpus: Corpus, met: np.ndarray, settings: NearDuplicatesSection, work: Work
) -> tuple[np.ndarray, np.ndarray]:
    """(shingles of one row after another, mapped from a file; where each row's end, [m + 1])."""
    file, lengths = work.folder / "shingles.u32", [np.zeros(1, np.int64)]
    with Path(file).open("wb") as opened:
        for _, found in work.shards(_cut, corpus, met, settings, name="cut"):
            opened.write(found["shingles"].tobytes())
            lengths.append(found["lengths"])
    ends = np.cumsum(np.concatenate(lengths))
    return np.memmap(file, np.uint32, "r") if ends[-1] else np.zeros(0, np.uint32), ends


def _sign(corpus: Corpus, numbers: np.ndarray, settings: NearDuplicatesSection) -> Arrays:
    """`signature` [n, num_perm]; `key:i` [n] of band i; `size` [n] in characters; `content` [n], a hash of the text."""
    signature, groups, size, content = [np.zeros((0, settings.num_perm), np.uint32)], [], [], []
    for texts, own in _texts(corpus, numbers, settings):
        signature.append(signatures(*shingles(texts, settings.unit, settings.ngram), settings.num_perm))
        groups += own
        size += [len(text) for text in texts]
        content += [_short(key(text)) for text in texts]
    found = np.concatenate(signature)
    keys = band_keys(found, np.array(groups, np.uint64), settings.threshold)
    arrays: Arrays = {f"key:{band}": column for band, column in enumerate(keys.T)}
    return arrays | {"signature": found, "size": np.array(size, np.int64), "content": np.array(content, np.uint64)}


def _cut(corpus: Corpus, numbers: np.ndarray, settings: NearDuplicatesSection) -> Arrays:
    """`shingles` of one row after another, each row's sorted; `lengths` [n]: how many are whose."""
    found = [np.zeros(0, np.uint32)]
    for texts, _ in _texts(corpus, numbers, settings):
        found += sets(*shingles(texts, settings.unit, settings.ngram))
    return {"shingles": np.concatenate(found), "lengths": np.array([len(one) for one in found[1:]], np.int64)}


def _texts(
    corpus: Corpus, numbers: np.ndarray, settings: NearDuplicatesSection
) -> Iterator[tuple[list[str], list[int]]]:
    """Normalised texts, a megabyte at a time, and the group of each: texts of two groups are not compared."""
    texts: list[str] = []
    groups: list[int] = []
    held = 0
    for words in corpus.words(numbers):
        text = normalise(words.prompt if settings.over == "prompt" else words.text)
        label = "" if settings.across_labels else words.label
        texts.append(text)
        groups.append(_short(key(f"{label}\n{numbers_of(text) if settings.same_numbers else ''}")))
        held += len(text)
        if held > _CHARS_AT_ONCE:
            yield texts, groups
            texts, groups, held = [], [], 0
    if texts:
        yield texts, groups


def _short(hashed: bytes) -> int:
    return int.from_bytes(hashed[:8])
