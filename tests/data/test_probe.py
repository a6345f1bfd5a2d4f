import sys

import numpy as np
import pytest

from jaxlean.data.clusters import unit
from jaxlean.data.probe import error_norms, held_out_probabilities
from jaxlean.errors import ConfigError


def test_a_planted_wrong_label_has_the_largest_error() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    vectors = unit(np.eye(3, 8)[labels] + 0.1 * rng.normal(size=(120, 8)))
    wrong = labels.copy()
    wrong[[7, 50]] = (labels[[7, 50]] + 1) % 3
    error = error_norms(held_out_probabilities(vectors, wrong, folds=4, seed=1), wrong)
    assert set(np.argsort(-error)[:2].tolist()) == {7, 50}
    assert error[7] > 1.1
    assert np.median(error) < 0.4


def test_each_row_is_judged_by_the_others() -> None:
    """Against scikit-learn, fold by fold, and not by a model that has seen the row."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 40)
    vectors = unit(rng.normal(size=(40, 5)))
    got = held_out_probabilities(vectors, labels, folds=40)
    for row in (0, 17):
        others = np.arange(40) != row
        probe = LogisticRegression(C=20.0, max_iter=150, tol=1e-3).fit(vectors[others], labels[others])
        np.testing.assert_allclose(got[row], probe.predict_proba(vectors[[row]])[0], atol=1e-5)


def test_a_label_of_one_row_is_unknown_to_the_others() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(11, 4)))
    labels = np.array([0] * 5 + [1] * 5 + [2])
    got = held_out_probabilities(vectors, labels, folds=2)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
    assert got[10, 2] == 0
    lonely = held_out_probabilities(vectors[:2], labels[[0, 5]], folds=2)
    assert lonely.tolist() == [[0, 1], [1, 0]]


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ConfigError, match=r"jaxlean\[curate\]"):
        held_out_probabilities(np.ones((4, 2), np.float32), np.array([0, 1, 0, 1]))
