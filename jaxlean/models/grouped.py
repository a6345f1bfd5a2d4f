"""Rows in groups, each group with parameters of its own: the linear layers of a mixture's experts.

The rows lie sorted by their group. They are taken in blocks of a fixed size, one after another; a block belongs to one
group, and what it has of the next group's rows is written over by that group's own block. So no token is dropped,
whatever the sizes, and little is computed in vain, where XLA's own `ragged_dot` multiplies every row with every kernel
on CPU and GPU, and on TPU in the gradient of the kernels (jaxlib 0.10). A group's parameters are decoded, or taken out
of their stack, for its blocks only.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from jaxlean import codec
from jaxlean.models.cpu import from_bits, to_bits
from jaxlean.models.linear import Linear, dot, product
from jaxlean.models.quantized import Matmul

Leaves = Mapping[str, jax.Array]
# Rows of a block: at least what fills a matrix unit, at most what is enough for a kernel to be read once.
_SMALLEST, _LARGEST = 16, 256


class GroupedLinear(Linear):
    """`Linear`, once for each of several groups: every leaf has a leading dim of them.

    Shapes: kernel [groups, in, out], bias [groups, out], lora_a [groups, in, r], lora_b [groups, r, out], lora_scale
    [groups]. Its adapters have no dropout and no magnitude.
    """

    def __init__(
        self, groups: int, dim_in: int, dim_out: int, *, bias: bool, std: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        super().__init__(dim_in, dim_out, bias=bias, std=std, dtype=dtype, rngs=rngs, stack=(groups,))

    def leaves(self) -> dict[str, jax.Array]:
        """All that it computes with, for `grouped_linear`."""
        others = {name: getattr(self, name) for name in ("bias", "lora_a", "lora_b", "lora_scale")}
        return dict(self.held()) | {name: x[...] for name, x in others.items() if x is not None}


def grouped_linear(
    x: jax.Array, leaves: Leaves, sizes: jax.Array, *, matmul: Matmul = "default", rest: bool = False
) -> jax.Array:
    """Each row through the linear layer of its group.

    Args:
        x: [rows, in] in the compute dtype, sorted by group.
        leaves: of a `GroupedLinear`.
        sizes: int32 [groups], rows of each; they add up to all rows, or with `rest` to fewer.
        matmul: as of `models.linear.product`.
        rest: there may be rows behind those of the last group, which are of no group: their output is zero.

    Returns:
        [rows, out] in the dtype of `x`.
    """
    return _each_block(
        partial(_linear, matmul), _Cut(_block_size(x.shape[0], sizes.shape[0]), rest), x, dict(leaves), sizes
    )


def _linear(matmul: Matmul, x: jax.Array, leaves: Leaves) -> jax.Array:
    """[block, in] through one group's layer."""
    (held,) = codec.kernels({f"_.{name}": leaf for name, leaf in leaves.items()}).values()
    y = product(x, held, matmul)
    if "lora_a" in leaves:
        low = dot(x, leaves["lora_a"].astype(x.dtype)).astype(jnp.float32) * leaves["lora_scale"]
        y = y + dot(low.astype(x.dtype), leaves["lora_b"].astype(x.dtype))
    return y if "bias" not in leaves else y + leaves["bias"].astype(x.dtype)


class _Cut(NamedTuple):
    block: int  # rows of a block
    rest: bool  # whether rows may be of no group


def _block_size(rows: int, groups: int) -> int:
    """A quarter of a group's rows, so that the half empty last block of each costs an eighth more."""
    size = _SMALLEST
    while size < _LARGEST and size * 4 * groups < rows:
        size *= 2
    return size


class _Blocks(NamedTuple):
    """Which rows each block has; of those that no group needs, the ones behind all others."""

    group: jax.Array  # int32 [blocks]
    start: jax.Array  # int32 [blocks]
    end: jax.Array  # int32 [blocks], of the group's rows


