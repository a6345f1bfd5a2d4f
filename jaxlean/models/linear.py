"""The one linear layer: a kernel in one of several forms, perhaps a bias, perhaps a low-rank adapter."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlean import codec
from jaxlean.errors import ModelError
from jaxlean.models import quantized
from jaxlean.models.cpu import enough_rows, own_rows, transpose
from jaxlean.models.layout import NOWHERE, KernelPlace
from jaxlean.models.quantized import Matmul

# What may stand beside a kernel in the parameter tree.
LORA_LEAVES = frozenset({"lora_a", "lora_b", "lora_scale", "lora_magnitude"})


class Dropout(NamedTuple):
    """Dropout of an adapter's input: `rate` in [0, 1) and the PRNG key of this place in the model."""

    rate: float | jax.Array
    key: jax.Array

    @classmethod
    def of(cls, rate: float | jax.Array, key: jax.Array) -> "Dropout | None":
        """None where nothing is dropped. A rate that is an argument of the program may be any."""
        return None if isinstance(rate, int | float) and rate == 0 else cls(rate, key)

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
    y = jnp.dot(enough_rows(x, kernel), kernel, preferred_element_type=jnp.float32)
    return own_rows(y, x).astype(x.dtype)


def _dot_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `dot` itself: a remat policy that keeps matrix products cannot see into a custom_vjp, but it sees this one.
    return _product(x, kernel), (x, kernel)


def _dot_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    flat = grad.reshape(-1, grad.shape[-1])
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    return (
        product("...o,io->...i", grad, kernel).astype(x.dtype),
        product("in,no->io", transpose(x.reshape(-1, x.shape[-1])), flat).astype(kernel.dtype),
    )


