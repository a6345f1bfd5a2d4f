"""Adam whose two moments are held in 8 bits: 2.03 bytes a parameter instead of 8 (Dettmers et al., arXiv 2110.02861).

A moment is cut into blocks of 256 numbers, as in bitsandbytes. Of each block the largest magnitude is kept in float32,
and of each number the 8-bit code of its share of that. The codes are a *dynamic tree*: decades from 1 down to 1e-7, of
which each lower one has half as many codes, so that the largest numbers are the most precise and the smallest are not
lost.

Where a block lies: in one row of one layer's matrix, if rows are whole blocks, as those of most models are. Codes have
their parameter's own shape and lie on a mesh as it does; an axis that splits rows into multiples of 256 splits no
block, and no block mixes rows of an embedding, most of which have no gradient in any one step. (The published one
flattens whole tensors.) Rows of other lengths, as those of a LoRA adapter's A [in, r], are joined.

One departure from the paper: a second moment that is not zero becomes the smallest code, never zero. Dividing by its
root would otherwise be a leap.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlean import tree

BLOCK = 256
MIN_SIZE = 4096
PART = 2**22  # numbers of a moment that are float32 at a time


class Quantized(NamedTuple):
    """An array in 8 bits.

    Numbers of a block are `codebook(signed)[codes] * largest`.
    """

    codes: jax.Array  # uint8, the shape of the array
    largest: jax.Array  # float32 [..., rows, blocks of a row]; of joined rows [..., blocks]


class Adam8bitState(NamedTuple):
    """Both moments as the tree of parameters, each leaf `Quantized` or float32."""

    steps: jax.Array  # int32 [], taken so far
    mu: Any
    nu: Any


def codebook(signed: bool) -> np.ndarray:
    """The 256 shares of the largest that codes stand for, in rising order; float32.

    Decade i of 0 to 6 is [10^(i-7), 10^(i-6)], cut into 2^i equal cells (unsigned: 2^(i+1)), whose middles are the
    values. Beside them 0 and 1, and if signed the cells' negatives. It is that of bitsandbytes
    (`functional.create_dynamic_map`).
    """
    positive = [low + 9 * low * (cell + 0.5) / cells for cells, low in _decades(signed) for cell in range(cells)]
    negative = [-value for value in positive] if signed else []
    return np.sort(np.array([*negative, 0.0, *positive, 1.0])).astype(np.float32)


def quantize(x: jax.Array, *, signed: bool) -> Quantized:
    """float32 array -> its nearest codes, block by block.

    The error of a number is at most 1/142 of its block's largest magnitude (unsigned: 1/284), and for each decade that
    the number lies below it five times less, down to 1e-7 of the largest. (Across the border of two decades it is that
    of the upper one.)
    """
    blocks = _blocks(x)
    largest = jnp.abs(blocks).max(-1)
    share = blocks / jnp.where(largest > 0, largest, 1.0)[..., None]
    return Quantized(_rows(_nearest(share, signed), x.shape).astype(jnp.uint8), largest)


def dequantize(x: Quantized, *, signed: bool) -> jax.Array:
    """Codes -> float32 array."""
    return _rows(_share(_blocks(x.codes), signed) * x.largest[..., None], x.codes.shape)


def scale_by_adam_8bit(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` whose moments of matrices are `Quantized`; arithmetic is float32.

    Vectors, and matrices of fewer than 4,096 numbers in a layer, keep theirs in float32 (bitsandbytes also holds long
    vectors in 8 bits). Trees are those of `jaxlean.tree`: what lies under `layers` has a leading dim of layers.
    """

    def init(params: tree.Tree) -> Adam8bitState:
        def zero(signed: bool) -> tree.Tree:
            def of(path: str, leaf: jax.Array) -> Quantized | jax.Array:
                dims = leaf.shape[1:] if path.startswith("layers.") else leaf.shape
                zeros = jnp.zeros(leaf.shape, jnp.float32)
                if len(dims) != 2 or math.prod(dims) < MIN_SIZE:
                    return zeros
                # not `quantize(zeros)`: XLA takes minutes to do it while it compiles
                like = jax.eval_shape(partial(quantize, signed=signed), zeros)
                return Quantized(jnp.full(leaf.shape, _zero(signed), jnp.uint8), jnp.zeros(like.largest.shape))

            return tree.map_with_path(of, params)

        return Adam8bitState(jnp.zeros((), jnp.int32), zero(signed=True), zero(signed=False))

    def update(grads: tree.Tree, state: Adam8bitState, params: Any = None) -> tuple[tree.Tree, Adam8bitState]:
        taken = optax.safe_increment(state.steps)
        correct1, correct2 = (1 - beta ** taken.astype(jnp.float32) for beta in (b1, b2))

        def adam(grad: jax.Array, mean: jax.Array, square: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            mean = b1 * mean + (1 - b1) * grad
            square = b2 * square + (1 - b2) * jnp.square(grad)
            return mean / correct1 / (jnp.sqrt(square / correct2) + eps), mean, square

        def adam_8bit(grad: jax.Array, mu: Quantized, nu: Quantized) -> tuple[jax.Array, Quantized, Quantized]:
            step, mean, square = adam(grad, dequantize(mu, signed=True), dequantize(nu, signed=False))
            return step, quantize(mean, signed=True), quantize(square, signed=False)

        leaves = tree.flatten(grads)
        steps, mus, nus = {}, {}, {}
        for path, mu, nu in ((path, _at(state.mu, path), _at(state.nu, path)) for path in leaves):
            rule = partial(_in_parts, adam_8bit) if isinstance(mu, Quantized) else adam
            steps[path], mus[path], nus[path] = rule(leaves[path].astype(jnp.float32), mu, nu)
        return tree.unflatten(steps), Adam8bitState(taken, tree.unflatten(mus), tree.unflatten(nus))

    return optax.GradientTransformation(init, update)


def _at(moments: tree.Tree, path: str) -> Any:
    for key in path.split("."):
        moments = moments[key]
    return moments


def _in_parts(rule: Callable[..., Any], *whole: Any) -> Any:
    """Apply a rule to one layer after the other, and of a large matrix to one part of its rows after the other.

    Otherwise both moments, and all that their codes are computed from, would stand in memory in float32 at once: more
    than 8 bits save. What is computed takes the place of what it was computed from.

    Args:
        whole: arrays and `Quantized` of one shape, [layers, rows, row] or [rows, row]; the rule gives back the same.
    """
    rows, row = whole[0].shape[-2:]
    layers, joined = whole[0].size // (rows * row), row % BLOCK != 0
    parts = next((n for n in range(1, 65) if rows * row <= n * PART and _divides(n, rows, row)), 1)
    halves = next((n for n in (2, 3, 5, 7) if _divides(n, rows // parts, row)), 1)
    # Blocks within rows: a part is every n-th row, so that on a mesh which splits the rows each device has its share of
    # every part. Joined rows: a part is rows that follow each other.
    part_axis = () if parts == 1 else (1,) if joined else (2,)
    axes = (0, *part_axis)

    def view(x: jax.Array) -> jax.Array:  # [layers, rows, n], cut at part_axis; of joined rows also [layers, blocks]
        if joined and x.shape[-2:] != (rows, row):
            return x.reshape(layers, *(parts for _ in part_axis), -1)
        cut = (rows,) if not part_axis else (parts, rows // parts) if joined else (rows // parts, parts)
        return x.reshape(layers, *cut, x.shape[-1])

    def at(turn: jax.Array, x: jax.Array) -> list[Any]:
        where = dict(zip(axes, (turn // parts, turn % parts), strict=False))
        return [where.get(axis, 0) for axis in range(x.ndim)]

    def take(turn: jax.Array, x: jax.Array) -> jax.Array:
        size = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
        taken = jax.lax.dynamic_slice(x, at(turn, x), size).squeeze(axes)
        return taken.reshape(halves, -1, *taken.shape[1:])

    def put(turn: jax.Array, x: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(x, jnp.expand_dims(new.reshape(-1, *new.shape[2:]), axes), at(turn, x))

    def one_turn(turn: jax.Array, held: Any) -> Any:
        # The inner loop, which XLA does not mix with what is around it, has read all before anything is overwritten:
        # else XLA would copy the whole at every turn.
        new = jax.lax.map(lambda half: rule(*half), jax.tree.map(partial(take, turn), held))
        return jax.tree.map(partial(put, turn), held, new)

    held = jax.lax.fori_loop(0, layers * parts, one_turn, jax.tree.map(view, whole))
    return jax.tree.map(lambda x, like: x.reshape(like.shape), held, whole)


def _divides(n: int, rows: int, row: int) -> bool:
    """Whether rows can be cut into n parts without cutting a block."""
    return rows % n == 0 and (row % BLOCK == 0 or rows * row % (n * BLOCK) == 0)


def _decades(signed: bool) -> list[tuple[int, float]]:
    """(number of cells, lower end) of each, from the lowest on."""
    return [(2**i if signed else 2 ** (i + 1), 10.0 ** (i - 7)) for i in range(7)]


def _zero(signed: bool) -> int:
    """The code of 0."""
    return 127 if signed else 0


def _nearest(share: jax.Array, signed: bool) -> jax.Array:
    """Shares in [-1, 1] (unsigned: [0, 1]) -> indices into the codebook, int32.

    By arithmetic, decade after decade: XLA makes one loop of it with what stands before and after, where a search in
    the codebook would write its every step to memory.
    """
    values = codebook(signed).astype(np.float64)
    zero = _zero(signed)
    between = (values[zero:-1] + values[zero + 1 :]) / 2  # above between[j] the nearest is j + 1 or more
    magnitude, first = jnp.abs(share), 1
    index = jnp.zeros(share.shape, jnp.int32)
    for cells, low in _decades(signed):
        cell = jnp.clip(jnp.floor((magnitude - low) * (cells / (9 * low))), 0, cells - 1).astype(jnp.int32)
        index = jnp.where(magnitude >= between[first - 1], first + cell, index)
        first += cells
    index = jnp.where(magnitude >= between[first - 1], first, index)
    if not signed:
        return jnp.where(share > 0, jnp.maximum(index, 1), 0)
    return zero + jnp.where(share < 0, -jnp.minimum(index, zero), index)


def _share(codes: jax.Array, signed: bool) -> jax.Array:
    """`codebook(signed)[codes]`, by arithmetic as well."""
    index = codes.astype(jnp.int32) - _zero(signed)
    magnitude, first = jnp.abs(index).astype(jnp.float32), 1
    share = jnp.zeros(codes.shape, jnp.float32)
    for cells, low in _decades(signed):
        share = jnp.where(magnitude >= first, low + (magnitude - (first - 0.5)) * (9 * low / cells), share)
        first += cells
    share = jnp.where(magnitude >= first, 1.0, share)
    return jnp.where(index < 0, -share, share)


def _blocks(x: jax.Array) -> jax.Array:
    """[..., n] -> [..., blocks, 256]; rows that are not whole blocks are joined, and if need be padded with zeros."""
    if x.shape[-1] % BLOCK:
        x = x.reshape(*x.shape[:-2], -1)
    missing = -x.shape[-1] % BLOCK
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return x.reshape(*x.shape[:-1], -1, BLOCK)


def _rows(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_blocks`."""
    *lead, num, size = blocks.shape
    row = shape[-1] if shape[-1] % BLOCK == 0 else math.prod(shape[-2:])
    return blocks.reshape(*lead, num * size)[..., :row].reshape(shape)
