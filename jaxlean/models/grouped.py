"""Rows in groups, each group with parameters of its own: the linear layers of a mixture's experts.

The rows lie sorted by their group. They are taken in blocks of a fixed size, one after another; a block belongs to one
group, and what it has of the next group's rows is written over by that group's own block. So no token is dropped,
whatever the sizes, and little is computed in vain. A group's parameters are decoded, or taken out of their stack, for
its blocks only. On TPUs, where XLA has a kernel for the rows (`models/ragged.py`), only the gradients of kernels are
computed so.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import SymbolicZero

from jaxlean import codec
from jaxlean.models import ragged
from jaxlean.models.blocks import Blocks, block_size, cut
from jaxlean.models.cpu import from_bits, to_bits
from jaxlean.models.linear import Linear, dot, product
from jaxlean.models.quantized import Matmul
from jaxlean.platform import platform

Leaves = Mapping[str, jax.Array]


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
    how = _How(block_size(x.shape[0], sizes.shape[0]), rest, matmul, matmul == "default" and platform() == "tpu")
    return _grouped(how, x, dict(leaves), sizes)


def _linear(matmul: Matmul, x: jax.Array, leaves: Leaves) -> jax.Array:
    """[block, in] through one group's layer."""
    (held,) = codec.kernels({f"_.{name}": leaf for name, leaf in leaves.items()}).values()
    y = product(x, held, matmul)
    if "lora_a" in leaves:
        low = dot(x, leaves["lora_a"].astype(x.dtype)).astype(jnp.float32) * leaves["lora_scale"]
        y = y + dot(low.astype(x.dtype), leaves["lora_b"].astype(x.dtype))
    return y if "bias" not in leaves else y + leaves["bias"].astype(x.dtype)


class _How(NamedTuple):
    block: int  # rows of a block
    rest: bool  # whether rows may be of no group
    matmul: Matmul
    ragged: bool  # whether XLA has a kernel for the rows


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(how: _How, x: jax.Array, params: dict[str, jax.Array], sizes: jax.Array) -> jax.Array:
    """Each row through the layer of its group."""
    if how.ragged:
        return ragged.forward(x, params, sizes, rest=how.rest)
    rows, block = x.shape[0], how.block
    source, held = _padded(x, block), jax.tree.map(to_bits, params)

    def work(own: Blocks) -> jax.Array:
        return to_bits(_linear(how.matmul, _rows(source, own.start, block), _group(held, own.group)))

    def one(out: jax.Array, own: Blocks) -> tuple[jax.Array, None]:
        def write(out: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(out, work(own), own.start, 0)

        # with rows of no group most blocks may be empty
        return (jax.lax.cond(own.start < rows, write, lambda out: out, out) if how.rest else write(out)), None

    blocks = cut(sizes, rows, block)
    shape = jax.eval_shape(work, jax.tree.map(lambda a: a[0], blocks))
    out, _ = jax.lax.scan(one, jnp.zeros((rows + block, shape.shape[1]), shape.dtype), blocks)
    return _without_rest(from_bits(out[:rows]), sizes, how.rest)


def _forward(how: _How, x: Any, params: Any, sizes: Any) -> tuple[jax.Array, Any]:
    values = {name: leaf.value for name, leaf in params.items()}
    # told apart by where they stand, for what is frozen needs no gradient, nor memory for one
    trained = {name: leaf for name, leaf in values.items() if params[name].perturbed}
    frozen = {name: leaf for name, leaf in values.items() if name not in trained}
    return _grouped(how, x.value, values, sizes.value), (x.value, trained, frozen, sizes.value)


def _backward(how: _How, saved: Any, grad: Any) -> tuple[Any, Any, None]:
    x, trained, frozen, sizes = saved
    if isinstance(grad, SymbolicZero):
        return jnp.zeros_like(x), {**jax.tree.map(jnp.zeros_like, trained), **dict.fromkeys(frozen)}, None
    if how.ragged:
        every = {**trained, **frozen}
        of_x = ragged.backward(grad, every, sizes, rest=how.rest)
        found = ragged.of_adapter(x, grad, every, sizes, block=how.block, rest=how.rest) if "lora_a" in trained else {}
        of_params = {name: found[name].astype(leaf.dtype) for name, leaf in trained.items() if name in found}
        rest = {name: leaf for name, leaf in trained.items() if name not in of_params}
        if rest:
            fixed = {name: leaf for name, leaf in every.items() if name not in rest}
            of_params |= _backward_in_blocks(how, x, rest, fixed, sizes, grad, of_rows=False)[1]
    else:
        of_x, of_params = _backward_in_blocks(how, x, trained, frozen, sizes, grad)
    return of_x, {**of_params, **dict.fromkeys(frozen)}, None


def _backward_in_blocks(
    how: _How,
    x: jax.Array,
    trained: dict[str, jax.Array],
    frozen: dict[str, jax.Array],
    sizes: jax.Array,
    grad: jax.Array,
    *,
    of_rows: bool = True,
) -> tuple[Any, dict[str, jax.Array]]:
    """The gradients of the rows (None where nobody wants them), and of what trains."""
    rows, block = x.shape[0], how.block
    source, source_grad = _padded(x, block), _padded(grad, block)
    held, held_frozen = jax.tree.map(to_bits, trained), jax.tree.map(to_bits, frozen)

    def one(carry: Any, own: Blocks) -> tuple[Any, None]:
        def add(carry: Any) -> Any:
            out, sums = carry
            inside = own.start + jnp.arange(block) < own.end  # the others are the next group's
            own_grad = jnp.where(inside[:, None], _rows(source_grad, own.start, block), 0)
            fixed = _group(held_frozen, own.group)
            own_rows = _rows(source, own.start, block)

            def layer(x: jax.Array | None, params: dict[str, jax.Array]) -> jax.Array:
                return _linear(how.matmul, own_rows if x is None else x, {**params, **fixed})

            _, pull = jax.vjp(layer, own_rows if of_rows else None, _group(held, own.group))
            of_x, of_params = pull(own_grad)
            sums = {name: s.at[own.group].add(of_params[name].astype(s.dtype)) for name, s in sums.items()}
            if of_rows:
                out = jax.lax.dynamic_update_slice_in_dim(out, to_bits(of_x), own.start, 0)
            return out, sums

        return (jax.lax.cond(own.start < rows, add, lambda carry: carry, carry) if how.rest else add(carry)), None

    start = (
        jnp.zeros((rows + block, x.shape[1]), source.dtype) if of_rows else None,
        {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in trained.items()},
    )
    (out, sums), _ = jax.lax.scan(one, start, cut(sizes, rows, block))
    of_params = {name: s.astype(trained[name].dtype) for name, s in sums.items()}
    return (None if out is None else _without_rest(from_bits(out[:rows]), sizes, how.rest)), of_params


_grouped.defvjp(_forward, _backward, symbolic_zeros=True)


def _padded(x: jax.Array, block: int) -> jax.Array:
    return jnp.pad(to_bits(x), ((0, block), (0, 0)))


def _rows(source: jax.Array, start: jax.Array, block: int) -> jax.Array:
    return from_bits(jax.lax.dynamic_slice_in_dim(source, start, block))


def _group(held: dict[str, jax.Array], group: jax.Array) -> dict[str, jax.Array]:
    return {n: from_bits(jax.lax.dynamic_index_in_dim(leaf, group, 0, keepdims=False)) for n, leaf in held.items()}


def _without_rest(x: jax.Array, sizes: jax.Array, rest: bool) -> jax.Array:
    return jnp.where(jnp.arange(x.shape[0])[:, None] < sizes.sum(), x, 0) if rest else x