dot.defvjp(_dot_forward, _dot_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dot_wide(x: jax.Array, kernel: jax.Array, transposed: bool = False) -> jax.Array:
    """`x @ kernel` (or `x @ kernel.T`) in float32, as it was added up: for logits. Its gradient is that of `dot`.

    Args:
        x: [..., in].
        kernel: [in, out], or transposed [out, in], as an embedding is; same dtype.
    """
    how = "...i,oi->...o" if transposed else "...i,io->...o"
    return own_rows(jnp.einsum(how, enough_rows(x, kernel), kernel, preferred_element_type=jnp.float32), x)


def _dot_wide_forward(x: jax.Array, kernel: jax.Array, transposed: bool) -> tuple[jax.Array, Any]:
    return dot_wide(x, kernel, transposed), (x, kernel)


def _dot_wide_backward(
    transposed: bool, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    grad = grad.astype(x.dtype)
    if not transposed:
        return _dot_backward(saved, grad)
    flat, flat_grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    return (
        product("...o,oi->...i", grad, kernel).astype(x.dtype),
        product("on,ni->oi", transpose(flat_grad), flat).astype(kernel.dtype),
    )


dot_wide.defvjp(_dot_wide_forward, _dot_wide_backward)


def product(x: jax.Array, leaves: codec.Leaves, matmul: Matmul = "default", place: KernelPlace = NOWHERE) -> jax.Array:
    """`x @ kernel` with the kernel in whatever form it is held, in the dtype of `x`: the one place where layers do it.

    Args:
        x: [..., in].
        leaves: of a kernel [in, out], as `codec.LEAVES` names them.
        matmul: see `models.quantized`.
        place: where it lies on a mesh.
    """
    if matmul == "default" and "kernel" in leaves:
        return dot(x, leaves["kernel"].astype(x.dtype))
    return quantized.dot(x, leaves, matmul, place)


class Linear(nnx.Module):
    """`x @ kernel + bias`, plus `lora_scale * (x @ lora_a) @ lora_b` where an adapter is attached.

    An adapter is attached by shape, not by flag: `attach` gives the layer the leaves that stand in the parameter tree,
    so the tree alone says what is adapted, and in what form the kernel is held. With `lora_magnitude` it is DoRA
    (arXiv 2402.09353).

    Shapes: kernel [in, out], bias [out], lora_a [in, r], lora_b [r, out], lora_scale [], lora_magnitude [out]; those of
    a kernel in fewer bits are in `jaxlean.codec`. `matmul` says how the kernel is multiplied; an adapter is always
    multiplied in the compute dtype.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        bias: bool,
        std: float = 0.02,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        stack: tuple[int, ...] = (),
    ):
        self.kernel: nnx.Param | None = nnx.Param(normal(rngs, (*stack, dim_in, dim_out), std))
        self.bias = nnx.Param(jnp.zeros((*stack, dim_out), jnp.float32)) if bias else None
        # nnx.data: a place for a parameter, also while nothing stands there
        self.kernel_int8: nnx.Param | None = nnx.data(None)
        self.kernel_scale: nnx.Param | None = nnx.data(None)
        self.kernel_nf4: nnx.Param | None = nnx.data(None)
        self.kernel_absmax: nnx.Param | None = nnx.data(None)
        self.kernel_absmax_scale: nnx.Param | None = nnx.data(None)
        self.kernel_absmax_offset: nnx.Param | None = nnx.data(None)
        self.kernel_int4: nnx.Param | None = nnx.data(None)
        self.kernel_int8_grouped: nnx.Param | None = nnx.data(None)
        self.kernel_scales: nnx.Param | None = nnx.data(None)
        self.lora_a: nnx.Param | None = nnx.data(None)
        self.lora_b: nnx.Param | None = nnx.data(None)
        self.lora_scale: nnx.Param | None = nnx.data(None)
        self.lora_magnitude: nnx.Param | None = nnx.data(None)
        self.dtype = dtype
        self.matmul: Matmul = "default"
        self.place: KernelPlace = NOWHERE
        # told every input, where somebody wants to know them (`compress.walk`)
        self.observe: Callable[[jax.Array], None] | None = None

    def attach(self, leaves: Mapping[str, Any], *, where: str = "a linear layer") -> None:
        """Declare what stands in the tree: adapter leaves, and the kernel in the form that it has there.

        Args:
            leaves: by their names, anything with a shape and dtype.
            where: the layer's path, for the message.

        Raises:
            ModelError: a quantized kernel that is not of this layer's shape, or lacks one of its leaves.
        """
        assert self.kernel is not None, "a kernel is attached once"
        shape, declared = self.kernel.shape, set(LORA_LEAVES)
        for main, names in codec.LEAVES.items():
            if main == "kernel" or main not in leaves:
                continue
            wanted = codec.wanted(shape, leaves)
            for name in names:
                if name not in leaves or tuple(leaves[name].shape) != wanted[name].shape:
                    got = tuple(leaves[name].shape) if name in leaves else "nothing"
                    raise ModelError(
                        f"a quantized kernel that does not fit: {where}.{name}", got=got, wanted=wanted[name].shape
                    )
            self.kernel = nnx.data(None)
            declared.update(names)
        for name in declared & leaves.keys():
            setattr(self, name, nnx.Param(jax.ShapeDtypeStruct(leaves[name].shape, leaves[name].dtype)))

    def held(self) -> codec.Leaves:
        """The kernel's leaves, in the form that it has."""
        names = next(names for main, names in codec.LEAVES.items() if getattr(self, main) is not None)
        return {name: getattr(self, name)[...] for name in names}

    @property
    def bare(self) -> bool:
        """Whether nothing stands here but a kernel, and that in its plain form."""
        return self.kernel is not None and self.bias is None and self.lora_a is None

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """[..., in] -> [..., out] in the compute dtype."""
        x = x.astype(self.dtype)
        if self.observe is not None:
            self.observe(x)
        kernel = self.held()
        if self.matmul in ("aware", "aware_w8a8", "sparse"):
            return self._as_merged(x, kernel)
        y = product(x, kernel, self.matmul, self.place)
        if self.lora_a is not None and self.lora_b is not None and self.lora_scale is not None:
            a, b, scale = self.lora_a[...], self.lora_b[...], self.lora_scale[...]
            low = dot(dropout(x) if dropout is not None else x, a.astype(self.dtype))
            # scaled in float32: what is written out is the exact scale, not one rounded to the compute dtype
            y = y + dot((low.astype(jnp.float32) * scale).astype(self.dtype), b.astype(self.dtype))
            if self.lora_magnitude is not None:
                # The norm is a constant of the gradient, as the DoRA paper proposes (section 4.3): it saves memory.
                delta = scale * (a.astype(jnp.float32) @ b.astype(jnp.float32))
                norm = jnp.linalg.norm(codec.decode(kernel, jnp.float32) + delta, axis=0)
                ratio = self.lora_magnitude[...] / jax.lax.stop_gradient(norm)
                y = (y.astype(jnp.float32) * ratio).astype(self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y

    def _as_merged(self, x: jax.Array, kernel: codec.Leaves) -> jax.Array:
        """As after the adapter is merged into the kernel's own numbers, or into those that are not zero."""
        x = quantized.rounded(x) if self.matmul == "aware_w8a8" else x
        delta = jnp.zeros((), jnp.float32)
        if self.lora_a is not None and self.lora_b is not None and self.lora_scale is not None:
            delta = self.lora_scale[...] * (self.lora_a[...].astype(jnp.float32) @ self.lora_b[...].astype(jnp.float32))
        kernel = self.place.gathered(kernel)
        whole = (
            codec.beside_zeros(kernel["kernel"], delta) if self.matmul == "sparse" else quantized.folded(kernel, delta)
        )
        y = dot(x, whole.astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> jax.Array:
    """Initial values of a matrix, float32."""
    return std * jax.random.normal(rngs.params(), shape, jnp.float32)
