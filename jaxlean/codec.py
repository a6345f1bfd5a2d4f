"""A frozen matrix in fewer bits: int8 and NF4, as leaves that stand in a parameter tree in the kernel's place.

Side by side in the tree, where a plain layer has `kernel` [.., in, out] (a leading dim is the stacked layers'):

    int8   kernel_int8           int8    [.., in, out]        round(kernel / scale), within +-127
           kernel_scale          float32 [.., out]            absmax of the column / 127
    nf4    kernel_nf4            uint8   [.., in / 2, out]    codes of row 2i (high half) and row 2i + 1 (low half)
           kernel_absmax         uint8   [.., in / 64, out]   absmax of 64 values of a column, less offset, in 8 bits
           kernel_absmax_scale   float32 [.., in / 64, out / 256]
           kernel_absmax_offset  float32 [..]                 mean of a matrix's absmaxes

Fractions are rounded up: the last block of a column, and the last group of 256 columns, may be smaller. int8 takes 8
bits a parameter; nf4 takes 4 + 8 / 64 + 32 / (64 * 256) = 4.127.

NF4 is that of QLoRA (arXiv 2305.14314): 16 levels that are equally likely for normally distributed weights, scaled by
each block's absmax, which is itself held in 8 bits ("double quantization"). A block is 64 values of one column, that
is of one output channel, as in bitsandbytes on its [out, in] weights; codes, packing and the 8-bit table are those of
bitsandbytes too. Only its groups of 256 absmaxes run down a column first, ours across the columns, so that a matrix
split over devices by its columns has whole blocks in each part.

What is not a number in a matrix makes its scale not a number, and so is seen in whatever is computed from it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean.errors import ModelError

Format = Literal["int8", "nf4"]
Leaves = Mapping[str, Any]  # name -> array (or its shape): `kernel` alone, or what a format holds in its place

# The leaf that has the numbers -> all leaves of its format.
LEAVES: dict[str, tuple[str, ...]] = {
    "kernel": ("kernel",),
    "kernel_int8": ("kernel_int8", "kernel_scale"),
    "kernel_nf4": ("kernel_nf4", "kernel_absmax", "kernel_absmax_scale", "kernel_absmax_offset"),
}
BLOCK = 64  # values with one absmax
GROUP = 256  # absmaxes with one scale

# QLoRA, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def dynamic_table() -> np.ndarray:
    """The 256 numbers in [-1, 1] that an absmax may be: float32, rising.

    bitsandbytes' signed dynamic map (arXiv 1511.04561): seven decades, each with twice the numbers of the one below it,
    spaced evenly; 0; and 1.
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2**decade + 1)
        found = 10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2
        numbers += [*found, *-found]
    return np.sort(np.asarray(numbers, np.float32))


_TABLE = dynamic_table()


def _between(levels: np.ndarray) -> np.ndarray:
    """What divides each level from the next."""
    return ((levels[:-1].astype(np.float64) + levels[1:]) / 2).astype(np.float32)


def encode(kernel: jax.Array, form: Format) -> dict[str, jax.Array]:
    """[.., in, out] of any float dtype -> the leaves of a format, by their names.

    Raises:
        ModelError: nf4 of an odd number of inputs.
    """
    return _encode_int8(kernel) if form == "int8" else _encode_nf4(kernel)


def decode(leaves: Leaves, dtype: Any) -> jax.Array:
    """The kernel [.., in, out] that leaves stand for; computed in float32, rounded to `dtype`."""
    if "kernel" in leaves:
        return leaves["kernel"].astype(dtype)
    if "kernel_int8" in leaves:
        return (leaves["kernel_int8"].astype(jnp.float32) * leaves["kernel_scale"][..., None, :]).astype(dtype)
    return _decode_nf4(leaves).astype(dtype)


def shape(leaves: Leaves) -> tuple[int, ...]:
    """[.., in, out] of the kernel that leaves stand for."""
    main = next(name for name in LEAVES if name in leaves)
    *stack, rows, columns = leaves[main].shape
    return (*stack, 2 * rows if main == "kernel_nf4" else rows, columns)


def shapes(kernel: tuple[int, ...], form: Format) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves of a kernel of that shape."""
    return jax.eval_shape(lambda: encode(jnp.zeros(kernel, jnp.float32), form))


def num_params(path: str, leaf: Any) -> int:
    """Parameters of the model that a leaf of its tree stands for: two a byte in nf4, none where it only scales."""
    name = path.rsplit(".", 1)[-1]
    if name == "kernel_nf4":
        return 2 * int(leaf.size)
    return 0 if name.startswith("kernel_") and name not in LEAVES else int(leaf.size)


def kernels(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{path: leaf}` of a tree -> `{module: its kernel's leaves}`, of every module that has a kernel in any form."""
    found = {}
    for path in leaves:
        module, _, name = path.rpartition(".")
        if name in LEAVES:
            found[module] = {part: leaves[f"{module}.{part}"] for part in LEAVES[name]}
    return found


def each_layer(function: Callable[[Any], Any], leaves: Any, *, dims: int) -> Any:
    """`function` of each layer's part of a stack, one after another: no more than one layer's work is in memory.

    Args:
        function: arrays of one layer -> arrays.
        leaves: any tree of arrays.
        dims: leading dims of the stack: 0 or 1.
    """
    return jax.lax.map(function, leaves) if dims else function(leaves)


