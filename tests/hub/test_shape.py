"""Other shapes in the words of a family's config.json: what transformers reads from them is our config."""

from dataclasses import replace

import pytest

from jaxlean import load
from jaxlean.errors import ModelError
from jaxlean.hub.shape import reshaped


@pytest.mark.parametrize(
    ("name", "sizes", "said"),
    [
        ("llama_gqa", {"hidden_size": 24, "num_heads": 2, "num_kv_heads": 1},
         {"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}),
        ("phi3_window", {"intermediate_size": 8}, {"intermediate_size": 8}),
        ("gpt2_tied", {"intermediate_size": 8}, {"n_inner": 8}),
        ("distilbert_hidden", {"intermediate_size": 8}, {"hidden_dim": 8}),
    ],
)  # fmt: skip
def test_widths(golden, name, sizes, said):
    model = load(golden / name, "float32")
    got = reshaped(model, replace(model.config, **sizes))
    assert {key: got[key] for key in said} == said
    others = set(got) - set(said)
    assert all(got[key] == model.hf_config[key] for key in others)


def test_lists_of_layers(golden):
    model = load(golden / "smollm3_list", "float32")
    config = replace(model.config, num_layers=2, kinds=tuple(model.config.all_kinds[i] for i in (0, 2)))
    got = reshaped(model, config, layers=[0, 2])
    assert got["num_hidden_layers"] == 2
    assert len(got["no_rope_layers"]) == len(got["layer_types"]) == 2


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("gpt2_tied", {"num_heads": 1, "num_kv_heads": 1}, "gpt2 has no setting for the size of a head"),
        ("bert_old", {"hidden_size": 16}, "bert has no setting for the size of a head"),
        ("gemma2_soft", {"hidden_size": 16}, "config.json of gemma2 cannot say it"),
        ("llama_gqa", {"hidden_size": 31}, "the model's config is not valid"),
    ],
)
def test_what_it_cannot_say(golden, name, sizes, words):
    model = load(golden / name, "float32")
    with pytest.raises(ModelError, match=words):
        reshaped(model, replace(model.config, **sizes))
