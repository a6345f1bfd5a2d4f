"""Means of segments, against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.models.pooling import first_tokens, segment_mean

LENGTH = 9


def draw(seed=0, batch=2, hidden=3):
    return np.random.default_rng(seed).normal(size=(batch, LENGTH, hidden))


def by_hand(x, segments):
    out = np.zeros_like(x)
    for row, numbers in enumerate(segments):
        starts = [i for i in range(LENGTH) if i == 0 or numbers[i] != numbers[i - 1]]
        for start, stop in zip(starts, [*starts[1:], LENGTH], strict=True):
            out[row, start] = x[row, start:stop].mean(0)
    return out


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=9), min_size=2, max_size=2))
def test_the_mean_of_each_segment_stands_at_its_first_token(lengths):
    rows = [[i + 1 for i, n in enumerate(own) for _ in range(n)][:LENGTH] for own in lengths]
    segments = np.asarray([row + [0] * (LENGTH - len(row)) for row in rows], np.int32)
    x = draw()
    got = segment_mean(jnp.asarray(x, jnp.float32), jnp.asarray(segments))
    np.testing.assert_allclose(got, by_hand(x, segments), atol=1e-6)
    first = first_tokens(jnp.asarray(segments))
    for row, numbers in enumerate(segments):
        for i, number in enumerate(numbers):
            start = i
            while start and numbers[start - 1] == number:
                start -= 1
            assert int(first[row, i]) == start


@pytest.mark.parametrize("segments", [[[1] * 9] * 2, [[1, 1, 2, 2, 2, 3, 0, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2, 0]]])
def test_its_gradient_is_that_of_the_sums_written_out(segments):
    segments = jnp.asarray(segments, jnp.int32)
    x = jnp.asarray(draw(), jnp.float32)
    begins = (first_tokens(segments) == jnp.arange(LENGTH))[..., None]

    def plain(x):
        same = (segments[:, :, None] == segments[:, None, :]).astype(jnp.float32)
        mean = jnp.einsum("bts,bsh->bth", same, x) / same.sum(-1, keepdims=True)
        return jnp.sum(jnp.sin(jnp.where(begins, mean, 0.0) * 3))

    got = jax.grad(lambda x: jnp.sum(jnp.sin(segment_mean(x, segments) * 3)))(x)
    np.testing.assert_allclose(got, jax.grad(plain)(x), atol=1e-6)


def test_nothing_of_the_size_of_length_squared_is_made(equations):
    x, segments = jnp.zeros((1, 64, 2)), jnp.ones((1, 64), jnp.int32)
    run = jax.grad(lambda x: segment_mean(x, segments).sum())
    assert max(v.aval.size for e in equations(run, x) for v in e.outvars) <= 2 * x.size


def test_bfloat16_is_added_up_in_float32():
    x = jnp.full((1, LENGTH, 1), 1.0 + 1 / 128, jnp.bfloat16)
    got = segment_mean(x, jnp.ones((1, LENGTH), jnp.int32))
    assert got.dtype == jnp.float32
    assert float(got[0, 0, 0]) == 1.0 + 1 / 128
    assert jax.grad(lambda x: segment_mean(x, jnp.ones((1, LENGTH), jnp.int32)).sum())(x).dtype == jnp.bfloat16
