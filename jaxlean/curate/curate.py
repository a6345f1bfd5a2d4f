"""`jaxlean curate`: a dataset in, a smaller one out, with a reason for each row that is not in it."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jaxlean.config import RunConfig
from jaxlean.curate import folder as folders
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, restore, save
from jaxlean.curate.inputs import stamps
from jaxlean.curate.output import write
from jaxlean.curate.preflight import preflight
from jaxlean.curate.reading import lengths, reading, schemas
from jaxlean.curate.report import Answer, publish, show
from jaxlean.curate.steps import find_all, folder_of, planned
from jaxlean.curate.work import Processes, Work
from jaxlean.errors import ConfigError, DataError
from jaxlean.run.lock import FolderLock


def curate(
    config: RunConfig, *, resume: bool = False, overwrite: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Take the rows of `data.train` through `curate.steps` and write what is left into `output_dir`.

    Writes `train.parquet` (`data.train=FOLDER` reads it, and nothing else there; of sources that are read differently
    one file each, in `train_by_source/`), `dropped.parquet`, `report.md`, `report.json` and `histograms.png`. Killed,
    it goes on with `resume` after the last shard, to the same rows.

    Returns:
        What stands in `report.json`.

    Raises:
        ConfigError: no steps, no data, a library that is missing.
        DataError: a row that cannot be read, training rows in the held-out data, nothing left.
        RunError: a folder that holds another job, or cannot be written.
    """
    with FolderLock(Path(config.output_dir)) as lock:
        return _curate(config, resume, overwrite, console or Console(highlight=False), lock)


def _curate(config: RunConfig, resume: bool, overwrite: bool, console: Console, lock: FolderLock) -> dict[str, Any]:
    start = time.perf_counter()

    # what is to be done, and where
    steps = planned(config)
    functions = find_all(steps)
    folder = Path(config.output_dir)
    folders.check_apart(folder, config)
    corpus = Corpus(config)
    held_out = Corpus(config, "eval") if config.data.eval else None
    preflight(config, steps, corpus)
    folders.claim(folder, config, resume=resume, overwrite=overwrite, lock=lock)
    folders.check_same_inputs(folder, stamps(config, corpus, held_out))
    before = folders.finished(folder)
    if before is not None:
        show(before, console)
        return before

    # every row is read once, then the steps, each over what is left
    every = np.ones(len(corpus), bool)
    alive = every.copy()
    answers: list[Answer] = []
    try:
        with _workers(config) as workers, _shown(console, config) as tell:
            read = Work(folder / "work" / "00-reading", workers, partial(tell, "reading"))
            answers.append(_ended("reading", {}, read, alive, lambda: reading(corpus, every, read)))
            for number, (step, function) in enumerate(zip(steps, functions, strict=True), 1):
                _check_something_is_left(answers, alive, corpus)
                scores = {name: score for answer in answers for name, score in answer.found.scores.items()}
                own = folder / "work" / folder_of(number, step)
                work = Work(own, workers, partial(tell, step.name), scores=scores)
                todo = partial(function, corpus, alive.copy(), step.settings, work)
                answers.append(_ended(step.name, step.settings.model_dump(mode="json"), work, alive, todo))
            _check_something_is_left(answers, alive, corpus)
            chars, columns = lengths(corpus, every, read), schemas(corpus, every, read)
    except (ConfigError, DataError):
        if len(answers) < 2 and (not answers or steps[0].name == "leakage"):
            folders.release(folder)  # only read so far, so that the command may be mended and given again
        raise

    # what is left, what is not, and why
    write(folder, corpus, columns, chars, alive, [(answer.step, answer.found) for answer in answers], held_out)
    told = publish(folder, corpus, held_out, columns, chars, alive, answers, time.perf_counter() - start)
    shutil.rmtree(folder / "work")
    show(told, console)
    return told


@contextmanager
def _shown(console: Console, config: RunConfig) -> Iterator[Callable[[str, int, int], None]]:
    """A line at the bottom of a terminal: the step, and how many of its shards are done."""
    if not (config.report.progress and console.is_terminal):
        yield lambda step, done, every: None
        return
    with console.status("reading") as status:
        yield lambda step, done, every: status.update(f"{step}: {done:,} of {every:,} parts")


def _workers(config: RunConfig) -> Any:
    if config.curate.engine == "ray":
        from jaxlean.curate.cluster import RayWorkers

        return RayWorkers(config)
    return Processes(config)


def _ended(step: str, settings: dict[str, Any], work: Work, alive: np.ndarray, compute: Callable[[], Found]) -> Answer:
    """A step's answer, from its folder where it has ended before; `alive` is then without what it left out."""
    rows = int(alive.sum())
    found = restore(work.folder)
    if found is None:
        start = time.perf_counter()
        work.folder.mkdir(parents=True, exist_ok=True)
        found = compute(), time.perf_counter() - start
        save(found[0], work.folder, found[1])
    alive[found[0].rows] = False
    return Answer(step, settings, rows, found[0], found[1])


def _check_something_is_left(answers: list[Answer], alive: np.ndarray, corpus: Corpus) -> None:
    if alive.any():
        return
    said = "; ".join(
        f"{answer.step} dropped {len(answer.found.rows):,} of {answer.rows:,} ("
        + ", ".join(f"{reason}: {count:,}" for reason, count in answer.found.counts().items() if count)
        + ")"
        for answer in answers
        if len(answer.found.rows)
    )
    raise DataError(
        f"nothing is left of {len(corpus):,} row{'s' * (len(corpus) != 1)}",
        where=f"curate.steps, after {answers[-1].step}",
        got=said,
        fix="loosen that step's settings, or leave it out; then the same command with --overwrite",
    )
