"""SparseGPT (arXiv 2301.00774): a matrix with zeros, whose other numbers make up for what is gone.

The inputs of a matrix are gone through in order. A weight w of input i that becomes zero costs w^2 / [H^-1]_ii in the
output's squared error (optimal brain surgeon), where H, the gram of the inputs, is that of the inputs from i on; the
least that it costs is reached by adding -w / [H^-1]_ii * H^-1_i,: to the weights of the later ones. All these inverses
stand in one matrix: the rows of the upper triangular U with H^-1 = U^T U (section 3.3 there, and GPTQ, arXiv
2210.17323). Which weights become zero is decided for blocks of inputs at a time, or, of n of m, for m.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxlean.ranks import smallest

BLOCK = 128  # inputs among which it is decided at a time


def solve(
    kernel: jax.Array, gram: jax.Array, *, sparsity: float, of: tuple[int, int] | None = None, damping: float = 0.01
) -> jax.Array:
    """The kernel with zeros.

    Args:
        kernel: [in, out].
        gram: float32 [in, in], the sum of x x^T over the inputs.
        sparsity: share of each block's weights that goes; unused where `of` is given.
        of: (n, m): of every m inputs of an output n stay; m divides the inputs.
        damping: of the mean of the gram's diagonal, so much is added to it: with it there always is an inverse.

    Returns:
        [in, out] in the kernel's dtype; not finite where the gram was too far from having an inverse.
    """
    rows, columns = kernel.shape
    assert of is None or rows % of[1] == 0, f"{of[1]} divides the {rows} inputs"
    block = min(BLOCK if of is None else max(BLOCK // of[1], 1) * of[1], rows)
    starts = range(0, rows, block)
    gone = [round(sparsity * columns * (min(start + block, rows) - start)) for start in starts]
    return _solve(kernel, gram, np.asarray(gone, np.int32), damping, of=of, block=block)


@partial(jax.jit, static_argnames=("of", "block"))
def _solve(
    kernel: jax.Array, gram: jax.Array, gone: jax.Array, damping: jax.Array, *, of: tuple[int, int] | None, block: int
) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # the inverse of a gram is no place for TF32
        return _solved(kernel, gram, gone, damping, of, block)


def _solved(
    kernel: jax.Array, gram: jax.Array, gone: jax.Array, damping: jax.Array, of: tuple[int, int] | None, block: int
) -> jax.Array:
    rows, columns = kernel.shape
    padding = gone.shape[0] * block - rows
    dead = jnp.diagonal(gram) <= 0  # what is always zero is heard by nobody
    weights = jnp.pad(jnp.where(dead[:, None], 0.0, kernel.astype(jnp.float32)), ((0, padding), (0, 0)))
    factor = jnp.pad(inverse_factor(gram, damping), ((0, padding), (0, padding)))
    factor = factor + jnp.diag((jnp.arange(rows + padding) >= rows).astype(jnp.float32))

    def one_block(number: jax.Array, weights: jax.Array) -> jax.Array:
        start = number * block
        own = jax.lax.dynamic_slice(weights, (start, 0), (block, columns))
        along = jax.lax.dynamic_slice(factor, (start, 0), (block, rows + padding))
        near = jax.lax.dynamic_slice(along, (0, start), (block, block))
        size = jnp.diagonal(near)[:, None]
        if of is None:
            cost = jnp.where((start + jnp.arange(block) < rows)[:, None], jnp.square(own / size), jnp.inf)
            goes = smallest(cost.reshape(-1), gone[number]).reshape(cost.shape)
        else:
            goes = jnp.zeros(own.shape, bool)

        def one_input(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            own, goes, errors = state
            if of is not None:
                goes = jax.lax.cond(i % of[1] == 0, partial(_next_of, of, i, own, size), lambda goes: goes, goes)
            stays = jnp.where(goes[i], 0.0, own[i])
            error = (own[i] - stays) / size[i]
            own = (own - near[i][:, None] * error).at[i].set(stays)
            return own, goes, errors.at[i].set(error)

        own, _, errors = jax.lax.fori_loop(0, block, one_input, (own, goes, jnp.zeros_like(own)))
        later = jnp.where(jnp.arange(rows + padding) >= start + block, along, 0.0)
        weights = weights - later.T @ errors
        return jax.lax.dynamic_update_slice(weights, own, (start, 0))

    return jax.lax.fori_loop(0, gone.shape[0], one_block, weights)[:rows].astype(kernel.dtype)


def _next_of(of: tuple[int, int], i: jax.Array, own: jax.Array, size: jax.Array, goes: jax.Array) -> jax.Array:
    """`goes` with what is decided about the m inputs from i on."""
    n, m = of
    cost = jnp.square(jax.lax.dynamic_slice_in_dim(own, i, m) / jax.lax.dynamic_slice_in_dim(size, i, m))
    rank = jnp.argsort(jnp.argsort(cost, axis=0), axis=0)
    return jax.lax.dynamic_update_slice_in_dim(goes, rank < m - n, i, 0)


def inverse_factor(gram: jax.Array, damping: jax.Array | float) -> jax.Array:
    """The upper triangular U with U^T U = (gram + damping * mean of its diagonal)^-1, float32 [in, in].

    An input that was always zero has the mean for its square.
    """
    diagonal = jnp.diagonal(gram)
    mean = jnp.where(diagonal.mean() > 0, diagonal.mean(), 1.0)
    damped = gram + jnp.diag(jnp.where(diagonal > 0, 0.0, mean) + damping * mean)
    # of the matrix turned around the lower factor is the upper one, R R^T = H, and its inverse is U
    upper = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(upper, jnp.eye(len(gram), dtype=gram.dtype), lower=False)
