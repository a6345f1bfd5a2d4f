"""Products with a kernel in whatever form it is held (`jaxlean.codec`), in the compute dtype, in int8 or in float8.

`dot` dequantizes for the product and again for its gradient: what is kept for the backward pass is the kernel as it is
held, never a wide copy of it. A quantized kernel is frozen and has no gradient.

How the numbers are multiplied (`model.matmul`):

    default  x and the kernel in the compute dtype, added up in float32. An int8 kernel goes into the product as its
             whole numbers, which bfloat16 holds exactly, and the columns' scales follow in float32. (Of experts on
             TPUs all kernels of a layer are decoded first: `models/ragged.py`.)
    int8     x is scaled by each token's absmax to int8 as well, and int8 x int8 is added up in int32
             (LLM.int8(), arXiv 2208.07339, without its outliers). The gradient that goes back to x likewise.
    fp8      the same with float8_e4m3fn forward and float8_e5m2 for the gradient (arXiv 2209.05433), added up in
             float32.

    w8a8     int8, as a model in compressed-tensors is multiplied elsewhere: a token's absmax is 127.5 steps, which are
             rounded to 127; the gradient is taken in the compute dtype.
    stored   of a whole model: w8a8 where the kernel is held in int8 with a scale a column, default elsewhere.
    aware    of layers with an adapter over a kernel in whole numbers: base and adapter are added and rounded to the
             base's own numbers in every forward pass, so that what is trained is what will be merged. The gradient goes
             straight through the rounding (arXiv 1308.3432). aware_w8a8: and inputs are rounded as of w8a8.
    sparse   of layers with an adapter over a kernel with zeros: it adds nothing where these are, so that merging keeps
             them (SparsePEFT, arXiv 2410.03750).

The gradient of the input is a product over the kernel's columns, each of which may have a scale of its own; these are
multiplied into the gradient before it is rounded. With int8 and fp8 a kernel that is held wide is rounded on the fly,
and the gradient *of* such a kernel, where it trains, is taken in the compute dtype (SwitchBack, arXiv 2304.13013).
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlean import codec
from jaxlean.codec import Leaves, Narrow
from jaxlean.models.cpu import enough_rows, own_rows
from jaxlean.models.layout import NOWHERE, KernelPlace

Matmul = Literal["default", "int8", "fp8", "w8a8", "aware", "aware_w8a8", "sparse"]  # of one layer
Matmuls = Literal["default", "int8", "fp8", "stored", "aware", "aware_w8a8", "sparse"]  # of a model's layers
# What the kernel and x are rounded to, and what the gradient is.
_NARROW: dict[str, tuple[Any, Any]] = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dot(x: jax.Array, leaves: Leaves, matmul: Matmul = "default", place: KernelPlace = NOWHERE) -> jax.Array:
    """`x @ kernel` in the dtype of `x`, added up in float32 or int32.

    Args:
        x: [..., in], in the compute dtype.
        leaves: a kernel [in, out] in one of `codec.LEAVES`' forms.
        matmul: how it is multiplied.
        place: where the kernel lies on a mesh.

    Returns:
        [..., out].
    """
    values, scale = _kernel(place.gathered(leaves), matmul, x.dtype)
    if matmul == "default":
        return _scaled(_rows_of_product(x, values), scale).astype(x.dtype)
    tokens = round_tokens(x) if matmul == "w8a8" else codec.narrow(x, _NARROW[matmul][0], axis=-1)
    return _scaled(_rows_of_product(tokens.values, values), tokens.scale[..., None], scale).astype(x.dtype)


def _forward(x: jax.Array, leaves: Leaves, matmul: Matmul, place: KernelPlace) -> tuple[jax.Array, Any]:
    # x itself is only needed where the kernel may train
    return dot(x, leaves, matmul, place), (x if "kernel" in leaves else None, leaves)


def _backward(
    matmul: Matmul, place: KernelPlace, saved: tuple[jax.Array | None, Leaves], grad: jax.Array
) -> tuple[jax.Array, Any]:
    x, leaves = saved
    wide = matmul in ("default", "w8a8")
    values, scale = _kernel(place.gathered(leaves), "default" if wide else matmul, grad.dtype)
    folded = _scaled(grad.astype(jnp.float32), scale)
    if wide:
        back = _product(folded.astype(grad.dtype), values, -1, 1)
    else:
        tokens = codec.narrow(folded, _NARROW[matmul][1], axis=-1)
        back = _scaled(_product(tokens.values, values, -1, 1), tokens.scale[..., None])
    if x is None:
        return back.astype(grad.dtype), None
    flat, flat_grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    of_kernel = _product(flat, flat_grad, 0, 0).astype(leaves["kernel"].dtype)
    return back.astype(grad.dtype), {"kernel": of_kernel}


dot.defvjp(_forward, _backward)


def _kernel(leaves: Leaves, matmul: Matmul, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """([in, out] as it goes into the product, scale [out] of what comes out, if it has one)."""
    if matmul == "default":
        if "kernel_int8" in leaves:
            return leaves["kernel_int8"].astype(dtype), leaves["kernel_scale"]
        return codec.decode(leaves, dtype), None
    if matmul in ("int8", "w8a8") and "kernel_int8" in leaves:
        return Narrow(leaves["kernel_int8"], leaves["kernel_scale"])
    return codec.narrow(codec.decode(leaves, jnp.float32), _NARROW[matmul][0], axis=0)


def folded(leaves: Leaves, delta: jax.Array) -> jax.Array:
    """float32 [in, out]: a kernel with `delta` added, rounded as by `codec.moved`; its gradient is that of `delta`."""
    values, scales, bits = codec.grid(leaves)
    steps = values.astype(jnp.float32) + delta.astype(jnp.float32) / jnp.where(scales == 0, 1.0, scales)
    return (steps + jax.lax.stop_gradient(codec.on_grid(steps, bits) - steps)) * scales


def rounded(x: jax.Array) -> jax.Array:
    """What `round_tokens` leaves of x, in its dtype; its gradient is that of x."""
    values, scale = round_tokens(x)
    wide = x.astype(jnp.float32)
    return (wide + jax.lax.stop_gradient(values.astype(jnp.float32) * scale[..., None] - wide)).astype(x.dtype)


def round_tokens(x: jax.Array) -> Narrow:
    """[..., in] -> int8, and float32 [...], of which a token's absmax is 127.5.

    So a token's absmax lies between two numbers, and where it is negative its last bit decides whether it becomes -127
    or -128. To decide as others do takes divisions, which XLA makes products of wherever one side is spread over the
    other: so it is done once a token, in arrays of one shape.
    """
    wide = x.astype(jnp.float32)
    absmax = jnp.abs(wide).max(axis=-1)
    scale = absmax / jax.lax.optimization_barrier(jnp.full_like(absmax, 127.5))
    divisor = jnp.where(scale == 0, 1.0, scale)
    lowest = jnp.where(absmax / divisor >= 127.5, -128.0, -127.0)[..., None]
    values = jnp.clip(jnp.round(wide / divisor[..., None]), -128.0, 127.0)
    return Narrow(jnp.where((wide < 0) & (wide == -absmax[..., None]), lowest, values).astype(jnp.int8), scale)


def _rows_of_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return own_rows(_product(enough_rows(x, kernel), kernel, -1, 0), x)


def _product(one: jax.Array, two: jax.Array, axis: int, other: int) -> jax.Array:
    """Sum over `axis` of one and `other` of two, in int32 for whole numbers and float32 for all else."""
    wide = jnp.int32 if jnp.issubdtype(one.dtype, jnp.integer) else jnp.float32
    dims = (((axis % one.ndim,), (other,)), ((), ()))
    return jax.lax.dot_general(one, two, dims, preferred_element_type=wide).astype(jnp.float32)


def _scaled(x: jax.Array, *scales: jax.Array | None) -> jax.Array:
    for scale in scales:
        x = x if scale is None else x * scale
    return x
