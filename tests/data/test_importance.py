import math
import zlib
from collections import Counter

import numpy as np

from jaxlean.data.importance import hashed, importance, resample

ROWS = ["my card has not come", "the card was stolen", "what is the weather like today ?", "a sunny day it is"]
TARGET = ["my card was stolen", "the card has not come"]


def grams(text: str) -> list[str]:
    words = text.split()
    return words + [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)]


def test_a_weight_is_the_ratio_of_the_two_likelihoods_of_a_bag_of_grams() -> None:
    target, rows = (Counter(g for text in texts for g in grams(text)) for texts in (TARGET, ROWS))
    assert len({zlib.crc32(g.encode()) % 100_003 for g in target | rows}) == len(target | rows), "no two share a bucket"
    wanted = [
        sum(math.log(target[g] / target.total() + 1e-8) - math.log(rows[g] / rows.total() + 1e-8) for g in grams(text))
        for text in ROWS
    ]
    np.testing.assert_allclose(importance(ROWS, TARGET, buckets=100_003), wanted, rtol=1e-9)


def test_case_and_punctuation_are_as_in_the_papers_code() -> None:
    assert hashed("No, Thanks!").tolist() == hashed("no , thanks !").tolist()
    assert hashed("").shape == (0,)


def test_rows_like_the_target_weigh_more_and_an_empty_row_nothing() -> None:
    found = importance([*ROWS, ""], TARGET)
    assert min(found[:2]) > max(found[2:4])
    assert found[4] == 0


def test_drawing_goes_by_the_weights() -> None:
    weights = np.log([1.0, 2.0, 5.0])
    first = Counter(int(resample(weights, 1, seed=seed)[0]) for seed in range(3000))
    np.testing.assert_allclose([first[i] / 3000 for i in range(3)], [1 / 8, 2 / 8, 5 / 8], atol=0.03)
    # without replacement: P({0, 1}) = 1/8 * 2/7 + 2/8 * 1/6
    pairs = sum(set(resample(weights, 2, seed=seed).tolist()) == {0, 1} for seed in range(3000))
    assert abs(pairs / 3000 - (1 / 8 * 2 / 7 + 2 / 8 * 1 / 6)) < 0.02


def test_drawing_goes_by_the_seed() -> None:
    weights = np.zeros(50)
    assert resample(weights, 9, seed=1).tolist() == resample(weights, 9, seed=1).tolist()
    assert resample(weights, 9, seed=1).tolist() != resample(weights, 9, seed=2).tolist()
