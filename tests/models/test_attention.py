"""Who sees whom, and the softmax over it, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlean.models.attention import Slots, attention


def slots(segments):
    segments = jnp.asarray(segments, jnp.int32)
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    return Slots(index, index, segments, segments)


@pytest.mark.parametrize("window", [None, 1, 3, 99])
def test_a_token_sees_its_own_segment_up_to_itself_and_the_window(window):
    segments = [[1, 1, 1, 1, 2, 2, 3, 0, 0]]
    got = np.asarray(slots(segments).visible(window))[0]
    for q, own in enumerate(segments[0]):
        for k, other in enumerate(segments[0]):
            assert got[q, k] == (own == other and k <= q and (window is None or q - k < window)), (q, k)


def test_a_traced_window_is_the_same():
    at = slots([[1, 1, 2, 2, 2, 0]])
    np.testing.assert_array_equal(jax.jit(at.visible)(jnp.int32(2)), at.visible(2))


def test_every_row_sees_itself():
    assert np.asarray(slots([[1, 2, 0, 0], [0, 0, 3, 3]]).visible(1)).any(-1).all()


def test_later_queries_against_a_cache():
    # two queries that stand at slots 3 and 4 of five; slot 0 is left padding
    at = Slots(jnp.asarray([3, 4]), jnp.arange(5), jnp.ones((1, 2), jnp.int32), jnp.asarray([[0, 1, 1, 1, 1]]))
    np.testing.assert_array_equal(at.visible(None)[0], [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(at.visible(2)[0], [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])


def reference(query, key, value, visible):
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[2] // key.shape[2]
    key, value = np.repeat(key, group, axis=2), np.repeat(value, group, axis=2)  # head h reads kv head h // group
    scores = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(np.asarray(visible)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), value)


def draw(seed, heads=4, kv_heads=2, length=9, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(2, length, h, 8)), dtype) for h in (heads, kv_heads, kv_heads)]


@settings(max_examples=12)
@given(st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.sampled_from([None, 3]), st.integers(0, 2**16))
def test_float32_is_the_formula(heads, window, seed):
    query, key, value = draw(seed, *heads)
    visible = slots([[1] * 9, [1, 1, 1, 2, 2, 2, 2, 0, 0]]).visible(window)
    got = attention(query, key, value, visible)
    np.testing.assert_allclose(got, reference(query, key, value, visible), atol=2e-6)


def test_large_scores_stay_finite_and_sharp():
    query, key, value = draw(0)
    visible = slots([[1] * 9] * 2).visible(None)
    got = attention(query * 1e4, key, value, visible)
    assert np.isfinite(np.asarray(got)).all()
    np.testing.assert_allclose(got, reference(query * 1e4, key, value, visible), atol=2e-3)


def test_bfloat16_sums_in_float32():
    query, key, value = draw(1, length=9, dtype=jnp.bfloat16)
    visible = slots([[1] * 9] * 2).visible(None)
    got = attention(query, key, value, visible)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), reference(query, key, value, visible), atol=0.02)
