"""ViT checkpoints: with a classifier, without biases and not square, and without a head but the pooler."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection
from jaxlean.errors import ModelError
from jaxlean.hub.adapter import read_adapter, write_adapter
from jaxlean.hub.load import load
from jaxlean.run.merge import load_adapted

CASES = sorted(folder.name for folder in (Path(__file__).parents[2] / "golden").glob("vit_*"))


@pytest.mark.parametrize("case", CASES)
def test_golden(case, image_parity):
    image_parity(case)


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, image_round_trip):
    image_round_trip(case)


def test_all_cases_are_there():
    assert len(CASES) == 3


def test_what_no_vit_has_is_refused(checkpoint):
    """A head that is not there, images of another size, no pooler's activation of that name."""
    copy = checkpoint("vit_hidden")
    copy.configure(architectures=["ViTForMaskedImageModeling"])
    with pytest.raises(ModelError, match="ViTForImageClassification, ViTModel"):
        load(copy.folder)
    copy.configure(architectures=["ViTModel"], pooler_act="mish")
    with pytest.raises(ModelError, match="mish"):
        load(copy.folder)


def test_a_missing_or_misshapen_tensor_is_named(checkpoint):
    copy = checkpoint("vit_classify")
    copy.change(lambda tensors: tensors.update({"vit.embeddings.cls_token": np.zeros((1, 24), np.float32)}))
    with pytest.raises(ModelError, match=r"(?s)vit\.embeddings\.cls_token.*\(1, 24\).*\(1, 1, 24\)"):
        load(copy.folder)
    copy.change(lambda tensors: tensors.pop("vit.embeddings.cls_token"))
    with pytest.raises(ModelError, match=r"missing: vit\.embeddings\.cls_token"):
        load(copy.folder)


def test_an_adapter_of_peft_with_its_head(golden, loaded, expected):
    base, folder = loaded("vit_classify"), golden / "adapters" / "vit_classify__plain"
    wanted = expected("adapters/vit_classify__plain")
    model = load_adapted(base, folder)
    np.testing.assert_allclose(model(wanted["pixels"]), wanted["logits"], atol=1e-4, rtol=0)
    assert np.abs(np.asarray(base(wanted["pixels"])) - wanted["logits"]).max() > 0.05


def trained(model):
    """Adapters of every layer, as after training."""
    modules = lora.targets(model.params, "all-linear")
    assert "classifier" not in modules
    assert "patches" not in modules  # PEFT does not adapt convolutions either
    shapes = lora.add(model.params, modules, LoraSection(r=3, lora_alpha=6), key=np.array([0, 1], np.uint32))
    rng = np.random.default_rng(0)
    moved = tree.map_with_path(
        lambda path, x: rng.normal(size=x.shape).astype(np.float32) if lora.is_adapter(path) else x, shapes
    )
    return model.with_params(moved)


def test_adapters_are_written_with_the_names_that_modules_have_now(loaded, tmp_path, expected):
    """Files say `encoder.layer.0.attention.attention.query`, transformers 5 `layers.0.attention.q_proj`."""
    from safetensors.numpy import load_file, save_file

    base, pixels = loaded("vit_classify"), expected("vit_classify")["pixels"]
    model = trained(base)
    adapter = tree.split(model.params, lambda path: ".lora_" in path)[0]
    write_adapter(tmp_path / "new", base.names, adapter, LoraSection(r=3, lora_alpha=6), base="x", task="classify")
    # PEFT's class of that task would call the model with tokens
    assert json.loads((tmp_path / "new" / "adapter_config.json").read_text())["task_type"] is None
    tensors = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert "base_model.model.vit.layers.1.attention.q_proj.lora_A.weight" in tensors
    assert all(".vit.layers." in name for name in tensors)
    again = base.with_params(tree.merge(base.params, read_adapter(tmp_path / "new", base.names, base.params)))
    np.testing.assert_allclose(again(pixels), model(pixels), atol=1e-6)

    # as PEFT wrote them with transformers 4
    renamed = {}
    for name, tensor in tensors.items():
        for ours, now in base.family.adapters.items():
            before = base.family.modules[ours]
            for layer in range(2):
                name = name.replace(now.format(layer) + ".", before.format(layer) + ".")
        renamed[name] = tensor
    assert not renamed.keys() & tensors.keys()
    save_file(renamed, tmp_path / "new" / "adapter_model.safetensors")
    old = base.with_params(tree.merge(base.params, read_adapter(tmp_path / "new", base.names, base.params)))
    np.testing.assert_array_equal(old(pixels), again(pixels))