def _blocks(sizes: jax.Array, rows: int, block: int) -> _Blocks:
    groups = sizes.shape[0]
    filled = min(groups, rows)
    num = (rows - filled) // block + filled  # the most that sizes can need
    sizes = sizes.astype(jnp.int32)
    each = -(-sizes // block)
    last, stop = jnp.cumsum(each), jnp.cumsum(sizes)
    number = jnp.arange(num, dtype=jnp.int32)
    group = jnp.searchsorted(last, number, side="right").astype(jnp.int32)
    own = jnp.minimum(group, groups - 1)
    start = (stop - sizes)[own] + (number - (last - each)[own]) * block
    return _Blocks(own, jnp.where(group < groups, start, rows), jnp.where(group < groups, stop[own], 0))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _each_block(function: Any, cut: _Cut, x: jax.Array, params: dict[str, jax.Array], sizes: jax.Array) -> jax.Array:
    """`function(rows of a block, its group's parameters)` over all blocks."""
    rows, (block, rest) = x.shape[0], cut
    source, held = _padded(x, block), jax.tree.map(to_bits, params)

    def work(own: _Blocks) -> jax.Array:
        return to_bits(function(_rows(source, own.start, block), _group(held, own.group)))

    def one(out: jax.Array, own: _Blocks) -> tuple[jax.Array, None]:
        def write(out: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(out, work(own), own.start, 0)

        # with rows of no group most blocks may be empty
        return (jax.lax.cond(own.start < rows, write, lambda out: out, out) if rest else write(out)), None

    blocks = _blocks(sizes, rows, block)
    shape = jax.eval_shape(work, jax.tree.map(lambda a: a[0], blocks))
    out, _ = jax.lax.scan(one, jnp.zeros((rows + block, shape.shape[1]), shape.dtype), blocks)
    return _without_rest(from_bits(out[:rows]), sizes, rest)


def _forward(function: Any, cut: _Cut, x: Any, params: Any, sizes: Any) -> tuple[jax.Array, Any]:
    values = {name: leaf.value for name, leaf in params.items()}
    # told apart by where they stand, for what is frozen needs no gradient, nor memory for one
    trained = {name: leaf for name, leaf in values.items() if params[name].perturbed}
    frozen = {name: leaf for name, leaf in values.items() if name not in trained}
    return _each_block(function, cut, x.value, values, sizes.value), (x.value, trained, frozen, sizes.value)


def _backward(function: Any, cut: _Cut, saved: Any, grad: Any) -> tuple[Any, Any, None]:
    x, trained, frozen, sizes = saved
    rows, (block, rest) = x.shape[0], cut
    if isinstance(grad, SymbolicZero):
        return jnp.zeros_like(x), {**jax.tree.map(jnp.zeros_like, trained), **dict.fromkeys(frozen)}, None
    source, source_grad = _padded(x, block), _padded(grad, block)
    held, held_frozen = jax.tree.map(to_bits, trained), jax.tree.map(to_bits, frozen)

    def one(carry: Any, own: _Blocks) -> tuple[Any, None]:
        def add(carry: Any) -> Any:
            out, sums = carry
            inside = own.start + jnp.arange(block) < own.end  # the others are the next group's
            own_grad = jnp.where(inside[:, None], _rows(source_grad, own.start, block), 0)
            fixed = _group(held_frozen, own.group)
            _, pull = jax.vjp(
                lambda x, t: function(x, {**t, **fixed}), _rows(source, own.start, block), _group(held, own.group)
            )
            of_x, of_params = pull(own_grad)
            sums = {name: s.at[own.group].add(of_params[name].astype(s.dtype)) for name, s in sums.items()}
            return jax.lax.dynamic_update_slice_in_dim(out, to_bits(of_x), own.start, 0), sums

        return (jax.lax.cond(own.start < rows, add, lambda carry: carry, carry) if rest else add(carry)), None

    start = (
        jnp.zeros((rows + block, x.shape[1]), source.dtype),
        {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in trained.items()},
    )
    (out, sums), _ = jax.lax.scan(one, start, _blocks(sizes, rows, block))
    of_params = {name: s.astype(trained[name].dtype) for name, s in sums.items()}
    return _without_rest(from_bits(out[:rows]), sizes, rest), {**of_params, **dict.fromkeys(frozen)}, None


_each_block.defvjp(_forward, _backward, symbolic_zeros=True)


def _padded(x: jax.Array, block: int) -> jax.Array:
    return jnp.pad(to_bits(x), ((0, block), (0, 0)))


def _rows(source: jax.Array, start: jax.Array, block: int) -> jax.Array:
    return from_bits(jax.lax.dynamic_slice_in_dim(source, start, block))


def _group(held: dict[str, jax.Array], group: jax.Array) -> dict[str, jax.Array]:
    return {n: from_bits(jax.lax.dynamic_index_in_dim(leaf, group, 0, keepdims=False)) for n, leaf in held.items()}


def _without_rest(x: jax.Array, sizes: jax.Array, rest: bool) -> jax.Array:
    return jnp.where(jnp.arange(x.shape[0])[:, None] < sizes.sum(), x, 0) if rest else x
