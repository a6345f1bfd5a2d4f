"""Which head a checkpoint of images has, and which sizes; and what a task makes of that."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxlean import tree
from jaxlean.errors import ModelError
from jaxlean.hub.load import load, outline
from jaxlean.hub.vision import architecture, pair, pooler


def test_a_size_is_one_number_or_two():
    assert pair(16) == (16, 16)
    assert pair([16, 24]) == (16, 24)


def test_an_architecture_is_known_or_named():
    assert architecture(SimpleNamespace(architectures=None), ("A", "B")) == "A"
    assert architecture(SimpleNamespace(architectures=["B"]), ("A", "B")) == "B"
    with pytest.raises(ModelError, match="A, B"):
        architecture(SimpleNamespace(architectures=["C"]), ("A", "B"))
    with pytest.raises(ModelError, match="mish"):
        pooler("mish")


@pytest.mark.parametrize("case", ["vit_hidden", "vit_classify", "clip_both", "clip_classify"])
def test_a_task_puts_its_classifier_on_what_is_there(case, golden, loaded, expected):
    """Of a head with other labels, or of none: all else comes from the files."""
    base, pixels = loaded(case), expected(case)["pixels"]
    mesh = jax.tree.leaves(base.params)[0].sharding.mesh
    labels = ["a", "b", "c", "d"]
    model = load(golden / case, "float32", mesh, task="classify", labels=labels, seed=1)
    assert model.drawn == {"classifier.kernel", "classifier.bias"}
    assert model(pixels).shape == (2, 4)
    assert model.hf_config["id2label"] == dict(zip("0123", labels, strict=True))
    assert model.hf_config["architectures"] == [model.family.classifier]
    before = tree.flatten(base.params.get("vision", base.params))
    for path, leaf in tree.flatten(model.params).items():
        if path not in model.drawn:
            np.testing.assert_array_equal(leaf, before[path], err_msg=path)
    shapes = outline(golden / case, "float32", mesh, task="classify", labels=labels)
    assert shapes.names.tensor("class_token") == model.names.tensor("class_token")


def test_a_trained_head_with_as_many_labels_is_kept(golden, loaded):
    base = loaded("vit_classify")
    model = load(golden / "vit_classify", "float32", task="classify", labels=["x", "y", "z"])
    assert not model.drawn
    np.testing.assert_array_equal(model.params["classifier"]["kernel"], base.params["classifier"]["kernel"])


def test_images_are_classified_and_nothing_else(golden):
    with pytest.raises(ModelError, match="model of images"):
        load(golden / "vit_hidden", task="tag")
