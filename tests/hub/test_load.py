"""`jaxlean.load` and the model it gives."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlean
from jaxlean import tree
from jaxlean.config import MeshSection
from jaxlean.errors import ConfigError, ModelError
from jaxlean.hub.load import initial, load, load_tokenizer
from jaxlean.xla.mesh import make_mesh, place

TINY = {
    "model_type": "qwen3", "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3,
}  # fmt: skip


def mesh_of_one():
    return make_mesh(devices=jax.devices()[:1])


def message(function, *args, **options):
    with pytest.raises(ModelError) as caught:
        function(*args, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a word-level tokenizer that has a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<unk>")
    fast.chat_template = "its own"
    fast.save_pretrained(folder)
    return folder


def test_load_is_the_face_of_the_package(golden, expected):
    model = jaxlean.load(golden / "llama_gqa", dtype="float32")
    wanted = expected("llama_gqa")
    logits = model(wanted["tokens"])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, wanted["logits"], atol=1e-4)
    assert (model.config.num_layers, model.config.vocab_size) == (2, 96)
    assert model.hf_config["model_type"] == "llama"
    assert isinstance(model.params, dict)
    # the default mesh is every device, each with a copy
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(model.params)} == {8}
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(model.params))


@pytest.mark.parametrize("name", ["llama_gqa", "qwen3_window", "phi3_window", "gptneox_parallel", "gemma2_soft"])
def test_on_a_mesh_of_eight_the_logits_are_the_same(name, golden, loaded, expected):
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    model = load(golden / name, "float32", mesh)
    tokens = expected(name)["tokens"]
    np.testing.assert_allclose(model(tokens), loaded(name)(tokens), atol=2e-5)
    for path, leaf in tree.flatten(model.params).items():
        assert leaf.sharding == place(mesh)(path, leaf.shape)
        assert not (path.endswith("mlp.up.kernel") and leaf.is_fully_replicated)


def test_bfloat16_is_held_and_multiplied_in_bfloat16(golden, expected):
    model = load(golden / "qwen3_tied", "bfloat16", mesh_of_one())
    wanted = expected("qwen3_tied")
    for path, leaf in tree.flatten(model.params).items():
        assert leaf.dtype == ("float32" if path.endswith(".scale") else "bfloat16"), path
    logits = model(wanted["tokens"])
    assert logits.dtype == jnp.float32
    difference = np.abs(logits - wanted["logits"])
    assert 1e-3 < difference.mean() < 0.05 * np.abs(wanted["logits"]).mean()


def test_what_will_train_is_held_in_float32(golden):
    model = load(golden / "qwen3_tied", "bfloat16", mesh_of_one(), trains=lambda path: path.startswith("layers.mlp."))
    for path, leaf in tree.flatten(model.params).items():
        wide = path.startswith("layers.mlp.") or path.endswith(".scale")
        assert leaf.dtype == ("float32" if wide else "bfloat16"), path


@pytest.mark.parametrize(("form", "error"), [("int8", 0.03), ("nf4", 0.4)])
def test_a_quantized_base(golden, expected, form, error):
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    wanted = expected("qwen3_tied")
    model = load(golden / "qwen3_tied", "float32", mesh_of_one(), quantization=form)
    paths = tree.flatten(model.params)
    assert sum(path.endswith(f".kernel_{form}") for path in paths) == 7
    assert not any(path.endswith(".kernel") for path in paths)
    got = np.asarray(model(wanted["tokens"]))
    assert error / 50 < np.linalg.norm(got - wanted["logits"]) / np.linalg.norm(wanted["logits"]) < error
    spread = load(golden / "qwen3_tied", "float32", mesh, quantization=form)
    np.testing.assert_allclose(spread(wanted["tokens"]), got, atol=2e-5)
    narrow = load(golden / "qwen3_tied", "float32", mesh_of_one(), quantization=form, matmul="int8")
    assert 1e-4 < np.abs(narrow(wanted["tokens"]) - got).max() < 0.1 * np.abs(got).max()
    again = narrow.with_params(narrow.params)
    np.testing.assert_array_equal(again(wanted["tokens"]), narrow(wanted["tokens"]))


def test_a_quantized_matrix_does_not_train(golden):
    def trains(path):
        return path.startswith("layers.mlp.")

    with pytest.raises(ConfigError) as caught:
        load(golden / "qwen3_tied", trains=trains, quantization="nf4")
    for words in ("cannot train", "layers.mlp.down.kernel (and 2 more)", "model.quantization=nf4"):
        assert words in str(caught.value)
    load(golden / "qwen3_tied", trains=lambda path: path.endswith(".scale"), quantization="nf4")


def test_positions_and_segments_reach_the_model(loaded, expected):
    model, tokens = loaded("llama_gqa"), expected("llama_gqa")["tokens"]
    segments = np.repeat([[1, 2]], 12, axis=1).repeat(2, axis=0)
    positions = np.tile(np.arange(12), (2, 2))
    packed = model(tokens, positions=jnp.asarray(positions), segments=jnp.asarray(segments))
    np.testing.assert_allclose(packed[:, 12:], model(tokens[:, 12:]), atol=1e-5)


def test_a_family_that_is_not_supported(checkpoint):
    copy = checkpoint("llama_gqa")
    copy.configure(model_type="falcon")
    text = message(load, copy.folder)
    assert "'falcon' is not supported" in text
    assert "granite, llama, mistral, " in text
    # nothing is called like it, but its config is Llama's
    assert "nearest: llama; 'Add a family' in CONTRIBUTING.md" in text
    assert str(copy.folder / "config.json") in text
    copy.configure(model_type=None)
    assert "config.json needs a model_type" in message(load, copy.folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes"])
def test_a_checkpoint_that_others_quantized_is_refused_by_name(method, checkpoint):
    copy = checkpoint("llama_gqa")
    copy.configure(quantization_config={"quant_method": method, "bits": 4})
    text = message(load, copy.folder)
    assert f"quant_method {method}" in text
    assert "model.quantization=int8" in text
    assert str(copy.folder / "config.json") in text


def test_no_config(checkpoint):
    copy = checkpoint("llama_gqa")
    (copy.folder / "config.json").unlink()
    text = message(load, copy.folder)
    assert "a model file is missing" in text
    assert str(copy.folder / "config.json") in text


@pytest.mark.parametrize("changes", [{"hidden_size": "wide"}, {"num_attention_heads": 5, "hidden_size": 32}])
def test_a_config_that_transformers_refuses(checkpoint, changes):
    copy = checkpoint("llama_gqa")
    copy.configure(**changes)
    text = message(load, copy.folder)
    assert "the model's config is not valid" in text
    assert str(copy.folder / "config.json") in text
    assert len(text.splitlines()) <= 3


def test_no_such_model():
    assert "no such model folder" in message(load, "./nowhere")


def test_other_parameters_are_checked(loaded):
    model = loaded("llama_gqa")
    leaves = tree.flatten(model.params)
    without = {path: leaf for path, leaf in leaves.items() if path != "norm.scale"}
    assert "a parameter is missing: norm.scale" in message(model.with_params, tree.unflatten(without))
    wrong = leaves | {"norm.scale": jnp.ones(31)}
    assert "a parameter has the wrong shape: norm.scale" in message(model.with_params, tree.unflatten(wrong))
    extra = leaves | {"norm.bias": jnp.ones(32)}
    assert "a parameter that the model does not have: norm.bias" in message(model.with_params, tree.unflatten(extra))


def test_other_parameters_give_another_model(loaded, expected):
    model, tokens = loaded("llama_gqa"), expected("llama_gqa")["tokens"]
    silent = model.with_params(jax.tree.map(jnp.zeros_like, model.params))
    assert not np.asarray(silent(tokens)).any()
    assert np.asarray(model(tokens)).any()  # the first is what it was


def test_the_tokenizer_lies_beside_the_model_or_where_it_is_said(golden, checkpoint, tokenizer):
    copy = checkpoint("llama_gqa")
    shutil.copytree(tokenizer, copy.folder, dirs_exist_ok=True)
    assert load(copy.folder).tokenizer("hello world")["input_ids"] == [1, 2]
    assert load(golden / "llama_gqa", tokenizer=str(tokenizer)).tokenizer("hello world")["input_ids"] == [1, 2]


def test_a_changed_tokenizer_goes_with_the_model(golden, tokenizer):
    """A chat template that the config gives must not be lost where an adapter is attached."""
    model = load(golden / "llama_gqa", "float32", mesh_of_one(), tokenizer=str(tokenizer))
    model.tokenizer.chat_template = "another"
    assert model.with_params(model.params).tokenizer is model.tokenizer
    assert model.with_params(model.params).tokenizer.chat_template == "another"
    assert load_tokenizer(str(tokenizer)).chat_template == "its own"


def test_no_tokenizer_is_said_when_it_is_asked_for(loaded, tmp_path):
    model = loaded("llama_gqa")  # loading itself needs none
    with pytest.raises(ModelError) as caught:
        _ = model.tokenizer
    for words in (
        "no tokenizer that can be read", str(model.folder), "no file of one", "tokenizer.json", "set model.tokenizer",
    ):  # fmt: skip
        assert words in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    broken = message(load_tokenizer, str(tmp_path))
    assert "no tokenizer that can be read" in broken
    assert "no file of one" not in broken


def test_a_model_from_zero():
    model = initial(TINY, "bfloat16", mesh_of_one(), seed=1)
    assert np.isfinite(np.asarray(model(np.arange(12)[None]))).all()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"float32"}
    assert model.dtype == jnp.bfloat16
    assert model.hf_config["model_type"] == "qwen3"
    assert "the model has no tokenizer" in message(lambda: model.tokenizer)


def test_a_model_from_zero_of_a_config_that_is_wrong():
    assert "'lama' is not supported" in message(initial, {"model_type": "lama"})
    assert "not valid" in message(initial, {**TINY, "hidden_size": "wide"})


def test_a_model_from_zero_does_not_depend_on_the_mesh():
    mesh = make_mesh(MeshSection(data=2, fsdp=2, tensor=2))
    spread, alone = initial(TINY, "float32", mesh, seed=3), initial(TINY, "float32", mesh_of_one(), seed=3)
    for path, leaf in tree.flatten(alone.params).items():
        got = tree.flatten(spread.params)[path]
        assert got.sharding == place(mesh)(path, leaf.shape)
        np.testing.assert_allclose(got, leaf, atol=1e-7, err_msg=path)
