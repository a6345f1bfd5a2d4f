"""Where a layer normalises, and how its branches follow each other: against each placement written out."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models.attention import Slots
from jaxlean.models.config import Kind, LayersConfig
from jaxlean.models.layer import Layer

BASE = LayersConfig(
    hidden_size=8, intermediate_size=12, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, initializer_range=0.4
)
# name -> (settings, the layer by its branches a(ttention) and m(lp) and its norms)
PLACES = {
    "before (Llama)": (
        {},
        lambda x, a, m, n: (h := x + a(n("attention_norm")(x))) + m(n("mlp_norm")(h)),
    ),
    "before and after (Gemma 2)": (
        {"norm_at": ("input", "output")},
        lambda x, a, m, n: (
            (h := x + n("attention_out_norm")(a(n("attention_norm")(x)))) + n("mlp_out_norm")(m(n("mlp_norm")(h)))
        ),
    ),
    "after each branch (OLMo 2)": (
        {"norm_at": ("output",)},
        lambda x, a, m, n: (h := x + n("attention_out_norm")(a(x))) + n("mlp_out_norm")(m(h)),
    ),
    "of the sum (BERT)": (
        {"norm_at": ("sum",)},
        lambda x, a, m, n: n("mlp_sum_norm")((h := n("attention_sum_norm")(x + a(x))) + m(h)),
    ),
    "side by side (GPT-NeoX)": (
        {"parallel": True},
        lambda x, a, m, n: x + a(n("attention_norm")(x)) + m(n("mlp_norm")(x)),
    ),
    "side by side behind one norm (Cohere)": (
        {"parallel": True, "shared_norm": True},
        lambda x, a, m, n: x + a(n("attention_norm")(x)) + m(n("attention_norm")(x)),
    ),
    "branches scaled (Granite)": (
        {"residual_multiplier": 0.3},
        lambda x, a, m, n: (h := x + 0.3 * a(n("attention_norm")(x))) + 0.3 * m(n("mlp_norm")(h)),
    ),
}


def build(config, kind=Kind()):  # noqa: B008 (frozen)
    layer = Layer(config, kind, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for path, module in nnx.iter_modules(layer):
        if path and "norm" in str(path[-1]):
            module.scale[...] = jnp.asarray(1 + 0.5 * rng.normal(size=module.scale.shape), jnp.float32)
    steps = jnp.arange(5)
    segments = jnp.ones((2, 5), jnp.int32)
    beside = (config.angles(jnp.broadcast_to(steps, (2, 5))), Slots(steps, steps, segments, segments), None, None)
    return layer, beside, jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(("settings", "formula"), PLACES.values(), ids=PLACES)
def test_placement(settings, formula, norm):
    layer, beside, x = build(replace(BASE, norm=norm, **settings))
    number = jnp.uint32(0)
    got = layer(x, *beside, number)[0]

    def attend(y):
        return layer.attention(y, *beside, number)[0]

    def inner(y):
        found = layer.mlp(y, None)
        return found[0] if isinstance(found, tuple) else found

    want = formula(x, attend, inner, lambda name: getattr(layer, name))
    np.testing.assert_allclose(got, want, atol=2e-6)
    # every norm that is there is used, and none is there in vain
    there = {name for name in vars(layer) if name.endswith("_norm") and getattr(layer, name) is not None}
    used = set()
    formula(x, attend, inner, lambda name: used.add(name) or getattr(layer, name))
    assert there == used


def test_a_kind_without_the_first_norm():
    layer, beside, x = build(BASE, Kind(attention_norm=False))
    assert layer.attention_norm is None
    h = x + layer.attention(x, *beside, jnp.uint32(0))[0]
    found = layer.mlp(layer.mlp_norm(h), None)
    want = h + (found[0] if isinstance(found, tuple) else found)
    np.testing.assert_allclose(layer(x, *beside, jnp.uint32(0))[0], want, atol=2e-6)
