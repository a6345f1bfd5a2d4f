"""Recomputing activations changes memory and work, never a gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean.errors import ConfigError
from jaxlean.models.decoder import ACTIVATIONS, Decoder, DecoderConfig
from jaxlean.xla.remat import remat

CONFIG = DecoderConfig(
    vocab_size=16, hidden_size=16, intermediate_size=48, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=8,
    initializer_range=0.3,
)  # fmt: skip
POLICIES = ["none", "full", "dots", "dots_no_batch", ["query", "key", "value", "gate", "up"], []]


@pytest.fixture(scope="module")
def results():
    """policy -> (loss and gradients, temp bytes, flops) of the compiled gradient."""
    with jax.numpy_dtype_promotion("strict"):
        graph, params = nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))
        params = nnx.to_pure_dict(params)
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 64)), jnp.int32)
        found = []
        for policy in POLICIES:
            wrap = remat(policy, ACTIVATIONS)

            def loss(params, wrap=wrap):
                return jnp.square(nnx.merge(graph, params)(tokens, wrap=wrap)).mean()

            compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
            memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
            found.append((compiled(params), memory.temp_size_in_bytes, cost["flops"]))
        return dict(zip(map(str, POLICIES), found, strict=True))


@pytest.mark.parametrize("policy", POLICIES[1:], ids=str)
def test_gradients_are_the_same(results, policy):
    want = results["none"][0]
    for got, plain in zip(jax.tree.leaves(results[str(policy)][0]), jax.tree.leaves(want), strict=True):
        assert np.abs(plain).max() > 1e-3  # something to be the same as
        np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-5)


def test_each_policy_keeps_less_and_computes_more_than_the_one_before(results):
    names = str(POLICIES[4])
    memory = {policy: found[1] for policy, found in results.items()}
    work = {policy: found[2] for policy, found in results.items()}
    assert memory["full"] < memory["dots_no_batch"] < memory["dots"] < memory["none"]
    assert memory["full"] < memory[names] < memory["none"]
    # A body is counted once: the ratios are a layer's. `dots` computes no product again, `full` all of them.
    assert work["none"] <= work["dots"] < work["dots_no_batch"] < work["full"]
    assert work["dots"] < work[names] < work["full"]
    assert results["[]"][1:] == results["full"][1:]  # to keep none by name is to keep none


def test_kept_names_are_kept():
    """Keeping one more name takes its bytes: mlp_out is [rows, length, hidden] floats a layer."""
    graph, params = nnx.split(Decoder(replace(CONFIG, num_layers=8), rngs=nnx.Rngs(0)))
    tokens = jnp.ones((2, 64), jnp.int32)

    def residuals(policy):
        def loss(params):
            return nnx.merge(graph, params)(tokens, wrap=remat(policy, ACTIVATIONS)).sum()

        pull = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull))

    assert residuals(["gate"]) - residuals("full") == 8 * 2 * 64 * 48 * 4
    assert residuals(["gate", "query"]) - residuals("full") == 8 * 2 * 64 * (48 + 16) * 4


def test_none_wraps_nothing():
    assert remat("none", ACTIVATIONS) is None


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("dot", ["train.remat: unknown policy", "dot", "did you mean 'dots'?"]),
        ("everything", ["unknown policy", "dots, dots_no_batch, full, none"]),
        (["gate", "qeury"], ["no such activation", "qeury", "attention_in, query, key"]),
        (["full"], ["no such activation"]),
    ],
)
def test_a_policy_that_does_not_exist(policy, says):
    with pytest.raises(ConfigError) as caught:
        remat(policy, ACTIVATIONS)
    for words in says:
        assert words in str(caught.value)
