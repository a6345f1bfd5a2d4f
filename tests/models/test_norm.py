"""RMSNorm against numpy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models.norm import RMSNorm

DIM = 24


def reference(x, scale, eps):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * np.asarray(scale, np.float64)


@pytest.fixture
def norm():
    norm = RMSNorm(DIM, eps=1e-2)
    norm.scale = nnx.Param(jnp.linspace(0.5, 2.0, DIM, dtype=jnp.float32))
    return norm


def test_float32_is_the_formula(norm):
    # the smallest rows are of the size of eps, where it shows
    x = (
        np.random.default_rng(0).normal(size=(3, 5, DIM)).astype(np.float32)
        * np.array([1e-2, 1.0, 1e3], np.float32)[:, None, None]
    )
    np.testing.assert_allclose(norm(jnp.asarray(x)), reference(x, norm.scale[...], 1e-2), rtol=2e-6)


def test_it_starts_as_the_identity_on_a_row_of_ones():
    np.testing.assert_allclose(RMSNorm(DIM, eps=1e-12)(jnp.ones((1, DIM), jnp.float32)), 1.0, rtol=1e-6)


def test_bfloat16_is_rounded_once_at_the_end(norm):
    # sums of squares taken in bfloat16 would be off by far more than one rounding
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, DIM)) * 100, jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), reference(x, norm.scale[...], 1e-2), rtol=2**-8)
