"""A model with a larger vocabulary."""

import numpy as np
import pytest

from jaxlean import tree
from jaxlean.errors import ConfigError
from jaxlean.hub.load import load
from jaxlean.hub.vocabulary import leaves_of, resized, with_rows


def test_a_model_grows_with_its_config_and_says_of_old_tokens_what_it_said(loaded, expected):
    model = loaded("llama_gqa")
    larger = resized(model, 100)
    assert larger.config.vocab_size == larger.hf_config["vocab_size"] == 100
    assert model.config.vocab_size == model.hf_config["vocab_size"] == 96
    tokens = expected("llama_gqa")["tokens"]
    np.testing.assert_allclose(larger(tokens)[..., :96], model(tokens), atol=1e-6)


def test_spare_rows_are_used_first(loaded):
    model = loaded("llama_gqa")
    assert resized(model, 90) is model
    assert resized(model, 96) is model


def test_rows_are_read_in_both_places(loaded):
    untied, tied = loaded("llama_gqa"), loaded("qwen2_tied")
    assert leaves_of(untied) == ["new_tokens.embed", "new_tokens.head"]
    assert leaves_of(tied) == ["new_tokens.embed"]
    rows = {leaf: np.ones((1, 32), np.float32) for leaf in leaves_of(untied)}
    model = with_rows(untied, np.array([7]), rows)
    assert tree.flatten(model.params)["new_tokens.head"].shape == (1, 32)
    assert np.abs(model(np.array([[7, 1]])) - untied(np.array([[7, 1]]))).max() > 0.1


def test_a_model_without_a_table_of_tokens_cannot_grow(golden):
    with pytest.raises(ConfigError) as raised:
        resized(load(next(golden.glob("clip_*")), "float32"), 10)
    assert "clip has no table of tokens" in str(raised.value)
