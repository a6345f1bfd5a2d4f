"""Activations against their formulas in float64, written out."""

from math import erf

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.models.activation import ACTIVATION_FUNCTIONS

FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", ACTIVATION_FUNCTIONS)
def test_it_is_the_formula_of_its_name(name):
    x = np.linspace(-8, 8, 257)
    got = ACTIVATION_FUNCTIONS[name](jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, FORMULAS[name](x), rtol=2e-6, atol=2e-6)
