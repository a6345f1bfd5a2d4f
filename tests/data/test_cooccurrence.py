"""Vectors by company, against counts by hand and a dense SVD."""

import numpy as np

from jaxlean.data import cooccurrence
from jaxlean.data.cooccurrence import token_vectors

ROWS = [[0, 1, 2, 1, 3], [4, 1, 2], [0, 3, 3, 2, 1, 0], [5]]


def by_hand(window):
    pairs = np.zeros((7, 7))
    for row in ROWS:
        for i, left in enumerate(row):
            for j, right in enumerate(row):
                if i != j and abs(i - j) <= window:
                    pairs[left, right] += 1 / abs(i - j)
    own = pairs.sum(axis=1)
    context = own**0.75 / (own**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(pairs / (own[:, None] * context))
    return np.where(np.isfinite(found), np.maximum(found, 0), 0)


def test_inner_products_are_those_of_the_factored_information():
    vectors, counts = token_vectors(ROWS, 7, dims=3, window=2)
    assert counts.tolist() == [3, 4, 3, 3, 1, 1, 0]
    u, s, _ = np.linalg.svd(by_hand(2)[:5, :5])
    wanted = u[:, :3] * np.sqrt(s[:3])
    # signs of singular vectors are free, what lies between tokens is not
    np.testing.assert_allclose(vectors[:5] @ vectors[:5].T, wanted @ wanted.T, atol=1e-5)
    assert not vectors[5:].any()


def test_they_are_the_same_on_every_call_and_in_every_block(monkeypatch):
    whole, _ = token_vectors(ROWS, 7, dims=3)
    monkeypatch.setattr(cooccurrence, "_BLOCK", 1)
    parts, _ = token_vectors(ROWS, 7, dims=3)
    np.testing.assert_allclose(whole @ whole.T, parts @ parts.T, atol=1e-5)
    np.testing.assert_array_equal(token_vectors(ROWS, 7, dims=3)[0], parts)


def test_texts_without_company_give_none():
    vectors, counts = token_vectors([[1], [2]], 3, dims=4)
    assert vectors.shape == (3, 4)
    assert not vectors.any()
    assert counts.tolist() == [0, 1, 1]
