"""What an adapter's settings say of ranks and scales; that its files are there is tested with those who read them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxlean.errors import ModelError
from jaxlean.hub.adapter_file import SETTINGS, TENSORS, alpha_of, rank_of, read_settings, read_tensors, scale_of

NAME = "model.layers.1.self_attn.q_proj"


def test_a_module_has_what_is_stated_of_all_or_of_it():
    settings = {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 6},
    }
    assert rank_of(settings, NAME) == 4
    assert rank_of(settings, "model.layers.1.mlp.up_proj") == 8
    assert scale_of(settings, NAME, 4) == 1.5
    assert scale_of(settings, "model.layers.2.self_attn.q_proj", 4) == 4.0
    assert scale_of(settings | {"use_rslora": True}, NAME, 4) == 3.0
    assert rank_of({}, NAME) is None
    assert scale_of({}, NAME, 4) == 2.0  # PEFT's alpha of 8


def test_a_pattern_is_of_whole_words_at_the_end_of_a_name():
    settings = {"r": 8, "rank_pattern": {"proj": 1, "self_attn": 2, "[qk]_proj": 4}}
    assert rank_of(settings, NAME) == 4
    assert rank_of(settings, "model.layers.1.self_attn.v_proj") == 8


@given(st.one_of(st.integers(1, 4096), st.floats(0.01, 500)), st.integers(1, 512), st.booleans())
def test_alpha_comes_back_from_a_scale_in_float32(alpha, r, rslora):
    settings = {"lora_alpha": alpha, "use_rslora": rslora}
    back = alpha_of(float(np.float32(scale_of(settings, NAME, r))), r, rslora)
    assert back == alpha if isinstance(alpha, int) else back == pytest.approx(alpha, rel=1e-6)


def test_settings_and_tensors_of_a_folder(tmp_path):
    with pytest.raises(ModelError, match="no such adapter folder"):
        read_settings(tmp_path / "nowhere")
    inside = tmp_path / "run" / "adapter"
    inside.mkdir(parents=True)
    (inside / SETTINGS).write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    save_file({"x": np.ones(2, np.float32)}, inside / TENSORS)
    with pytest.raises(ModelError, match=f"did you mean {inside}"):
        read_tensors(inside.parent)
    settings, tensors = read_tensors(inside)
    assert settings == {"peft_type": "LORA", "r": 2}
    np.testing.assert_array_equal(tensors["x"], [1, 1])
    (inside / TENSORS).rename(inside / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"(?s)an adapter file is missing.*got:    adapter_model.bin.*pickles are not"):
        read_tensors(inside)
    (inside / SETTINGS).write_text(json.dumps({"peft_type": "LOHA"}))
    with pytest.raises(ModelError, match=r"(?s)not a LoRA adapter.*LOHA"):
        read_tensors(inside)
