from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config.selection import VectorsSection
from jaxlean.curate import vectors as module
from jaxlean.curate.vectors import vectors_of
from jaxlean.curate.work import Processes, Work
from jaxlean.errors import ConfigError, DataError


def of(corpus: Any, folder: Path, alive: Any = slice(None), **settings: Any) -> np.ndarray:
    mask = np.zeros(len(corpus), bool)
    mask[alive] = True
    with Processes(corpus.config) as workers:
        return vectors_of(corpus, mask, VectorsSection(**settings), Work(folder / "work" / "01-step", workers))


@pytest.mark.usefixtures("small_machine")
def test_a_decoders_are_the_means_of_its_hidden_states(
    corpus_of: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import jax.numpy as jnp
    from flax import nnx

    from jaxlean.hub.load import load

    texts = ["red house", "a blue train in the street", "white"]
    corpus = corpus_of([{"text": text} for text in texts], model={"path": str(tiny_base), "dtype": "float32"})
    monkeypatch.setattr(module, "_ROWS", 2)
    got = of(corpus, tmp_path)
    model = load(tiny_base, "float32")
    for text, vector in zip(texts, got, strict=True):
        tokens = jnp.asarray(model.tokenizer([text])["input_ids"], jnp.int32)
        mean = np.asarray(nnx.merge(model.graph, model.params).hidden(tokens)[0], np.float64).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)

    # what is there is not made again, neither after a restart nor by a later step with fewer rows
    monkeypatch.setattr("jaxlean.hub.load.load", None)
    np.testing.assert_array_equal(of(corpus, tmp_path, [0, 2]), got[[0, 2]])


def test_a_column_of_vectors(corpus_of: Any, tmp_path: Path) -> None:
    corpus = corpus_of([{"text": str(i), "v": [3.0 * i, 4.0 * i]} for i in (1, 2)])
    np.testing.assert_allclose(of(corpus, tmp_path, column="v"), [[0.6, 0.8], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, float("nan")], "a vector that is not all numbers (NaN or infinity)"),
        ([1e30, 1e30], "or too long for one"),
        ([1.0], "no vector, or one of another length"),
        ("near", "no vector, or one of another length"),
        (None, "no vector, or one of another length"),
    ],
)
def test_a_column_that_holds_none_is_named_with_its_row(
    corpus_of: Any, tmp_path: Path, value: Any, message: str
) -> None:
    corpus = corpus_of([{"text": str(i), "v": [1.0, 2.0] if i != 3 else value} for i in range(5)])
    with pytest.raises(DataError) as error:
        of(corpus, tmp_path, column="v")
    assert message in str(error.value)
    assert "source-0.jsonl:4" in str(error.value)


def test_nothing_to_make_vectors_of(corpus_of: Any, tmp_path: Path) -> None:
    corpus = corpus_of([{"text": "a"}])
    with pytest.raises(ConfigError, match="No model is named"):
        of(corpus, tmp_path)
    with pytest.raises(DataError, match=r"there is no column 'vec'"):
        of(corpus, tmp_path, column="vec")
