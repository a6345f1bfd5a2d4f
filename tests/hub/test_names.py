"""Our names and Hugging Face's, there and back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlean import tree
from jaxlean.hub.families import FAMILIES
from jaxlean.hub.names import Names
from jaxlean.models.build import abstract
from jaxlean.models.config import Kind
from jaxlean.models.decoder import DecoderConfig

LLAMA = FAMILIES["llama"]
SHAPE = DecoderConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=4, num_heads=1, num_kv_heads=1, head_dim=8
)
ALTERNATING = replace(SHAPE, num_layers=5, kinds=(Kind(window=2), Kind()) * 2 + (Kind(window=2),))


def test_layers_are_counted_through_the_stacks():
    names = Names(LLAMA, ALTERNATING)
    query = "attention.query.kernel"
    assert [
        names.tensor(f"layers.{stack}.{query}", row) for stack, row in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 0))
    ] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(5)]
    assert names.module("layers.1.attention.query") == "model.layers.{}.self_attn.q_proj"
    assert names.name("layers.1.attention.query", 1) == "model.layers.3.self_attn.q_proj"


@given(st.lists(st.sampled_from([Kind(), Kind(window=2), Kind(rope=None)]), min_size=1, max_size=9))
def test_every_tensor_has_one_name_and_is_found_by_its_module(kinds):
    config = replace(SHAPE, num_layers=len(kinds), kinds=tuple(kinds))
    names = Names(LLAMA, config)
    shapes = tree.flatten(abstract(config)[1])
    found = {}
    for path, leaf in shapes.items():
        for index, name in names.tensors(path, leaf.shape):
            assert name not in found
            found[name] = path, index
    assert len(found) == 9 * len(kinds) + 3
    modules = {path.rpartition(".")[0] for path in shapes}
    for name, (path, index) in found.items():
        assert names.find(name.removesuffix(".weight"), modules) == (path.rpartition(".")[0], index)
    assert {n for n in range(len(kinds)) if f"model.layers.{n}.mlp.up_proj.weight" in found} == set(range(len(kinds)))


def test_a_layer_that_is_not_there_has_a_number_past_the_end():
    names = Names(LLAMA, SHAPE)
    assert names.find("model.layers.7.mlp.up_proj", {"layers.mlp.up"}) == ("layers.mlp.up", (7,))
    assert names.name("layers.mlp.up", 7) == "model.layers.7.mlp.up_proj"
    assert names.find("model.layers.1.mlp.router", {"layers.mlp.up"}) is None


def test_names_without_the_prefix():
    names = Names(FAMILIES["gpt2"], SHAPE, bare=True)
    assert names.tensor("layers.attention.qkv.kernel", 2) == "h.2.attn.c_attn.weight"
    assert names.tensor("head.kernel") == "lm_head.weight"
    assert names.find("h.1.mlp.c_fc", {"layers.mlp.up"}) == ("layers.mlp.up", (1,))


@pytest.mark.parametrize(
    ("family", "path", "dims", "axes"),
    [
        ("llama", "layers.mlp.up.kernel", 2, (1, 0)),
        ("llama", "layers.mlp_norm.scale", 1, (0,)),
        ("llama", "embed.embedding", 2, (0, 1)),
        ("gpt2", "layers.mlp.up.kernel", 2, (0, 1)),
        ("gpt2", "head.kernel", 2, (1, 0)),
        ("llama", "patches.filters", 4, (2, 3, 1, 0)),
    ],
)
def test_how_a_tensor_lies_in_its_file(family, path, dims, axes):
    assert Names(FAMILIES[family], SHAPE).axes(path, dims) == axes


def test_every_name_of_the_table_layer_by_layer():
    found = Names(LLAMA, ALTERNATING).every()
    assert found["model.norm"] == ["model.norm"]
    assert found["model.layers.{}.mlp.up_proj"] == [f"model.layers.{i}.mlp.up_proj" for i in range(5)]
