"""A frozen matrix in fewer bits, as leaves that stand in a parameter tree in the kernel's place.

Side by side in the tree, where a plain layer has `kernel` [.., in, out] (a leading dim is the stacked layers'):

    int8   kernel_int8           int8    [.., in, out]        round(kernel / scale), within +-127
           kernel_scale          float32 [.., out]            absmax of the column / 127
    nf4    kernel_nf4            uint8   [.., in / 2, out]    codes of row 2i (high half) and row 2i + 1 (low half)
           kernel_absmax         uint8   [.., in / 64, out]   absmax of 64 values of a column, less offset, in 8 bits
           kernel_absmax_scale   float32 [.., in / 64, out / 256]
           kernel_absmax_offset  float32 [..]                 mean of a matrix's absmaxes
    int4   kernel_int4           uint8   [.., in / 2, out]    numbers -8 to 7, plus 8, of row 2i (high) and 2i + 1 (low)
           kernel_scales         float32 [.., groups, out]    of in / groups values of a column each
    int8_grouped
           kernel_int8_grouped   int8    [.., in, out]
           kernel_scales         float32 [.., groups, out]

int8 takes 8 bits a parameter; nf4 takes 4 + 8 / 64 + 32 / (64 * 256) = 4.127. Of nf4 fractions are rounded up: the last
block of a column, and the last group of 256 columns, may be smaller. The groups of the last two formats divide a column
evenly; they are what quantized models are shared in (`hub.compressed`), and how their numbers are chosen is the matter
of `jaxlean.compress`.

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

Format = Literal["int8", "nf4", "int4", "int8_grouped"]
Leaves = Mapping[str, Any]  # name -> array (or its shape): `kernel` alone, or what a format holds in its place

# The leaf that has the numbers -> all leaves of its format.
LEAVES: dict[str, tuple[str, ...]] = {
    "kernel": ("kernel",),
    "kernel_int8": ("kernel_int8", "kernel_scale"),
    "kernel_nf4": ("kernel_nf4", "kernel_absmax", "kernel_absmax_scale", "kernel_absmax_offset"),
    "kernel_int4": ("kernel_int4", "kernel_scales"),
    "kernel_int8_grouped": ("kernel_int8_grouped", "kernel_scales"),
}
# Those of them in which a byte holds two parameters.
_HALVES = ("kernel_nf4", "kernel_int4")
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


def encode(kernel: jax.Array, form: Format, *, group_size: int | None = None) -> dict[str, jax.Array]:
    """[.., in, out] of any float dtype -> the leaves of a format, by their names.

    Args:
        kernel: the matrix.
        form: of its numbers.
        group_size: of int4 and int8_grouped: values of a column with one scale; None: all of it.

    Raises:
        ModelError: two numbers a byte, of an odd number of inputs; or a group size that does not divide them.
    """
    if form == "int8":
        return _encode_int8(kernel)
    if form == "nf4":
        return _encode_nf4(kernel)
    bits = 4 if form == "int4" else 8
    scales = group_scales(kernel, bits, group_size)
    return pack_groups(round_to_groups(kernel, scales, bits), scales, bits)


def decode(leaves: Leaves, dtype: Any) -> jax.Array:
    """The kernel [.., in, out] that leaves stand for; computed in float32, rounded to `dtype`."""
    if "kernel" in leaves:
        return leaves["kernel"].astype(dtype)
    if "kernel_int8" in leaves:
        return (leaves["kernel_int8"].astype(jnp.float32) * leaves["kernel_scale"][..., None, :]).astype(dtype)
    if "kernel_scales" in leaves:
        values, scales = unpack_groups(leaves)
        return (values.astype(jnp.float32) * spread(scales, values.shape[-2])).astype(dtype)
    return _decode_nf4(leaves).astype(dtype)


def shape(leaves: Leaves) -> tuple[int, ...]:
    """[.., in, out] of the kernel that leaves stand for."""
    main = next(name for name in LEAVES if name in leaves)
    *stack, rows, columns = leaves[main].shape
    return (*stack, 2 * rows if main in _HALVES else rows, columns)


def shapes(kernel: tuple[int, ...], form: Format, *, group_size: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves of a kernel of that shape."""
    return jax.eval_shape(lambda: encode(jnp.zeros(kernel, jnp.float32), form, group_size=group_size))


