import numpy as np
import pytest

from jaxlean.data import semantic
from jaxlean.data.clusters import unit
from jaxlean.data.semantic import duplicates, like_earlier


def plainly(vectors: np.ndarray, limit: float) -> list[int]:
    """The rule as it is written, one after the other."""
    found: list[int] = []
    for i, vector in enumerate(vectors):
        kept = [j for j in range(i) if found[j] == j]
        best = max(kept, key=lambda j: vectors[j] @ vector, default=i)
        found.append(best if kept and vectors[best] @ vector > limit else i)
    return found


@pytest.mark.parametrize("limit", [0.3, 0.7, 0.9])
def test_each_is_compared_with_those_that_are_kept(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    monkeypatch.setattr(semantic, "_BLOCK", 16)
    vectors = unit(np.random.default_rng(0).normal(size=(150, 3)))
    got = like_earlier(vectors, limit)
    assert got.tolist() == plainly(vectors, limit)
    assert 1 < len(set(got.tolist())) < 150


def test_planted_duplicates_are_found_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(400, 32))
    near = own[:100] + 0.02 * rng.normal(size=(100, 32))  # cosines of 0.999
    got = duplicates(unit(np.concatenate([own, near])), epsilon=0.05, num_clusters=8)
    assert (got[100:400] == np.arange(100, 400)).all()
    dropped = np.flatnonzero(got != np.arange(500))
    assert len(dropped) >= 95, "a pair that the clusters part is not seen, which is seldom"
    assert all(abs(int(row) - int(got[row])) == 400 for row in dropped)


def test_of_alike_rows_the_one_farthest_from_the_centre_is_kept() -> None:
    apart = np.array([0.0, 0.1, 0.2, 0.3])  # angles; the centre is at their middle
    vectors = unit(np.stack([np.cos(apart), np.sin(apart)], axis=1))
    got = duplicates(vectors[[1, 0, 2, 3]], epsilon=0.04, num_clusters=1)  # alike up to 0.28
    assert got[0] in (1, 3)
    assert set(got.tolist()) == {1, 3}


def test_the_same_vectors_are_alike_though_float32_rounds() -> None:
    vectors = unit(np.repeat(np.random.default_rng(1).normal(size=(5, 384)), 3, axis=0))
    assert len(set(duplicates(vectors, epsilon=0.0).tolist())) == 5


def test_rows_of_different_groups_are_never_duplicates() -> None:
    vectors = unit(np.repeat(np.random.default_rng(1).normal(size=(6, 16)), 4, axis=0))
    got = duplicates(vectors, epsilon=0.0, groups=np.tile([0, 1, 1, 2], 6), num_clusters=2)
    assert len(set(got.tolist())) == 18
    assert all(row % 4 in (1, 2) for row in np.flatnonzero(got != np.arange(24)))
