from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from jaxlean.config import DataSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.keep import REASONS
from jaxlean.errors import ConfigError, DataError

ROWS = [{"text": f"text {i}", "label": "ab"[i % 2], "quality": i / 10} for i in range(20)]


def kept(corpus: Any, found: Any) -> list[int]:
    return sorted(set(range(len(corpus))) - set(found.rows.tolist()))


def test_a_share_of_the_rows_that_are_left_by_a_score(corpus_of: Any, run_step: Any) -> None:
    corpus = corpus_of(ROWS)
    score = np.arange(20.0)
    score[19] = np.nan
    found = run_step(
        corpus,
        {"keep": {"fraction": 0.25, "by": "loss", "drop_highest": 0.1}},
        alive=range(8, 20),
        scores={"loss": score},
    )
    # of 12 rows one has no score, and of the other 11 the highest is not kept: 3 of the rest
    assert sorted({*range(8, 20)} - set(found.rows.tolist())) == [15, 16, 17]
    assert found.counts() == dict(zip(REASONS, [1, 1, 7], strict=True))
    np.testing.assert_array_equal(found.value, score[found.rows])


def test_by_a_column_and_by_nothing(corpus_of: Any, run_step: Any) -> None:
    corpus = corpus_of(ROWS)
    assert kept(corpus, run_step(corpus, {"keep": {"count": 3, "by": "quality"}})) == [17, 18, 19]
    assert kept(corpus, run_step(corpus, {"keep": {"count": 3, "by": "quality", "order": "lowest"}})) == [0, 1, 2]
    limits = {"keep": {"by": "quality", "at_least": 0.5, "at_most": 0.75}}
    assert kept(corpus, run_step(corpus, limits)) == [5, 6, 7]
    drawn = [
        kept(corpus_of(ROWS, seed=seed), run_step(corpus_of(ROWS, seed=seed), {"keep": {"count": 5}}))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 5


def test_as_many_of_each_label(corpus_of: Any, run_step: Any) -> None:
    corpus = corpus_of(ROWS, task="classify")
    rows = range(0, 20, 2), range(1, 20, 6)
    found = run_step(corpus, {"keep": {"count": 6, "by": "quality", "diversity": "labels"}}, alive=[*rows[0], *rows[1]])
    assert sorted({*rows[0], *rows[1]} - set(found.rows.tolist())) == [7, 13, 14, 16, 18, 19]


@pytest.mark.parametrize("diversity", ["clusters", "k_center"])
def test_spread_over_the_vectors(corpus_of: Any, run_step: Any, diversity: str) -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(4), 5, axis=0) + 1e-3 * rng.normal(size=(20, 4))
    corpus = corpus_of([row | {"vector": vector.tolist()} for row, vector in zip(ROWS, vectors, strict=True)])
    step = {"count": 4, "by": "quality", "diversity": diversity, "num_clusters": 4, "vectors": {"column": "vector"}}
    assert kept(corpus, run_step(corpus, {"keep": step})) == [4, 9, 14, 19]


def test_a_mix_of_sources(corpus_of: Any, run_step: Any) -> None:
    corpus = corpus_of(ROWS, ROWS[:4])
    one, other = (source.path for source in corpus.sources)
    found = run_step(corpus, {"keep": {"mix": {one: 3, other: 1}}})
    assert len(kept(corpus, found)) == 16
    assert found.notes == {f"rows of {one}": 12, f"rows of {other}": 4}
    found = run_step(corpus, {"keep": {"count": 20, "mix": {one: 1, other: 1}}})
    assert [row for row in kept(corpus, found) if row >= 20] == [20, 21, 22, 23]
    assert len(kept(corpus, found)) == 20
    assert found.notes[f"{other} ran out"] == "4 rows where its share is 10; the other sources give more"


def test_more_than_there_are_is_said(corpus_of: Any, run_step: Any) -> None:
    found = run_step(corpus_of(ROWS), {"keep": {"count": 50}})
    assert len(found.rows) == 0
    assert found.notes == {"fewer than asked for": "20 of 50 rows are there"}


def test_what_is_wrong_is_said(corpus_of: Any, run_step: Any) -> None:
    corpus = corpus_of([*ROWS, {"text": "last", "label": "a", "quality": "good"}])
    with pytest.raises(ConfigError) as error:
        run_step(corpus, {"keep": {"count": 3, "by": "qualty"}})
    assert "keep.by is neither a score of a step before nor a column" in str(error.value)
    assert "did you mean 'quality'?" in str(error.value)
    with pytest.raises(DataError) as error:
        run_step(corpus, {"keep": {"count": 3, "by": "quality"}})
    assert "the column 'quality' is no number" in str(error.value)
    assert "source-0.jsonl:21" in str(error.value)
    corpus = corpus_of(ROWS)
    with pytest.raises(DataError) as error:
        run_step(corpus, {"keep": {"by": "quality", "at_least": 7}})
    assert "no row is left within the limits of 'quality'" in str(error.value)
    assert "20 rows, of which 20 have a score, from 0 to 1.9" in str(error.value)
    with pytest.raises(DataError, match="negative scores"):
        run_step(corpus, {"keep": {"count": 3, "by": "loss", "order": "draw"}}, scores={"loss": np.arange(20) - 5.0})
    with pytest.raises(ConfigError, match=r"keep.mix names a source that is not in data.train"):
        run_step(corpus, {"keep": {"mix": {"other.jsonl": 1}}})
    twice = Corpus(corpus.config.model_copy(update={"data": DataSection(train=[corpus.sources[0].path] * 2)}))
    with pytest.raises(ConfigError, match=r"cannot tell two sources of one path(.|\n)*source-0\.jsonl"):
        run_step(twice, {"keep": {"mix": {corpus.sources[0].path: 1}}})
    with pytest.raises(ConfigError, match="diversity: labels is for task: classify"):
        run_step(corpus, {"keep": {"count": 3, "diversity": "labels"}})


@pytest.mark.usefixtures("small_machine")
def test_what_is_kept_trains(cli: Any, tiny_yaml: Path, tmp_path: Path) -> None:
    """From the command line: a score by the model, half of the rows, a run on them."""
    out = tmp_path / "curated"
    steps = "curate.steps=[loss, {keep: {fraction: 0.5, by: loss, order: lowest}}]"
    code, _, err = cli("curate", tiny_yaml, steps, "data.eval=null", f"output_dir={out}", "curate.processes=1")
    assert code == 0, err
    kept, dropped = (
        pyarrow.parquet.read_table(out / name).to_pylist() for name in ("train.parquet", "dropped.parquet")
    )
    assert len(kept) == len(dropped) == 12
    assert max(row["jaxlean_loss"] for row in kept) <= min(row["jaxlean_loss"] for row in dropped)
    assert {row["jaxlean_reason"] for row in dropped} == {"not chosen"}
    code, said, err = cli("finetune", tiny_yaml, f"data.train={out}", "train.max_steps=2", "eval.before=false")
    assert code == 0, err
    assert "rows 11: 11 used" in said  # of 12, with one held out
