"""Hugging Face configs into ours, by way of the config classes of transformers."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from jaxlean.errors import ModelError
from jaxlean.hub.families import FAMILIES
from jaxlean.hub.family import activation, head_dim, rope, windows
from jaxlean.models.config import Kind

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "rope.json").read_text())
SHAPE = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 6}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['rope_parameters']['rope_type']}-{row['length']}")
def test_rope_settings_give_the_attention_factor_of_transformers(row):
    hf = LlamaConfig(
        max_position_embeddings=row["max_position_embeddings"], rope_parameters=dict(row["rope_parameters"])
    )
    got = rope(hf)
    assert got.attention_factor == pytest.approx(row["attention_factor"], rel=1e-7)
    for name, value in row["rope_parameters"].items():
        if hasattr(got, name):
            assert getattr(got, name) == (tuple(value) if isinstance(value, list) else value), name
    if got.rope_type == "dynamic":
        assert got.original_max_position_embeddings == row["max_position_embeddings"]
    hash(got)  # it is part of what jit compiles for


def test_rope_without_a_word_about_it():
    got = rope(LlamaConfig())
    assert (got.rope_type, got.rope_theta, got.attention_factor) == ("default", 10_000.0, 1.0)


def test_the_old_spelling_means_the_same():
    old = LlamaConfig(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0})
    new = LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0})
    assert rope(old) == rope(new)
    assert (rope(old).rope_type, rope(old).rope_theta, rope(old).factor) == ("linear", 5e5, 4.0)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (
            {"rope_type": "su", "rope_theta": 1e4},
            ["a rope type that is not supported", "su", "default, linear, dynamic"],
        ),
    ],
)
def test_rope_that_is_not_supported(parameters, says):
    hf = LlamaConfig()
    hf.rope_parameters = parameters  # transformers itself would already refuse some in its constructor
    with pytest.raises(ModelError) as caught:
        rope(hf)
    for words in says:
        assert words in str(caught.value)


def test_windows_by_layer():
    hf = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=3)
    assert windows(hf) == (None, None, None, 7)
    assert windows(Qwen2Config(**SHAPE, use_sliding_window=False, sliding_window=7)) == (None,) * 4
    hf.layer_types = ["full_attention", "chunked_attention", "full_attention", "full_attention"]
    with pytest.raises(ModelError, match=r"a kind of layer that is not supported[^$]*chunked_attention"):
        windows(hf)


def test_activations():
    assert activation(LlamaConfig(hidden_act="silu")) == "silu"
    assert activation(LlamaConfig(hidden_act="gelu_pytorch_tanh")) == "gelu_tanh"
    with pytest.raises(ModelError, match=r"an activation that is not supported[^$]*gelu_10"):
        activation(LlamaConfig(hidden_act="gelu_10"))


def test_head_dim_is_stated_or_hidden_by_heads():
    assert head_dim(LlamaConfig(hidden_size=24, num_attention_heads=6)) == 4
    assert head_dim(LlamaConfig(hidden_size=24, num_attention_heads=6, head_dim=16)) == 16


def test_a_whole_config():
    hf = Qwen3Config(
        **SHAPE, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-3, tie_word_embeddings=True, attention_bias=True,
        max_position_embeddings=99, initializer_range=0.5,
    )  # fmt: skip
    got = FAMILIES["qwen3"].config(hf)
    assert (got.vocab_size, got.hidden_size, got.intermediate_size, got.num_layers) == (32, 24, 40, 4)
    assert (got.num_heads, got.num_kv_heads, got.head_dim, got.norm_eps) == (6, 2, 8, 1e-3)
    assert (got.tie_embeddings, got.qkv_bias, got.out_bias, got.mlp_bias, got.qk_norm) == (
        True,
        True,
        True,
        False,
        "head",
    )
    assert (got.max_position_embeddings, got.initializer_range) == (99, 0.5)
    assert got.all_kinds == (Kind(),) * 4


@pytest.mark.parametrize(
    ("name", "bias"), [("llama", (False, False, False)), ("mistral", (False,) * 3), ("qwen2", (True, False, False))]
)
def test_what_a_family_does_in_its_own_way(name, bias):
    from transformers import CONFIG_MAPPING

    got = FAMILIES[name].config(CONFIG_MAPPING[name](**SHAPE, sliding_window=5))
    assert (got.qkv_bias, got.out_bias, got.mlp_bias) == bias
    assert not got.qk_norm
    assert {kind.window for kind in got.all_kinds} == ({5} if name == "mistral" else {None})


def test_without_key_value_heads_there_are_as_many_as_heads():
    assert FAMILIES["llama"].config(LlamaConfig(**SHAPE)).num_kv_heads == 6
