"""Rows in groups by XLA's own product, `jax.lax.ragged_dot`: on TPUs one kernel, which reads each group's kernel once.

On CPU and GPU XLA multiplies every row with every kernel (jaxlib 0.10), and on TPU too in the gradient of the kernels.
Those are added up in blocks (`models/grouped.py`); here an adapter's, which is narrow, all blocks at once.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxlean import codec
from jaxlean.models.blocks import cut

Leaves = Mapping[str, jax.Array]


def forward(x: jax.Array, leaves: Leaves, sizes: jax.Array, *, rest: bool = False) -> jax.Array:
    """Each row through the linear layer of its group, as `models.grouped.grouped_linear`.

    A kernel in fewer bits is decoded whole, for the moment.
    """
    y = _times(x, _kernel(leaves, x), sizes, rest)
    group = _group_of_rows(sizes, x.shape[0])
    if "lora_a" in leaves:
        low = _scaled(_times(x, leaves["lora_a"].astype(x.dtype), sizes, rest), leaves, group)
        y = y + _times(low, leaves["lora_b"].astype(x.dtype), sizes, rest)
    if "bias" in leaves:
        inside = jnp.arange(x.shape[0]) < sizes.sum()
        y = y + jnp.where(inside[:, None], leaves["bias"][group].astype(x.dtype), 0)
    return y


def backward(grad: jax.Array, leaves: Leaves, sizes: jax.Array, *, rest: bool = False) -> jax.Array:
    """The gradient of the rows: `grad` [rows, out] -> [rows, in]."""
    of_x = _times(grad, _turned(_kernel(leaves, grad)), sizes, rest)
    if "lora_a" in leaves:
        group = _group_of_rows(sizes, grad.shape[0])
        low = _scaled(_times(grad, _turned(leaves["lora_b"].astype(grad.dtype)), sizes, rest), leaves, group)
        of_x = of_x + _times(low, _turned(leaves["lora_a"].astype(grad.dtype)), sizes, rest)
    return of_x


def of_adapter(
    x: jax.Array, grad: jax.Array, leaves: Leaves, sizes: jax.Array, *, block: int, rest: bool = False
) -> dict[str, jax.Array]:
    """The gradients of `lora_a`, `lora_b` and `lora_scale`, float32; summed up in blocks of so many rows."""
    group = _group_of_rows(sizes, x.shape[0])
    low = _times(x, leaves["lora_a"].astype(x.dtype), sizes, rest)
    of_low = _times(grad, _turned(leaves["lora_b"].astype(x.dtype)), sizes, rest)
    by_row = (low.astype(jnp.float32) * of_low.astype(jnp.float32)).sum(axis=-1)
    return {
        "lora_a": _outer(x, _scaled(of_low, leaves, group), sizes, block),
        "lora_b": _outer(_scaled(low, leaves, group), grad, sizes, block),
        "lora_scale": jax.ops.segment_sum(by_row, group, sizes.shape[0], indices_are_sorted=True),
    }


def _outer(x: jax.Array, y: jax.Array, sizes: jax.Array, block: int) -> jax.Array:
    """[rows, in], [rows, out] -> float32 [groups, in, out], each the sum over its group's rows.

    All blocks at once, each with a sum of its own: for an adapter, which is narrow.
    """
    blocks = cut(sizes, x.shape[0], block)
    number = blocks.start[:, None] + jnp.arange(block)
    inside = (number < blocks.end[:, None])[..., None]
    x, y = (z.at[number].get(mode="clip") for z in (x, y))
    sums = jnp.einsum("nbi,nbo->nio", x, jnp.where(inside, y, 0), preferred_element_type=jnp.float32)
    return jax.ops.segment_sum(sums, blocks.group, sizes.shape[0], indices_are_sorted=True)


def _times(x: jax.Array, kernels: jax.Array, sizes: jax.Array, rest: bool) -> jax.Array:
    """[rows, in] x [groups, in, out], added up in float32, in the dtype of `x`; zero in rows of no group."""
    # of 16 bits there is but one precision, and TPUs refuse to be asked for another
    precision = jax.lax.Precision.DEFAULT if x.dtype.itemsize == 2 else None
    wide = jax.lax.ragged_dot(
        x, kernels, sizes.astype(jnp.int32), precision=precision, preferred_element_type=jnp.float32
    )
    if rest:  # where the kernel writes nothing, or anything
        wide = jnp.where(jnp.arange(x.shape[0])[:, None] < sizes.sum(), wide, 0)
    return wide.astype(x.dtype)


def _kernel(leaves: Leaves, like: jax.Array) -> jax.Array:
    (held,) = codec.kernels({f"_.{name}": leaf for name, leaf in leaves.items()}).values()
    return codec.decode(held, like.dtype)


def _turned(kernels: jax.Array) -> jax.Array:
    return kernels.swapaxes(-1, -2)


def _scaled(low: jax.Array, leaves: Leaves, group: jax.Array) -> jax.Array:
    return (low.astype(jnp.float32) * leaves["lora_scale"][group][:, None]).astype(low.dtype)


def _group_of_rows(sizes: jax.Array, rows: int) -> jax.Array:
    """int32 [rows]; of rows of no group the last."""
    return jnp.repeat(jnp.arange(sizes.shape[0]), sizes, total_repeat_length=rows)
