from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.curate import learnability as module
from jaxlean.errors import DataError


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """Runs that learn nothing, and losses that are planted: 5 before, 4 after, 0 of a row that the run has seen."""
    found: list[set[int]] = []

    def trained(corpus: Any, rows: np.ndarray, config: Any, epochs: float, folder: Path) -> Path:
        found.append(set(rows.tolist()))
        return folder / str(len(found) - 1)

    def scores_of(corpus: Any, judged: np.ndarray, *_: Any, name: str, adapter: Path | None = None) -> dict[str, Any]:
        losses = np.where(judged, 5.0 if adapter is None else 4.0, np.nan).astype(np.float32)
        if adapter is not None and adapter.name.isdigit():
            losses[list(found[int(adapter.name)])] = 0.0
        return {"loss": losses}

    monkeypatch.setattr(module, "trained", trained)
    monkeypatch.setattr(module, "scores_of", scores_of)
    return found


def test_no_row_is_judged_by_a_run_that_has_seen_it(corpus_of: Any, run_step: Any, runs: list[set[int]]) -> None:
    """`test_a_row_that_was_learned_by_heart` has real runs."""
    corpus = corpus_of([{"text": str(i)} for i in range(21)], model={"path": "base"})
    alive = list(range(1, 21))
    found = run_step(corpus, {"learnability": {"run": {"fraction": 0.25}}}, alive=alive)
    assert set(found.scores) == set(module.SCORES)
    np.testing.assert_array_equal(found.scores["learnability"], [np.nan, *[1.0] * 20])
    np.testing.assert_array_equal(found.scores["loss_after_run"], [np.nan, *[4.0] * 20])
    assert [len(rows) for rows in runs] == [5, 5]
    assert not runs[0] & runs[1]
    assert (runs[0] | runs[1]) <= set(alive)
    assert len(found.rows) == 0


def test_that_one_run_came_further_moves_no_half_ahead(
    corpus_of: Any, run_step: Any, runs: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = np.random.default_rng(0).normal(size=400).astype(np.float32)

    def scores_of(corpus: Any, judged: np.ndarray, *_: Any, name: str, adapter: Path | None = None) -> dict[str, Any]:
        taken_off = 0 if adapter is None else own + 3 * (adapter.name == "1")
        return {"loss": np.where(judged & (np.arange(400) != 7), 9 - taken_off, np.nan).astype(np.float32)}

    monkeypatch.setattr(module, "scores_of", scores_of)
    corpus = corpus_of([{"text": str(i)} for i in range(400)], model={"path": "base"})
    score = run_step(corpus, {"learnability": None}).scores["learnability"]
    assert np.isnan(score[7])
    assert np.nanstd(score - own) < 0.15  # the halves' own means differ by about sqrt(4 / 400)


def test_a_run_learns_from_half_of_the_rows_at_most(corpus_of: Any, run_step: Any, runs: list[set[int]]) -> None:
    corpus = corpus_of([{"text": str(i)} for i in range(21)], model={"path": "base"})
    found = run_step(corpus, {"learnability": {"run": {"fraction": 0.9}}})
    assert sorted(map(len, runs)) == [10, 11]
    assert found.notes == {"rows that each of two runs learned from": 10}
    assert (found.scores["learnability"] == 1).all()
    with pytest.raises(DataError, match="there is one row"):
        run_step(corpus, {"learnability": None}, alive=[3])


def test_of_an_adapter_that_is_given_it_says_so(
    corpus_of: Any, run_step: Any, runs: list[set[int]], tmp_path: Path
) -> None:
    corpus = corpus_of([{"text": str(i)} for i in range(3)], model={"path": "base"})
    (tmp_path / "lora").mkdir()
    found = run_step(corpus, {"learnability": {"run": {"adapter": str(tmp_path / "lora")}}})
    np.testing.assert_allclose(found.scores["learnability"], 1.0)
    assert not runs
    assert found.notes == {"judged by": f"{tmp_path / 'lora'}, whatever rows that has seen"}


@pytest.mark.slow
@pytest.mark.usefixtures("small_machine")
def test_a_row_that_was_learned_by_heart(corpus_of: Any, run_step: Any, tiny_base: Path) -> None:
    """Of noise nothing can be learned but by heart: rows that a run has seen score no better than others."""
    words = ["red", "house", "train", "order", "street", "price", "water", "green"]
    drawn = np.random.default_rng(0).choice(words, (24, 5))
    corpus = corpus_of(
        [{"prompt": " ".join(row[:2]), "completion": " ".join(row[2:])} for row in drawn.tolist()],
        model={"path": str(tiny_base), "dtype": "float32"},
        data={"max_length": 32},
        lora={"r": 8},
        train={"learning_rate": 0.03, "per_device_train_batch_size": 2, "logging_steps": 100},
        eval={"per_device_eval_batch_size": 2},
    )
    score = run_step(corpus, {"learnability": {"run": {"num_train_epochs": 12}}}).scores["learnability"]
    half = module.shuffled(np.arange(24), corpus.config.seed)[:12]
    seen = np.isin(np.arange(24), [*half[:6], *module.shuffled(np.arange(24), corpus.config.seed)[12:18]])
    assert np.isfinite(score).all()
    assert abs(score[seen].mean() - score[~seen].mean()) < 1.0
