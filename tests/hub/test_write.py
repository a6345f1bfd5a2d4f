"""Writing a model: what comes back is what went out, nothing is left half done."""

import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxlean import tree
from jaxlean.adapt.quantize import dequantize
from jaxlean.config import LoraSection, MeshSection
from jaxlean.errors import ModelError, RunError
from jaxlean.hub.families import family_of
from jaxlean.hub.load import load
from jaxlean.hub.names import Names
from jaxlean.hub.write import tensors, write_model
from jaxlean.models.decoder import DecoderConfig
from jaxlean.xla.mesh import make_mesh


def mesh_of_one():
    return make_mesh(devices=jax.devices()[:1])


def read_all(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(one, two):
    assert one.keys() == two.keys()
    for name, array in one.items():
        assert array.dtype == two[name].dtype, name
        np.testing.assert_array_equal(array, two[name], err_msg=name)


@pytest.mark.parametrize(
    "name", ["llama_bias", "llama_tied", "mistral_full", "qwen2_window", "qwen3_bias", "qwen3_yarn"]
)
def test_the_tensors_written_are_those_that_were_read(name, golden, loaded, expected, tmp_path):
    write_model(loaded(name), tmp_path / "out")
    same(read_all(tmp_path / "out"), read_all(golden / name))
    again = load(tmp_path / "out", "float32", mesh_of_one())
    assert again.config == loaded(name).config  # the rope's settings and the windows too, also of old-style configs
    np.testing.assert_array_equal(again(expected(name)["tokens"]), loaded(name)(expected(name)["tokens"]))
    with safe_open(tmp_path / "out" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file


def test_a_tied_head_is_left_out(loaded, tmp_path):
    write_model(loaded("llama_leftovers"), tmp_path / "out")
    names = set(read_all(tmp_path / "out"))
    assert "lm_head.weight" not in names
    assert not any("inv_freq" in name for name in names)


def test_large_models_are_split(golden, loaded, tmp_path):
    limit = 30_000
    write_model(loaded("llama_gqa"), tmp_path / "out", bytes_per_file=limit)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    num = len(files)
    assert num >= 3
    assert files == [f"model-{i + 1:05d}-of-{num:05d}.safetensors" for i in range(num)]
    parts = {file: load_file(tmp_path / "out" / file) for file in files}
    for part in parts.values():
        assert sum(x.nbytes for x in part.values()) <= limit or len(part) == 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    want = read_all(golden / "llama_gqa")
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in want.values())
    assert index["weight_map"] == {name: file for file, part in parts.items() for name in part}
    same(read_all(tmp_path / "out"), want)
    again = load(tmp_path / "out", "float32", mesh_of_one())
    same(dict(tensors(again.names, again.params, np.dtype("float32"))), want)


def test_from_a_mesh(golden, tmp_path):
    model = load(golden / "llama_gqa", "float32", make_mesh(MeshSection(data=2, fsdp=2, tensor=2)))
    write_model(model, tmp_path / "out")
    same(read_all(tmp_path / "out"), read_all(golden / "llama_gqa"))


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16"])
def test_dtypes(golden, tmp_path, held, asked):
    model = load(golden / "qwen2_tied", held, mesh_of_one())
    write_model(model, tmp_path / "out", dtype=asked)
    want = asked or held
    written = read_all(tmp_path / "out")
    assert {str(x.dtype) for x in written.values()} == {want}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == want
    assert "torch_dtype" not in config
    if held == "float32":
        source = read_all(golden / "qwen2_tied")
        cast = {name: x.astype(ml_dtypes.bfloat16 if want == "bfloat16" else "float32") for name, x in source.items()}
        same(written, cast)


@pytest.mark.parametrize(
    ("name", "architecture"), [("mistral_full", "MistralForCausalLM"), ("qwen2_window", "Qwen2ForCausalLM")]
)
def test_the_config_is_the_models_own(name, architecture, golden, loaded, tmp_path):
    write_model(loaded(name), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    given = json.loads((golden / name / "config.json").read_text())
    assert written["architectures"] == [architecture]
    given.pop("torch_dtype", None)
    assert written == given | {"dtype": "float32", "architectures": [architecture]}


def test_a_tokenizer_and_the_generation_config_go_along(checkpoint, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    copy = checkpoint("llama_gqa")
    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(copy.folder)
    (copy.folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    model = load(copy.folder, "float32", mesh_of_one())
    model.tokenizer.chat_template = "{{ messages }}"
    write_model(model, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages }}"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": [7, 8]}


def test_weights_without_a_tokenizer_are_written_without(loaded, tmp_path):
    write_model(loaded("llama_gqa"), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_holds_something_is_left_alone(loaded, tmp_path):
    (tmp_path / "out").mkdir()
    write_model(loaded("llama_gqa"), tmp_path / "out")  # an empty one is as good as none
    (tmp_path / "out" / "mine").touch()
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(RunError, match="the output folder is not empty"):
        write_model(loaded("llama_gqa"), tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == before
    assert not (tmp_path / ".out.part").exists()


def test_an_adapter_is_not_dropped_in_silence(loaded, tmp_path):
    from jaxlean.adapt import lora

    model = loaded("llama_gqa")
    params = lora.add(model.params, ["layers.mlp.up"], LoraSection(r=2), jax.random.key(0))
    with pytest.raises(ModelError) as caught:
        write_model(model.with_params(params), tmp_path / "out")
    assert "a model with an adapter cannot be written" in str(caught.value)
    assert "layers.mlp.up.lora_a" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_in_nf4_is_not_written_and_one_in_int8_is(golden, tmp_path):
    """nf4 is no format that models are shared in; `tests/hub/test_compressed.py` has those that are."""
    model = load(golden / "llama_gqa", "float32", quantization="nf4")
    with pytest.raises(ModelError) as caught:
        write_model(model, tmp_path / "out")
    assert "nf4 is not written" in str(caught.value)
    assert not (tmp_path / "out").exists()
    eight = load(golden / "llama_gqa", "float32", quantization="int8")
    write_model(eight, tmp_path / "eight")
    np.testing.assert_array_equal(load(tmp_path / "eight", "float32")(np.arange(12)[None]), eight(np.arange(12)[None]))
    write_model(model.with_params(dequantize(model.params)), tmp_path / "out")
    again = load(tmp_path / "out", "float32")
    tokens = np.arange(12)[None]
    np.testing.assert_allclose(again(tokens), model(tokens), atol=1e-4)


def test_a_failure_leaves_no_folder_and_the_next_try_starts_anew(loaded, tmp_path, monkeypatch):
    import safetensors
    import safetensors.numpy

    def full(*_, **__):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", full)
        with pytest.raises(OSError, match="No space left"):
            write_model(loaded("llama_gqa"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.part").mkdir(exist_ok=True)
    (tmp_path / ".out.part" / "old").touch()
    write_model(loaded("llama_gqa"), tmp_path / "out")
    assert not (tmp_path / "out" / "old").exists()
    assert not (tmp_path / ".out.part").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_are_taken_apart_one_by_one(dtype):
    """All layers (and experts) of a kernel are one leaf, of which there is no copy."""
    shape = {"hidden_size": 128, "intermediate_size": 128, "num_layers": 64, "num_heads": 1, "num_kv_heads": 1}
    names = Names(family_of("llama"), DecoderConfig(vocab_size=8, head_dim=128, **shape))
    kernel = jax.block_until_ready(jnp.ones((64, 128, 128)))
    tracemalloc.start()
    try:
        num = sum(1 for _ in tensors(names, {"layers": {"mlp": {"up": {"kernel": kernel}}}}, np.dtype(dtype)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num == 64
    assert peak < kernel.nbytes / 8


def test_every_parameter_has_its_tensor(loaded):
    model = loaded("qwen3_bias")
    got = dict(tensors(model.names, model.params, np.dtype("float32")))
    assert sum(x.size for x in got.values()) == sum(x.size for x in tree.flatten(model.params).values())
    assert all(x.flags.c_contiguous for x in got.values())


def test_shards_are_read_as_transformers_wrote_them(golden, loaded, tmp_path):
    """llama_tied was written in shards by transformers; ours is one file with the same tensors."""
    assert (golden / "llama_tied" / "model.safetensors.index.json").exists()
    shutil.copytree(golden / "llama_tied", tmp_path / "copy")
    write_model(load(tmp_path / "copy", "float32", mesh_of_one()), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()
    same(read_all(tmp_path / "out"), read_all(golden / "llama_tied"))
