import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.leakage import common, index, leaks

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


@pytest.mark.parametrize("count", [4, 50])
def test_an_opening_that_all_prompts_share_is_no_leak(count):
    """Longer than what follows: most runs of a row are the opening's."""
    rng = random.Random(2)
    opening = sentence(rng, 33)
    held_out, texts = ([f"{opening} {sentence(rng, 12)}" for _ in range(count)] for _ in range(2))
    of = index(held_out, 13)
    assert leaks(texts, of, 13, 0.6) == []
    assert leaks([*texts, held_out[3]], of, 13, 0.6) == [(count, 3, 1.0)]
    other = sentence(rng, 33).split()
    assert leaks([" ".join([*other, *held_out[3].split()[20:]])], of, 13, 0.6) == [(0, 3, 1.0)], "another opening"


def test_a_text_that_is_held_out_twenty_times_is_found():
    rng = random.Random(3)
    text = sentence(rng, 30)
    of = index([text] * 20 + [sentence(rng, 30) for _ in range(30)], 13)
    assert leaks([f"well {text} so it is", text], of, 13, 0.6) == [(0, 0, 1.0), (1, 0, 1.0)]


def test_a_row_without_a_run_of_its_own_leaks_as_a_whole():
    rng = random.Random(4)
    starts, ends = ([sentence(rng, 20) for _ in range(16)] for _ in range(2))
    middle = sentence(rng, 20)
    held_out = [f"{start} {middle} {end}" for start in starts for end in ends]  # each run is in 16 of them or more
    of = index(held_out, 13)
    assert of.runs.tolist() == [1] * 256
    texts = [held_out[37], f"{held_out[37]} and more", f"{starts[3]} {middle}"]
    assert leaks(texts, of, 13, 0.6) == [(0, 37, 1.0)]


def test_shared_runs_cost_no_square():
    rng = random.Random(5)
    opening = sentence(rng, 33)
    held_out = [f"{opening} {sentence(rng, 12)}" for _ in range(500)]
    of = index(held_out, 13)
    assert len(of.hashes) <= 500 * 13, "a run of the opening stands there for no row"


def test_short_texts_leak_as_a_whole_or_not():
    assert leaks(["where is my card"], index(["where is my new card"], 13), 13, 0.1) == []
    assert leaks(["where is my card now"], index(["where is my card"], 13), 13, 0.1) == []


def test_nothing_leaks_from_nothing():
    assert leaks(["a b"], index([], 13), 13, 0.5) == []
    assert leaks([], index(["a b"], 13), 13, 0.5) == []
    assert leaks([], index([], 13), 13, 0.5) == []


@given(st.lists(st.text("ab c", max_size=8), max_size=12), st.lists(st.text("ab c", max_size=8), max_size=6))
def test_shares_are_those_counted_slowly(held_out, texts):
    def runs(text):
        words = (text.split() + [""] * 2)[: max(len(text.split()), 2)]
        return {tuple(words[i : i + 2]) for i in range(len(words) - 1)}

    different = set(held_out)
    many = Counter(run for text in different for run in runs(text))
    own = {text: {run for run in runs(text) if many[run] <= common(len(different))} for text in different}
    wanted = []
    for i, text in enumerate(texts):
        shares = [
            len(own[other] & runs(text)) / len(own[other]) if own[other] else float(other == text) for other in held_out
        ]
        if max(shares, default=0) >= 0.5:
            wanted.append((i, shares.index(max(shares)), max(shares)))
    assert leaks(texts, index(held_out, 2), 2, 0.5) == wanted