def is_quantized(paths: Iterable[str]) -> bool:
    """Whether a tree holds a matrix in fewer bits."""
    return any(path.endswith((".kernel_int8", ".kernel_nf4")) for path in paths)


# ---- int8, and any other narrow dtype with one scale


class Narrow(NamedTuple):
    """An array in a narrow dtype: `values * scale` (spread along the axis that it lacks) is nearly what it was."""

    values: jax.Array
    scale: jax.Array  # float32


def narrow(x: jax.Array, dtype: Any, *, axis: int) -> Narrow:
    """Scale what lies along `axis` by its absmax into `dtype` (int8, or one of float8), symmetrically.

    Args:
        x: float.
        dtype: its largest number is what the absmax becomes: 127, 448 (float8_e4m3fn), 57344 (float8_e5m2).
        axis: is left out of `scale`'s shape.
    """
    whole = jnp.issubdtype(dtype, jnp.integer)
    largest = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
    wide = x.astype(jnp.float32)
    scale = jnp.abs(wide).max(axis=axis) * np.float32(1 / largest)
    values = jnp.clip(wide / jnp.expand_dims(_divisor(scale), axis), -largest, largest)
    return Narrow((jnp.round(values) if whole else values).astype(dtype), scale)


def _encode_int8(kernel: jax.Array) -> dict[str, jax.Array]:
    values, scale = narrow(kernel, jnp.int8, axis=-2)
    return {"kernel_int8": values, "kernel_scale": scale}


def _divisor(scale: jax.Array) -> jax.Array:
    """A column of zeros is divided by one."""
    return jnp.where(scale == 0, 1.0, scale)


# ---- nf4


def _encode_nf4(kernel: jax.Array) -> dict[str, jax.Array]:
    *stack, rows, columns = kernel.shape
    if rows % 2:
        raise ModelError("nf4 holds two inputs a byte; this matrix has an odd number", got=f"{rows} x {columns}")
    blocks = -(-rows // BLOCK)
    wide = _pad(kernel.astype(jnp.float32), -2, blocks * BLOCK)
    wide = wide.reshape(*stack, blocks, BLOCK, columns)
    absmax = jnp.abs(wide).max(axis=-2)
    relative = wide / _divisor(absmax)[..., None, :]
    # the number of borders below a value; a chain of comparisons, which every back end does in vectors
    codes = sum((relative > border).astype(jnp.uint8) for border in _between(np.asarray(NF4, np.float32)))
    codes = codes.reshape(*stack, blocks * BLOCK, columns)[..., :rows, :]
    packed = (codes[..., 0::2, :] << jnp.uint8(4)) | codes[..., 1::2, :]

    offset = absmax.mean(axis=(-2, -1))
    apart = absmax - offset[..., None, None]
    groups = -(-columns // GROUP)
    grouped = _pad(apart, -1, groups * GROUP).reshape(*stack, blocks, groups, GROUP)
    scale = jnp.abs(grouped).max(axis=-1)
    numbers = jnp.searchsorted(_between(_TABLE), (grouped / _divisor(scale)[..., None]).reshape(-1)).astype(jnp.uint8)
    eight = numbers.reshape(*stack, blocks, groups * GROUP)[..., :columns]
    return {
        "kernel_nf4": packed,
        "kernel_absmax": eight,
        "kernel_absmax_scale": scale,
        "kernel_absmax_offset": offset,
    }


def _decode_nf4(leaves: Leaves) -> jax.Array:
    packed, absmax = leaves["kernel_nf4"], decode_absmax(leaves)
    *stack, half, columns = packed.shape
    # each byte twice, shifted by what its row asks for: unlike a stack of both halves, no copy of the codes is made
    shift = jnp.asarray([[4], [0]], jnp.uint8)
    codes = ((packed[..., None, :] >> shift) & jnp.uint8(15)).reshape(*stack, 2 * half, columns)
    spread = jnp.repeat(absmax, BLOCK, axis=-2)[..., : 2 * half, :]
    # XLA takes constants out of a loop over layers, each as an array as large as what it is compared with; what hangs
    # on a layer's numbers stays inside
    nothing = 0.0 * leaves["kernel_absmax_offset"][..., None, None]
    return _level(codes, nothing) * spread


def decode_absmax(leaves: Leaves) -> jax.Array:
    """float32 [.., in / 64, out]: the absmax of every block of an nf4 kernel."""
    eight = leaves["kernel_absmax"]
    scale = jnp.repeat(leaves["kernel_absmax_scale"], GROUP, axis=-1)[..., : eight.shape[-1]]
    apart = jnp.asarray(_TABLE)[eight.astype(jnp.int32)] * scale
    # an absmax far below the mean may come out below zero, which would turn its block's signs
    return jnp.maximum(apart + leaves["kernel_absmax_offset"][..., None, None], 0.0)


def _level(codes: jax.Array, nothing: jax.Array) -> jax.Array:
    """uint8 code -> float32 level: a tree of selections over the four bits, where a lookup would go one by one."""
    levels: list[Any] = [np.float32(level) + nothing for level in NF4]
    for bit in range(4):
        on = (codes >> jnp.uint8(bit)) & jnp.uint8(1) != 0
        levels = [jnp.where(on, high, low) for low, high in zip(levels[::2], levels[1::2], strict=True)]
    return levels[0]


def _pad(x: jax.Array, axis: int, size: int) -> jax.Array:
    width = [(0, 0)] * x.ndim
    width[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, width) if size > x.shape[axis] else x
