import itertools
import math
import zlib
from collections import Counter

import numpy as np

from jaxlean.data.importance import counts, hashed, log_ratio, log_weights

ROWS = ["my card has not come", "the card was stolen", "what is the weather like today ?", "a sunny day it is"]
TARGET = ["my card was stolen", "the card has not come"]


def importance(rows: list[str], target: list[str], buckets: int = 10_000) -> np.ndarray:
    return log_weights(rows, log_ratio(counts(target, buckets), counts(rows, buckets)))


def grams(text: str) -> list[str]:
    words = text.split()
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


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


def test_counts_of_parts_add_up() -> None:
    np.testing.assert_array_equal(counts(ROWS), counts(ROWS[:1]) + counts(ROWS[1:]))
    assert counts([], 7).tolist() == [0] * 7
    assert counts(["a a"], 7).sum() == 3
