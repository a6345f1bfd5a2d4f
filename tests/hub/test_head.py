import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.hub.head import initial_head, is_head, known_labels, label_settings


@pytest.mark.parametrize("path", ["classifier.kernel", "classifier.dense.bias", "pre_classifier.kernel", "classifier"])
def test_a_head(path: str) -> None:
    assert is_head(path)


@pytest.mark.parametrize("path", ["head.kernel", "layers.mlp.up.kernel", "embed.embedding", "classifiers.kernel"])
def test_no_head(path: str) -> None:
    assert not is_head(path)


def test_a_head_begins_as_transformers_would() -> None:
    shapes = {
        "classifier.kernel": jax.ShapeDtypeStruct((64, 128), jnp.float32),
        "classifier.bias": jax.ShapeDtypeStruct((128,), jnp.float32),
        "head_norm.scale": jax.ShapeDtypeStruct((64,), jnp.bfloat16),
        "pooler.kernel": jax.ShapeDtypeStruct((64, 128), jnp.float32),
    }
    found = initial_head(shapes, seed=0, std=0.05)
    assert found.keys() == shapes.keys()
    assert all(leaf.shape == shapes[path].shape and leaf.dtype == jnp.float32 for path, leaf in found.items())
    np.testing.assert_allclose(found["classifier.kernel"].std(), 0.05, rtol=0.05)
    assert abs(float(found["classifier.kernel"].mean())) < 0.003
    assert not found["classifier.bias"].any()
    assert (found["head_norm.scale"] == 1).all()
    assert not np.allclose(found["pooler.kernel"], found["classifier.kernel"])
    np.testing.assert_array_equal(found["pooler.kernel"], initial_head(shapes, seed=0, std=0.05)["pooler.kernel"])
    assert not np.allclose(found["pooler.kernel"], initial_head(shapes, seed=1, std=0.05)["pooler.kernel"])


def test_a_head_lies_where_its_shape_says() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    found = initial_head({"classifier.bias": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=where)}, seed=0)
    assert found["classifier.bias"].sharding == where


def test_labels_go_into_a_config_and_come_back() -> None:
    labels = [f"name {i}" for i in range(12)]
    settings = label_settings(labels) | {"architectures": ["BertForSequenceClassification"]}
    assert settings["label2id"]["name 11"] == 11
    assert known_labels(settings, "classify") == labels
    assert known_labels(settings, "tag") is None
    assert known_labels(settings | {"architectures": ["BertModel"]}, "classify") is None
    assert known_labels(settings | label_settings(["LABEL_0", "LABEL_1"]), "classify") is None
    assert known_labels({}, "classify") is None
