"""Rows that lie sorted by their group, cut into blocks of one group each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Rows of a block: at least what fills a matrix unit, at most what is enough for a kernel to be read once.
_SMALLEST, _LARGEST = 16, 256


class Blocks(NamedTuple):
    """Which rows each block has; of those that no group needs, the ones behind all others."""

    group: jax.Array  # int32 [blocks]
    start: jax.Array  # int32 [blocks]
    end: jax.Array  # int32 [blocks], of the group's rows


def block_size(rows: int, groups: int) -> int:
    """A quarter of a group's rows, so that the half empty last block of each costs an eighth more."""
    size = _SMALLEST
    while size < _LARGEST and size * 4 * groups < rows:
        size *= 2
    return size


def cut(sizes: jax.Array, rows: int, block: int) -> Blocks:
    """The blocks of groups with so many rows each, of `rows` in all."""
    groups = sizes.shape[0]
    filled = min(groups, rows)
    num = (rows - filled) // block + filled  # the most that sizes can need
    sizes = sizes.astype(jnp.int32)
    each = -(-sizes // block)
    last, stop = jnp.cumsum(each), jnp.cumsum(sizes)
    number = jnp.arange(num, dtype=jnp.int32)
    group = jnp.searchsorted(last, number, side="right", method="compare_all").astype(jnp.int32)
    own = jnp.minimum(group, groups - 1)
    start = (stop - sizes)[own] + (number - (last - each)[own]) * block
    return Blocks(own, jnp.where(group < groups, start, rows), jnp.where(group < groups, stop[own], 0))
