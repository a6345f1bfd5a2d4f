"""SparseGPT against the paper's formulas in float64, each inverse computed by itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.compress import sparsegpt
from jaxlean.compress.prune import Choice, prune_kernel, relative_error
from jaxlean.compress.walk import Inputs


def inputs_of(features, tokens, *, seed=0, dead=()):
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(tokens, features // 2 + 1)) @ random.normal(size=(features // 2 + 1, features))
    x = mixed + 0.3 * random.normal(size=(tokens, features))
    x[:, list(dead)] = 0
    gram = jnp.asarray(x.T @ x, jnp.float32)
    return x, Inputs(gram, jnp.abs(x).sum(0), jnp.abs(x).max(0), jnp.float32(tokens), x)


def by_the_paper(kernel, gram, *, block, sparsity=None, of=None, damping=0.01):
    """float64: equations 3 and 4, the inverse of the gram of the inputs from i on taken anew for each i."""
    kernel, rows = np.array(kernel, np.float64), len(kernel)
    damped = gram + damping * np.diag(gram).mean() * np.eye(rows)
    diagonal = np.asarray([np.linalg.inv(damped[i:, i:])[0, 0] for i in range(rows)])
    stays = np.ones(kernel.shape, bool)
    for i in range(rows):
        if of is None and i % block == 0:
            own = kernel[i : i + block] ** 2 / diagonal[i : i + block, None]
            gone = np.argsort(own.reshape(-1), kind="stable")[: round(sparsity * own.size)]
            stays[i : i + block].reshape(-1)[gone] = False
        elif of is not None and i % of[1] == 0:
            own = kernel[i : i + of[1]] ** 2 / diagonal[i : i + of[1], None]
            gone = np.argsort(own, axis=0, kind="stable")[: of[1] - of[0]]
            np.put_along_axis(stays[i : i + of[1]], gone, False, axis=0)
        inverse = np.linalg.inv(damped[i:, i:])
        error = np.where(stays[i], 0, kernel[i]) / inverse[0, 0]
        kernel[i:] -= inverse[:, :1] * error
        kernel[i, ~stays[i]] = 0
    return kernel


@pytest.mark.parametrize(
    ("rows", "how"),
    [(40, {"sparsity": 0.5}), (40, {"of": (2, 4)}), (40, {"sparsity": 0.7}), (32, {"of": (1, 4)})],
    ids=["half", "2 of 4", "blocks that do not fill up", "1 of 4"],
)
def test_it_is_the_papers_method(monkeypatch, rows, how):
    monkeypatch.setattr(sparsegpt, "BLOCK", 16)
    _, inputs = inputs_of(rows, 120)
    kernel = np.random.default_rng(1).normal(size=(rows, 7)).astype(np.float32)
    got = np.asarray(sparsegpt.solve(jnp.asarray(kernel), inputs.gram, **({"sparsity": 0.0} | how)))
    want = by_the_paper(kernel, np.asarray(inputs.gram, np.float64), block=16, **how)
    np.testing.assert_array_equal(got == 0, want == 0)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4 * np.abs(want).max())


def test_it_costs_less_than_wanda_and_that_less_than_magnitude():
    _, inputs = inputs_of(160, 600)
    random = np.random.default_rng(1)
    loud = jnp.asarray(random.uniform(0.05, 4, 160), jnp.float32)
    inputs = inputs._replace(gram=inputs.gram * loud[:, None] * loud)
    kernel = jnp.asarray(random.normal(size=(160, 24)), jnp.float32)
    for how in ({"sparsity": 0.5}, {"of": (2, 4)}):
        errors = [
            relative_error(kernel, prune_kernel(kernel, inputs, Choice(method, **how)), inputs.gram)
            for method in ("sparsegpt", "wanda", "magnitude")
        ]
        assert errors[0] < 0.8 * errors[1]
        assert errors[1] < 0.8 * errors[2]


def test_inputs_that_are_always_zero_and_too_few_tokens_have_an_inverse_by_damping():
    _, inputs = inputs_of(24, 10, dead=(3, 17))
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(24, 5)), jnp.float32)
    got = np.asarray(sparsegpt.solve(kernel, inputs.gram, sparsity=0.5))
    assert np.isfinite(got).all()
    assert (got[[3, 17]] == 0).all()
    assert (got == 0).sum() == 60
    assert np.asarray(sparsegpt.solve(kernel, jnp.zeros((24, 24)), sparsity=0.5)).tolist() == [[0.0] * 5] * 24
    whole = np.asarray(sparsegpt.solve(kernel, inputs_of(24, 99)[1].gram, sparsity=0.0))
    np.testing.assert_array_equal(whole, kernel)
