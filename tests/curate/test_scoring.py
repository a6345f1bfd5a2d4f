"""Scores of rows by models, against a forward pass of each row alone, in float64."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.curate import scoring
from jaxlean.curate.scoring import without_prompt
from jaxlean.data.tokenize import Tokens
from jaxlean.errors import ConfigError, DataError, ModelError

pytestmark = pytest.mark.usefixtures("small_machine")


@pytest.fixture
def values(tiny_base: Path) -> dict[str, Any]:
    return {
        "model": {"path": str(tiny_base), "dtype": "float32"},
        "data": {"max_length": 48},
        "eval": {"per_device_eval_batch_size": 2},
    }


@pytest.fixture
def rows(tiny_rows: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in tiny_rows.read_text().splitlines()][:7]


def alone(model: Any, ids: list[int], counted: list[bool]) -> tuple[float, float]:
    """(mean loss, mean norm of the error vector) of the tokens that count."""
    z = np.asarray(model(jnp.asarray([ids]))[0], np.float64)[:-1]
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    own, at = p[np.arange(len(p)), ids[1:]], np.array(counted[1:])
    return float(-np.log(own)[at].mean()), float(np.sqrt((p**2).sum(-1) - 2 * own + 1)[at].mean())


def tokens_of(model: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """(prompt, completion) in ChatML."""
    messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    ask = model.tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    full = model.tokenizer.apply_chat_template(messages, tokenize=False)
    prompt, whole = (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (ask, full))
    assert whole[: len(prompt)] == prompt
    return prompt, whole[len(prompt) :]


def test_a_row_that_was_left_out_has_no_label(corpus_of: Any, encoder: Path) -> None:
    """Not even a wrong one: it cannot be read, and was dropped for that."""
    rows = [{"text": text, "label": label} for text, label in zip("abcd", ("y", "x", None, "z"), strict=True)]
    corpus = corpus_of(rows, task="classify", model={"path": str(encoder)}, curate={"bad_rows": "drop"})
    alive = np.array([True, True, False, False])
    assert scoring.learned_from(corpus, alive, "loss").data.labels == ["x", "y"]
    with pytest.raises(DataError, match="one label only"):
        scoring.learned_from(corpus, np.array([True, False, False, False]), "loss")


def test_each_row_scores_as_it_does_alone(
    corpus_of: Any, run_step: Any, values: dict[str, Any], rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxlean.hub.load import load

    monkeypatch.setattr(scoring, "_ROWS", 3)
    corpus = corpus_of(rows, **values)
    alive = [0, 1, 2, 4, 6]
    loss = run_step(corpus, {"loss": None}, alive=alive).scores["loss"]
    error = run_step(corpus, {"el2n": None}, alive=alive, folder="work/02-el2n").scores["el2n"]
    ifd = run_step(corpus, {"ifd": None}, alive=alive, folder="work/03-ifd").scores["ifd"]
    model = load(values["model"]["path"], "float32")
    assert np.isnan(loss[[3, 5]]).all()
    for i in alive:
        prompt, completion = tokens_of(model, rows[i])
        learned = [False] * len(prompt) + [True] * len(completion)
        # ChatML ends a turn with a line break, which is not learned
        num = int(np.argmax(np.array(completion) == model.tokenizer.eos_token_id)) + 1
        learned = [False] * len(prompt) + [True] * num + [False] * (len(completion) - num)
        wanted = alone(model, prompt + completion, learned)
        np.testing.assert_allclose(loss[i], wanted[0], rtol=1e-4)
        np.testing.assert_allclose(error[i], wanted[1], rtol=1e-4)
        # the first token of the completion has none before it when it is alone, so it counts in neither
        learned[len(prompt)] = False
        given = alone(model, prompt + completion, learned)[0]
        by_itself = alone(model, completion[:num], [False] + [True] * (num - 1))[0]
        np.testing.assert_allclose(ifd[i], given / by_itself, rtol=1e-4)


def test_a_shard_that_is_there_is_not_made_again(
    corpus_of: Any, run_step: Any, values: dict[str, Any], rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_ROWS", 3)
    corpus = corpus_of(rows, **values)
    first = run_step(corpus, {"loss": None}).scores["loss"]
    monkeypatch.setattr(scoring._Judge, "__call__", None)
    np.testing.assert_array_equal(run_step(corpus, {"loss": None}).scores["loss"], first)
    assert np.isfinite(first).all()


def test_what_is_learned_alone_counts_the_same_tokens() -> None:
    ids, mask = np.array([9, 5, 6, 7, 8], np.int32), np.array([False, False, True, True, True])
    given, single = without_prompt(Tokens(ids, mask), []) or pytest.fail("two tokens count")
    assert given.loss_mask.tolist() == [False, False, False, True, True]
    assert (single.input_ids.tolist(), single.loss_mask.tolist()) == ([6, 7, 8], [False, True, True])
    given, single = without_prompt(Tokens(ids, mask), [1]) or pytest.fail("three tokens count")
    assert given.loss_mask.tolist() == mask.tolist()
    assert (single.input_ids.tolist(), single.loss_mask.tolist()) == ([1, 6, 7, 8], [False, True, True, True])
    assert without_prompt(Tokens(ids[:3], mask[:3]), []) is None
    text = Tokens(ids, np.arange(5) > 0)
    assert without_prompt(text, []) == without_prompt(text, [9]) == (text, text)


def test_scores_that_a_task_cannot_give(corpus_of: Any, run_step: Any, values: dict[str, Any], stand_in: Any) -> None:
    texts = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(4)]
    with pytest.raises(ConfigError) as error:
        run_step(corpus_of(texts, task="classify", **values), {"ifd": None})
    assert "ifd is of a completion given its prompt" in str(error.value)
    assert "task: classify" in str(error.value)
    with pytest.raises(ModelError) as error:
        run_step(corpus_of(texts, task="classify", **values), {"loss": None})
    assert "no head for task: classify" in str(error.value)
    with pytest.raises(ConfigError, match="none is named"):
        run_step(corpus_of(texts), {"loss": None})
    pairs = [{"anchor": "a", "positive": "b"}] * 2
    with pytest.raises(ConfigError, match="task: embed has no labels"):
        run_step(corpus_of(pairs, task="embed", **values), {"loss": None})


def test_a_shard_is_laid_out_as_its_source_begins(
    corpus_of: Any, run_step: Any, values: dict[str, Any], rows: list[dict[str, str]]
) -> None:
    """Not as its own first row, which may have a column more."""
    plain = run_step(corpus_of(rows[:3], **values), {"loss": None}, alive=[1, 2], folder="work/01-plain").scores["loss"]
    more = [rows[0], rows[1] | {"text": "a column that fits another shape"}, rows[2]]
    loss = run_step(corpus_of(more, **values), {"loss": None}, alive=[1, 2], folder="work/01-more").scores["loss"]
    np.testing.assert_array_equal(loss, plain)
