"""Pruning by masks."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import load, tree
from jaxlean.compress import prune
from jaxlean.compress.walk import Inputs, walk
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


def batches(*, num=2, rows=2, length=48, seed=0):
    """Rows of one text each."""
    random, ones = np.random.default_rng(seed), np.ones((rows, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return [
        {"tokens": random.integers(5, 2000, (rows, length), np.int32), "segments": ones, "positions": positions}
        for _ in range(num)
    ]


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


def gram_of(features, *, tokens=200, seed=0):
    """Inputs that go together, as those of a layer do, some loud and some soft."""
    random = np.random.default_rng(seed)
    x = (
        random.normal(size=(tokens, features))
        @ random.normal(size=(features, features))
        * random.uniform(0.1, 3, features)
    )
    return x, Inputs(
        jnp.asarray(x.T @ x, jnp.float32), jnp.abs(jnp.asarray(x)).sum(0), jnp.abs(x).max(0), jnp.float32(tokens), x
    )


def test_wanda_compares_products_within_each_output():
    x, inputs = gram_of(24)
    kernel = np.random.default_rng(1).normal(size=(24, 10)).astype(np.float32)
    pruned = np.asarray(prune.prune_kernel(jnp.asarray(kernel), inputs, prune.Choice("wanda", 0.25)))
    scores = np.abs(kernel) * np.linalg.norm(x, axis=0)[:, None]
    for output in range(10):
        gone = np.argsort(scores[:, output])[:6]
        want = kernel[:, output].copy()
        want[gone] = 0
        np.testing.assert_array_equal(pruned[:, output], want)
    of = np.asarray(prune.prune_kernel(jnp.asarray(kernel), inputs, prune.Choice("wanda", of=(1, 4))))
    groups = scores.reshape(6, 4, 10)
    np.testing.assert_array_equal(of.reshape(6, 4, 10) != 0, groups == groups.max(1, keepdims=True))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_model_is_pruned_layer_by_layer(tiny_base, method):
    model, given = load(tiny_base, "float32"), batches()
    choice = prune.Choice(method, 0.5, rules=[(r"^layers\.0\.attention\.(query|key)", 0.0), ("mlp.down", 0.25)])
    pruned, table = prune.prune(model, given, choice)
    names = {f"attention.{name}" for name in ("query", "key", "value", "out")} | {"mlp.gate", "mlp.up", "mlp.down"}
    assert {(row.layer, row.module) for row in table} == {(n, name) for n in (0, 1) for name in names} - {
        (0, "attention.query"), (0, "attention.key")
    }  # fmt: skip
    before, after = tree.flatten(model.params), tree.flatten(pruned.params)
    for row in table:
        kernel = after[f"layers.{row.module}.kernel"][row.layer]
        assert row.sparsity == pytest.approx(float((kernel == 0).mean()), abs=1e-6)
        assert row.sparsity == pytest.approx(0.25 if row.module == "mlp.down" else 0.5, abs=0.01)
        assert 0 < row.error < 1
    np.testing.assert_array_equal(after["layers.attention.query.kernel"][0], before["layers.attention.query.kernel"][0])
    np.testing.assert_array_equal(after["embed.embedding"], before["embed.embedding"])
    # the error of a layer is that of the inputs which the pruned layers before it give
    seen = {}
    walk(pruned, given, lambda visited: seen.update({visited.number: visited}))
    row = next(row for row in table if (row.layer, row.module) == (1, "attention.query"))
    gram = np.asarray(seen[1].inputs["attention.query"].gram, np.float64)
    was = np.asarray(before["layers.attention.query.kernel"][1], np.float64)
    change = np.asarray(after["layers.attention.query.kernel"][1], np.float64) - was
    assert row.error**2 == pytest.approx(np.trace(change.T @ gram @ change) / np.trace(was.T @ gram @ was), rel=1e-3)


def test_rules_that_fit_nothing(tiny_base):
    model = load(tiny_base, "float32")
    with pytest.raises(ConfigError, match="matched no parameter"):
        prune.prune(model, batches(), prune.Choice("wanda", rules=[("layers.7", 0.0)]))
    with pytest.raises(ConfigError, match="m does not divide"):
        prune.prune(model, batches(), prune.Choice("wanda", of=(2, 5)))
    with pytest.raises(ConfigError, match="no share"):
        prune.prune(model, batches(), prune.Choice("wanda", rules=[("mlp", 1.5)]))
