"""What a step's memory is taken by: what is held all along, and what comes and goes between."""

import math
from typing import Any

import jax

from jaxlean import tree
from jaxlean.run.job import State
from jaxlean.run.summary import MemoryByCategory


def by_category(predicted: int, state: State, frozen: tree.Tree, batch: Any) -> MemoryByCategory:
    """A compiled step's memory, by what takes it. The sum is `predicted`, but where the step leaves arguments unread.

    Args:
        predicted: bytes of the step on one device (`xla.remat_auto.needed_bytes`, and what is known beyond it).
        state, frozen, batch: its arguments, as arrays or shapes with shardings.
    """
    held, trained = local_bytes(state), local_bytes(state.trainable)
    whole, rows = local_bytes(frozen), local_bytes(batch)
    between = max(predicted - whole - held - rows, 0)
    return MemoryByCategory(frozen=whole, trained=trained, optimizer=held - trained, batch=rows, temporaries=between)


def local_bytes(part: Any) -> int:
    """Of arrays, or of shapes with shardings, on one device."""
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(part))
