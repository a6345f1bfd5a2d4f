"""The one linear layer: a kernel, perhaps a bias, perhaps a low-rank adapter."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

# What may stand beside a kernel in the parameter tree.
LORA_LEAVES = frozenset({"lora_a", "lora_b", "lora_scale", "lora_magnitude"})


class Dropout(NamedTuple):
    """Dropout of an adapter's input: `rate` in [0, 1) and the PRNG key of this place in the model."""

    rate: float
    key: jax.Array

    def fold(self, place: int | jax.Array) -> "Dropout":
        """The dropout of a sub-place, with a key of its own."""
        return Dropout(self.rate, jax.random.fold_in(self.key, place))

    def __call__(self, x: jax.Array) -> jax.Array:
        keep = jax.random.bernoulli(self.key, 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))


@jax.custom_vjp
def dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`x @ kernel`, accumulated in float32 forward *and* backward, in the dtype of `x`.

    jax's own gradient of a bfloat16 product with float32 accumulation multiplies in float32, which is several
    times slower; this one stays in bfloat16 -> float32 -> cast.

    Args:
        x: [..., in].
        kernel: [in, out], same dtype.
    """
    return _product(x, kernel)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _dot_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `dot` itself: a remat policy that keeps matrix products cannot see into a custom_vjp, but it sees this one.
    return _product(x, kernel), (x, kernel)


def _dot_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    return (
        product("...o,io->...i", grad, kernel).astype(x.dtype),
        product("ni,no->io", x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])).astype(kernel.dtype),
    )


dot.defvjp(_dot_forward, _dot_backward)


class Linear(nnx.Module):
    """`x @ kernel + bias`, plus `lora_scale * (x @ lora_a) @ lora_b` where an adapter is attached.

    An adapter is attached by shape, not by flag: `attach_lora` gives the layer the leaves that stand in the
    parameter tree, so the tree alone says what is adapted. With `lora_magnitude` it is DoRA (arXiv 2402.09353).

    Shapes: kernel [in, out], bias [out], lora_a [in, r], lora_b [r, out], lora_scale [], lora_magnitude [out].
    """

    def __init__(self, dim_in: int, dim_out: int, *, bias: bool, std: float = 0.02, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(normal(rngs, (dim_in, dim_out), std))
        self.bias = nnx.Param(jnp.zeros((dim_out,), jnp.float32)) if bias else None
        # nnx.data: a place for a parameter, also while nothing stands there
        self.lora_a: nnx.Param | None = nnx.data(None)
        self.lora_b: nnx.Param | None = nnx.data(None)
        self.lora_scale: nnx.Param | None = nnx.data(None)
        self.lora_magnitude: nnx.Param | None = nnx.data(None)
        self.dtype = dtype

    def attach_lora(self, leaves: Mapping[str, Any]) -> None:
        """Declare the adapter leaves among `leaves` (anything with a shape and dtype), by their names."""
        for name in LORA_LEAVES & leaves.keys():
            setattr(self, name, nnx.Param(jax.ShapeDtypeStruct(leaves[name].shape, leaves[name].dtype)))

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """[..., in] -> [..., out] in the compute dtype."""
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        y = dot(x, kernel)
        if self.lora_a is not None and self.lora_b is not None and self.lora_scale is not None:
            a, b, scale = self.lora_a[...], self.lora_b[...], self.lora_scale[...]
            low = dot(dropout(x) if dropout is not None else x, a.astype(self.dtype))
            # scaled in float32: what is written out is the exact scale, not one rounded to the compute dtype
            y = y + dot((low.astype(jnp.float32) * scale).astype(self.dtype), b.astype(self.dtype))
            if self.lora_magnitude is not None:
                # The norm is a constant of the gradient, as the DoRA paper proposes (section 4.3): it saves memory.
                delta = scale * (a.astype(jnp.float32) @ b.astype(jnp.float32))
                norm = jnp.linalg.norm(self.kernel[...].astype(jnp.float32) + delta, axis=0)
                ratio = self.lora_magnitude[...] / jax.lax.stop_gradient(norm)
                y = (y.astype(jnp.float32) * ratio).astype(self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> jax.Array:
    """Initial values of a matrix, float32."""
    return std * jax.random.normal(rngs.params(), shape, jnp.float32)
