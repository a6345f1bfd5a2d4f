"""Walking through a model: what the linear layers are given, against the model itself and products by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean import load, tree
from jaxlean.adapt import lora
from jaxlean.adapt.quantize import quantize
from jaxlean.compress.walk import walk, with_layers
from jaxlean.config import LoraSection
from jaxlean.errors import ModelError


def batches(*, num=2, rows=2, length=12, seed=0):
    """Rows of two texts each, and padding at the end."""
    random = np.random.default_rng(seed)
    segments = np.repeat([[1] * 5 + [2] * 4 + [0] * (length - 9)], rows, axis=0).astype(np.int32)
    positions = np.repeat([[*range(5), *range(4), *[0] * (length - 9)]], rows, axis=0).astype(np.int32)
    return [
        {"tokens": random.integers(5, 2000, (rows, length), np.int32), "segments": segments, "positions": positions}
        for _ in range(num)
    ]


def hidden(model, batch):
    return np.concatenate(
        [np.asarray(model(batch["tokens"], segments=batch["segments"], positions=batch["positions"]))[:, :9]]
    )


def test_visits_see_what_each_linear_layer_is_given(tiny_base):
    model, given = load(tiny_base, "float32"), batches()
    seen = []
    layers = walk(model, given, seen.append)
    assert [visited.number for visited in seen] == [0, 1]
    names = {f"attention.{name}" for name in ("query", "key", "value", "out")} | {
        f"mlp.{n}" for n in ("gate", "up", "down")
    }
    assert set(seen[0].inputs) == names
    # the first layer's input by hand: the embedding, normalised
    table = np.asarray(model.params["embed"]["embedding"], np.float64)
    tokens = np.concatenate([batch["tokens"][batch["segments"] > 0] for batch in given])
    x = table[tokens]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.config.norm_eps)
    x = x * np.asarray(model.params["layers"]["attention_norm"]["scale"])[0]
    found = seen[0].inputs["attention.query"]
    np.testing.assert_allclose(found.gram, x.T @ x, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.total, np.abs(x).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.largest, np.abs(x).max(0), rtol=1e-5)
    np.testing.assert_allclose(found.norm, np.linalg.norm(x, axis=0), rtol=1e-4)
    assert found.tokens == len(tokens) == 36
    # nothing was changed, and the layers put together are the model
    again = with_layers(model, layers)
    np.testing.assert_array_equal(hidden(again, given[0]), hidden(model, given[0]))


def test_the_next_layer_sees_what_a_changed_one_gives(tiny_base):
    model, given = load(tiny_base, "float32"), batches(num=1)
    seen = {}

    def half(visited):
        seen[visited.number] = visited
        return tree.map_with_path(lambda path, x: x * 0.5 if path.endswith("down.kernel") else x, visited.params)

    changed = with_layers(model, walk(model, given, half))
    after = {}
    walk(changed, given, lambda visited: after.update({visited.number: visited}))
    np.testing.assert_allclose(seen[1].inputs["mlp.up"].gram, after[1].inputs["mlp.up"].gram, rtol=1e-4, atol=1e-3)
    before = {}
    walk(model, given, lambda visited: before.update({visited.number: visited}))
    assert not np.allclose(before[1].inputs["mlp.up"].gram, after[1].inputs["mlp.up"].gram, rtol=0.01)
    np.testing.assert_array_equal(before[0].inputs["mlp.up"].gram, seen[0].inputs["mlp.up"].gram)


def test_an_encoder_is_walked_through_as_well(encoder):
    model = load(encoder, "float32")
    seen = []
    walk(model, batches(num=1), seen.append)
    assert [visited.number for visited in seen] == [0, 1]
    assert all(-1 <= visited.similarity <= 1 for visited in seen)
    assert seen[1].inputs["mlp.down"].gram.shape == (64, 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: quantize(model.params, "int8"), "the model is quantized already"),
        (
            lambda model: lora.add(model.params, ["layers.mlp.up"], LoraSection(), jax.random.key(0)),
            "the model has an adapter",
        ),
        (
            lambda model: tree.map_with_path(lambda p, x: x * jnp.nan if "query" in p else x, model.params),
            "the model's hidden states are not numbers",
        ),
    ],
    ids=["quantized", "adapted", "broken"],
)
def test_what_cannot_be_walked_through(tiny_base, change, words):
    model = load(tiny_base, "float32")
    with pytest.raises(ModelError, match=words):
        walk(model.with_params(change(model)), batches(num=1))
