"""Where vectors of new tokens start, against the formulas written out and solved by brute force, in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxlean.adapt import warm_start
from jaxlean.errors import ConfigError

RNG = np.random.default_rng(0)


def test_mean_of_pieces_is_their_mean():
    rows = RNG.normal(size=(6, 3))
    found = warm_start.mean_of_pieces(rows, [[1], [0, 2, 2, 5]])
    np.testing.assert_array_equal(found[0], rows[1])
    np.testing.assert_allclose(found[1], (rows[0] + 2 * rows[2] + rows[5]) / 4, atol=1e-15)


def test_random_rows_have_the_mean_and_deviation_of_the_old_ones_and_depend_on_the_seed():
    mean, std = np.array([1.0, -2.0, 0.0]), np.array([0.5, 2.0, 0.0])
    found = warm_start.random(mean, std, 40_000, seed=3)
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=0.05)
    np.testing.assert_allclose(found.std(axis=0), std, atol=0.05)
    np.testing.assert_array_equal(found, warm_start.random(mean, std, 40_000, seed=3))
    assert not np.array_equal(found, warm_start.random(mean, std, 40_000, seed=4))


def nearest_on_simplex(point: np.ndarray) -> np.ndarray:
    """By trying every set of coordinates that could be positive (Karush-Kuhn-Tucker)."""
    best = None
    for mask in range(1, 2 ** len(point)):
        chosen = np.array([bool(mask >> i & 1) for i in range(len(point))])
        found = np.where(chosen, point - (point[chosen].sum() - 1) / chosen.sum(), 0.0)
        if found.min() >= 0 and (best is None or np.square(found - point).sum() < np.square(best - point).sum()):
            best = found
    assert best is not None
    return best


@given(hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(-3, 3)))
def test_sparsemax_is_the_nearest_point_of_the_simplex(scores):
    np.testing.assert_allclose(warm_start.sparsemax(scores[None])[0], nearest_on_simplex(scores), atol=1e-9)


def test_focus_weighs_old_rows_by_sparsemax_of_cosines():
    rows, old, new = RNG.normal(size=(5, 4)), RNG.normal(size=(5, 3)), RNG.normal(size=(2, 3))
    cosines = np.array([[n @ o / np.linalg.norm(n) / np.linalg.norm(o) for o in old] for n in new])
    wanted = np.stack([nearest_on_simplex(row) @ rows for row in cosines])
    np.testing.assert_allclose(warm_start.focus(rows, old, new), wanted, atol=1e-12)


def test_focus_holds_the_similarities_of_a_few_new_tokens_at_a_time(monkeypatch):
    rows, old, new = RNG.normal(size=(50, 4)), RNG.normal(size=(50, 3)), RNG.normal(size=(7, 3))
    whole, sizes, sparsemax = warm_start.focus(rows, old, new), [], warm_start.sparsemax
    monkeypatch.setattr(warm_start, "_SIMILARITIES", 100)
    monkeypatch.setattr(warm_start, "sparsemax", lambda scores: sizes.append(scores.shape) or sparsemax(scores))
    np.testing.assert_allclose(warm_start.focus(rows, old, new), whole, atol=1e-12)
    assert sizes == [(2, 50), (2, 50), (2, 50), (1, 50)]


def test_focus_of_a_token_that_is_like_one_alone_is_that_ones_row():
    rows = RNG.normal(size=(3, 4))
    np.testing.assert_allclose(warm_start.focus(rows, np.eye(3), np.array([[0, 7.0, 0]]))[0], rows[1], atol=1e-12)


def test_procrustes_finds_the_rotation_that_made_the_points():
    x = RNG.normal(size=(30, 5))
    rotation = np.linalg.qr(RNG.normal(size=(5, 5)))[0]
    y = 2.5 * (x - 1.0) @ rotation + RNG.normal(size=5)
    found = warm_start.procrustes(x, y)
    assert found.scale == pytest.approx(2.5)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-12)
    np.testing.assert_allclose(found(x), y, atol=1e-12)


def test_procrustes_is_scipys_where_both_spaces_have_the_same_dims():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = RNG.normal(size=(20, 4)), RNG.normal(size=(20, 4))
    wanted, trace = linalg.orthogonal_procrustes(x - x.mean(axis=0), y - y.mean(axis=0))
    found = warm_start.procrustes(x, y)
    np.testing.assert_allclose(found.rotation, wanted, atol=1e-12)
    assert found.scale == pytest.approx(trace / np.square(x - x.mean(axis=0)).sum())


@pytest.mark.parametrize(("dims_in", "dims_out"), [(3, 3), (2, 4), (4, 2)])
def test_no_other_rotation_agrees_better_and_no_other_scale_is_nearer(dims_in, dims_out):
    x, y = RNG.normal(size=(12, dims_in)), RNG.normal(size=(12, dims_out))
    found = warm_start.procrustes(x, y)
    centred, wanted = x - x.mean(axis=0), y - y.mean(axis=0)
    fewer = found.rotation if dims_in >= dims_out else found.rotation.T
    np.testing.assert_allclose(fewer.T @ fewer, np.eye(min(dims_in, dims_out)), atol=1e-12)
    agreement = np.trace(found.rotation.T @ centred.T @ wanted)
    for _ in range(500):
        other = np.linalg.qr(RNG.normal(size=(max(dims_in, dims_out), min(dims_in, dims_out))))[0]
        other = other if dims_in >= dims_out else other.T
        assert np.trace(other.T @ centred.T @ wanted) <= agreement + 1e-9

    def distance(scale: float) -> float:
        return float(np.square(scale * centred @ found.rotation - wanted).sum())

    assert all(distance(found.scale) <= distance(found.scale + step) for step in (-0.01, 0.01))


def test_too_few_points_do_not_tell_a_rotation():
    with pytest.raises(ConfigError) as raised:
        warm_start.procrustes(RNG.normal(size=(3, 300)), RNG.normal(size=(3, 64)))
    assert "too few tokens have a vector in both spaces" in str(raised.value)
    assert "3, of vectors of 300 numbers and rows of 64" in str(raised.value)
    assert "65 or more" in str(raised.value)
