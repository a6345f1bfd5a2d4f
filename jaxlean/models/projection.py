"""Several linear layers over one input, with their adapters: query, key and value; gate and up.

What the layers share is done once. The adapters' first matrices stand side by side, so that their product is one, and
base and adapter are added in float32 before either is rounded. The backward pass is written out for the same reason:
jax's own would round and add each part by itself. A kernel in fewer bits is frozen, and decoded again instead of kept.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlean import codec
from jaxlean.models.cpu import concatenate, named, transpose
from jaxlean.models.layout import KernelPlace
from jaxlean.models.linear import Dropout, Linear

# An activation that a remat policy can keep: the adapters' inner products, which are small and cost a pass over x.
LORA_LOW = "lora_low"

_product = partial(jnp.dot, preferred_element_type=jnp.float32)
_product_nt = partial(jnp.einsum, "nk,mk->nm", preferred_element_type=jnp.float32)


def project(x: jax.Array, layers: Sequence[Linear], dropouts: Sequence[Dropout | None]) -> list[jax.Array]:
    """Each layer's output of `x`, as `layer(x, dropout)` gives it.

    Args:
        x: [..., in].
        layers: their inputs are all `x`.
        dropouts: of each layer's adapter.

    Returns:
        one [..., out] a layer, in the compute dtype.
    """
    if not all(_simple(layer) for layer in layers) or any(drop is not None for drop in dropouts):
        return [layer(x, drop) for layer, drop in zip(layers, dropouts, strict=True)]
    x = x.astype(layers[0].dtype)
    frozen = tuple(layer.held() for layer in layers)
    adapters = tuple((layer.lora_a[...], layer.lora_b[...], layer.lora_scale[...]) for layer in layers)  # type: ignore[index]
    places = tuple(layer.place for layer in layers)
    flat = _adapted(x.reshape(-1, x.shape[-1]), frozen, adapters, places)
    outputs = [y.reshape(*x.shape[:-1], -1) for y in flat]
    return [
        y if layer.bias is None else y + layer.bias[...].astype(y.dtype)
        for y, layer in zip(outputs, layers, strict=True)
    ]


def _simple(layer: Linear) -> bool:
    """A plain adapter over a kernel that is multiplied in the compute dtype, and nobody asks for its inputs."""
    return (
        layer.matmul == "default"
        and layer.observe is None
        and layer.lora_a is not None
        and layer.lora_b is not None
        and layer.lora_scale is not None
        and layer.lora_magnitude is None
    )


Adapter = tuple[jax.Array, jax.Array, jax.Array]  # lora_a [in, r], lora_b [r, out], lora_scale []


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _adapted(
    x: jax.Array, frozen: tuple[codec.Leaves, ...], adapters: tuple[Adapter, ...], places: tuple[KernelPlace, ...]
) -> tuple[jax.Array, ...]:
    """x [tokens, in] -> `x @ kernel + scale * (x @ a) @ b` for each."""
    return _forward(x, frozen, adapters, places)[0]


def _forward(
    x: jax.Array, frozen: tuple[codec.Leaves, ...], adapters: tuple[Adapter, ...], places: tuple[KernelPlace, ...]
) -> tuple[Any, Any]:
    low = named(_product(x, _first(adapters, x.dtype)).astype(x.dtype), LORA_LOW)
    outputs, at = [], 0
    for leaves, (_, b, _), place in zip(frozen, adapters, places, strict=True):
        own = low[:, at : at + b.shape[0]]
        y = _product(x, codec.decode(place.gathered(leaves), x.dtype)) + _product(own, b.astype(x.dtype))
        outputs.append(y.astype(x.dtype))
        at += b.shape[0]
    return tuple(outputs), (x, low, frozen, adapters)


def _backward(places: tuple[KernelPlace, ...], saved: Any, grads: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    x, low, frozen, adapters = saved
    turned, at = transpose(low), 0
    grad_x, grad_low, grad_b = jnp.zeros((), jnp.float32), [], []
    for leaves, (_, b, _), grad, place in zip(frozen, adapters, grads, places, strict=True):
        grad_x += _product_nt(grad, codec.decode(place.gathered(leaves), x.dtype))
        grad_low.append(_product_nt(grad, b.astype(x.dtype)).astype(x.dtype))
        grad_b.append(_product(turned[at : at + b.shape[0]], grad))
        at += b.shape[0]
    side_by_side = concatenate(grad_low, 1)
    grad_x += _product_nt(side_by_side, _first(adapters, x.dtype))
    # x^T grad would need x laid out anew; grad^T x needs it of its small parts only
    grad_first, at, out = transpose(_product(transpose(side_by_side), x)), 0, []
    for (a, b, scale), of_b in zip(adapters, grad_b, strict=True):
        of_scaled = grad_first[:, at : at + a.shape[1]]
        of_scale = jnp.vdot(of_scaled, a.astype(jnp.float32))
        out.append(((of_scaled * scale).astype(a.dtype), of_b.astype(b.dtype), of_scale.astype(scale.dtype)))
        at += a.shape[1]
    # where the kernels are frozen nobody asks for these, and they are not computed
    of_frozen = tuple(
        {"kernel": _product(transpose(x), grad).astype(leaves["kernel"].dtype)} if "kernel" in leaves else None
        for leaves, grad in zip(frozen, grads, strict=True)
    )
    return grad_x.astype(x.dtype), of_frozen, tuple(out)


def _first(adapters: tuple[Adapter, ...], dtype: Any) -> jax.Array:
    """The first matrices, scaled in float32, side by side: [in, sum of ranks]."""
    return concatenate([(a * scale).astype(dtype) for a, _, scale in adapters], 1)


_adapted.defvjp(_forward, _backward)
