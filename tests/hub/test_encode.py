"""Texts to vectors: in whatever order and batches, cut where the model ends."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxlean.errors import ModelError
from jaxlean.hub.load import load
from jaxlean.xla.mesh import make_mesh


class Letters:
    """A tokenizer: 1, a number a letter, 2."""

    pad_token_id = 0
    model_max_length = 10**30  # what transformers says where nobody said anything

    def __call__(self, texts, *, truncation, max_length, padding):
        assert truncation
        assert not padding
        return {"input_ids": [[1, *(ord(c) % 30 + 3 for c in text[: max_length - 2]), 2] for text in texts]}


@pytest.fixture(scope="module")
def model(golden):
    found = load(golden / "bert_sentence", "float32", make_mesh(devices=jax.devices()[:1]))
    vars(found)["tokenizer"] = Letters()
    return found


def test_each_text_has_the_vector_that_it_has_by_itself(model):
    texts = ["a", "some words", "b", "", "rather more words than that"]
    found = model.encode(texts, batch_size=2)
    assert found.shape == (5, 24)
    assert found.dtype == np.float32
    for text, vector in zip(texts, found, strict=True):
        ids = Letters()([text], truncation=True, max_length=32, padding=False)["input_ids"]
        np.testing.assert_allclose(vector, model(np.array(ids))[0, 0], atol=1e-5)
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_a_text_is_cut_where_the_table_of_positions_ends(model):
    assert model.max_length == 32
    np.testing.assert_allclose(*model.encode(["x" * 30 + "y" * 50, "x" * 30]), atol=1e-5)
    np.testing.assert_allclose(*model.encode(["abcdefgh", "abc"], max_length=5), atol=1e-5)


def test_no_texts_give_no_vectors(model):
    assert model.encode([]).shape == (0, 24)


def test_what_says_nothing_of_texts_is_refused(model):
    other = replace(model, config=replace(model.config, head="tag"))
    with pytest.raises(ModelError, match="encode is of models that embed or classify"):
        other.encode(["a"])


def test_a_tokenizer_ends_where_the_table_of_positions_does(golden, tiny_base):
    mesh = make_mesh(devices=jax.devices()[:1])
    bert = load(golden / "roberta_hidden", "float32", mesh, tokenizer=str(tiny_base))
    assert bert.tokenizer.model_max_length == 30  # 32 rows, of which the first two are for padding
    modern = load(golden / "modernbert_hidden", "float32", mesh, tokenizer=str(tiny_base))
    assert modern.tokenizer.model_max_length == 512  # as its files say
    assert modern.max_length == 64
