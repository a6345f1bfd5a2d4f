from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data.sample import choose, in_band, merit, mixed


def test_the_band_leaves_out_shares_of_both_ends_and_what_has_no_score() -> None:
    score = np.array([5.0, np.nan, 1.0, 4.0, 2.0, 3.0])
    assert in_band(score).tolist() == [True, False, True, True, True, True]
    assert in_band(score, drop_highest=0.2, drop_lowest=0.4).tolist() == [False, False, False, True, False, True]
    assert in_band(score, at_least=2.0, at_most=4.0).tolist() == [False, False, False, True, True, True]
    assert not in_band(score, drop_highest=1.0).any()


@given(st.lists(st.integers(0, 30), min_size=2, max_size=5), st.data())
def test_a_mix_keeps_its_shares_until_a_source_runs_out(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    num = data.draw(st.integers(0, sum(sizes) + 5))
    given_, out = mixed(np.array(sizes), np.array(weights), num)
    assert given_.sum() == min(num, sum(sizes))
    assert (given_[out] == np.array(sizes)[out]).all()
    if not out.any():
        wanted = np.array(weights) / sum(weights) * given_.sum()
        # a source that lacks less than one row has not run out, and the others share in what it lacks
        assert np.abs(given_ - wanted).max() <= len(sizes)


def test_a_mix_without_a_number_is_as_large_as_the_scarcest_source_allows() -> None:
    given_, out = mixed(np.array([100, 30, 500]), np.array([1.0, 1.0, 2.0]))
    assert given_.tolist() == [30, 30, 60]
    assert not out.any()
    given_, out = mixed(np.array([100, 10]), np.array([1.0, 1.0]), 80)
    assert given_.tolist() == [70, 10]
    assert out.tolist() == [False, True]


def test_drawing_is_in_proportion_to_the_score() -> None:
    score = np.array([1.0, 2.0, 5.0, 0.0])
    first = Counter(int(choose(1, 4, merits=merit(score, "draw", seed=seed))[0]) for seed in range(3000))
    np.testing.assert_allclose([first[i] / 3000 for i in range(4)], score / 8, atol=0.03)
    logs = np.log(score[:3]) + 1000.0  # whose exponentials are beyond any float
    first = Counter(int(choose(1, 3, merits=merit(logs, "draw_log", seed=seed))[0]) for seed in range(3000))
    np.testing.assert_allclose([first[i] / 3000 for i in range(3)], score[:3] / 8, atol=0.03)


@pytest.mark.parametrize("order", ["highest", "lowest"])
def test_by_score(order: str) -> None:
    score = np.random.default_rng(0).permutation(20).astype(float)
    got = choose(5, 20, merits=merit(score, order))  # type: ignore[arg-type]
    assert sorted(score[got]) == ([15, 16, 17, 18, 19] if order == "highest" else [0, 1, 2, 3, 4])


def test_without_a_score_it_is_random_by_seed() -> None:
    assert choose(5, 50, seed=1).tolist() == choose(5, 50, seed=1).tolist() != choose(5, 50, seed=2).tolist()


def test_which_of_equals_are_taken_does_not_hang_on_their_places() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for merits in (np.ones(500), rng.integers(3, 6, 500).astype(float)):
        chosen = choose(50, 500, merits=merits, vectors=vectors)
        assert (np.histogram(chosen, 5, (0, 500))[0] > 0).all()
    # those that are worth more are still preferred
    assert merits[chosen].mean() > merits.mean() + 0.2
    out = {tuple(np.flatnonzero(~in_band(np.ones(10), drop_highest=0.2, seed=seed))) for seed in range(5)}
    assert len(out) > 1
    assert all(len(rows) == 2 for rows in out)


def test_diversity_by_groups_and_by_distance() -> None:
    score = np.arange(12.0)
    assert choose(4, 12, merits=score, groups=np.arange(12) // 6).tolist() == [4, 5, 10, 11]
    # three places far apart, four rows at each: the best of all, then the best of the others
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    vectors += 1e-4 * np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    got = choose(3, 12, merits=score, vectors=vectors)
    assert got.tolist() == [3, 7, 11]
    assert sorted((choose(3, 12, vectors=vectors) // 4).tolist()) == [0, 1, 2]
