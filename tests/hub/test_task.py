"""The head of a task: read where the files have it, drawn where they do not, written under the right names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxlean import tree
from jaxlean.errors import ModelError
from jaxlean.hub.load import load, outline
from jaxlean.hub.task import task_of
from jaxlean.hub.write import write_model
from jaxlean.xla.mesh import make_mesh

SCORES = {"classifier.scores.kernel", "classifier.scores.bias"}


def open_(folder, **how):
    return load(folder, "float32", make_mesh(devices=jax.devices()[:1]), **how)


@pytest.mark.parametrize(
    ("architectures", "task"),
    [
        (["BertForSequenceClassification"], "classify"), (["XForTokenClassification"], "tag"), (["BertModel"], "embed"),
        (["BertForMaskedLM"], "embed"), ([], "embed"), (None, "embed"),
    ],
)  # fmt: skip
def test_what_a_model_was_saved_for(architectures, task):
    assert task_of({"architectures": architectures}) == task


def test_a_head_that_the_files_have_is_read(golden, loaded):
    model = open_(golden / "bert_classify", task="classify", labels=["a", "b", "c"])
    assert model.drawn == frozenset()
    for path, leaf in tree.flatten(loaded("bert_classify").params).items():
        np.testing.assert_array_equal(tree.flatten(model.params)[path], leaf)
    assert model.hf_config["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_scores_of_other_labels_are_drawn_anew(golden):
    model = open_(golden / "bert_classify", labels=list("abcde"), seed=3)
    assert model.drawn == SCORES  # the layer before them is read
    kernel = model.params["classifier"]["scores"]["kernel"]
    assert kernel.shape == (24, 5)
    assert kernel.dtype == jnp.float32
    assert 0.01 < float(kernel.std()) < 0.03
    assert not model.params["classifier"]["scores"]["bias"].any()
    other = open_(golden / "bert_classify", labels=list("abcde"), seed=4).params["classifier"]["scores"]["kernel"]
    assert not np.allclose(kernel, other)


def test_named_labels_are_the_same_only_in_the_same_order(checkpoint):
    copy = checkpoint("bert_classify")
    copy.configure(id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert not open_(copy.folder, labels=["a", "b", "c"]).drawn
    assert open_(copy.folder, labels=["b", "a", "c"]).drawn == SCORES


@pytest.mark.parametrize(
    ("name", "task", "drawn"),
    [
        ("bert_sentence", "classify", SCORES),  # the pooler is there
        ("bert_tag", "classify", SCORES | {"classifier.dense.kernel", "classifier.dense.bias"}),
        ("bert_classify", "tag", SCORES),
        ("distilbert_hidden", "classify", SCORES | {"classifier.dense.kernel", "classifier.dense.bias"}),
        ("roberta_hidden", "tag", SCORES),
        ("modernbert_hidden", "tag", SCORES | {"classifier.dense.kernel", "classifier.norm.scale"}),
        ("modernbert_tag", "embed", set()),
    ],
)
def test_a_new_task_over_a_trained_encoder(name, task, drawn, golden, loaded, tmp_path):
    labels = None if task == "embed" else ["x", "y", "z", "w"]
    model = open_(golden / name, task=task, labels=labels)
    assert model.drawn == drawn
    before = tree.flatten(loaded(name).params)
    for path, leaf in tree.flatten(model.params).items():
        if not path.startswith("classifier."):
            np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    # written, it is a model of that task, with nothing drawn when it is read again
    write_model(model, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    ends = {"classify": "ForSequenceClassification", "tag": "ForTokenClassification", "embed": "Model"}
    assert settings["architectures"][0].endswith(ends[task])
    prefixed = any(key.startswith(model.family.prefix) for key in load_file(tmp_path / "out" / "model.safetensors"))
    assert prefixed == (task != "embed")
    if labels is not None:
        assert settings["label2id"] == {"x": 0, "y": 1, "z": 2, "w": 3}
    again = open_(tmp_path / "out")
    assert again.config == model.config
    assert not again.drawn
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    np.testing.assert_array_equal(again(tokens), model(tokens))


def test_a_head_that_should_be_there_and_is_not_is_an_error(checkpoint):
    copy = checkpoint("bert_classify")
    copy.change(lambda tensors: tensors.pop("classifier.bias"))
    with pytest.raises(ModelError, match=r"a tensor is missing: classifier\.bias"):
        open_(copy.folder)
    assert open_(copy.folder, labels=list("abcde")).drawn == SCORES


def test_an_outline_has_the_head_too(golden):
    mesh = make_mesh(devices=jax.devices()[:1])
    shapes = outline(golden / "bert_sentence", "bfloat16", mesh, task="classify", labels=["x", "y"]).params
    assert shapes["classifier"]["scores"]["kernel"].shape == (24, 2)


def test_tasks_are_for_encoders(golden):
    with pytest.raises(ModelError, match=r"llama is no encoder, and task: classify needs one"):
        open_(golden / "llama_tied", task="classify", labels=["a", "b"])
    with pytest.raises(ModelError, match=r"bert is an encoder, which does not generate(.|\n)*classify, tag or embed"):
        open_(golden / "bert_tag", task="generate")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("bert_tag", {"is_decoder": True}), ("bert_tag", {"position_embedding_type": "relative_key"}),
        ("roberta_tag", {"position_embedding_type": "relative_key_query"}), ("bert_tag", {"hidden_act": "mish"}),
    ],
)  # fmt: skip
def test_settings_that_are_not_there_are_refused(name, setting, checkpoint):
    copy = checkpoint(name)
    copy.configure(**setting)
    with pytest.raises(ModelError) as caught:
        open_(copy.folder)
    assert str(next(iter(setting.values()))) in str(caught.value)


def test_a_sentence_encoder_says_how_it_pools_and_says_it_again(checkpoint, expected, tmp_path):
    copy = checkpoint("bert_sentence")
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (copy.folder / "modules.json").write_text(
        json.dumps([{"type": f"x.{kind}", "path": path} for kind, path in modules])
    )
    (copy.folder / "1_Pooling").mkdir()
    (copy.folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    model, wanted = open_(copy.folder), expected("bert_sentence")
    there = wanted["attention_mask"][..., None]
    mean = (wanted["hidden"] * there).sum(1) / there.sum(1)
    got = model(wanted["tokens"], segments=wanted["attention_mask"], token_types=wanted["token_type_ids"])[:, 0]
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    write_model(model, tmp_path / "out")
    assert open_(tmp_path / "out").config == model.config
