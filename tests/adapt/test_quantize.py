"""A frozen base in fewer bits: which kernels, what stays, what comes back."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlean import codec, tree
from jaxlean.adapt import lora
from jaxlean.adapt.quantize import RULES, dequantize, is_chosen, quantize
from jaxlean.config import LoraSection, MeshSection
from jaxlean.errors import ConfigError, ModelError
from jaxlean.models.build import abstract
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.xla.mesh import make_mesh, place

CONFIG = DecoderConfig(
    vocab_size=32, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16,
    qkv_bias=True, initializer_range=0.1,
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 12)), jnp.int32)


@pytest.fixture(scope="module")
def base():
    return nnx.to_pure_dict(nnx.split(Decoder(CONFIG, rngs=nnx.Rngs(0)))[1])


def logits(params, **options):
    graph, shapes = abstract(CONFIG, params, **options)
    tree.check(params, shapes)
    return np.asarray(jax.jit(lambda p: nnx.merge(graph, p)(TOKENS))(params))


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_the_layers_kernels_and_nothing_else(base, form):
    before, after = tree.flatten(base), tree.flatten(quantize(base, form))
    assert {path for path in before if path not in after} == {
        *(f"layers.attention.{name}.kernel" for name in ("query", "key", "value", "out")),
        *(f"layers.mlp.{name}.kernel" for name in ("gate", "up", "down")),
    }
    for path in before.keys() & after.keys():
        assert after[path] is before[path]
    for module, held in codec.kernels(after).items():
        if module != "head":
            for name, leaf in codec.encode(before[f"{module}.kernel"], form).items():
                np.testing.assert_allclose(held[name], leaf, rtol=1e-6)


def test_the_rules_decide(base):
    assert [
        is_chosen(path) for path in ("head.kernel", "layers.mlp.up.kernel", "embed.embedding", "layers.mlp.up.bias")
    ] == [*(False, True, False, False)]
    only_mlp = [(r"\.mlp\.\w+\.kernel$", True), (r".*", False)]
    after = tree.flatten(quantize(base, "int8", only_mlp))
    assert {path.split(".")[1] for path in after if path.endswith("_int8")} == {"mlp"}
    head_too = tree.flatten(quantize(base, "int8", RULES[1:]))
    assert "head.kernel_int8" in head_too


@pytest.mark.parametrize(("form", "error"), [("int8", 0.02), ("nf4", 0.25)])
def test_the_model_computes_nearly_the_same(base, form, error):
    want, got = logits(base), logits(quantize(base, form))
    assert error / 20 < np.linalg.norm(got - want) / np.linalg.norm(want) < error


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_dequantized_is_what_the_quantized_computes_with(base, form):
    quantized = quantize(base, form)
    plain = dequantize(quantized)
    tree.check(plain, base)
    np.testing.assert_allclose(logits(plain), logits(quantized), atol=1e-4)
    assert tree.flatten(dequantize(quantized, jnp.bfloat16))["layers.mlp.up.kernel"].dtype == jnp.bfloat16
    assert tree.flatten(plain).keys() == tree.flatten(base).keys()
    again = quantize(plain, form)  # of what was decoded: the same codes
    for path, leaf in tree.flatten(quantized).items():
        if path.endswith((".kernel_int8", ".kernel_nf4")):
            np.testing.assert_array_equal(leaf, tree.flatten(again)[path])


@pytest.mark.parametrize("form", ["int8", "nf4"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_stand_beside_quantized_kernels(base, form, dora):
    quantized = quantize(base, form)
    modules = lora.targets(quantized, "all-linear")
    assert modules == lora.targets(base, "all-linear")
    params = lora.add(quantized, modules, LoraSection(r=3, use_dora=dora), jax.random.key(0))
    np.testing.assert_allclose(logits(params), logits(quantized), atol=2e-4)
    moved = tree.map_with_path(lambda path, x: x + 0.05 if path.endswith(".lora_b") else x, params)
    # the same adapter over the decoded kernels
    np.testing.assert_allclose(logits(moved), logits(dequantize(moved)), atol=2e-4)
    assert np.abs(logits(moved) - logits(params)).max() > 1e-3
    merged = lora.merge(dequantize(moved))
    np.testing.assert_allclose(logits(merged), logits(moved), atol=1e-3)
    with pytest.raises(ModelError, match="cannot be folded into a quantized kernel"):
        lora.merge(moved)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_pissa_leaves_the_rest_to_be_quantized(base, form):
    """QPiSSA: what is rounded is the residual, so the sum is nearer to the base than the rounded base is."""
    config = LoraSection(r=16, init_lora_weights="pissa")
    modules = lora.targets(base, "all-linear")
    with pytest.raises(ConfigError, match="pissa takes its start out of the full kernel"):
        lora.add(quantize(base, form), modules, config, jax.random.key(0))
    both = quantize(lora.add(base, modules, config, jax.random.key(0)), form)
    want = logits(base)
    assert np.linalg.norm(logits(both) - want) < np.linalg.norm(logits(quantize(base, form)) - want)


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_on_a_mesh_each_leaf_lies_as_the_rules_say(base, form):
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    where = place(mesh)
    quantized = quantize(base, form)
    spread = tree.map_with_path(lambda path, x: jax.device_put(x, where(path, x.shape)), quantized)
    codes = tree.flatten(spread)[f"layers.mlp.gate.kernel_{form}"]
    assert codes.sharding.shard_shape(codes.shape) == (2, codes.shape[1] // 2, codes.shape[2] // 2)
    np.testing.assert_allclose(logits(spread), logits(quantized), atol=1e-4)


def test_a_quantized_kernel_that_does_not_fit_the_model(base):
    quantized = tree.flatten(quantize(base, "nf4"))
    wrong = quantized | {"layers.mlp.up.kernel_absmax": quantized["layers.mlp.up.kernel_absmax"][:, :, :-1]}
    with pytest.raises(ModelError, match=r"does not fit: layers\.mlp\.up\.kernel_absmax"):
        abstract(CONFIG, tree.unflatten(wrong))
    with pytest.raises(ModelError, match="does not fit"):
        abstract(replace(CONFIG, intermediate_size=128), tree.unflatten(quantized))
    missing = {path: x for path, x in quantized.items() if path != "layers.mlp.up.kernel_absmax_offset"}
    with pytest.raises(ModelError, match="nothing"):
        abstract(CONFIG, tree.unflatten(missing))
