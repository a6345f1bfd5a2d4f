"""Acquisition functions against their formulas and against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as of_scipy

from jaxlean.data.acquisition import bald, entropy, least_confidence, margin, typical, uncertain_clusters
from jaxlean.data.clusters import unit


def draws(rows: int, labels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(labels, 0.5), rows)


def groups(sizes: list[int], *, wide: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(unit vectors in clusters of these sizes, the cluster of each)."""
    draw = np.random.default_rng(seed)
    centres = np.eye(8)[: len(sizes)]
    of = np.repeat(np.arange(len(sizes)), sizes)
    return unit((centres[of] + wide * draw.normal(size=(len(of), 8))).astype(np.float32)), of


@given(st.integers(1, 20), st.integers(2, 9), st.integers(0, 99))
def test_scores_are_those_of_the_formulas(rows, labels, seed):
    p = draws(rows, labels, seed)
    ranked = np.sort(p, axis=1)
    np.testing.assert_allclose(least_confidence(p), 1 - ranked[:, -1])
    np.testing.assert_allclose(margin(p), 1 - (ranked[:, -1] - ranked[:, -2]), atol=1e-12)
    np.testing.assert_allclose(entropy(p), of_scipy(p, axis=1), atol=1e-12)


def test_all_agree_on_what_is_sure_and_what_is_not():
    p = np.array([[1.0, 0.0, 0.0], [0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    for score in (least_confidence, margin, entropy):
        assert score(p).argmin() == 0
        assert score(p).argmax() == 3
    # two labels that are as likely: for the margin all is open, for the entropy only one bit
    two = np.array([[0.5, 0.5, 0.0, 0.0], [0.55, 0.15, 0.15, 0.15]])
    assert margin(two)[0] > margin(two)[1]
    assert entropy(two)[0] < entropy(two)[1]


def test_bald_is_the_mutual_information():
    passes = [draws(6, 4, seed) for seed in range(5)]
    score, mean = bald(iter(passes))
    np.testing.assert_allclose(mean, np.mean(passes, axis=0))
    wanted = of_scipy(np.mean(passes, axis=0), axis=1) - np.mean([of_scipy(p, axis=1) for p in passes], axis=0)
    np.testing.assert_allclose(score, wanted, atol=1e-12)
    assert (score > 0).all()


def test_bald_asks_where_passes_disagree_and_not_where_all_are_unsure():
    sure, other, unsure = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
    score, _ = bald([np.array([sure, unsure, sure]), np.array([other, unsure, sure])])
    assert score[0] == pytest.approx(np.log(2))
    assert score[1:].tolist() == [0.0, 0.0]
    with pytest.raises(AssertionError, match="agrees with itself"):
        bald([np.array([sure])])


def test_the_first_typical_rows_are_one_of_each_cluster_the_largest_first():
    vectors, of = groups([30, 20, 10, 8])
    picked, score = typical(vectors, 4, seed=1)
    assert of[picked].tolist() == [0, 1, 2, 3]
    assert (score > 0).all()
    # the most typical of each: the smallest mean distance to its 20 nearest in the cluster
    for row in picked[:2]:
        own = np.flatnonzero(of == of[row])
        apart = np.sort(np.linalg.norm(vectors[own][:, None] - vectors[own][None], axis=2), axis=1)
        near = apart[:, 1 : 1 + min(20, len(own) - 1)].mean(axis=1)
        assert row == own[near.argmin()]
        assert score[picked.tolist().index(row)] == pytest.approx(1 / near.min(), rel=1e-4)


def test_what_has_a_label_is_not_asked_again():
    vectors, of = groups([30, 20, 10, 5])
    chosen = np.flatnonzero(of == 0)[:3]
    picked, _ = typical(vectors, 1, chosen=chosen)
    assert of[picked].tolist() != [0]
    rest, _ = typical(vectors, 62, chosen=chosen)
    assert sorted([*rest.tolist(), *chosen.tolist()]) == list(range(65))
    with pytest.raises(AssertionError):
        typical(vectors, 63, chosen=chosen)


def test_what_lies_apart_comes_last():
    """Four kinds of 40 rows and six rows that nothing is like: these would be half of a first dozen."""
    draw = np.random.default_rng(0)
    dense = [np.eye(16)[kind] + 0.05 * draw.normal(size=(40, 16)) for kind in range(4)]
    vectors = unit(np.concatenate([*dense, -np.eye(16)[4:10]]).astype(np.float32))
    picked, score = typical(vectors, 12)
    assert np.bincount(picked // 40, minlength=4).min() > 0
    assert (picked < 160).all()
    assert (score > 1).all()
    labelled = np.concatenate([np.arange(0, 4), np.arange(40, 44)])
    picked, _ = typical(vectors, 4, chosen=labelled)
    assert set((picked // 40).tolist()) == {2, 3}, "of two kinds nothing is known"
    every, _ = typical(vectors, 166)
    assert sorted(every.tolist()) == list(range(166))


def test_of_few_rows_small_clusters_count():
    """Thirty kinds of four rows, and one row apart: no cluster has more than five, and each kind is asked for."""
    draw = np.random.default_rng(0)
    kinds = [np.eye(32)[kind] + 0.02 * draw.normal(size=(4, 32)) for kind in range(30)]
    vectors = unit(np.concatenate([*kinds, -np.eye(32)[30:31]]).astype(np.float32))
    picked, _ = typical(vectors, 30)
    assert len(set((picked // 4).tolist()) - {30}) >= 25  # k-means parts some, and takes two for one
    assert 120 not in picked


def test_a_row_alone_is_not_typical():
    vectors, of = groups([10, 1])
    picked, score = typical(vectors, 2)
    assert of[picked].tolist() == [0, 0], "it stands for nothing"
    assert score[0] >= score[1] > 0
    picked, score = typical(vectors, 3, chosen=np.arange(8))  # of as many clusters as rows each is as small
    assert sorted(picked.tolist()) == [8, 9, 10]
    assert score.tolist() == [0.0] * 3


def test_uncertain_rows_are_of_different_kinds():
    vectors, of = groups([40, 20, 20], wide=0.02)
    score = np.where(of == 0, 0.9, np.where(of == 1, 0.8, 0.1)) + 1e-3 * np.arange(80) / 80
    top = np.argsort(-score)[:4]
    assert set(of[top].tolist()) == {0}, "a ranking alone takes one kind only"
    picked = uncertain_clusters(vectors, score, 12)
    assert set(of[picked].tolist()) == {0, 1}, "and nothing that the model is sure of"
    assert len(set(picked.tolist())) == 12
    assert (np.diff(score[picked]) <= 0).all()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # scikit-learn, of equal rows
def test_only_free_rows_and_all_of_them():
    vectors, _ = groups([6, 6])
    free = np.array([1, 3, 5, 7])
    picked = uncertain_clusters(vectors, np.arange(12.0), 4, free=free)
    assert sorted(picked.tolist()) == free.tolist()
    same = np.repeat(vectors[:1], 6, axis=0)  # equal rows make fewer clusters than there are to choose
    assert len(set(uncertain_clusters(same, np.arange(6.0), 4).tolist())) == 4


def test_the_seed_decides():
    vectors, _ = groups([20, 20, 20], wide=0.5)
    assert typical(vectors, 9, seed=3)[0].tolist() == typical(vectors, 9, seed=3)[0].tolist()
