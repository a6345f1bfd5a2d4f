"""Tensors from the files into the tree: each in its place, in its dtype, named when it is wrong, and without waste."""

import ctypes
import json
import os
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from jaxlean import codec, tree
from jaxlean.adapt.quantize import is_chosen, quantize
from jaxlean.config import MeshSection
from jaxlean.errors import ModelError
from jaxlean.hub.families import family_of
from jaxlean.hub.names import Names
from jaxlean.hub.read import read_params
from jaxlean.models.build import abstract
from jaxlean.xla.mesh import make_mesh, place


def read(folder, *, dtype="float32", mesh=None, form=None):
    hf = AutoConfig.from_pretrained(folder)
    family = family_of(hf.model_type)
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    shapes = abstract(family.config(hf))[1]
    return read_params(
        folder,
        Names(family, family.config(hf)),
        shapes,
        dtype=lambda path: np.dtype(dtype),
        place=place(mesh),
        form=lambda path: form if is_chosen(path) else None,
    )


def message(folder):
    with pytest.raises(ModelError) as caught:
        read(folder)
    return str(caught.value)


def same(one, two):
    one, two = tree.flatten(one), tree.flatten(two)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(two[path]), err_msg=path)


def test_layers_are_stacked_and_kernels_turned(golden):
    params = read(golden / "qwen2_tied")
    file = load_file(golden / "qwen2_tied" / "model.safetensors")
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.k_proj"
        np.testing.assert_array_equal(params["layers"]["attention"]["key"]["kernel"][layer], file[f"{name}.weight"].T)
        np.testing.assert_array_equal(params["layers"]["attention"]["key"]["bias"][layer], file[f"{name}.bias"])
    np.testing.assert_array_equal(params["embed"]["embedding"], file["model.embed_tokens.weight"])
    assert "head" not in params


def test_shards_give_what_one_file_gives(checkpoint, golden):
    copy = checkpoint("llama_gqa")
    copy.shard(4)
    same(read(copy.folder), read(golden / "llama_gqa"))


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 2, "fsdp": 4}, {}])
def test_on_a_mesh_every_device_gets_its_part(golden, axes):
    mesh = make_mesh(MeshSection(**axes))
    params = read(golden / "qwen3_bias", mesh=mesh)
    same(params, read(golden / "qwen3_bias"))
    for path, leaf in tree.flatten(params).items():
        assert leaf.sharding == place(mesh)(path, leaf.shape), path
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(leaf)[shard.index])


@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 2, "fsdp": 4}, {}])
@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_what_is_quantized_while_it_is_read_is_what_is_quantized_after(golden, form, axes):
    mesh = make_mesh(MeshSection(**axes))
    params = tree.flatten(read(golden / "qwen3_bias", mesh=mesh, form=form))
    wanted = tree.flatten(quantize(read(golden / "qwen3_bias"), form))
    assert params.keys() == wanted.keys()
    assert sum(path.endswith(f".kernel_{form}") for path in params) == 7
    for path, leaf in params.items():
        np.testing.assert_allclose(np.asarray(leaf), np.asarray(wanted[path]), rtol=1e-6, err_msg=path)
        assert leaf.sharding == place(mesh)(path, leaf.shape), path
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, np.asarray(leaf)[shard.index])


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_quantized_from_the_files_own_numbers(checkpoint, stored):
    """Not from those rounded to the compute dtype first."""
    copy = checkpoint("llama_gqa")
    dtype = np.dtype(getattr(ml_dtypes, stored, None) or stored)
    copy.change(lambda tensors: tensors.update({name: x.astype(dtype) for name, x in tensors.items()}))
    params = tree.flatten(read(copy.folder, dtype="bfloat16", form="int8"))
    kernel = load_file(copy.file)["model.layers.1.mlp.up_proj.weight"].T.astype(np.float32)
    for name, leaf in codec.encode(kernel, "int8").items():
        np.testing.assert_allclose(params[f"layers.mlp.up.{name}"][1], leaf, rtol=1e-6)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_dtypes_of_the_file_become_those_asked_for(checkpoint, stored, held):
    copy = checkpoint("llama_gqa")
    dtype = np.dtype(getattr(ml_dtypes, stored, None) or stored)
    copy.change(lambda tensors: tensors.update({name: x.astype(dtype) for name, x in tensors.items()}))
    params = read(copy.folder, dtype=held)
    assert {str(leaf.dtype) for leaf in tree.flatten(params).values()} == {held}
    want = load_file(copy.file)["model.layers.1.mlp.up_proj.weight"].T.astype(held)
    np.testing.assert_array_equal(np.asarray(params["layers"]["mlp"]["up"]["kernel"][1]), want)