def wanted(kernel: tuple[int, ...], leaves: Leaves) -> dict[str, jax.ShapeDtypeStruct]:
    """What the leaves of a kernel of that shape should be, in the format that `leaves` have."""
    main = next(name for name in LEAVES if name in leaves)
    form: Any = main.removeprefix("kernel_")
    groups = leaves["kernel_scales"].shape[-2] if "kernel_scales" in leaves else 1
    return shapes(kernel, form, group_size=kernel[-2] // groups if kernel[-2] % groups == 0 else None)


def grid(leaves: Leaves) -> tuple[jax.Array, jax.Array, int]:
    """(whole numbers int8 [.., in, out], float32 scales that they are multiplied by, as many or one a column, bits).

    Of int8, int4 and int8_grouped, whose numbers lie evenly.
    """
    if "kernel_int8" in leaves:
        return leaves["kernel_int8"], leaves["kernel_scale"][..., None, :], 8
    values, scales = unpack_groups(leaves)
    return values, spread(scales, values.shape[-2]), 4 if "kernel_int4" in leaves else 8


def beside_zeros(kernel: jax.Array, delta: jax.Array) -> jax.Array:
    """float32: a kernel with `delta` added where it is not zero."""
    wide = kernel.astype(jnp.float32)
    return jnp.where(wide == 0, 0.0, wide + delta)


def moved(leaves: Leaves, delta: jax.Array) -> dict[str, jax.Array]:
    """A kernel with something added, rounded to the numbers that its format has with the scales that it has."""
    values, scales, bits = grid(leaves)
    steps = values.astype(jnp.float32) + delta.astype(jnp.float32) / _divisor(scales)
    nearest = on_grid(steps, bits).astype(jnp.int8)
    if "kernel_int8" in leaves:
        return {"kernel_int8": nearest, "kernel_scale": leaves["kernel_scale"]}
    return pack_groups(nearest, leaves["kernel_scales"], bits)


def on_grid(steps: jax.Array, bits: int) -> jax.Array:
    """The nearest whole numbers of so many bits, float32."""
    half = 2 ** (bits - 1)
    return jnp.clip(jnp.round(steps), -half, half - 1)


def num_params(path: str, leaf: Any) -> int:
    """Parameters that a leaf of a tree stands for: two a byte of four bits, none where it only scales."""
    name = path.rsplit(".", 1)[-1]
    if name in _HALVES:
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
    return any(path.rpartition(".")[2] in LEAVES and not path.endswith(".kernel") for path in paths)


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


# ---- int4 and int8 in groups


def group_scales(kernel: jax.Array, bits: int, group_size: int | None) -> jax.Array:
    """float32 [.., groups, out]: what makes each group's largest value the end of the range, half a step beyond it.

    That is compressed-tensors' choice: of 4 bits -7.5 to 7.5, of which 7.5 is rounded down to 7.

    Raises:
        ModelError: the group size does not divide the number of inputs.
    """
    *stack, rows, columns = kernel.shape
    size = rows if group_size is None else group_size
    if rows % size:
        fitting = [n for n in (128, 64, 32, 16, rows) if rows % n == 0]
        raise ModelError(
            "a group size that does not divide a matrix' inputs", got=f"{rows} inputs in groups of {size}",
            fix=f"one that does: {', '.join(map(str, fitting))}",
        )  # fmt: skip
    grouped = jnp.abs(kernel.astype(jnp.float32)).reshape(*stack, rows // size, size, columns)
    return grouped.max(axis=-2) * np.float32(2 / (2**bits - 1))


def round_to_groups(kernel: jax.Array, scales: jax.Array, bits: int) -> jax.Array:
    """int8 [.., in, out]: the nearest numbers of so many bits, -2^(bits - 1) to 2^(bits - 1) - 1, of each value."""
    return on_grid(kernel.astype(jnp.float32) / spread(_divisor(scales), kernel.shape[-2]), bits).astype(jnp.int8)


def pack_groups(values: jax.Array, scales: jax.Array, bits: int) -> dict[str, jax.Array]:
    """The leaves of int4 or int8_grouped.

    Args:
        values: int8 [.., in, out], of so many bits.
        scales: float32 [.., groups, out].
        bits: 4 or 8.

    Raises:
        ModelError: 4 bits of an odd number of inputs.
    """
    if bits == 8:
        return {"kernel_int8_grouped": values, "kernel_scales": scales}
    *_, rows, columns = values.shape
    if rows % 2:
        raise ModelError("int4 holds two inputs a byte; this matrix has an odd number", got=f"{rows} x {columns}")
    codes = (values + jnp.int8(8)).astype(jnp.uint8)
    return {"kernel_int4": (codes[..., 0::2, :] << jnp.uint8(4)) | codes[..., 1::2, :], "kernel_scales": scales}


def unpack_groups(leaves: Leaves) -> tuple[jax.Array, jax.Array]:
    """(int8 values [.., in, out], scales [.., groups, out]): the inverse of `pack_groups`."""
    if "kernel_int8_grouped" in leaves:
        return leaves["kernel_int8_grouped"], leaves["kernel_scales"]
    return _halves(leaves["kernel_int4"]).astype(jnp.int8) - jnp.int8(8), leaves["kernel_scales"]


def _halves(packed: jax.Array) -> jax.Array:
    """uint8 [.., in / 2, out] -> [.., in, out], the four high bits of each byte, then the low ones."""
    *stack, half, columns = packed.shape
    # each byte twice, shifted by what its row asks for: unlike a stack of both halves, no copy of the codes is made
    shift = jnp.asarray([[4], [0]], jnp.uint8)
    return ((packed[..., None, :] >> shift) & jnp.uint8(15)).reshape(*stack, 2 * half, columns)


def spread(scales: jax.Array, rows: int) -> jax.Array:
    """[.., groups, out] -> [.., in, out]."""
    return jnp.repeat(scales, rows // scales.shape[-2], axis=-2)


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
    codes, absmax = _halves(leaves["kernel_nf4"]), decode_absmax(leaves)
    spread = jnp.repeat(absmax, BLOCK, axis=-2)[..., : codes.shape[-2], :]
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
