"""BM25 against its formula, word by word."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.bm25 import BM25, words

TEXTS = ["My card is lost.", "what is the fee?", "a lost parcel, a lost card; lost", ""]


def by_formula(query: str, texts: list[str], k1: float, b: float) -> list[float]:
    documents = [words(text) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    found = []
    for document in documents:
        total = 0.0
        for word in words(query):
            n = sum(word in other for other in documents)
            tf = document.count(word)
            if n:
                idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
                total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / mean)) if tf else 0.0
        found.append(total)
    return found


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (2.0, 0.0), (0.5, 1.0)])
def test_scores_are_those_of_the_formula(k1, b):
    for query in ("LOST card", "the the fee", "nothing here", ""):
        found = BM25(TEXTS, k1=k1, b=b).scores(query)
        np.testing.assert_allclose(found, by_formula(query, TEXTS, k1, b), rtol=1e-12)
    assert BM25(TEXTS).scores("lost card")[2] > BM25(TEXTS).scores("lost card")[0] > 0


def test_the_nearest_come_first_and_of_equals_any():
    texts = ["one", "card lost", "two", "card lost", "card"]
    found = BM25(texts).nearest("a lost card", 5).tolist()
    assert (sorted(found[:2]), found[2], sorted(found[3:])) == ([1, 3], 4, [0, 2])
    assert BM25(texts).nearest("a lost card", 5).tolist() == found
    assert len({tuple(BM25(texts, seed=seed).nearest("nothing", 3)) for seed in range(5)}) > 1


def test_words_of_every_script():
    assert words("अस्पताल café") == ["अस्पताल", "café"]
    assert words("我的银行卡, iPhone 15か") == ["我的", "的银", "银行", "行卡", "iphone", "15", "か"]
    index = BM25(["如何更改密码", "我的银行卡丢了怎么办", "汇率是多少", "转账失败了"])
    assert index.nearest("银行卡丢了", 1).tolist() == [1]


@given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=6), st.integers(0, 5))
def test_a_text_is_never_less_like_itself_than_without_its_words(texts, i):
    query = texts[i % len(texts)]
    found = BM25(texts).scores(query)
    assert (found >= 0).all()
    assert (found[i % len(texts)] > 0) == bool(words(query))


def test_no_text_at_all():
    assert BM25([]).nearest("a", 2).tolist() == []
