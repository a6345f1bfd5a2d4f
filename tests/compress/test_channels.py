"""Channels of convolutional networks: the smaller network against the one with zeros in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.adapt import quantize
from jaxlean.compress import channels
from jaxlean.errors import ConfigError, ModelError
from jaxlean.models.convnet import BlockConfig, ConvNetConfig

CONFIG = ConvNetConfig(
    stem=8,
    blocks=(
        BlockConfig(8),
        BlockConfig(12, 16, stride=2, squeeze=3),
        BlockConfig(12, 24, kernel=5, squeeze=3, residual=True),
    ),
    top=16,
    num_labels=7,
    activation="silu",
)


@pytest.fixture(scope="module")
def params():
    declared = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: CONFIG.build(rngs=nnx.Rngs(0))))[1])
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path.rsplit(".", 1)[-1] in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:  # biases too: a channel that is given nothing says something all the same
            values = rng.normal(size=leaf.shape) * (2 / max(np.prod(leaf.shape[:-1]), 20)) ** 0.5
        return jnp.asarray(values, leaf.dtype)

    return tree.map_with_path(draw, declared)


def run(params, config, pixels):
    graph, _ = nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))
    forward = jax.jit(
        lambda params, pixels: nnx.merge(graph, params)(pixels),
        compiler_options={"xla_backend_optimization_level": 0},  # half the time of compilation
    )
    return np.asarray(forward(params, pixels))


@pytest.mark.parametrize("share", [0.0, 0.45])
def test_a_shrunken_network_is_the_silenced_one(params, share):
    kept = channels.channels(params, CONFIG, share, multiple=1)
    assert {i: len(stays) for i, stays in kept.items()} == {
        i: int(np.ceil(n * (1 - share))) for i, n in ((1, 16), (2, 24))
    }
    small, config = channels.shrink(params, CONFIG, kept)
    declared = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))[1])
    tree.check(small, declared)
    pixels = jnp.asarray(np.random.default_rng(1).normal(size=(64, 9, 8, 3)), jnp.float32)
    silent = run(channels.silence(params, CONFIG, kept), CONFIG, pixels)
    got, whole = run(small, config, pixels), run(params, CONFIG, pixels)
    np.testing.assert_allclose(got, silent, rtol=0, atol=2e-6 * np.abs(whole).max())
    np.testing.assert_array_equal(got.argmax(axis=1), silent.argmax(axis=1))
    assert (np.abs(got - whole).max() > 1e-3) == (share > 0)


def test_channels_that_cannot_be_heard_go_first_and_change_nothing(params):
    quiet = {1: [0, 3, 7, 15], 2: [1, 2, 20]}
    leaves = tree.flatten(params)
    for i, gone in quiet.items():
        for name in ("project.kernel", "squeeze.reduce.kernel"):
            leaf = leaves[f"blocks.{i}.{name}"]
            leaves[f"blocks.{i}.{name}"] = leaf.at[jnp.asarray(gone)].set(0)
    deaf = tree.unflatten(leaves)
    kept = channels.channels(deaf, CONFIG, 0.125, multiple=1)
    assert all(set(quiet[i]) - set(map(int, stays)) for i, stays in kept.items())
    whole = {i: np.setdiff1d(np.arange(CONFIG.blocks[i].expanded), gone) for i, gone in quiet.items()}
    small, config = channels.shrink(deaf, CONFIG, whole)
    pixels = jnp.asarray(np.random.default_rng(1).normal(size=(4, 9, 8, 3)), jnp.float32)
    want = run(deaf, CONFIG, pixels)
    np.testing.assert_allclose(run(small, config, pixels), want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_what_stays_is_a_round_number(params):
    kept = channels.channels(params, CONFIG, 0.4)
    assert {i: len(stays) for i, stays in kept.items()} == {1: 16, 2: 16}


def test_what_cannot_be_pruned_is_refused(params):
    with pytest.raises(ConfigError, match="less than 1"):
        channels.channels(params, CONFIG, 1.0)
    with pytest.raises(ModelError, match="prune, then quantize"):
        channels.channels(quantize.quantize(params, "int8"), CONFIG, 0.5)
