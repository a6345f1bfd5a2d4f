"""Merging: base and adapter in one, with the same logits; nothing overwritten."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxlean import tree
from jaxlean.adapt import lora
from jaxlean.config import LoraSection, build
from jaxlean.errors import ModelError, RunError
from jaxlean.hub.adapter import write_adapter
from jaxlean.hub.load import load
from jaxlean.hub.write import write_model
from jaxlean.run import merge as module
from jaxlean.run.merge import labels_of, load_adapted, merge, with_labels_of

pytestmark = pytest.mark.usefixtures("small_machine")

# Another order of sums in float32 moves the logits of these by up to 0.6e-5 of the largest one, on jax 0.10 and 0.12;
# those of seed 0 by 1.1e-5, at one token whose attention is near a tie.
TOKENS = np.random.default_rng(4).integers(0, 2048, (2, 24))


def make_adapter(base: Path, folder: Path, **variant) -> Path:
    model, config = load(base, "float32"), LoraSection(**({"r": 3, "lora_alpha": 6} | variant))
    leaves = tree.flatten(lora.add(model.params, lora.targets(model.params, "all-linear"), config, jax.random.key(0)))
    moved = {
        path: leaf + 0.05 * jax.random.normal(jax.random.key(i), leaf.shape) if lora.is_adapter(path) else leaf
        for i, (path, leaf) in enumerate(leaves.items())
        if ".lora_" in path
    }
    write_adapter(folder, model.names, tree.unflatten(moved), config, base=str(base))
    return folder


@pytest.fixture(scope="module")
def adapter(small_machine, tiny_base, tmp_path_factory) -> Path:
    return make_adapter(tiny_base, tmp_path_factory.mktemp("merge") / "adapter")


def test_the_folder_of_a_run_is_not_its_adapter(adapter, tiny_base, tmp_path):
    with pytest.raises(ModelError) as caught:
        merge(adapter.parent, tmp_path / "merged")
    for words in ("a folder without an adapter", f"did you mean {adapter}?"):
        assert words in str(caught.value)
    with pytest.raises(ModelError, match="a folder without an adapter") as caught:
        load_adapted(load(tiny_base, "float32"), tiny_base)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}, {"use_rslora": True, "target_modules": ["q_proj"]}])
def test_the_merged_model_computes_the_same(tiny_base, tmp_path, variant):
    adapter = make_adapter(tiny_base, tmp_path / "adapter", **variant)
    base = load(tiny_base, "float32")
    wanted = load_adapted(base, adapter)(TOKENS)
    merge(adapter, tmp_path / "merged")
    merged = load(tmp_path / "merged", "float32")
    assert float(abs(wanted - base(TOKENS)).max()) > 1e-2, "the adapter changes something"
    # logits of up to 15 in float32: relative to the output's scale, the largest difference and all of them
    np.testing.assert_allclose(merged(TOKENS), wanted, rtol=0, atol=1e-5 * float(abs(wanted).max()))
    assert np.linalg.norm(merged(TOKENS) - wanted) <= 5e-6 * np.linalg.norm(wanted)
    assert not [path for path in tree.flatten(merged.params) if "lora" in path]
    assert merged.tokenizer("red house")["input_ids"] == base.tokenizer("red house")["input_ids"]


@pytest.mark.parametrize(("dtype", "held"), [("auto", "bfloat16"), ("float32", "float32"), ("bfloat16", "bfloat16")])
def test_the_dtype_is_the_bases_or_the_one_asked_for(tiny_base, adapter, tmp_path, dtype, held):
    half = tmp_path / "half"
    write_model(load(tiny_base, "float32"), half, dtype="bfloat16")
    merge(adapter, tmp_path / "merged", base=str(half), dtype=dtype)
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {x.dtype.name for x in tensors.values()} == {held}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == held
    # Added in float32, whatever is written: rounded once.
    exact = lora.merge(load_adapted(load(half, "float32"), adapter).params)["layers"]["mlp"]["up"]["kernel"][1].T
    np.testing.assert_array_equal(
        tensors["model.layers.1.mlp.up_proj.weight"].astype(np.float32), np.asarray(exact.astype(held), np.float32)
    )


def test_a_float32_base_stays_float32(adapter, tmp_path):
    merge(adapter, tmp_path / "merged")
    assert {x.dtype.name for x in load_file(tmp_path / "merged" / "model.safetensors").values()} == {"float32"}


def test_nothing_is_overwritten_and_nothing_is_loaded_for_it(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load", None)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="the output folder is not empty") as raised:
        merge(adapter, tmp_path)
    assert str(tmp_path) in str(raised.value)
    with pytest.raises(RunError, match="the output folder is a file"):
        merge(adapter, tmp_path / "notes.txt")
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_will_do(adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    merge(adapter, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()


def test_a_base_that_is_not_named_or_not_there(adapter, tmp_path):
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    settings = json.loads((copy / "adapter_config.json").read_text())
    for named, words in ((None, "does not name its base"), (str(tmp_path / "gone"), "no such model folder")):
        (copy / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": named}))
        with pytest.raises(ModelError, match=words):
            merge(copy, tmp_path / "merged")
    with pytest.raises(ModelError, match="no such adapter folder"):
        merge(tmp_path / "none", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_does_not_fit(adapter, tmp_path):
    copy = tmp_path / "adapter"
    shutil.copytree(adapter, copy)
    tensors = load_file(copy / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: tensors[name][:, :-1].copy()}, copy / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit its base"):
        merge(copy, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_place_that_cannot_be_written(adapter, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="the output folder lies under a file"):
        merge(adapter, tmp_path / "file" / "merged")


def test_an_adapter_says_what_its_labels_are(tmp_path):
    """In the order of their ids, which is not that of letters."""
    unknown = build({"task": "classify"})
    with pytest.raises(ModelError, match="a folder without an adapter"):
        with_labels_of(tmp_path, unknown)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert labels_of(tmp_path) is None
    assert with_labels_of(tmp_path, unknown) == unknown, "nothing says which"
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "b", "0": "c", "10": "d", "2": "a"}}))
    assert labels_of(tmp_path) == ["c", "b", "a", "d"]
    named = with_labels_of(tmp_path, unknown)
    assert named.data.labels == ["c", "b", "a", "d"]
    assert with_labels_of(tmp_path, named) == named
    assert with_labels_of(None, unknown) == unknown
    assert with_labels_of(tmp_path, build({"task": "generate"})).data.labels is None
    for labels in (["c", "b", "a"], ["a", "b", "c", "d"]):
        with pytest.raises(ModelError) as caught:
            with_labels_of(tmp_path, build({"task": "classify", "data": {"labels": labels}}))
        for words in ("trained for other labels", "4 labels: c, b, a, d", f"labels: {', '.join(labels)}"):
            assert words in str(caught.value)
