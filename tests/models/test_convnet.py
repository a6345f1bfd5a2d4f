"""The one convolutional network: its paths, its parts, what is computed again. Numbers: tests/hub/families."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import tree
from jaxlean.adapt import lora, quantize
from jaxlean.config import LoraSection
from jaxlean.models.convnet import ACTIVATIONS, LAYER_INPUT, BlockConfig, ConvNetConfig
from jaxlean.models.linear import Dropout, Linear
from jaxlean.xla.remat import scan_layers

CONFIG = ConvNetConfig(
    stem=8,
    blocks=(
        BlockConfig(8),
        BlockConfig(12, 16, stride=2, squeeze=3),
        BlockConfig(12, 24, kernel=5, squeeze=3, residual=True),
    ),
    top=32,
    num_labels=3,
    activation="silu",
)


@pytest.fixture(scope="module")
def net():
    """(graph, params) of `CONFIG`, with statistics that are not 0 and 1."""
    graph, state = nnx.split(nnx.eval_shape(lambda: CONFIG.build(rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path.rsplit(".", 1)[-1] in ("scale", "var"):
            values = rng.uniform(0.7, 1.4, leaf.shape)
        else:
            values = rng.normal(size=leaf.shape) * (2 / max(np.prod(leaf.shape[:-1]), 20)) ** 0.5
        return jnp.asarray(values, leaf.dtype)

    return graph, tree.map_with_path(draw, nnx.to_pure_dict(state))


@pytest.fixture(scope="module")
def pixels():
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, 13, 10, 3)), jnp.float32)


# Half the time of compilation, which is most of that of these tests.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@partial(jit, static_argnums=0)
def run(graph, params, pixels):
    return nnx.merge(graph, params)(pixels)


def test_paths_and_shapes(net):
    shapes = {path: leaf.shape for path, leaf in tree.flatten(net[1]).items()}
    assert shapes["stem.filters"] == (3, 3, 3, 8)
    assert shapes["blocks.1.expand.kernel"] == (8, 16)
    assert shapes["blocks.1.depthwise.filters"] == (3, 3, 1, 16)
    assert shapes["blocks.1.squeeze.reduce.kernel"] == (16, 3)
    assert shapes["blocks.2.project.kernel"] == (24, 12)
    assert shapes["blocks.2.project_norm.var"] == (12,)
    assert "blocks.0.expand.kernel" not in shapes
    assert "blocks.0.squeeze.reduce.kernel" not in shapes


def test_leaves_stand_in_the_order_in_which_they_are_merged():
    # nnx.merge pairs by position: of more than ten blocks, the tree's order must be the module's
    config = ConvNetConfig(stem=4, blocks=tuple(BlockConfig(4 + i) for i in range(12)), top=None, num_labels=2)
    model = nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    paths = list(tree.flatten(nnx.to_pure_dict(state)))
    assert "blocks.02.project.kernel" in paths
    numbered = nnx.merge(graph, tree.unflatten({path: np.float32(i) for i, path in enumerate(paths)}))
    for number, path in enumerate(paths):
        *modules, leaf = path.split(".")
        node = numbered
        for name in modules:
            node = node[name] if name.isdigit() else getattr(node, name)
        assert getattr(node, leaf)[...] == number, path


def test_a_batch_is_its_images(net, pixels):
    graph, params = net
    got = run(graph, params, pixels)
    assert got.shape == (4, 3)
    assert got.dtype == jnp.float32
    for i in range(4):
        np.testing.assert_allclose(run(graph, params, pixels[i : i + 1])[0], got[i], atol=2e-5)


def test_logits_of_hidden_is_the_call(net, pixels):
    def both(params, pixels):
        model = nnx.merge(net[0], params)
        hidden = model.hidden(pixels)
        assert hidden.shape == (4, CONFIG.features)
        return model.classify(hidden), model(pixels)

    one, other = jit(both)(net[1], pixels)
    np.testing.assert_array_equal(one, other)


def test_bfloat16_multiplies_in_bfloat16_and_normalises_in_float32(net, pixels, equations):
    params = net[1]
    graph, _ = nnx.split(nnx.eval_shape(lambda: CONFIG.build(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))))
    wide = run(net[0], params, pixels)
    narrow = run(graph, params, pixels)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.05 * np.abs(wide).max())
    traced = equations(lambda p, x: nnx.merge(graph, p)(x), params, pixels)
    inputs = {v.aval.dtype for e in traced if str(e.primitive) == "dot_general" for v in e.invars}
    assert inputs == {jnp.dtype(jnp.bfloat16)}
    assert {e.invars[0].aval.dtype for e in traced if str(e.primitive) == "rsqrt"} == {jnp.dtype(jnp.float32)}


def test_names_of_activations(net, pixels, names):
    graph, params = net
    found = names(lambda p, x: nnx.merge(graph, p)(x), params, pixels)
    assert found == [
        *(LAYER_INPUT, "depthwise", "project"),
        *(LAYER_INPUT, "expand", "depthwise", "squeeze", "project"),
        *(LAYER_INPUT, "expand", "depthwise", "squeeze", "project"),
    ]
    assert set(found) == {LAYER_INPUT, *ACTIVATIONS}


@pytest.mark.parametrize("kept", [(), ("depthwise",)])
def test_remat_changes_no_gradient_and_keeps_what_the_policy_names(net, pixels, kept, saved):
    graph, params = net
    remat = scan_layers(list(kept), ACTIVATIONS)

    def loss(params, scan):
        return (nnx.merge(graph, params)(pixels, scan=scan) ** 2).sum()

    plain = jit(jax.grad(partial(loss, scan=jax.lax.scan)))(params)
    again = jit(jax.grad(partial(loss, scan=remat)))(params)
    for path, leaf in tree.flatten(plain).items():
        want = np.asarray(leaf)
        np.testing.assert_allclose(
            tree.flatten(again)[path], want, atol=1e-5 * max(np.abs(want).max(), 1), err_msg=path
        )
    depthwise = sum(x == "f32[1,4,4,3,24]" for x in saved(partial(loss, scan=remat), params))
    assert depthwise == len(kept)


def test_products_over_pixels_are_quantized_and_filters_are_not(net, pixels):
    graph, params = net
    held = quantize.quantize(params, "int8")
    leaves = tree.flatten(held)
    eight = {path.removesuffix(".kernel_int8") for path in leaves if path.endswith(".kernel_int8")}
    assert eight == {
        *("top", "blocks.0.project"),
        *(f"blocks.{i}.{part}" for i in (1, 2) for part in ("expand", "project", "squeeze.expand", "squeeze.reduce")),
    }
    assert leaves["blocks.1.expand.kernel_scale"].shape == (16,)  # one an output channel
    got = run(attached(held), held, pixels)
    np.testing.assert_allclose(got, run(graph, quantize.dequantize(held), pixels), atol=1e-5)
    assert 0 < np.abs(got - run(graph, params, pixels)).max() < 0.1 * np.abs(got).max()


def test_adapters_attach_to_products_over_pixels_and_merge(net, pixels):
    _, params = net
    config = LoraSection(r=2, lora_alpha=4)
    modules = lora.targets(params, "all-linear")
    assert "blocks.1.expand" in modules
    assert not any("depthwise" in module or module in ("stem", "classifier") for module in modules)
    adapted = lora.add(params, [*modules, "classifier"], config, jax.random.key(0))
    graph = attached(adapted)
    np.testing.assert_array_equal(run(graph, adapted, pixels), run(net[0], params, pixels))
    moved = tree.map_with_path(lambda path, leaf: leaf + 0.1 if path.endswith("lora_b") else leaf, adapted)
    got = run(graph, moved, pixels)
    assert np.abs(got - run(net[0], params, pixels)).max() > 0.01
    np.testing.assert_allclose(run(net[0], lora.merge(moved), pixels), got, atol=1e-4)

    drop = Dropout(0.5, jax.random.key(1))
    dropped = jit(lambda params: nnx.merge(graph, params)(pixels, dropout=drop))(moved)
    assert np.abs(dropped - got).max() > 1e-3


def test_statistics_get_no_gradient(net, pixels):
    graph, params = net
    gradient = jit(jax.grad(lambda params: (nnx.merge(graph, params)(pixels) ** 2).sum()))(params)
    still = {path.rsplit(".", 1)[-1] for path, leaf in tree.flatten(gradient).items() if not np.abs(leaf).any()}
    assert still == {"mean", "var"}


def test_other_widths_are_another_config():
    narrow = CONFIG.narrowed([None, 10, 7])
    assert [block.expanded for block in narrow.blocks] == [None, 10, 7]
    assert narrow.blocks[2].residual
    assert narrow.narrowed([None, 16, 24]) == CONFIG


def attached(params):
    """The graph of `CONFIG` with what stands in the tree."""
    model = nnx.eval_shape(lambda: CONFIG.build(rngs=nnx.Rngs(0)))
    for path, module in list(nnx.iter_modules(model)):
        if isinstance(module, Linear):
            node = params
            for key in path:
                node = node[str(key)]
            module.attach(node)
    return nnx.split(model)[0]
