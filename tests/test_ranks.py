"""The smallest numbers, against a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.ranks import kth_smallest, smallest

# ties, zeros and numbers of all sizes; what is smaller than a normal float32 counts as zero in XLA's arithmetic
VALUES = st.one_of(st.sampled_from([0.0, 1.0, 1.5]), st.floats(2**-126, 2.0**120, width=32))
_smallest, _kth = jax.jit(smallest), jax.jit(kth_smallest)


@given(st.lists(VALUES, min_size=24, max_size=24), st.integers(0, 12))
def test_as_a_stable_sort(values, k):
    sizes = np.asarray(values, np.float32).reshape(2, 12)
    want = np.zeros(sizes.shape, bool)
    np.put_along_axis(want, np.argsort(sizes, axis=1, kind="stable")[:, :k], True, axis=1)
    np.testing.assert_array_equal(_smallest(jnp.asarray(sizes), k), want)
    if k:
        np.testing.assert_array_equal(_kth(jnp.asarray(sizes), k), np.sort(sizes, axis=1)[:, k - 1])


def test_over_two_dims():
    sizes = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    got = kth_smallest(jnp.asarray(sizes), 7, dims=2)
    np.testing.assert_array_equal(got, np.sort(sizes.reshape(3, -1), axis=1)[:, 6])
