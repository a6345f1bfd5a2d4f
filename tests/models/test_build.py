"""A model's graph and shapes, from its config alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxlean import codec, tree
from jaxlean.errors import ModelError
from jaxlean.models.build import abstract
from jaxlean.models.config import Kind
from jaxlean.models.decoder import Decoder, DecoderConfig
from jaxlean.models.encoder import Encoder, EncoderConfig
from jaxlean.models.stack import modules

SHAPE = {
    "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_layers": 3, "num_heads": 2, "num_kv_heads": 2,
    "head_dim": 4,
}  # fmt: skip
ALTERNATING = (Kind(window=2), Kind(), Kind(window=2))
CONFIGS = {
    "decoder": DecoderConfig(**SHAPE),
    "stacks": DecoderConfig(**SHAPE, kinds=ALTERNATING),
    "encoder": EncoderConfig(**SHAPE, head="classify", num_labels=3),
}


def adapter(kernel, rank=2):
    *stack, dim_in, dim_out = kernel.shape
    shapes = {"lora_a": (*stack, dim_in, rank), "lora_b": (*stack, rank, dim_out), "lora_scale": tuple(stack)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_module_is_that_of_the_config(config):
    graph, shapes = abstract(config)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in tree.flatten(shapes).values())
    module = nnx.merge(graph, shapes)
    assert isinstance(module, Encoder if isinstance(config, EncoderConfig) else Decoder)
    drawn = nnx.to_pure_dict(nnx.split(config.build(dtype=jnp.float32, rngs=nnx.Rngs(0)))[1])
    assert {p: x.shape for p, x in tree.flatten(drawn).items()} == {p: x.shape for p, x in tree.flatten(shapes).items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_adapters_that_stand_in_the_tree_are_attached_and_no_others(config):
    _, shapes = abstract(config)
    module = "layers.1.mlp.up" if config.kinds else "layers.mlp.up"
    kernel = tree.flatten(shapes)[f"{module}.kernel"]
    own = {f"{module}.{name}": leaf for name, leaf in adapter(kernel).items()}
    declared = tree.flatten(abstract(config, tree.unflatten(tree.flatten(shapes) | own))[1])
    assert declared.keys() - tree.flatten(shapes).keys() == own.keys()


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_kernel_in_fewer_bits_takes_the_place_of_the_wide_one(form):
    config = replace(CONFIGS["decoder"], hidden_size=64, intermediate_size=64)
    leaves = tree.flatten(abstract(config)[1])
    kernel = leaves.pop("layers.mlp.up.kernel")
    own = {f"layers.mlp.up.{name}": leaf for name, leaf in codec.shapes(kernel.shape, form).items()}
    declared = tree.flatten(abstract(config, tree.unflatten(leaves | own))[1])
    assert declared.keys() == leaves.keys() | own.keys()
    wrong = own | {next(iter(own)): jax.ShapeDtypeStruct((1, 2, 3), jnp.int8)}
    with pytest.raises(ModelError, match=r"does not fit: layers\.mlp\.up"):
        abstract(config, tree.unflatten(leaves | wrong))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_back_end_and_products_are_told_to_every_layer_but_the_head(config):
    graph, shapes = abstract(config, matmul="int8", attention="block")
    module = nnx.merge(graph, shapes)
    for stack in modules(module.layers, config.all_kinds):
        assert stack.attention.backend == "block"
        assert stack.mlp.up.matmul == stack.attention.query.matmul == "int8"
    if isinstance(module, Decoder):
        assert module.head.matmul == "default"
