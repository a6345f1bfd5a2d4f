import sys

import numpy as np
import pytest

from jaxlean.data import clusters
from jaxlean.data.clusters import k_means, unit
from jaxlean.errors import ConfigError, DataError


def test_unit_vectors_and_none_of_nothing() -> None:
    got = unit(np.array([[3.0, 4.0], [0.0, 0.0]], np.float16))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_large_numbers_are_numbers() -> None:
    np.testing.assert_allclose(unit(np.array([[3e30, 4e30], [3e-30, 4e-30]], np.float32)), [[0.6, 0.8]] * 2, rtol=1e-6)


def test_a_vector_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "BLOCK", 2)
    vectors = np.ones((5, 3), np.float32)
    vectors[3, 1] = np.nan
    with pytest.raises(DataError) as error:
        unit(vectors)
    assert "not all numbers" in str(error.value)
    assert "row 4 of 5" in str(error.value)


def test_clusters_that_lie_apart_are_found() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 4, 600)
    vectors = unit(np.eye(4, 8)[wanted] + 0.05 * rng.normal(size=(600, 8)))
    found, centres = k_means(vectors, 4, seed=1)
    assert len({(int(w), int(f)) for w, f in zip(wanted, found, strict=True)}) == 4
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)
    assert (found == (vectors @ centres.T).argmax(axis=1)).all()


def test_the_same_seed_gives_the_same_clusters_and_few_rows_are_a_cluster_each() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(2000, 8)))
    one, other = k_means(vectors, 3, seed=5), k_means(vectors, 3, seed=5)  # of 2000 rows 768 are drawn
    assert (one[0] == other[0]).all()
    assert sorted(k_means(vectors[:3], 10)[0].tolist()) == [0, 1, 2]


def test_rows_that_are_the_same_are_one_cluster_without_a_warning() -> None:
    vectors = np.repeat(np.eye(2, 8, dtype=np.float32), 30, axis=0)
    found, _ = k_means(vectors, 5)  # warnings are errors here
    assert len(set(found.tolist())) == 2


def test_the_callers_vectors_stay_as_they_are() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(500, 8)) + 1)
    before = vectors.copy()
    k_means(vectors, 2)  # 500 of at most 512 rows: all of them
    np.testing.assert_array_equal(vectors, before)
    k_means(vectors, 1)
    np.testing.assert_array_equal(vectors, before)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"jaxlean\[curate\]"):
        k_means(np.ones((4, 2), np.float32), 2)
