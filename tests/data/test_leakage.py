import random

from jaxlean.data.leakage import index, leaks

WORDS = [f"word{i}" for i in range(500)]


def sentence(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def test_shares_are_those_counted_by_hand():
    rng = random.Random(0)
    held_out = [sentence(rng, 30) for _ in range(20)] + ["short one", "short one"]
    texts = [sentence(rng, 40) for _ in range(20)]
    texts[3] = f"{sentence(rng, 5)} {held_out[7]} {sentence(rng, 5)}"  # all of it, in a longer one
    texts[5] = " ".join([*held_out[2].split()[:24], *sentence(rng, 10).split()])  # 24 words: 12 of its 18 runs of 13
    texts[9] = "short one"
    found = leaks(texts, index(held_out, 13), 13, 0.5)
    assert found == [(3, 7, 1.0), (5, 2, 12 / 18), (9, 20, 1.0)]
    assert leaks(texts, index(held_out, 13), 13, 0.7) == [(3, 7, 1.0), (9, 20, 1.0)]


def test_a_phrase_that_many_share_is_no_leak():
    rng = random.Random(1)
    phrase = sentence(rng, 14)
    held_out = [f"{phrase} {sentence(rng, 30)}" for _ in range(5)]
    texts = [f"{phrase} {sentence(rng, 30)}" for _ in range(5)]
    assert leaks(texts, index(held_out, 13), 13, 0.5) == []


def test_short_texts_leak_as_a_whole_or_not():
    assert leaks(["where is my card"], index(["where is my new card"], 13), 13, 0.1) == []
    assert leaks(["where is my card now"], index(["where is my card"], 13), 13, 0.1) == []


def test_nothing_leaks_from_nothing():
    assert leaks(["a b"], index([], 13), 13, 0.5) == []
    assert leaks([], index(["a b"], 13), 13, 0.5) == []
