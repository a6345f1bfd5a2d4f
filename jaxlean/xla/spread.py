"""Arrays that are spread over the devices of several processes: put there from each host, brought back to one.

For a process alone each function is the plain one.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

# What is brought back lies whole on every device for a moment: this much of it at a time.
_BYTES_AT_ONCE = 256 * 2**20


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """`jax.device_put` of what every process has alike: each puts what its own devices hold, and nothing is exchanged.

    Args:
        x: an array of the host or of a device of this process; or one that is spread already.
    """
    if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def gather(x: Any, *, keep: bool = True, at_once: int = _BYTES_AT_ONCE) -> np.ndarray | None:
    """The whole of an array in host memory, as a copy. All processes must call it, in the same order.

    What is not on each process already goes over the devices in slices, so that none of them must have room for it.

    Args:
        x: an array or number.
        keep: False: this process takes part and wants nothing.
        at_once: bytes of a slice.

    Returns:
        the array; None without `keep`.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return _copy(x) if keep else None
    if not isinstance(x.sharding, NamedSharding):
        everywhere = fetch(x)
        return everywhere if keep else None
    spec = (*x.sharding.spec, *[None] * x.ndim)[: x.ndim]
    dim = next((dim for dim, axis in enumerate(spec) if axis is None), None)
    size = x.shape[dim] if dim is not None else 1
    rows = max(int(at_once // max(x.nbytes // max(size, 1), 1)), 1) if dim is not None else 1
    whole = np.empty(x.shape, x.dtype) if keep else None
    on_all = NamedSharding(x.sharding.mesh, PartitionSpec())
    for start in range(0, size, rows):
        count = min(rows, size - start)
        piece = _slice(x, np.int32(start), dim, count, on_all)
        if whole is not None:
            index = [slice(None)] * x.ndim
            if dim is not None:
                index[dim] = slice(start, start + count)
            whole[tuple(index)] = np.asarray(piece)
        # one at a time on the devices
        jax.block_until_ready(piece)
    return whole


def fetch(x: jax.Array) -> np.ndarray:
    """A small array in the memory of every host. All processes must call it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _slice(x: jax.Array, start: Any, dim: int | None, count: int, where: NamedSharding) -> jax.Array:
    piece = x if dim is None else jax.lax.dynamic_slice_in_dim(x, start, count, dim)
    return jax.lax.with_sharding_constraint(piece, where)


def _copy(x: Any) -> np.ndarray:
    array = np.asarray(x)
    # On CPU that is a view of jax's buffer, which the next step may be given to overwrite; from a GPU or from several
    # devices it is a copy already.
    return array if isinstance(x, jax.Array) and array.flags.owndata else array.copy()
