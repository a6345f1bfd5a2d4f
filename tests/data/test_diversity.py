import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.data import diversity
from jaxlean.data.diversity import apart, balanced, k_center


def plainly(vectors: np.ndarray, num: int, first: list[int], score: np.ndarray) -> list[int]:
    """The rule as it is written, in float64: rows after `first`."""
    apart = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[first][None], axis=2).min(axis=1)
    out: list[int] = []
    while len(out) < num:
        gain = score * apart
        gain[first + out] = -1
        out.append(int(gain.argmax()))
        apart = np.minimum(apart, np.linalg.norm(vectors - vectors[out[-1]].astype(np.float64), axis=1))
    return out


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_k_center_is_the_greedy_rule(monkeypatch: pytest.MonkeyPatch, scored: bool, started: bool) -> None:
    # so small that several passes, candidates that lose to rows outside and several blocks all happen
    monkeypatch.setattr(diversity, "_PENDING", 7)
    monkeypatch.setattr(diversity, "_CANDIDATES", 11)
    monkeypatch.setattr(diversity, "BLOCK", 64)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 5)).astype(np.float32)
    score = rng.random(300) if scored else np.ones(300)
    chosen = np.arange(20, 40) if started else None
    got = k_center(vectors, 100, score=score if scored else None, chosen=chosen, seed=3).tolist()
    if chosen is not None:
        assert got == plainly(vectors, 100, chosen.tolist(), score)
    else:
        assert got[1:] == plainly(vectors, 99, got[:1], score)
        if scored:
            assert got[0] == score.argmax()


def test_k_center_takes_each_row_once_even_where_all_are_alike() -> None:
    got = k_center(np.ones((50, 4), np.float32), 30, chosen=np.array([7]))
    assert len(set(got.tolist()) - {7}) == 30


def test_k_center_goes_by_its_seed() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    firsts = {int(k_center(vectors, 3, seed=seed)[0]) for seed in range(20)}
    assert len(firsts) > 5
    assert (k_center(vectors, 9, seed=4) == k_center(vectors, 9, seed=4)).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
def test_balanced_takes_as_many_of_each_group_and_its_best(groups: list[int], data: st.DataObject) -> None:
    num = data.draw(st.integers(0, len(groups)))
    score = np.random.default_rng(1).integers(0, 4, len(groups)).astype(float)
    rows = balanced(np.array(groups), num, score=score, seed=2)
    assert len(set(rows.tolist())) == len(rows) == num
    taken = np.bincount(np.array(groups)[rows], minlength=6)
    there = np.bincount(groups, minlength=6)
    if (left := taken < there).any():
        assert taken.max() - taken[left].min() <= 1
    for group in range(6):
        inside = np.flatnonzero(np.array(groups) == group)
        best = sorted(score[inside], reverse=True)[: taken[group]]
        assert sorted(score[[row for row in rows if groups[row] == group]], reverse=True) == best


def test_balanced_without_a_score_is_random_by_seed() -> None:
    groups = np.array(["b", "a"] * 50)
    one, same, other = (balanced(groups, 20, seed=seed).tolist() for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize("started", [0, 2])
def test_how_far_each_row_was_when_it_was_chosen(monkeypatch: pytest.MonkeyPatch, started: int) -> None:
    monkeypatch.setattr(diversity, "_CANDIDATES", 7)
    vectors = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen, rows = np.arange(40, 40 + started), k_center(vectors[:40], 20)
    found = apart(vectors, rows, chosen)
    for i, row in enumerate(rows):
        before = [*chosen, *rows[:i]]
        wanted = np.linalg.norm(vectors[before] - vectors[row], axis=1).min() if before else np.nan
        np.testing.assert_allclose(found[i], wanted, atol=1e-5)
