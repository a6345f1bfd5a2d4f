"""Blocks of rows: every row lies in the blocks of its own group, and in no other's part of a block."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.models.blocks import block_size, cut


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.sampled_from([1, 4, 16]), st.integers(0, 20))
def test_every_row_is_in_one_block_of_its_group(sizes, block, others):
    rows = sum(sizes) + others
    if rows == 0:
        return
    found = np.full(rows, -1)
    blocks = cut(jnp.asarray(sizes), rows, block)
    for group, start, end in zip(*map(np.asarray, blocks), strict=True):
        if start < rows:
            own = found[start : min(start + block, end)]
            assert (own == -1).all()
            own[:] = group
    groups = np.repeat(np.arange(len(sizes)), sizes)
    np.testing.assert_array_equal(found, [*groups, *[-1] * others])


def test_a_block_is_a_quarter_of_a_group_within_bounds():
    assert [block_size(rows, 8) for rows in (8, 1024, 4096, 10**6)] == [16, 32, 128, 256]
