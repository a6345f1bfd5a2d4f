"""What XLA's CPU back end has to be told, and nothing else does: elsewhere each function here is the plain one.

It has bfloat16 products that are as fast as the processor's, but hardly any other bfloat16 operation: slices, updates
and concatenations are done in float32. Around a scan over layers that turns into float32 copies of whole stacks of
parameters and of saved activations, which double the memory and cost more time than the attention. So what is only
moved is moved as its 16 bits. And it multiplies with a transposed left side in float32, one kernel for all shapes: the
matrix is laid out transposed first, which takes a tenth of the time that the product loses (576 x 2048 x 1536: 25 ms,
with a transposed copy 10 ms).
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxlean.platform import platform


def on_cpu() -> bool:
    """Whether what is traced now is meant for a CPU."""
    return platform() == "cpu"


def to_bits(x: jax.Array) -> jax.Array:
    """bfloat16 -> the uint16 of the same bits, on CPU; anything else as it is."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 and on_cpu() else x


def from_bits(x: jax.Array) -> jax.Array:
    """The inverse of `to_bits`; no parameter of a model is uint16 by itself."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def frozen_bits(x: jax.Array) -> jax.Array:
    """`to_bits` of a parameter, which has no gradient from there on: who takes it is told so, and not given zeros.

    Raises:
        TypeError: when the gradient of bfloat16 is taken on CPU.
    """
    return _frozen_bits(x) if x.dtype == jnp.bfloat16 and on_cpu() else x


@jax.custom_jvp
def _frozen_bits(x: jax.Array) -> jax.Array:
    return to_bits(x)


@_frozen_bits.defjvp
def _no_gradient(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    raise TypeError("a layer's parameter in bfloat16 has no gradient on CPU: hold what trains in float32")


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def keep(x: jax.Array, name: str) -> jax.Array:
    """Name an activation, so that a remat policy can keep it (`jax.ad_checkpoint.checkpoint_name`)."""
    return named(x, name)


@keep.defjvp
def _keep_jvp(name: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The name must be seen here, not inside another call of `keep`: a policy does not look into calls.
    return named(primals[0], name), tangents[0]


def named(x: jax.Array, name: str) -> jax.Array:
    """`keep` for the inside of a custom_vjp rule, which is never differentiated itself."""
    return from_bits(checkpoint_name(to_bits(x), name))


def transpose(x: jax.Array) -> jax.Array:
    """The last two dims swapped; on CPU laid out so in memory, as the left side of a product."""
    *stack, rows, columns = x.shape
    if not on_cpu() or rows % 2:
        return x.swapaxes(-1, -2)
    # In three dims, since a plain transposition would be folded into the product that it is meant to spare.
    at = len(stack)
    split = to_bits(x).reshape(*stack, 2, rows // 2, columns)
    turned = split.transpose(*range(at), at + 2, at, at + 1)
    return from_bits(turned.reshape(*stack, columns, rows))


# Rows below which a product takes a path that is many times slower. In bfloat16 with a large matrix: 1 x 576 x 49152
# takes 132 ms, 16 x 576 x 49152 17 ms. In int8 with any: a few rows are widened to int32 first, 1 x 2048 x 8192 takes
# 10.8 ms, 4 x 2048 x 8192 3.5; 1 x 384 x 1024 takes 0.18 and 0.08.
_FEW_ROWS = {jnp.dtype(jnp.bfloat16): 16, jnp.dtype(jnp.int8): 4}
_LARGE = {jnp.dtype(jnp.bfloat16): 2**20, jnp.dtype(jnp.int8): 0}


def enough_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in], as [rows, in] with rows of zeros added where a product with that kernel is faster so."""
    rows, dtype = math.prod(x.shape[:-1]), jnp.dtype(x.dtype)
    if not on_cpu() or dtype not in _FEW_ROWS or kernel.size < _LARGE[dtype]:
        return x
    if not isinstance(rows, int) or rows >= _FEW_ROWS[dtype]:  # of an exported program their number may be any
        return x
    return from_bits(jnp.pad(to_bits(x).reshape(rows, -1), ((0, _FEW_ROWS[dtype] - rows), (0, 0))))


def own_rows(y: jax.Array, x: jax.Array) -> jax.Array:
    """The rows of a product [.., out] that are those of x [..., in]: the inverse of `enough_rows`."""
    if y.shape[:-1] == x.shape[:-1]:
        return y
    return y[: math.prod(x.shape[:-1])].reshape(*x.shape[:-1], -1)


def heads_first(x: jax.Array) -> jax.Array:
    """[batch, length, heads, dim] -> [batch, heads, length, dim]; on CPU laid out so in memory.

    A plain transposition would be folded into the products with it, which are then done in float32.
    """
    batch, length, heads, dim = x.shape
    if not on_cpu() or length % 2:
        return x.swapaxes(1, 2)
    split = to_bits(x).reshape(batch, 2, length // 2, heads, dim).transpose(0, 3, 1, 2, 4)
    return from_bits(split.reshape(batch, heads, length, dim))


def concatenate(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """`jnp.concatenate`; a single part is not copied."""
    if len(parts) == 1:
        return parts[0]
    return from_bits(jnp.concatenate([to_bits(part) for part in parts], axis))


# Memory of the host that begins at a multiple of this is what jax's CPU devices read without a copy.
_ALIGNED = 64


def hold(params: dict[str, Any]) -> dict[str, Any]:
    """A decoder's frozen parameters as a step should be handed them: on CPU its bfloat16 stacks as their bits.

    The scan over layers wants them so, and a conversion inside of the step would copy them in every step. Where the
    host counts as several devices, copies become one memory that all of them read.
    """
    if not on_cpu():
        return params
    return {name: jax.tree.map(_bits_once if name == "layers" else _once, x) for name, x in params.items()}


def _bits_once(x: Any) -> Any:
    return _once(x, np.uint16 if x.dtype == jnp.bfloat16 else None)


def _once(x: Any, dtype: Any = None) -> Any:
    """The same numbers (or their bits) without the copies of other devices."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x if dtype is None else jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)
    if isinstance(x, jax.core.Tracer) or len(x.sharding.device_set) == 1 or not x.is_fully_replicated:
        return x if dtype is None else x.view(dtype)
    bits = np.asarray(x).reshape(-1).view(np.uint8)
    room = np.empty(bits.size + _ALIGNED, np.uint8)
    start = -room.ctypes.data % _ALIGNED
    host = room[start : start + bits.size]
    host[:] = bits
    host = host.view(x.dtype if dtype is None else dtype).reshape(x.shape)
    if x.is_fully_addressable:
        return jax.device_put(host, x.sharding)
    # of the devices of several processes; `device_put` would compare what each of them has
    return jax.make_array_from_callback(x.shape, x.sharding, lambda index: host[index])


def release(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `hold`."""
    return jax.tree.map(lambda x: x.view(jnp.bfloat16) if x.dtype == jnp.uint16 else x, params)
