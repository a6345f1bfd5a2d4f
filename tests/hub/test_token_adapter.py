"""Rows of new tokens in PEFT's format, without PEFT: what it writes, by the names that it gives, is read."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlean import tree
from jaxlean.adapt import vocabulary
from jaxlean.errors import ModelError
from jaxlean.hub.adapter import read_adapter, room, write_adapter
from jaxlean.hub.vocabulary import resized
from jaxlean.run.merge import load_adapted

PREFIX = "base_model.model."
EMBED = f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
HEAD = f"{PREFIX}lm_head.token_adapter.trainable_tokens_delta"
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(2, 32)).astype(np.float32)


def folder_of(tmp_path, tensors, indices, **settings):
    stated = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "trainable_token_indices": indices} | settings
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors"
    )
    return tmp_path


def test_what_peft_writes_of_both_tables(loaded, tmp_path):
    tables = {
        f"{PREFIX}{m}.token_adapter.base_layer.weight": RNG.normal(size=(98, 32))
        for m in ("lm_head", "model.embed_tokens")
    }
    tensors = {EMBED: ROWS, HEAD: 2 * ROWS} | {name: x.astype(np.float32) for name, x in tables.items()}
    folder = folder_of(tmp_path, tensors, {"embed_tokens": [97, 5], "lm_head": [97, 5]})
    model = loaded("llama_gqa")
    assert room(folder, model.names) == 98
    adapted = tree.flatten(load_adapted(model, folder).params)
    assert adapted["new_tokens.ids"].tolist() == [5, 97]
    np.testing.assert_array_equal(adapted["new_tokens.embed"], ROWS[::-1])
    np.testing.assert_array_equal(adapted["new_tokens.head"], 2 * ROWS[::-1])
    np.testing.assert_allclose(
        adapted["head.kernel"].T, tables[f"{PREFIX}lm_head.token_adapter.base_layer.weight"], rtol=1e-6
    )


def test_a_head_that_does_not_train_keeps_its_rows(loaded, tmp_path):
    folder = folder_of(tmp_path, {EMBED: ROWS}, [5, 6])
    model = loaded("llama_gqa")
    adapted = tree.flatten(load_adapted(model, folder).params)
    np.testing.assert_array_equal(adapted["new_tokens.head"], model.params["head"]["kernel"][:, [5, 6]].T)


def test_a_tied_head_s_copies_are_left_out(loaded, tmp_path):
    alone = {f"{PREFIX}{m}.trainable_tokens_delta": ROWS for m in ("lm_head", "model.embed_tokens")}
    stated = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [5, 6], "target_modules": ["embed_tokens"]}
    folder = folder_of(tmp_path, alone, None, **stated)
    leaves = tree.flatten(read_adapter(folder, loaded("qwen2_tied").names, loaded("qwen2_tied").params))
    assert sorted(leaves) == ["new_tokens.embed", "new_tokens.ids"]


def test_it_is_written_by_pefts_names(loaded, tmp_path):
    rows = {"new_tokens.ids": np.array([5, 96]), "new_tokens.embed": ROWS}
    for base, names in (("llama_gqa", ["lm_head", "model.embed_tokens"]), ("qwen2_tied", ["model.embed_tokens"])):
        own = rows | ({"new_tokens.head": ROWS} if base == "llama_gqa" else {})
        write_adapter(tmp_path / base, loaded(base).names, tree.unflatten(own), None, base="b")
        stated = json.loads((tmp_path / base / "adapter_config.json").read_text())
        assert (stated["peft_type"], stated["token_indices"], stated["target_modules"]) == (
            "TRAINABLE_TOKENS",
            [5, 96],
            names,
        )
        # rows alone: those of a tied head too, which PEFT asks for
        assert sorted(load_file(tmp_path / base / "adapter_model.safetensors")) == [
            f"{PREFIX}{m}.trainable_tokens_delta" for m in ("lm_head", "model.embed_tokens")
        ]


def test_nothing_of_this_without_such_tokens(loaded, golden):
    folder, model = golden / "adapters" / "llama_gqa__plain", loaded("llama_gqa")
    assert (folder / "adapter_config.json").exists()
    assert room(folder, model.names) == 0
    adapted = load_adapted(model, folder)
    assert not vocabulary.has_rows(adapted.params)
    assert adapted.config.vocab_size == model.config.vocab_size


def test_lora_and_rows_of_one_head_are_refused(loaded, tmp_path):
    lora = {f"{PREFIX}lm_head.lora_A.weight": ROWS, f"{PREFIX}lm_head.lora_B.weight": np.zeros((96, 2), np.float32)}
    tensors = {EMBED: ROWS, HEAD: ROWS} | lora
    folder = folder_of(tmp_path, tensors, {"embed_tokens": [5, 6], "lm_head": [5, 6]}, target_modules=["lm_head"])
    with pytest.raises(ModelError) as raised:
        read_adapter(folder, loaded("llama_gqa").names, loaded("llama_gqa").params)
    assert "both LoRA matrices and rows of tokens of one module" in str(raised.value)
    assert "lm_head" in str(raised.value)


@pytest.mark.parametrize(
    ("tensors", "indices", "message"),
    [
        ({EMBED: ROWS}, [5, 6, 7], "rows of tokens that do not fit"),
        ({EMBED: ROWS[:, :8]}, [5, 6], "rows of tokens that do not fit"),
        ({HEAD: ROWS}, {"lm_head": [5, 6]}, "holds no rows of the embedding"),
        ({EMBED: ROWS, HEAD: ROWS}, {"embed_tokens": [5, 6], "lm_head": [5, 7]}, "train different tokens"),
    ],
)
def test_rows_that_do_not_fit_are_refused(loaded, tmp_path, tensors, indices, message):
    folder = folder_of(tmp_path, tensors, indices)
    with pytest.raises(ModelError) as raised:
        read_adapter(folder, loaded("llama_gqa").names, loaded("llama_gqa").params)
    assert message in str(raised.value)


def test_a_model_with_rows_beside_its_tables_is_not_written(loaded, tmp_path):
    from jaxlean.hub.vocabulary import with_rows
    from jaxlean.hub.write import write_model

    model = with_rows(resized(loaded("qwen2_tied"), 98), np.array([97]), {"new_tokens.embed": ROWS[:1]})
    assert vocabulary.has_rows(model.params)
    with pytest.raises(ModelError, match="a model with an adapter cannot be written"):
        write_model(model, tmp_path / "model")
