"""Blocks of rows: every row lies in the blocks of its own group, and in no other's part of a block."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxlean.models.blocks import block_size, cut


# Few shapes, since each is compiled anew, and many sizes within them: empty groups, one of all rows, rows of no group.
@given(st.data(), st.sampled_from([7, 240]), st.sampled_from([1, 9]), st.sampled_from([1, 4, 16]))
def test_every_row_is_in_one_block_of_its_group(data, rows, num_groups, block):
    ends = data.draw(st.lists(st.integers(0, rows), min_size=num_groups, max_size=num_groups).map(sorted))
    sizes = np.diff(ends, prepend=0)
    others = rows - ends[-1]
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
