"""What convolutional networks are made of: convolutions over space, and normalisation by stored statistics.

Images are [batch, height, width, channels]. A convolution whose kernel is one pixel wide mixes channels and nothing
else, so it is a `models.linear.Linear`: it can be adapted, held in int8 and multiplied like any other. Here are those
that look around: the first layer of a network, and depthwise ones, each of whose filters reads one channel. Together
they are few parameters (3 % of MobileNetV2), so they are always held in the compute dtype or wider.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlean.models.cpu import on_cpu
from jaxlean.models.linear import normal

# Where zeros are put around an image:
#   same       TensorFlow's SAME: so many that the output has ceil(size / stride) pixels, the odd one after
#   symmetric  half a kernel on either side, whatever the stride
#   late       one less before than after, as Keras' EfficientNet does before a stride of 2
Padding = Literal["same", "symmetric", "late"]
Margin = tuple[int, int]  # zeros before and after


def margins(size: int, kernel: int, stride: int, dilation: int, padding: Padding) -> Margin:
    """Zeros before and after one dim of an image.

    A dilated kernel gets `dilation` times the zeros that it would get without, as transformers has it; for stride 1,
    with which alone dilation is used, that is TensorFlow's SAME again.

    >>> margins(224, 3, 2, 1, "same"), margins(225, 3, 2, 1, "same"), margins(224, 5, 2, 1, "late")
    ((0, 1), (1, 1), (1, 2))
    """
    if padding == "same":
        total = max(kernel - (size % stride or stride), 0)
        return total // 2 * dilation, (total - total // 2) * dilation
    half = kernel // 2 * dilation
    return (half, half) if padding == "symmetric" else (half - 1, half)


class Convolution(nnx.Module):
    """A square convolution without bias, [batch, height, width, in] -> [batch, ceil(height / stride), ..., out].

    Its leaf is `filters` [kernel, kernel, in / groups, out], not `kernel`, which is a matrix everywhere. With
    `groups == in == out` it is depthwise.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        padding: Padding = "same",
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (kernel, kernel, dim_in // groups, dim_out)
        self.filters = nnx.Param(normal(rngs, shape, he(kernel * kernel * dim_in // groups)))
        self.stride, self.dilation, self.groups, self.padding, self.dtype = stride, dilation, groups, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """In the compute dtype."""
        x, filters = x.astype(self.dtype), self.filters[...].astype(self.dtype)
        height, width = (
            margins(size, filters.shape[0], self.stride, self.dilation, self.padding) for size in x.shape[1:3]
        )
        if self.groups == x.shape[-1] == filters.shape[-1] and on_cpu():
            return shifted(x, filters, self.stride, self.dilation, (height, width))
        return jax.lax.conv_general_dilated(
            x,
            filters,
            window_strides=(self.stride, self.stride),
            padding=(height, width),
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def shifted(x: jax.Array, filters: jax.Array, stride: int, dilation: int, around: tuple[Margin, Margin]) -> jax.Array:
    """A depthwise convolution as a sum of shifted images, each times a number a channel; added up in float32.

    For CPU, where XLA makes one loop of it. Its own grouped convolution takes 2 to 5 times as long there, and its
    gradient 5 to 30 times (3 x 3, from 56 x 56 x 144 to 14 x 14 x 384).

    Args:
        x: [batch, height, width, channels].
        filters: [kernel, kernel, 1, channels].
        stride, dilation: in pixels.
        around: zeros before and after the height, and before and after the width.
    """
    padded = jnp.pad(x, [(0, 0), *around, (0, 0)])
    return _sum_of_shifts(padded, filters.astype(jnp.float32), stride, dilation).astype(x.dtype)


def _sum_of_shifts(padded: jax.Array, filters: jax.Array, stride: int, dilation: int) -> jax.Array:
    height, width = _reach(padded, filters, dilation)
    total = jnp.zeros((), jnp.float32)
    for row, column in np.ndindex(filters.shape[:2]):
        top, left = row * dilation, column * dilation
        part = padded[:, top : top + height : stride, left : left + width : stride]
        total = total + part.astype(jnp.float32) * filters[row, column, 0]
    return total


def _reach(padded: jax.Array, filters: jax.Array, dilation: int) -> tuple[int, int]:
    """How far down and to the right a corner of the filter moves over an image."""
    edge = (filters.shape[0] - 1) * dilation
    return padded.shape[1] - edge, padded.shape[2] - edge


def _shifted_forward(
    x: jax.Array, filters: jax.Array, stride: int, dilation: int, around: tuple[Margin, Margin]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return shifted(x, filters, stride, dilation, around), (x, filters)


def _shifted_backward(
    stride: int, dilation: int, around: tuple[Margin, Margin], saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, filters = saved
    edge = (filters.shape[0] - 1) * dilation
    # What an output was made of gets its share back: the same sum over the outputs, as far apart as they were made.
    spread = []
    for size, made, (before, _) in zip(x.shape[1:3], grad.shape[1:3], around, strict=True):
        spread.append((edge - before, size + before - (made - 1) * stride - 1, stride - 1))
    apart = jax.lax.pad(grad, jnp.zeros((), grad.dtype), [(0, 0, 0), *spread, (0, 0, 0)])
    of_x = _sum_of_shifts(apart, filters[::-1, ::-1].astype(jnp.float32), 1, dilation)

    # One compiled loop over the places of a filter: each of their sums reads everything anyway.
    padded = jnp.pad(x, [(0, 0), *around, (0, 0)])
    height, width = _reach(padded, filters, dilation)

    def one(place: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice(
            padded, (0, place[0] * dilation, place[1] * dilation, 0), (len(x), height, width, x.shape[-1])
        )
        return jnp.sum(part[:, ::stride, ::stride].astype(jnp.float32) * grad.astype(jnp.float32), axis=(0, 1, 2))

    places = jnp.asarray(list(np.ndindex(filters.shape[:2])), jnp.int32)
    of_filters = jax.lax.map(one, places).reshape(filters.shape)
    return of_x.astype(x.dtype), of_filters.astype(filters.dtype)


shifted.defvjp(_shifted_forward, _shifted_backward)


class BatchNorm(nnx.Module):
    """`(x - mean) / sqrt(var + eps) * scale + bias` over the last dim, in float32 (arXiv 1502.03167).

    mean and var are what the base was trained with, and stay: scale and bias may train. A fine-tuning batch is small,
    often of one class, and its own statistics would be a worse guess than those of a million images; and a step whose
    output for an image does not depend on the others of its batch is the same whether it is accumulated, spread over
    devices or computed again. They are leaves so that they are read, written and sharded like all else, and no gradient
    reaches them (`is_statistic` names them).

    Shapes: scale, bias, mean, var [dim].
    """

    def __init__(self, dim: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
        self.mean = nnx.Param(jnp.zeros((dim,), jnp.float32))
        self.var = nnx.Param(jnp.ones((dim,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., dim] of any float dtype -> float32 of the same shape."""
        mean, var = jax.lax.stop_gradient((self.mean[...].astype(jnp.float32), self.var[...].astype(jnp.float32)))
        factor = self.scale[...].astype(jnp.float32) * jax.lax.rsqrt(var + self.eps)
        return x.astype(jnp.float32) * factor + (self.bias[...].astype(jnp.float32) - mean * factor)


def is_statistic(path: str) -> bool:
    """Whether a parameter is a stored mean or variance, which never trains."""
    return path.rsplit(".", 1)[-1] in ("mean", "var")


def he(fan_in: int) -> float:
    """The spread of initial values that a rectifier keeps (arXiv 1502.01852)."""
    return (2.0 / fan_in) ** 0.5
