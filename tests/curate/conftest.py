"""A corpus of a few rows, and a step's folder: what a step is called with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxlean.config import build
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.steps import find
from jaxlean.curate.work import Work, Workers


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., Corpus]:
    """`corpus_of(rows, task="classify", ...)`: a file of these rows as the only source, under this config."""

    def make(*sources: Sequence[dict[str, Any]], **values: Any) -> Corpus:
        files = []
        for number, rows in enumerate(sources):
            file = tmp_path / f"source-{number}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append(str(file))
        data = {"train": files, **values.pop("data", {})}
        return Corpus(build({"output_dir": str(tmp_path / "out"), "data": data, **values}))

    return make


@pytest.fixture
def run_step(tmp_path: Path) -> Callable[..., Found]:
    """`run_step(corpus, {"keep": {"count": 3}})`: what the step finds, all rows (or those in `alive`) being left."""

    def run(
        corpus: Corpus,
        step: dict[str, Any],
        *,
        alive: Sequence[int] | None = None,
        scores: dict[str, Any] | None = None,
        folder: str = "work/01-step",
    ) -> Found:
        config = corpus.config
        (entry,) = build({"curate": {"steps": [step]}}).curate.steps
        mask = np.zeros(len(corpus), bool)
        mask[slice(None) if alive is None else list(alive)] = True
        with Workers(config) as workers:
            work = Work(tmp_path / folder, workers, {k: np.asarray(v, np.float32) for k, v in (scores or {}).items()})
            work.folder.mkdir(parents=True, exist_ok=True)
            return find(entry.name)(corpus, mask, entry.settings, work)

    return run