def test_a_file_is_not_opened_for_each_of_its_tensors(golden, monkeypatch):
    """To open one with a thousand tensors takes longer than to read an expert's."""
    opened = []
    opens = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda file, **how: opened.append(file) or opens(file, **how))
    read(golden / "qwen3moe_normed")
    assert len(load_file(golden / "qwen3moe_normed" / "model.safetensors")) > 30
    assert len(opened) < 4


def test_what_old_files_carry_is_passed_over(golden):
    names = load_file(golden / "llama_leftovers" / "model.safetensors")
    assert "lm_head.weight" in names
    assert any(name.endswith("rotary_emb.inv_freq") for name in names)
    assert "head" not in read(golden / "llama_leftovers")


def test_a_missing_tensor_is_named(checkpoint):
    copy = checkpoint("llama_gqa")
    copy.change(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    text = message(copy.folder)
    assert "a tensor is missing: model.layers.1.mlp.up_proj.weight" in text
    assert "more" not in text
    assert str(copy.folder) in text
    copy.change(lambda tensors: tensors.pop("model.norm.weight"))
    assert "(and 1 more)" in message(copy.folder)


def test_a_tensor_under_another_name_is_suggested(checkpoint):
    copy = checkpoint("llama_gqa")
    copy.change(lambda tensors: tensors.update({"model.norms.weight": tensors.pop("model.norm.weight")}))
    text = message(copy.folder)
    assert "a tensor is missing: model.norm.weight" in text
    assert "did you mean 'model.norms.weight'?" in text


def test_an_extra_tensor_is_named(checkpoint):
    copy = checkpoint("llama_gqa")
    copy.change(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}))
    text = message(copy.folder)
    assert "a tensor that the model does not have: model.layers.0.self_attn.q_proj.bias" in text
    assert "model.safetensors" in text


def test_a_layer_too_many_is_extra(checkpoint):
    copy = checkpoint("llama_gqa")
    copy.configure(num_hidden_layers=1)
    assert "a tensor that the model does not have: model.layers.1." in message(copy.folder)


def test_a_head_is_extra_only_where_the_model_has_its_own(checkpoint):
    copy = checkpoint("llama_leftovers")
    copy.configure(tie_word_embeddings=False)
    assert "head" in read(copy.folder)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("model.layers.1.self_attn.k_proj.weight", (31, 32), "(32, 32)"),
        ("model.layers.0.mlp.down_proj.weight", (48, 32), "(32, 48)"),
        ("model.norm.weight", (32, 1), "(32,)"),
        ("model.embed_tokens.weight", (95, 32), "(96, 32)"),
    ],
)
def test_a_tensor_of_the_wrong_shape_is_named(checkpoint, name, shape, wanted):
    copy = checkpoint("llama_gqa")
    copy.change(lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))
    text = message(copy.folder)
    assert f"a tensor has the wrong shape: {name}" in text
    assert str(shape) in text
    assert wanted in text


LARGE = {
    "model_type": "llama", "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
@pytest.mark.parametrize(
    ("stored", "form"), [("float32", None), ("float16", None), ("float32", "int8"), ("float32", "nf4")]
)
def test_reading_takes_little_more_memory_than_the_model(tmp_path, stored, form):
    """At most 1.2 times the model, or what is held of it and some copies of its largest tensor to round it in.

    Measured as the process' own peak, which is set back before.
    """
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    family = family_of("llama")
    config = family.config(AutoConfig.from_pretrained(tmp_path))
    shapes, names = tree.flatten(abstract(config)[1]), Names(family, config)
    tensors = {}
    for path, leaf in shapes.items():
        inner = leaf.shape[names.leading(path) :]
        for _, name in names.tensors(path, leaf.shape):
            tensors[name] = np.ones(inner[::-1] if "kernel" in path else inner, stored)
    save_file(tensors, tmp_path / "model.safetensors")
    size, largest = sum(4 * x.size for x in tensors.values()), max(4 * x.size for x in tensors.values())
    del tensors
    if form is not None:
        read(tmp_path, form=form)  # compiled, which takes memory of its own
    elif hasattr(ctypes.CDLL(None), "malloc_trim"):
        # what earlier tests have freed goes back to the kernel: it would be used again, and not be counted
        ctypes.CDLL(None).malloc_trim(0)

    def memory(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this kernel does not let the peak be set back")
    before = memory("VmRSS")
    params = read(tmp_path, form=form)
    jax.block_until_ready(params)
    used = memory("VmHWM") - before
    held = sum(leaf.nbytes for leaf in tree.flatten(params).values())
    if form is not None:
        assert held < 0.4 * size
        assert used < held + 8 * largest < 0.6 * size, f"{used / 1e6:.0f} MB, of which {held / 1e6:.0f} are held"
        return
    assert held == size > 100e6
    assert 0.7 * size < used < 1.2 * size, f"{used / size:.2f} times the model (pid {os.getpid()})"
