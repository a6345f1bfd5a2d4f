"""Latent attention against a loop over heads in float64; and how little of a token is cached."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.models.attention import Slots
from jaxlean.models.config import Kind, Latent
from jaxlean.models.decoder import Cache, DecoderConfig
from jaxlean.models.latent_attention import LatentAttention
from jaxlean.models.rope import Rope

LENGTH, HIDDEN, HEADS, PLAIN, TURNING, VALUE, RANK = 6, 16, 3, 4, 2, 5, 7


def config(query_rank):
    return DecoderConfig(
        vocab_size=8, hidden_size=HIDDEN, intermediate_size=8, num_layers=2, num_heads=HEADS, num_kv_heads=HEADS,
        head_dim=PLAIN + TURNING, rope=Rope(dim=TURNING), attention_scale=0.6,
        latent=Latent(rank=RANK, query_rank=query_rank, rope_dim=TURNING, value_dim=VALUE, bias=True), out_bias=True,
    )  # fmt: skip


def normed(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def turned(x):
    """[length, 2], by as many radians as the position."""
    cos, sin = np.cos(np.arange(len(x))), np.sin(np.arange(len(x)))
    return np.stack([x[:, 0] * cos - x[:, 1] * sin, x[:, 1] * cos + x[:, 0] * sin], -1)


def by_hand(p, x, query_rank):
    query = x @ p["query.kernel"] if query_rank is None else None
    if query is None:
        query = normed(x @ p["query_a.kernel"] + p["query_a.bias"], p["query_norm.scale"]) @ p["query_b.kernel"]
    narrow = x @ p["key_value_a.kernel"] + p["key_value_a.bias"]
    shared = turned(narrow[:, RANK:])
    expanded = normed(narrow[:, :RANK], p["key_value_norm.scale"]) @ p["key_value_b.kernel"]
    heads = []
    for head in range(HEADS):
        q = query[:, head * (PLAIN + TURNING) : (head + 1) * (PLAIN + TURNING)]
        q = np.concatenate([q[:, :PLAIN], turned(q[:, PLAIN:])], -1)
        own = expanded[:, head * (PLAIN + VALUE) : (head + 1) * (PLAIN + VALUE)]
        scores = 0.6 * q @ np.concatenate([own[:, :PLAIN], shared], -1).T
        scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ own[:, PLAIN:])
    return np.concatenate(heads, -1) @ p["out.kernel"] + p["out.bias"]


@pytest.mark.parametrize("backend", ["plain", "block"])
@pytest.mark.parametrize("query_rank", [None, 4])
def test_it_is_a_loop_over_heads(query_rank, backend):
    shape = config(query_rank)
    module = nnx.eval_shape(lambda: LatentAttention(shape, Kind(), dtype=jnp.float32, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    rng = np.random.default_rng(0)
    params = tree.map_with_path(lambda path, x: 0.5 * rng.normal(size=x.shape), nnx.to_pure_dict(state))
    x = rng.normal(size=(1, LENGTH, HIDDEN))
    merged = nnx.merge(graph, tree.map_with_path(lambda path, leaf: jnp.asarray(leaf, jnp.float32), params))
    merged.backend = backend
    steps, segments = jnp.arange(LENGTH), jnp.ones((1, LENGTH), jnp.int32)
    got, _ = merged(
        jnp.asarray(x, jnp.float32), shape.angles(steps[None]), Slots(steps, steps, segments, segments), None, None,
        jnp.uint32(0),
    )  # fmt: skip
    np.testing.assert_allclose(got[0], by_hand(tree.flatten(params), x[0], query_rank), atol=1e-5)


def test_what_is_cached_is_the_latent():
    (latents, keys), *_ = Cache.empty(config(None), 2, 10, jnp.float32).layers
    assert latents.values.shape == (2, 2, 1, 10, RANK)
    assert keys.values.shape == (2, 2, 1, 10, TURNING)
