"""The encoder of images: patches, pooling and classifying, precision, adapters, remat and meshes.

That it computes what transformers computes is tested with the golden files, in tests/hub/families.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.config import LoraSection, MeshSection
from jaxlean.errors import ModelError
from jaxlean.models.build import abstract
from jaxlean.models.config import ACTIVATIONS
from jaxlean.models.layout import layout_on
from jaxlean.models.linear import Dropout
from jaxlean.models.vision import Patches, VisionConfig
from jaxlean.xla.mesh import batch_sharding, make_mesh, place
from jaxlean.xla.remat import scan_layers

BASE = VisionConfig(
    hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, image_size=(12, 10),
    patch_size=(4, 5), norm="layer", norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, gated=False,
    activation="gelu", num_labels=5,
)  # fmt: skip
CLIP = replace(BASE, pre_norm=True, norm_of="pooled", patch_bias=False, classifies="patches", activation="quick_gelu")


def randomise(shapes, seed=0):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = 0.3 * rng.normal(size=leaf.shape) + (1.0 if path.endswith((".scale", "lora_scale")) else 0.0)
        return jnp.asarray(noise, jnp.float32)

    return tree.map_with_path(draw, shapes)


def build(config, dtype=jnp.float32, lora=False):
    """(graph, random parameters), with adapters beside all kernels of the layers."""
    graph, shapes = abstract(config, dtype=dtype)
    if lora:
        from jaxlean.adapt.lora import add, targets

        settings = LoraSection(r=2, lora_alpha=4)
        whole = jax.eval_shape(lambda p: add(p, targets(p, "all-linear"), settings, jax.random.key(0)), shapes)
        graph, shapes = abstract(config, whole, dtype=dtype)
    return graph, randomise(shapes)


def images(rows=2, config=BASE, seed=1):
    shape = (rows, *config.image_size, config.num_channels)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def loss_of(graph, params, pixels, dropout=None, scan=jax.lax.scan, layout=None):
    model = nnx.merge(graph, params)
    if layout is not None:
        model = model.lay_out(layout)
    logits = model(pixels, dropout=dropout, scan=scan)
    return -jax.nn.log_softmax(logits)[:, 1].mean()


@pytest.mark.parametrize("size", [(12, 10), (15, 11)])
def test_a_patch_is_a_step_of_a_convolution(size):
    """Also where the last pixels, to the right and at the bottom, make no whole patch."""
    config = replace(BASE, image_size=size)
    patches = Patches(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    patches.bias[...] = jnp.arange(16, dtype=jnp.float32)
    pixels = images(config=config)
    wanted = jax.lax.conv_general_dilated(
        pixels, patches.filters[...], (4, 5), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert config.grid == (3, 2)
    assert config.num_tokens == 7
    np.testing.assert_allclose(patches(pixels), wanted.reshape(2, 6, 16) + patches.bias[...], atol=1e-5)


@pytest.mark.parametrize("config", [BASE, CLIP])
def test_every_patch_sees_every_other(config):
    """Where nothing says in which order they stand, the order is nothing."""
    graph, params = build(config)
    pixels = images(1)
    top, bottom = pixels[:, :4], pixels[:, 4:8]
    swapped = jnp.concatenate([bottom, top, pixels[:, 8:]], axis=1)
    assert abs(loss_of(graph, params, swapped) - loss_of(graph, params, pixels)) > 1e-3
    params["positions"] = jnp.broadcast_to(params["positions"][:1], params["positions"].shape)
    np.testing.assert_allclose(loss_of(graph, params, swapped), loss_of(graph, params, pixels), atol=1e-5)


def test_pooled_is_the_class_token_normalised_once():
    for config in (BASE, CLIP):
        graph, params = build(config)
        model = nnx.merge(graph, params)
        pooled = np.asarray(model.pool(model.hidden(images())))
        scale, bias = np.asarray(params["norm"]["scale"]), np.asarray(params["norm"]["bias"])
        plain = (pooled - bias) / scale
        np.testing.assert_allclose(plain.mean(-1), 0, atol=1e-4)
        np.testing.assert_allclose(plain.std(-1), 1, atol=1e-3)


def test_a_pooler_is_a_product_and_an_activation():
    config = replace(BASE, num_labels=0, pooler="tanh", pooler_size=6)
    graph, params = build(config)
    model, dense = nnx.merge(graph, params), params["pooler"]
    hidden = model(images())
    assert hidden.shape == (2, 7, 16)
    np.testing.assert_allclose(model.pool(hidden), np.tanh(hidden[:, 0] @ dense["kernel"] + dense["bias"]), atol=1e-5)
    with pytest.raises(ModelError, match="no classifier"):
        model.classify(hidden)


@pytest.mark.parametrize("shape", [(2, 10, 12, 3), (2, 12, 10, 1), (12, 10, 3)])
def test_other_images_are_refused(shape):
    graph, params = build(BASE)
    with pytest.raises(ModelError, match="height 12, width 10, 3 channels"):
        nnx.merge(graph, params)(jnp.zeros(shape))


@pytest.mark.parametrize("config", [BASE, CLIP])
def test_bfloat16_is_near(config):
    graph, params = build(config)
    half, _ = build(config, jnp.bfloat16)
    wanted, got = nnx.merge(graph, params)(images()), nnx.merge(half, params)(images())
    assert got.dtype == jnp.float32
    assert nnx.merge(half, params).hidden(images()).dtype == jnp.bfloat16
    difference = np.abs(np.asarray(got - wanted)).max() / np.abs(np.asarray(wanted)).max()
    assert 0 < difference < 0.05


def test_adapters_change_what_is_said_and_drop_out():
    graph, params = build(BASE, lora=True)
    names = {path.rsplit(".", 1)[0] for path in tree.flatten(params) if path.endswith(".lora_a")}
    assert names == {
        f"layers.{name}"
        for name in ("attention.query", "attention.key", "attention.value", "attention.out", "mlp.up", "mlp.down")
    }
    found = [
        float(loss_of(graph, params, images(), Dropout(rate, jax.random.key(seed)) if rate else None))
        for rate, seed in ((0.0, 0), (0.5, 0), (0.5, 0), (0.5, 1))
    ]
    assert found[1] == found[2]
    assert len(set(found)) == 3


@pytest.mark.parametrize("policy", ["full", ["query", "up"]])
def test_remat_changes_no_gradient(policy):
    graph, params = build(CLIP, lora=True)
    grad = jax.jit(jax.grad(lambda p, scan: loss_of(graph, p, images(), scan=scan)), static_argnums=1)
    wanted, got = grad(params, jax.lax.scan), grad(params, scan_layers(policy, ACTIVATIONS))
    for path, leaf in tree.flatten(got).items():
        np.testing.assert_allclose(leaf, tree.flatten(wanted)[path], atol=1e-5, err_msg=path)


def test_on_eight_devices_it_is_the_same():
    graph, params = build(BASE, lora=True)
    pixels = images(8)
    value = jax.jit(jax.value_and_grad(lambda p, x: loss_of(graph, p, x)))
    loss, grads = value(params, pixels)
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    where = place(mesh)
    spread = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), params)
    layout = layout_on(mesh)
    there = jax.jit(jax.value_and_grad(lambda p, x: loss_of(graph, p, x, layout=layout)))
    other, others = there(spread, jax.device_put(pixels, batch_sharding(mesh)))
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    for path, leaf in tree.flatten(others).items():
        np.testing.assert_allclose(leaf, tree.flatten(grads)[path], atol=1e-5, err_msg=path)
