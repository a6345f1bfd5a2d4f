"""Scales moved between activations and weights: the model computes what it did, and what rounds badly rounds better."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.compress.smooth import Site, awq, divided, moved, shared, sites, smoothquant
from jaxlean.compress.walk import Inputs
from jaxlean.models.config import Kind, Latent
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.layer import Layer
from jaxlean.models.rope import Rope
from jaxlean.models.stack import put_together, take_apart

pytestmark = pytest.mark.slow

SHAPE = DecoderConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
)  # fmt: skip
LATENT = replace(SHAPE, num_kv_heads=4, rope=Rope(dim=4))
SHAPES = {
    "llama": SHAPE,
    "one head each": replace(SHAPE, num_kv_heads=4, qkv_bias=True),
    "gemma": replace(SHAPE, norm_offset=1.0, qk_norm="head", norm_at=("input", "output")),
    "fused": replace(SHAPE, fused_qkv="parts", fused_gate_up=True),
    "ungated layer norm": replace(SHAPE, norm="layer", norm_bias=True, gated=False, mlp_bias=True, activation="gelu"),
    "parallel": replace(SHAPE, parallel=True, shared_norm=True),
    "normalised sums": replace(SHAPE, norm_at=("sum",)),
    "latent": replace(LATENT, latent=Latent(rank=6, query_rank=None, rope_dim=4, value_dim=4)),
    "latent queries": replace(LATENT, latent=Latent(rank=6, query_rank=6, rope_dim=4, value_dim=4)),
}


def drawn(config, seed=0):
    """A decoder whose norms are not all ones."""
    model = config.build(dtype=jnp.float32, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(model)
    random = np.random.default_rng(seed)

    def change(path, x):
        away = 0.3 * random.normal(size=x.shape)
        return x + jnp.asarray(away, jnp.float32) if path.endswith((".scale", ".bias")) else 20 * x

    return graph, tree.map_with_path(change, nnx.to_pure_dict(state))


@pytest.mark.parametrize("name", SHAPES)
def test_a_model_computes_what_it_did(name):
    config = SHAPES[name]
    graph, params = drawn(config)
    layers = take_apart(params["layers"], config.all_kinds)
    random, num = np.random.default_rng(1), 0
    for number, layer in enumerate(layers):
        leaves = tree.flatten(layer)
        for site in sites(config, leaves):
            size = leaves[f"{site.readers[0]}.kernel"].shape[0]
            scale = shared(jnp.asarray(np.exp(random.normal(size=size)), jnp.float32), site, config)
            leaves, num = moved(leaves, site, scale, config), num + 1
        layers[number] = tree.unflatten(leaves)
    wanted = {"llama": 8, "one head each": 8, "gemma": 8, "fused": 4, "ungated layer norm": 6, "parallel": 6}
    assert num == (wanted | {"latent": 6, "latent queries": 6}).get(name, 4)
    tokens = jnp.asarray(random.integers(0, 32, (2, 9)), jnp.int32)
    changed = {**params, "layers": put_together(layers, config.all_kinds)}
    before, after = (nnx.merge(graph, p)(tokens) for p in (params, changed))
    np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-4 * float(jnp.abs(before).max()))
    assert any(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(changed), strict=True))


def given(x):
    size = np.abs(x)
    found = (x.T @ x, size.sum(0), size.max(0), np.asarray(float(len(x))), x)
    return Inputs(*(jnp.asarray(part, jnp.float32) for part in found))


def layer_and_inputs(config=SHAPE, *, seed=0, outlier=50.0, tokens=400):
    """A layer, and inputs of its linear layers of which each one's fourth feature is far larger than the others."""
    _, state = nnx.split(Layer(config, Kind(), dtype=jnp.float32, rngs=nnx.Rngs(seed)))
    params, random = nnx.to_pure_dict(state), np.random.default_rng(seed)
    inputs = {}
    for path, leaf in tree.flatten(params).items():
        if path.endswith(".kernel"):
            x = random.normal(size=(tokens, leaf.shape[0]))
            x[:, 3] *= outlier
            inputs[path.removesuffix(".kernel")] = given(x)
    for module in ("query", "key", "value"):
        inputs[f"attention.{module}"] = inputs["attention.query"]
    inputs["mlp.up"] = inputs["mlp.gate"]
    return params, inputs


