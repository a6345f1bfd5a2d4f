"""GPTQ against the paper's algorithm in float64, one input after another, and against rounding to the nearest."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import codec
from jaxlean.compress.gptq import gptq


def problem(rows, columns, *, tokens=2000, seed=0, dead=()):
    """A matrix, and the gram of inputs of which some are much larger than others, and all hang together."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(tokens, rows)) @ (np.eye(rows) + 0.3 * random.normal(size=(rows, rows)))
    inputs *= np.exp(random.normal(size=rows))
    inputs[:, list(dead)] = 0
    return 0.05 * random.normal(size=(rows, columns)), inputs.T @ inputs


def slow(kernel, gram, steps, bits):
    """Algorithm 1 of the paper without its blocks, in float64: the inverse Hessian, one row eliminated at a time."""
    half = 2 ** (bits - 1)
    weights, rows = kernel.copy(), len(kernel)
    hessian = gram + np.diag(0.01 * gram.diagonal().mean() + (gram.diagonal() == 0))
    left, out = list(np.argsort(-gram.diagonal(), kind="stable")), np.zeros_like(kernel)
    for i in list(left):
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        out[i] = np.clip(np.round(weights[i] / steps[i]), -half, half - 1)
        error = (weights[i] - out[i] * steps[i]) / inverse[0, 0]
        weights[left] -= np.outer(inverse[0], error)
        left.remove(i)
    assert rows == len(out)
    return out


def spoiled(kernel, gram, values, steps):
    off = values * steps - kernel
    return np.einsum("io,ij,jo->", off, gram, off) / np.einsum("io,ij,jo->", kernel, gram, kernel)


@pytest.mark.parametrize(("rows", "bits", "group"), [(48, 4, 16), (150, 4, None), (150, 8, 50)])
def test_it_is_the_papers_algorithm(rows, bits, group):
    kernel, gram = problem(rows, 7, dead=[3])
    scales = codec.group_scales(jnp.asarray(kernel, jnp.float32), bits, group)
    steps = np.repeat(np.asarray(scales, np.float64), rows // scales.shape[0], axis=0)
    got = np.asarray(gptq(jnp.asarray(kernel, jnp.float32), jnp.asarray(gram, jnp.float32), scales, bits))
    want = slow(kernel, gram, steps, bits)
    # float32 turns a few that lie between two numbers, and what comes after them
    assert (got != want).mean() < 0.01
    assert spoiled(kernel, gram, got, steps) == pytest.approx(spoiled(kernel, gram, want, steps), rel=0.02)
    nearest = np.clip(np.round(kernel / steps), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert spoiled(kernel, gram, got, steps) < 0.7 * spoiled(kernel, gram, nearest, steps)


def test_with_inputs_that_have_nothing_to_do_with_each_other_it_is_the_nearest():
    kernel, _ = problem(130, 5)
    scales = codec.group_scales(jnp.asarray(kernel, jnp.float32), 4, None)
    wide = jnp.asarray(kernel, jnp.float32)
    got = gptq(wide, jnp.diag(jnp.linspace(1.0, 9.0, 130)), scales, 4)
    np.testing.assert_array_equal(got, codec.round_to_groups(wide, scales, 4))
