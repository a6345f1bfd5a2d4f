"""Root-mean-square normalisation (arXiv 1910.07467)."""

import jax
import jax.numpy as jnp
from flax import nnx


class RMSNorm(nnx.Module):
    """`x / rms(x) * scale` over the last dim, computed in float32 whatever the dtype of `x`."""

    def __init__(self, dim: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] -> [..., dim], dtype kept."""
        wide = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * rms * self.scale[...].astype(jnp.float32)).astype(x.dtype)
