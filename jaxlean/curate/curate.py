"""`jaxlean curate`: a dataset in, a smaller one out, with a reason for each row that is not in it."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, restore, save
from jaxlean.curate.steps import find
from jaxlean.curate.work import Work, Workers
from jaxlean.errors import ConfigError, DataError


def curate(config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Run the steps of `curate.steps` over `data.train` and write what is left into `output_dir`.

    Raises:
        ConfigError: no steps, no data.
        DataError: a row that cannot be read, nothing left.
    """
    if not config.curate.steps:
        raise ConfigError("curate.steps is empty: there is nothing to do", fix="curate.steps=[exact_duplicates]")
    folder = Path(config.output_dir)
    corpus = Corpus(config)
    alive = np.ones(len(corpus), bool)
    done: list[tuple[str, Found]] = []
    scores: dict[str, np.ndarray] = {}
    with Workers(config) as workers:
        for number, step in enumerate(config.curate.steps, 1):
            work = Work(folder / "work" / f"{number:02d}-{step.name}", workers, scores)
            found = _run(step.name, step.settings, corpus, alive, work)
            alive[found.rows] = False
            scores |= found.scores
            done.append((step.name, found))
            if not alive.any():
                raise DataError("nothing is left", where=f"after curate.steps.{number - 1} ({step.name})")
    return {"rows": len(corpus), "kept": int(alive.sum()), "steps": [(name, found.counts()) for name, found in done]}


def _run(name: str, settings: Any, corpus: Corpus, alive: np.ndarray, work: Work) -> Found:
    """A step's answer: from its folder, where it has ended before."""
    before = restore(work.folder)
    if before is not None:
        return before[0]
    start = time.perf_counter()
    work.folder.mkdir(parents=True, exist_ok=True)
    found = find(name)(corpus, alive, settings, work)
    save(found, work.folder, time.perf_counter() - start)
    return found
