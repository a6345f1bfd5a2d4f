"""What decoders and encoders share: a layout reaches every module, and attention can do without kernels."""

import jax
import pytest
from flax import nnx

from jaxlean.config import MeshSection
from jaxlean.models.config import Kind
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.encoder import EncoderConfig
from jaxlean.models.layout import layout_on
from jaxlean.models.linear import Linear
from jaxlean.models.self_attention import Attention
from jaxlean.xla.mesh import make_mesh

SHAPE = {
    "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2,
    "head_dim": 4, "kinds": (Kind(window=2), Kind()),
}  # fmt: skip


@pytest.mark.parametrize("config", [DecoderConfig(**SHAPE), EncoderConfig(**SHAPE, head="tag", num_labels=2)])
def test_every_module_learns_of_a_layout(config):
    model = nnx.eval_shape(lambda: config.build(dtype="float32", rngs=nnx.Rngs(0)))
    layout = layout_on(make_mesh(MeshSection(fsdp=2), jax.devices()[:2]))
    assert model.lay_out(layout) is model
    found = [module for _, module in nnx.iter_modules(model)]
    assert all(module.layout is layout for module in found if hasattr(module, "layout"))
    assert sum(hasattr(module, "layout") for module in found) > 6
    places = {str(path[-1]): module.place for path, module in nnx.iter_modules(model) if isinstance(module, Linear)}
    assert all(place.layout is layout and place.layer == name for name, place in places.items())
    assert "query" in places


def test_kernels_give_way_in_every_stack():
    model = nnx.eval_shape(lambda: EncoderConfig(**SHAPE).build(dtype="float32", rngs=nnx.Rngs(0)))
    stacks = [module for _, module in nnx.iter_modules(model) if isinstance(module, Attention)]
    assert len(stacks) == 2
    for stack in stacks:
        stack.backend = "cudnn"
    model.without_kernels()
    assert {stack.backend for stack in stacks} == {"block"}
