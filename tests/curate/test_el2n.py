from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.errors import ConfigError, DataError


def rows_of(num: int) -> list[dict[str, Any]]:
    """Two labels, each with its own direction; the label of row 3 is wrong."""
    rng = np.random.default_rng(0)
    labels = np.arange(num) % 2
    vectors = np.eye(2, 4)[labels] + 0.1 * rng.normal(size=(num, 4))
    return [
        {"text": f"text {i}", "label": "ab"[label if i != 3 else 1 - label], "v": vector.tolist()}
        for i, (label, vector) in enumerate(zip(labels, vectors, strict=True))
    ]


STEP = {"el2n": {"vectors": {"column": "v"}}}


def test_a_probe_finds_the_wrong_label(corpus_of: Any, run_step: Any) -> None:
    corpus = corpus_of(rows_of(40), task="classify")
    score = run_step(corpus, STEP, alive=range(36)).scores["el2n"]
    assert np.nanargmax(score) == 3
    assert score[3] > 1
    assert np.isnan(score[36:]).all()
    assert np.median(score[:36]) < 0.3
    own = corpus_of(rows_of(40), task="classify", curate={"text_column": "text"})
    np.testing.assert_allclose(run_step(own, STEP, alive=range(36), folder="work/02").scores["el2n"], score, rtol=1e-5)


def test_a_probe_needs_labels(corpus_of: Any, run_step: Any) -> None:
    rows = rows_of(8)
    with pytest.raises(DataError, match="one label only"):
        run_step(corpus_of(rows, task="classify"), STEP, alive=[0, 2, 4])
    with pytest.raises(ConfigError, match="by: probe} learns labels of texts"):
        run_step(corpus_of(rows), {"el2n": {"by": "probe"}})


@pytest.mark.usefixtures("small_machine")
def test_after_a_short_run_a_model_knows_the_labels(
    corpus_of: Any, run_step: Any, stand_in: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run learns what the label follows from; the score is low but where the label is wrong."""
    colours = ["red", "green"]
    rows = [
        {"text": f"{colours[i % 2]} {thing} {i}", "label": colours[(i + (i == 9)) % 2]}
        for i, thing in enumerate(["house", "train", "order", "street", "price", "water"] * 4)
    ]
    corpus = corpus_of(
        rows,
        task="classify",
        model={"path": str(tiny_base), "dtype": "float32"},
        data={"max_length": 48},
        lora={"r": 4},
        train={"learning_rate": 0.02, "per_device_train_batch_size": 2, "logging_steps": 10},
        eval={"per_device_eval_batch_size": 2},
    )
    step = {"el2n": {"by": "run", "run": {"fraction": 0.75, "num_train_epochs": 20}}}
    score = run_step(corpus, step).scores["el2n"]
    assert np.median(score) < 0.3
    assert np.argmax(score) == 9

    # the run is not done again, and another step may take its adapter
    monkeypatch.setattr("jaxlean.run.finetune.finetune", None)
    np.testing.assert_array_equal(run_step(corpus, step).scores["el2n"], score)
    adapter = tmp_path / "work" / "01-step" / "run" / "adapter"
    loss = run_step(corpus, {"loss": {"adapter": str(adapter)}}, folder="work/02-loss").scores["loss"]
    learned = {"learnability": {"run": {"adapter": str(adapter)}}}
    found = run_step(corpus, learned, folder="work/03-learnability").scores
    # the base has no head for these labels: it guesses one of two
    np.testing.assert_allclose(found["learnability"], np.log(2) - loss, atol=1e-6)
    assert np.argmin(found["learnability"]) == 9
