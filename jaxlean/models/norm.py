"""Normalisation over the last dim, computed in float32 whatever the dtype of the input."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """`x / rms(x) * (offset + scale)` (arXiv 1910.07467).

    Args:
        dim: of the input; several: its last dims, each of the last one normalised by itself.
        eps: added to the mean of the squares.
        offset: what the stored scale is a difference from; Gemma's is 1.
    """

    def __init__(self, dim: int | Sequence[int], *, eps: float, offset: float = 0.0):
        shape = (dim,) if isinstance(dim, int) else tuple(dim)
        self.scale = nnx.Param(jnp.full(shape, 1.0 - offset, jnp.float32))
        self.eps = eps
        self.offset = offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim], dtype kept."""
        wide = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32)
        return (wide * rms * (scale if self.offset == 0 else scale + self.offset)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`(x - mean(x)) / std(x) * scale + bias` (arXiv 1607.06450).

    Args:
        dim: as of `RMSNorm`.
        eps: added to the variance.
        bias: whether there is one.
    """

    def __init__(self, dim: int | Sequence[int], *, eps: float, bias: bool = True):
        shape = (dim,) if isinstance(dim, int) else tuple(dim)
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32)) if bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim], dtype kept."""
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        std = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        y = wide * std * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y += self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)
