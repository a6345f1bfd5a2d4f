"""GPTQ (arXiv 2210.17323): a matrix rounded input by input, what each rounding spoils made up for by those to come.

Of weights W [in, out] and inputs X, what counts is `|X W - X Q|`, whose second derivative along each column is the gram
matrix H = X^T X. Rounding input i by an error e moves the best values of all later inputs by e times row i of U, where
U^T U is the inverse of H, over U[i, i]. Inputs go in the order of H's diagonal, the largest first, so that the most
remain to make up for those that matter most; the scales stay those of the groups as they lie in the matrix.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxlean.codec import spread

_BLOCK = 128  # inputs whose corrections reach all behind them at once
_DAMPING = 0.01  # share of the mean diagonal that is added to it


@partial(jax.jit, static_argnums=3)
def gptq(kernel: jax.Array, gram: jax.Array, scales: jax.Array, bits: int) -> jax.Array:
    """Round a matrix.

    Args:
        kernel: [in, out].
        gram: float32 [in, in], the sum of x x^T over calibration tokens.
        scales: float32 [groups, out], of the steps between numbers (`codec.group_scales`).
        bits: of a number.

    Returns:
        int8 [in, out], -2^(bits - 1) to 2^(bits - 1) - 1.
    """
    rows, half = kernel.shape[0], 2 ** (bits - 1)
    order = jnp.argsort(-jnp.diagonal(gram))
    steps = spread(jnp.where(scales == 0, 1.0, scales), rows)[order]
    factor = _factor(gram[order][:, order])
    padding = -rows % _BLOCK
    weights = jnp.pad(kernel.astype(jnp.float32)[order], ((0, padding), (0, 0)))
    padded = jnp.pad(steps, ((0, padding), (0, 0)), constant_values=1.0)
    factor = jnp.pad(factor, (0, padding)) + jnp.diag(jnp.where(jnp.arange(rows + padding) < rows, 0.0, 1.0))

    def nearest(values: jax.Array, step: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(values / step), -half, half - 1)

    def block(number: jax.Array, weights: jax.Array) -> jax.Array:
        first = number * _BLOCK
        own = jax.lax.dynamic_slice_in_dim(weights, first, _BLOCK)
        step = jax.lax.dynamic_slice_in_dim(padded, first, _BLOCK)
        rows_of_factor = jax.lax.dynamic_slice_in_dim(factor, first, _BLOCK)
        inner = jax.lax.dynamic_slice_in_dim(rows_of_factor, first, _BLOCK, axis=1)

        def one(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            own, errors = carry
            error = (own[i] - nearest(own[i], step[i]) * step[i]) / inner[i, i]
            later = jnp.where(jnp.arange(_BLOCK) > i, inner[i], 0.0)
            return own - later[:, None] * error, errors.at[i].set(error)

        own, errors = jax.lax.fori_loop(0, _BLOCK, one, (own, jnp.zeros_like(own)))
        behind = jnp.where(jnp.arange(weights.shape[0]) >= first + _BLOCK, rows_of_factor, 0.0)
        weights = weights - jnp.einsum("bi,bo->io", behind, errors, precision="highest")
        return jax.lax.dynamic_update_slice_in_dim(weights, own, first, axis=0)

    moved = jax.lax.fori_loop(0, weights.shape[0] // _BLOCK, block, weights)[:rows]
    return nearest(moved, steps).astype(jnp.int8)[jnp.argsort(order)]


def _factor(gram: jax.Array) -> jax.Array:
    """[in, in], upper: U of the damped gram's inverse, U^T U."""
    diagonal = jnp.diagonal(gram)
    # an input that is always zero may be rounded as it likes
    damping = _DAMPING * jnp.mean(diagonal) + jnp.where(diagonal == 0, 1.0, 0.0)
    # U is the inverse of the lower factor of the matrix read backwards, read backwards: no inverse is formed
    lower = jnp.linalg.cholesky((gram + jnp.diag(damping))[::-1, ::-1])
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)[::-1, ::-1]