def eight(x, axis):
    scale = jnp.abs(x).max(axis=axis, keepdims=True) / 127
    return jnp.round(x / scale) * scale


def rounded_product(x, kernel):
    return eight(x, -1) @ eight(kernel, 0)


def off(params, inputs, module):
    kernel = tree.flatten(params)[f"{module}.kernel"]
    wanted = inputs[module].sample @ kernel
    return float(jnp.linalg.norm(rounded_product(inputs[module].sample, kernel) - wanted) / jnp.linalg.norm(wanted))


@pytest.mark.parametrize("alpha", [0.5, None])
def test_smoothed_activations_round_better(alpha):
    params, inputs = layer_and_inputs()
    smooth, then = smoothquant(params, inputs, SHAPE, rounded_product, alpha=alpha)
    for module in ("attention.query", "mlp.gate", "mlp.down"):
        # what the layer computes with its new inputs is what it computed before
        old, new = (tree.flatten(p)[f"{module}.kernel"] for p in (params, smooth))
        np.testing.assert_allclose(then[module].sample @ new, inputs[module].sample @ old, rtol=1e-3, atol=1e-3)
        assert off(smooth, then, module) < 0.6 * off(params, inputs, module)


def test_an_alpha_is_the_papers_scale_but_for_a_factor():
    params, inputs = layer_and_inputs()
    smooth, _ = smoothquant(params, inputs, SHAPE, rounded_product, alpha=0.25)
    kernel, largest = params["mlp"]["down"]["kernel"], inputs["mlp.down"].largest
    wanted = largest**0.25 / jnp.abs(kernel).max(axis=1) ** 0.75
    got = smooth["mlp"]["down"]["kernel"][:, 0] / kernel[:, 0]
    np.testing.assert_allclose(got / wanted, jnp.full(24, (got / wanted)[0]), rtol=1e-4)


def test_the_search_is_no_worse_than_leaving_it():
    params, inputs = layer_and_inputs(outlier=1.0)
    smooth, then = smoothquant(params, inputs, SHAPE, rounded_product)
    for module in ("attention.query", "attention.out", "mlp.gate", "mlp.down"):
        assert off(smooth, then, module) <= 1.02 * off(params, inputs, module)


def test_weights_that_meet_large_activations_are_rounded_more_finely():
    params, inputs = layer_and_inputs()

    def four(kernel, gram):
        scale = jnp.abs(kernel).max(axis=0, keepdims=True) / 7
        return jnp.round(kernel / scale) * scale

    scaled, then = awq(params, inputs, SHAPE, four)

    def spoiled(params, inputs):
        kernel, gram = params["mlp"]["down"]["kernel"], inputs["mlp.down"].gram
        away = four(kernel, gram) - kernel
        return float(jnp.einsum("io,ij,jo->", away, gram, away))

    assert spoiled(scaled, then) < 0.3 * spoiled(params, inputs)


def test_heads_that_share_a_value_share_its_scale():
    site = Site(("attention.out",), "attention.value", 8)
    scale = shared(jnp.arange(1.0, 33.0), site, SHAPE)
    # heads 0 and 1 read the first value head, 2 and 3 the second
    np.testing.assert_array_equal(scale, np.concatenate([np.tile(np.arange(9, 17), 2), np.tile(np.arange(25, 33), 2)]))


def test_what_is_given_is_divided():
    x = np.random.default_rng(0).normal(size=(50, 4))
    scale = jnp.asarray([0.5, 1.0, 2.0, 4.0])
    got, want = divided(given(x), scale), given(x / np.asarray(scale))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_what_norms_store_fits_into_bfloat16():
    params, inputs = layer_and_inputs()
    smooth, _ = smoothquant(params, inputs, SHAPE, rounded_product, alpha=0.5)
    for norm in ("attention_norm", "mlp_norm"):
        stored = smooth[norm]["scale"]
        # but for the last bit of float32, which the file does not hold
        np.testing.assert_allclose(stored, stored.astype(jnp.bfloat16).astype(jnp.float32), rtol=2e-7)
