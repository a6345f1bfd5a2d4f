import itertools
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlean.curate.corpus import Corpus
from jaxlean.curate.near_duplicates import near_duplicates
from jaxlean.curate.work import Processes, Work
from jaxlean.data.dedupe import normalise

WORDS = "river mill church boat garden train morning letter window winter summer doctor answer island basket".split()


@pytest.fixture
def find(job, tmp_path):
    """`find(texts, threshold=...)` -> (kept numbers, {dropped: of}, similarities)."""
    count = iter(range(10**6))

    def run(texts, *, alive=None, row=lambda text: {"text": text}, task="generate", curate=None, **given):
        config = job([row(text) for text in texts], [{"near_duplicates": given}], task=task, curate=curate or {})
        corpus = Corpus(config)
        alive = np.ones(len(texts), bool) if alive is None else alive
        with Processes(config) as workers:
            folder = tmp_path / f"work{next(count)}"
            found = near_duplicates(corpus, alive, config.curate.steps[0].settings, Work(folder, workers))
        out = dict(zip(found.rows.tolist(), found.of.tolist(), strict=True))
        return [i for i in range(len(texts)) if alive[i] and i not in out], out, found.value

    return run


def overlap(a, b, n=5):
    one, other = ({text[i : i + n] for i in range(len(text) - n + 1)} for text in map(normalise, (a, b)))
    return len(one & other) / len(one | other)


def family(rng, count):
    """Sentences, some of them one or two words from others."""
    texts = []
    for _ in range(count):
        words = rng.choice(texts).split() if texts and rng.random() < 0.6 else rng.choices(WORDS, k=9)
        for _ in range(rng.randint(0, 2)):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        texts.append(" ".join(words))
    return texts


def test_the_near_one_goes_and_says_how_near(find, texts):
    kept, out, similarity = find([texts[0], texts[2], texts[3]])
    assert (kept, out) == ([0, 2], {1: 0})
    assert similarity[0] == pytest.approx(overlap(texts[0], texts[2]))


def test_the_longest_stays_if_wanted(find, texts):
    longer = texts[0] + " today"
    assert find([texts[0], longer, texts[3]], keep="longest")[1] == {0: 1}
    assert find([texts[0], longer, texts[3]])[1] == {1: 0}


def test_what_is_not_alive_is_not_looked_at(find, texts):
    assert find([texts[0], texts[0], texts[2]], alive=np.array([False, True, True]))[1] == {2: 1}


def test_other_numbers_are_other_rows_unless_wanted(find):
    texts = [f"A basket holds {n} apples, and each of them weighs half a pound on the old scales." for n in (3, 5)]
    assert find(texts)[1] == {}
    assert find(texts, same_numbers=False)[1] == {1: 0}


def test_other_labels_are_other_rows_unless_wanted(find, texts):
    labels = itertools.cycle("ab")
    row = {"task": "classify", "row": lambda text: {"text": text, "label": next(labels)}}
    assert find([texts[0], texts[0]], **row)[1] == {}
    assert find([texts[0], texts[0]], curate={"text_column": "text"}, **row)[1] == {}
    assert find([texts[0], texts[0]], across_labels=True, **row)[1] == {1: 0}


def test_words_are_shingles_too(find):
    text = " ".join(random.Random(0).choices(WORDS, k=60))
    assert find([text, text + " again"], unit="words", ngram=3)[1] == {1: 0}


def test_a_text_shorter_than_a_shingle_is_only_like_itself(find):
    assert find(["ab", "ab", "abc"])[1] == {1: 0}


def test_nothing_alive_and_nothing_said(find):
    assert find(["a b", "c d"], alive=np.zeros(2, bool))[:2] == ([], {})
    assert find(["", ""])[1] == {1: 0}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.7, 0.9]))
def test_dropped_rows_are_near_one_that_stays_and_again_drops_nothing(find, seed, threshold):
    texts = family(random.Random(seed), 40)
    kept, out, _ = find(texts, threshold=threshold)
    assert set(out.values()) <= set(kept)
    assert all(overlap(texts[row], texts[of]) >= threshold for row, of in out.items())
    assert find([texts[i] for i in kept], threshold=threshold)[1] == {}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 10**6))
def test_the_order_of_the_rows_makes_no_difference_to_the_longest(find, seed):
    rng = random.Random(seed)
    texts = family(rng, 40)
    shuffled = rng.sample(texts, len(texts))
    one, other = ({own[i] for i in find(own, keep="longest", threshold=0.6)[0]} for own in (texts, shuffled))
    assert one == other


def test_hardly_a_pair_is_missed(find):
    rng = random.Random(3)
    texts = family(rng, 300)
    kept, _, _ = find(texts, threshold=0.7)
    near = [(a, b) for i, a in enumerate(kept) for b in kept[:i] if overlap(texts[a], texts[b]) >= 0.7]
    every = [(a, b) for a in range(300) for b in range(a) if overlap(texts[a], texts[b]) >= 0.7]
    assert len(every) > 200
    assert len(near) <= 0.03 * len(every)
