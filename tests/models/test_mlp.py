"""MLPs against their formula in float64, by activations written out."""

from dataclasses import replace
from math import erf

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models.config import LayersConfig
from jaxlean.models.mlp import MLP

BASE = LayersConfig(
    hidden_size=6, intermediate_size=10, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=6, initializer_range=0.7
)
FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))),
}


def build(config):
    mlp = MLP(config, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, module in nnx.iter_modules(mlp):
        if getattr(module, "bias", None) is not None:
            module.bias[...] = jnp.asarray(rng.normal(size=module.bias.shape), jnp.float32)
    return mlp


def linear(layer, x):
    y = x @ np.asarray(layer.kernel[...], np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias[...], np.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", FORMULAS)
@pytest.mark.parametrize("form", ["gated", "fused", "plain"])
def test_it_is_the_formula(form, activation, bias):
    config = replace(BASE, activation=activation, mlp_bias=bias, gated=form != "plain", fused_gate_up=form == "fused")
    mlp, x = build(config), np.random.default_rng(1).normal(size=(2, 3, 6))
    act = FORMULAS[activation]
    if form == "gated":
        inner = act(linear(mlp.gate, x)) * linear(mlp.up, x)
    elif form == "fused":
        both = linear(mlp.gate_up, x)
        inner = act(both[..., :10]) * both[..., 10:]
    else:
        inner = act(linear(mlp.up, x))
    got = mlp(jnp.asarray(x, jnp.float32), None)
    np.testing.assert_allclose(got, linear(mlp.down, inner), rtol=2e-5, atol=2e-5)


def test_a_width_of_its_own():
    mlp = MLP(BASE, width=4, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    assert mlp.gate.kernel.shape == mlp.up.kernel.shape == (6, 4)
    assert mlp.down.kernel.shape == (4, 6)
