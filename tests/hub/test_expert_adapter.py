"""Adapters of experts and routers in PEFT's format: written and read they compute the same, ranks merged or not.

That PEFT's own files give PEFT's logits is tested in test_adapter.py, with the golden files.
"""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlean import codec, tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection
from jaxlean.errors import ModelError
from jaxlean.hub.adapter import read_adapter, write_adapter


def drawn(model, modules, r=3):
    params = lora.add(model.params, modules, LoraSection(r=r, lora_alpha=6), jax.random.key(0))
    adapter = tree.split(params, lambda path: ".lora_" in path)[0]
    rng = np.random.default_rng(0)
    return tree.map_with_path(
        lambda path, x: x if path.endswith("scale") else 0.3 * rng.normal(size=x.shape).astype(np.float32), adapter
    )


@pytest.mark.parametrize(
    ("base", "modules"),
    [
        ("mixtral_two", ["experts.gate", "experts.up", "experts.down", "router"]),
        ("mixtral_two", ["experts.up"]),
        ("qwen2moe_shared", ["experts.gate", "experts.down", "shared.up"]),
        ("gptoss_plain", ["experts.gate_up", "experts.down"]),
        ("deepseekv3_one", ["experts.down"]),
    ],
)
def test_written_and_read_it_computes_the_same(base, modules, loaded, expected, tmp_path):
    model, tokens = loaded(base), expected(base)["tokens"]
    kernels = codec.kernels(tree.flatten(model.params))
    chosen = [path for path in kernels if any(path.endswith(f".mlp.{module}") for module in modules)]
    assert len(chosen) >= len(modules)
    adapter = drawn(model, chosen)
    write_adapter(tmp_path / "adapter", model.names, adapter, LoraSection(r=3, lora_alpha=6), base="x")
    back = read_adapter(tmp_path / "adapter", model.names, model.params)
    assert tree.flatten(back).keys() >= tree.flatten(adapter).keys()
    want = model.with_params(tree.merge(model.params, adapter))(tokens)
    assert np.abs(want - model(tokens)).max() > 0.1
    np.testing.assert_allclose(model.with_params(tree.merge(model.params, back))(tokens), want, atol=1e-5)
    ranks = {path: x.shape[-1] for path, x in tree.flatten(back).items() if path.endswith("lora_a")}
    assert all(rank == 3 for path, rank in ranks.items() if path.removesuffix(".lora_a") in chosen)


def test_a_layer_on_its_own_is_told_by_its_target(loaded, tmp_path):
    model = loaded("mixtral_two")
    adapter = drawn(model, ["layers.mlp.experts.down"])
    write_adapter(tmp_path / "adapter", model.names, adapter, LoraSection(r=3, lora_alpha=6), base="x")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert [name.rsplit(".", 1)[-1] for name in settings["target_parameters"]] == ["down_proj"] * 2
    assert settings["target_modules"] == []
    shapes = {name: x.shape for name, x in load_file(tmp_path / "adapter" / "adapter_model.safetensors").items()}
    first = "base_model.model.model.layers.0.mlp.experts"
    assert shapes[f"{first}.lora_A.weight"] == (4 * 3, 12)
    assert shapes[f"{first}.lora_B.weight"] == (32, 3 * 4)


def test_one_that_does_not_fit_is_refused(loaded, tmp_path):
    folder, model = tmp_path / "adapter", loaded("mixtral_two")
    adapter = drawn(model, ["layers.mlp.experts.down"])
    write_adapter(folder, model.names, adapter, LoraSection(r=3, lora_alpha=6), base="x")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("layers.1.mlp.experts.lora_B.weight"))
    tensors[name] = np.zeros((31, 12), np.float32)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.experts.down_proj") as caught:
        read_adapter(folder, model.names, model.params)
    assert "lora_B (32, r * 4)" in str(caught.value)


def test_a_router_may_have_a_scale_of_its_own(loaded, tmp_path):
    model = loaded("mixtral_two")
    adapter = drawn(model, ["layers.attention.query", "layers.mlp.router"])
    adapter["layers"]["mlp"]["router"]["lora_scale"] = np.full(2, 0.5, np.float32)
    write_adapter(tmp_path / "adapter", model.names, adapter, LoraSection(r=3, lora_alpha=6), base="x")
    back = tree.flatten(read_adapter(tmp_path / "adapter", model.names, model.params))
    np.testing.assert_array_equal(back["layers.mlp.router.lora_scale"], [0.5, 0.5])
    np.testing.assert_array_equal(back["layers.attention.query.lora_scale"], [2, 2])
