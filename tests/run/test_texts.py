"""What is said of texts, packed, is what is said of each alone."""

from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlean.data.tokenize import Ragged, Tokens
from jaxlean.errors import ModelError
from jaxlean.hub.load import Model, load
from jaxlean.run import texts as module
from jaxlean.run.rows import OwnRows
from jaxlean.run.texts import embedder, judged, text_probabilities, vectors_of
from jaxlean.xla.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture(scope="module")
def model(small_machine: None, golden: Path) -> Model:
    return load(golden / "bert_classify", "float32")


@pytest.fixture(scope="module")
def texts() -> Ragged:
    draw = np.random.default_rng(0)
    found = []
    for length in (5, 9, 3, 12, 7, 4, 8):
        labels = np.full(length, -100, np.int32)
        labels[0] = 0
        found.append(Tokens(draw.integers(3, 40, length).astype(np.int32), labels >= 0, more={"labels": labels}))
    return Ragged.of(found)


def alone(model: Model, texts: Ragged) -> np.ndarray:
    """What the model says of each text at its first token, one at a time."""
    return np.stack([np.asarray(model(texts[i][0][None]))[0, 0] for i in range(len(texts))])


@pytest.mark.parametrize("packing", [True, False])
def test_probabilities_of_each_text(model, texts, packing):
    mesh = make_mesh()
    say = text_probabilities(model, mesh)
    found = np.zeros((len(texts), model.config.num_labels))
    for said in judged(texts, say, model.params, mesh, rows=2, packing=packing, max_length=24):
        assert said.labels.tolist() == [0]
        found[said.number] = said.batch["probabilities"][said.row, said.at[0]]
    np.testing.assert_allclose(found, jax.nn.softmax(alone(model, texts), axis=-1), atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_each_process_lays_out_its_own_rows(model, texts, monkeypatch):
    """The second of two gives its devices the second half of every batch."""

    class Second(OwnRows):
        def __init__(self, mesh, rows):
            assert rows == 4
            self.held = [2, 3]

        def on_devices(self, batch):
            return batch

    whole, own = [], []

    def say_of(found):
        return lambda params, batch: found.append(batch["tokens"]) or {}

    arguments = {"rows": 4, "packing": False, "max_length": 24}
    list(judged(texts, say_of(whole), model.params, make_mesh(), **arguments))
    monkeypatch.setattr(module, "OwnRows", Second)
    list(judged(texts, say_of(own), model.params, make_mesh(), **arguments))
    assert len(own) == len(whole) > 1
    for some, every in zip(own, whole, strict=True):
        np.testing.assert_array_equal(some, every[2:])


def test_vectors_are_those_of_the_model_without_its_classifier(model, texts, golden):
    plain = embedder(model)
    assert "classifier" not in plain.params
    found = vectors_of(texts, plain, make_mesh(), rows=2, max_length=24)
    # the mean of the hidden states of a text alone
    wanted = np.stack([
        np.asarray(load(golden / "bert_classify", "float32", task="embed")(texts[i][0][None]))[0, 0]
        for i in range(len(texts))
    ])  # fmt: skip
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_language_model_has_no_vectors(tiny_base):
    with pytest.raises(ModelError, match="vectors of texts need an encoder of text"):
        embedder(load(tiny_base, "float32"))


def test_dropout_draws_anew_with_each_key(golden, texts):
    from jaxlean import tree
    from jaxlean.adapt import lora
    from jaxlean.config import LoraSection

    model, mesh = load(golden / "bert_classify", "float32"), make_mesh()
    modules = [name for name in lora.targets(model.params, "all-linear") if not name.startswith("classifier")]
    leaves = tree.flatten(lora.add(model.params, modules, LoraSection(r=3, lora_alpha=30), jax.random.key(0)))
    moved = {
        path: jax.random.normal(jax.random.key(i), leaf.shape) if path.endswith("lora_b") else leaf
        for i, (path, leaf) in enumerate(leaves.items())
    }
    model = model.with_params(tree.unflatten(moved))

    def said(dropout: float, key: int) -> np.ndarray:
        say = text_probabilities(model, mesh, dropout=dropout, key=key)
        each = judged(texts, say, model.params, mesh, rows=2, packing=True, max_length=24)
        return np.stack([one.batch["probabilities"][one.row, one.at[0]] for one in each])

    assert np.array_equal(said(0.5, 1), said(0.5, 1))
    assert np.abs(said(0.5, 1) - said(0.5, 2)).max() > 1e-3
    assert np.array_equal(said(0.0, 1), said(0.0, 2))
