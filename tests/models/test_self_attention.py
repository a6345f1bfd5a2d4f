"""A layer's attention, each setting against what it means."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.models.attention import Slots
from jaxlean.models.config import Kind, LayersConfig
from jaxlean.models.rope import Rope
from jaxlean.models.self_attention import Attention

HEADS, KV, DIM, HIDDEN, LENGTH = 4, 2, 6, 10, 7
BASE = LayersConfig(
    hidden_size=HIDDEN, intermediate_size=12, num_layers=1, num_heads=HEADS, num_kv_heads=KV, head_dim=DIM,
    initializer_range=0.5,
)  # fmt: skip


def build(config, kind=Kind(), seed=0):  # noqa: B008 (frozen)
    module = Attention(config, kind, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    for _, part in nnx.iter_modules(module):
        for name in ("scale", "bias"):
            if getattr(part, name, None) is not None:
                leaf = getattr(part, name)
                leaf[...] = jnp.asarray(1 + 0.4 * rng.normal(size=leaf.shape), jnp.float32)
    if module.sinks is not None:
        module.sinks[...] = jnp.asarray(rng.normal(size=HEADS), jnp.float32)
    return module


def run(module, x, number=0):
    steps, ones = jnp.arange(LENGTH), jnp.ones((2, LENGTH), jnp.int32)
    angles = module.config.angles(jnp.broadcast_to(steps, (2, LENGTH)))
    return module(x, angles, Slots(steps, steps, ones, ones), None, None, jnp.uint32(number))[0]


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(9).normal(size=(2, LENGTH, HIDDEN)), jnp.float32)


def weight(layer):
    return np.asarray(layer.kernel[...], np.float64)


def turn(y, rope):
    """Each pair of features of [batch, length, heads, dim] turned by position / theta^(2i / dim), in float64."""
    dim = rope.dim or DIM
    out = y.copy()
    for i in range(dim // 2):
        angle = np.arange(LENGTH) * rope.rope_theta ** (-2 * i / dim)
        cos, sin = (f(angle)[None, :, None] for f in (np.cos, np.sin))
        one, other = (2 * i, 2 * i + 1) if rope.interleaved else (i, i + dim // 2)
        out[..., one] = y[..., one] * cos - y[..., other] * sin
        out[..., other] = y[..., other] * cos + y[..., one] * sin
    return out


def normed(y, scale, eps, axes):
    return y / np.sqrt(np.mean(y**2, axis=axes, keepdims=True) + eps) * scale


def reference(module, x, number=0):
    config, kind = module.config, module.kind
    x = np.asarray(x, np.float64)

    def linear(layer, y):
        out = y @ weight(layer)
        return out if layer.bias is None else out + np.asarray(layer.bias[...], np.float64)

    if config.fused_qkv == "parts":
        q, k, v = np.split(linear(module.qkv, x), [HEADS * DIM, (HEADS + KV) * DIM], axis=-1)
    elif config.fused_qkv == "heads":
        by_head = linear(module.qkv, x).reshape(2, LENGTH, HEADS, 3, DIM)
        q, k, v = (by_head[..., i, :].reshape(2, LENGTH, -1) for i in range(3))
    else:
        q, k, v = linear(module.query, x), linear(module.key, x), linear(module.value, x)
    if config.qk_norm == "all":
        q = normed(q, np.asarray(module.query_norm.scale[...]), config.norm_eps, -1)
        k = normed(k, np.asarray(module.key_norm.scale[...]), config.norm_eps, -1)
    q, k, v = (y.reshape(2, LENGTH, -1, DIM) for y in (q, k, v))
    if config.qk_norm in ("head", "heads"):
        q = normed(q, np.asarray(module.query_norm.scale[...]), config.norm_eps, -1)
        k = normed(k, np.asarray(module.key_norm.scale[...]), config.norm_eps, -1)
    if kind.rope is not None:
        q, k = turn(q, getattr(config, kind.rope)), turn(k, getattr(config, kind.rope))
    k, v = (np.repeat(y, HEADS // y.shape[2], axis=2) for y in (k, v))
    scale = DIM**-0.5 if config.attention_scale is None else config.attention_scale
    scores = np.einsum("bthd,bshd->bhts", q, k) * scale
    if config.attention_scale_by_layer:
        scores /= number + 1
    if config.attention_softcap is not None:
        scores = config.attention_softcap * np.tanh(scores / config.attention_softcap)
    distance = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None]
    near = distance >= 0 if config.causal else np.ones_like(distance, bool)
    if kind.window is not None:
        near &= np.abs(distance) < kind.window
    weights = np.exp(np.where(near, scores, -np.inf))
    total = weights.sum(-1, keepdims=True)
    if module.sinks is not None:
        total = total + np.exp(np.asarray(module.sinks[...], np.float64))[None, :, None, None]
    context = np.einsum("bhts,bshd->bthd", weights / total, v).reshape(2, LENGTH, -1)
    return linear(module.out, context)


SETTINGS = {
    "plain": {},
    "biases": {"qkv_bias": True, "out_bias": True},
    "fused by part": {"fused_qkv": "parts", "qkv_bias": True},
    "fused by head": {"fused_qkv": "heads", "num_kv_heads": HEADS},
    "each head normed alike": {"qk_norm": "head"},
    "each head normed by itself": {"qk_norm": "heads"},
    "all heads normed together": {"qk_norm": "all"},
    "a scale": {"attention_scale": 0.9},
    "a scale by layer": {"attention_scale_by_layer": True},
    "a soft cap": {"attention_softcap": 0.7},
    "sinks": {"attention_sinks": True},
    "both sides": {"causal": False},
    "a part turned": {"rope": Rope(dim=4)},
    "neighbours turned": {"rope": Rope(interleaved=True)},
    "a part turned in neighbours": {"rope": Rope(dim=2, interleaved=True, rope_theta=50.0)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_it_is_the_formula(settings, x):
    module = build(replace(BASE, **settings))
    np.testing.assert_allclose(run(module, x, 2), reference(module, x, 2), atol=2e-5)
    if settings:  # and the setting shows
        plain = build(replace(BASE, num_kv_heads=settings.get("num_kv_heads", KV)))
        assert np.abs(run(module, x, 2) - run(plain, x, 2)).max() > 1e-2


@pytest.mark.parametrize(
    "kind", [Kind(window=3), Kind(rope=None), Kind(rope="local_rope", window=2)], ids=["window", "no rope", "local"]
)
@pytest.mark.parametrize("causal", [True, False])
def test_a_layer_of_its_kind(kind, causal, x):
    module = build(replace(BASE, local_rope=Rope(rope_theta=20.0), causal=causal, kinds=(kind,)), kind)
    np.testing.assert_allclose(run(module, x), reference(module, x), atol=2e-5)
