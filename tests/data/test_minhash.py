import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.minhash import band_keys, bands, buckets, distinct, jaccard, sets, shingles, signatures
from jaxlean.errors import ConfigError

texts_of = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=8)


def by_hand(text, n):
    text = text.ljust(n, "\0")
    return {text[i : i + n] for i in range(len(text) - n + 1)}


@given(texts_of, st.integers(1, 6))
def test_shingles_are_those_counted_by_hand(texts, n):
    hashes, offsets = shingles(texts, "characters", n)
    assert len(offsets) == len(texts) + 1
    of_shingle = {}
    for i, text in enumerate(texts):
        own = hashes[offsets[i] : offsets[i + 1]].tolist()
        padded = text.ljust(n, "\0")
        cut = [padded[j : j + n] for j in range(len(padded) - n + 1)]
        assert len(own) == len(cut)
        for shingle, value in zip(cut, own, strict=True):
            assert of_shingle.setdefault(shingle, value) == value
    assert len(set(of_shingle.values())) == len(of_shingle)


def test_words_are_shingled_as_words():
    hashes, offsets = shingles(["the cat sat", "a the cat sat", "cat"], "words", 3)
    assert offsets.tolist() == [0, 1, 3, 4]
    assert hashes[0] == hashes[2]
    assert len(set(hashes.tolist())) == 3


@given(texts_of.filter(bool))
def test_the_overlap_is_that_of_sets(texts):
    found = sets(*shingles(texts, "characters", 3))
    for text, own in zip(texts, found, strict=True):
        one, first = by_hand(text, 3), by_hand(texts[0], 3)
        assert jaccard(own, found[0]) == pytest.approx(len(one & first) / len(one | first))


def test_signatures_estimate_the_overlap():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(2000)]
    texts = []
    for share in np.linspace(0, 1, 40):
        own = rng.sample(words, 400)
        other = own[: int(400 * share)] + rng.sample(words, 400 - int(400 * share))
        texts += [" ".join(own), " ".join(other)]
    cut = shingles(texts, "words", 1)
    signature, whole = signatures(*cut), sets(*cut)
    errors = [
        (signature[i] == signature[i + 1]).mean() - jaccard(whole[i], whole[i + 1]) for i in range(0, len(texts), 2)
    ]
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.05  # sqrt(J (1 - J) / 128) is 0.044 at most


def test_a_signature_does_not_hang_on_its_neighbours():
    texts = ["alpha beta gamma", "delta epsilon", "zeta " * 300_000]
    together = signatures(*shingles(texts))
    alone = np.concatenate([signatures(*shingles([text])) for text in texts])
    np.testing.assert_array_equal(together, alone)
    assert signatures(*shingles([])).shape == (0, 128)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_meet_at_the_threshold(threshold):
    number, places = bands(threshold)
    assert number * places <= 128
    assert 1 - (1 - threshold**places) ** number >= 0.97
    longer = 128 // (places + 1)
    assert longer == 0 or 1 - (1 - threshold ** (places + 1)) ** longer < 0.97


def test_texts_of_two_groups_never_meet():
    signature = np.tile(np.arange(128, dtype=np.uint32), (3, 1))
    keys = band_keys(signature, np.array([1, 1, 2], np.uint64), 0.8)
    assert (keys[0] == keys[1]).all()
    assert not (keys[0] == keys[2]).any()
    assert len(set(keys[0].tolist())) == keys.shape[1]


def test_buckets_are_of_two_or_more():
    assert buckets(np.array([7, 5, 7, 9], np.uint64)).tolist() == [1, -1, 1, -1]


def everything_meets(count):
    return np.zeros((count, 1), np.int64), np.zeros((count, 16), np.uint32)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.randoms())
def test_what_is_kept_is_distinct_and_near_to_all_that_is_not(places, rng):
    meeting, signature = everything_meets(len(places))
    order = list(range(len(places)))
    rng.shuffle(order)

    def similarity(a, b):
        return 1 / (1 + abs(places[a] - places[b]))

    out = distinct(order, meeting, signature, similarity, 0.5)
    kept = set(order) - {text for text, _, _ in out}
    assert all(of in kept and found == similarity(text, of) >= 0.5 for text, of, found in out)
    assert all(similarity(a, b) < 0.5 for a in kept for b in kept if a != b)
    assert distinct([text for text in order if text in kept], meeting, signature, similarity, 0.5) == []


def test_a_chain_is_not_drawn_together():
    meeting, signature = everything_meets(3)
    out = distinct([0, 1, 2], meeting, signature, lambda a, b: 0.8 if abs(a - b) == 1 else 0.1, 0.8)
    assert out == [(1, 0, 0.8)]


def test_texts_whose_signatures_disagree_are_not_looked_at():
    meeting = np.zeros((2, 1), np.int64)
    signature = np.stack([np.zeros(128, np.uint32), np.ones(128, np.uint32)])

    def never(a, b):
        raise AssertionError

    assert distinct([0, 1], meeting, signature, never, 0.8) == []


def test_a_bucket_of_what_all_share_costs_no_square_and_hides_no_pair():
    """All meet in band 0, and each pair of neighbours in band 1."""
    count, calls = 800, []
    meeting = np.stack([np.zeros(count, np.int64), np.arange(count) // 2], axis=1)

    def similarity(a, b):
        calls.append((a, b))
        return 0.9 if a // 2 == b // 2 and a % 20 == 1 else 0.1

    out = distinct(range(count), meeting, np.zeros((count, 16), np.uint32), similarity, 0.8)
    assert out == [(a, a - 1, 0.9) for a in range(1, count, 20)]
    assert len(calls) <= 130 * count  # two buckets of the first pair are as small


def test_a_bucket_that_leads_to_matches_holds_more():
    """Texts of 150 families in one bucket: the first of each stays, each later one is near that."""
    families = 150
    texts = [0] * 200 + list(range(families)) * 2

    def similarity(a, b):
        return float(texts[a] == texts[b])

    meeting, signature = everything_meets(len(texts))
    kept = set(range(len(texts))) - {
        text for text, _, _ in distinct(range(len(texts)), meeting, signature, similarity, 0.8)
    }
    assert len(kept) == families


@pytest.mark.parametrize(
    ("threshold", "num_perm", "fix"), [(0.01, 16, "num_perm: 349"), (0.001, 1024, "threshold: 0.004")]
)
def test_too_few_hashes_for_a_low_threshold_are_refused(threshold, num_perm, fix):
    with pytest.raises(ConfigError) as error:
        bands(threshold, num_perm)
    assert f"threshold: {threshold:g} and num_perm: {num_perm}" in str(error.value)
    assert fix in str(error.value)
    name, value = fix.split(": ")
    given = {"threshold": threshold, "num_perm": num_perm} | {name: float(value.split()[0])}
    number, places = bands(given["threshold"], int(given["num_perm"]))
    assert 1 - (1 - given["threshold"] ** places) ** number >= 0.97
