"""Pruning by masks."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.compress import prune
from jaxlean.errors import ConfigError
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


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_magnitude_takes_the_smallest_of_each_matrix(params, sparsity):
    masks = prune.magnitude(params, sparsity)
    assert set(masks) == {
        path for path in tree.flatten(params) if path.endswith(".kernel") and path != "classifier.kernel"
    }
    for path, mask in masks.items():
        leaf = np.abs(np.asarray(tree.flatten(params)[path]))
        assert (~mask).sum() == round(sparsity * leaf.size)
        assert leaf[~mask].max(initial=0) <= leaf[mask].min(initial=np.inf)
    pruned = tree.flatten(prune.apply(params, masks))
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(pruned[path], np.where(masks[path], leaf, 0) if path in masks else leaf)


def test_of_a_stack_each_layer_is_pruned_for_itself():
    small = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 6)))
    stack = {"layers": {"up": {"kernel": jnp.concatenate([small, 100 * small])}}}
    (mask,) = prune.magnitude(stack, 0.25).values()
    assert (~np.asarray(mask)).sum(axis=(1, 2)).tolist() == [6, 6]
    np.testing.assert_array_equal(mask[0], mask[1])


def test_equal_numbers_still_give_the_share():
    (mask,) = prune.magnitude({"a": {"kernel": jnp.ones((4, 5))}}, 0.5).values()
    assert np.asarray(mask).sum() == 10


def test_two_of_four_run_along_the_inputs():
    rng = np.random.default_rng(0)
    tall = {"a": {"kernel": jnp.asarray(rng.normal(size=(2, 8, 3)))}, "odd": {"kernel": jnp.ones((6, 4))}}
    masks = prune.n_of_m(tall, 2, 4)
    groups = np.asarray(masks["a.kernel"]).reshape(2, 2, 4, 3)
    assert (groups.sum(axis=2) == 2).all()
    weights = np.abs(np.asarray(tall["a"]["kernel"])).reshape(2, 2, 4, 3)
    assert (np.where(groups, weights, np.inf).min(axis=2) >= np.where(groups, 0, weights).max(axis=2)).all()
    assert np.asarray(masks["odd.kernel"]).all()


def test_what_cannot_be_pruned_is_refused(params):
    with pytest.raises(ConfigError, match="no share"):
        prune.magnitude(params, 1.5)
    with pytest.raises(ConfigError, match="matched no parameter"):
        prune.magnitude(params, 0.5, where="kernels$")
    with pytest.raises(ConfigError, match="5 of 4"):
        prune.n_of_m(params, 5, 4)
