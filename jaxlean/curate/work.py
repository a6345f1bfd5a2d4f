"""Work on rows in shards: by several processes or in this one, each shard in a file as soon as it is done.

What is killed goes on after the last shard. A shard is a function of its rows alone, so that it does not matter who
computes it, in which order, or how often.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import numpy as np

from jaxlean import config as settings
from jaxlean.config import RunConfig
from jaxlean.config.read import told
from jaxlean.curate.corpus import Corpus, Which
from jaxlean.curate.found import write_arrays
from jaxlean.errors import RunError

SHARD = 4096  # rows
Arrays = dict[str, np.ndarray]
# (corpus, numbers of rows, *more) -> arrays; at the top of a module, so that another process finds it.
Function = Callable[..., Arrays]


class Workers(Protocol):
    """Who computes shards, `num` at a time."""

    num: int

    def map(
        self, function: Function, which: Which, shards: Iterable[np.ndarray], more: tuple[Any, ...]
    ) -> Iterator[Arrays]:
        """`function(corpus, numbers, *more)` for each shard's numbers, in order."""


class Processes:
    """Processes of this machine that have the data open. They start with the first shards that are worth it."""

    def __init__(self, config: RunConfig) -> None:
        self.num = config.curate.processes or (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self._values = told(config)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(
        self, function: Function, which: Which, shards: Iterable[np.ndarray], more: tuple[Any, ...]
    ) -> Iterator[Arrays]:
        """`function(corpus, numbers, *more)` for each shard's numbers, in order.

        Raises:
            RunError: a process died.
        """
        if self._pool is None:
            # spawned, not forked: the parent may hold jax's threads
            self._pool = ProcessPoolExecutor(self.num, get_context("spawn"), _open, (self._values,))
        waiting: deque[Future[Arrays]] = deque()
        try:
            for numbers in shards:
                waiting.append(self._pool.submit(_call, function, which, numbers, more))
                if len(waiting) > 2 * self.num:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RunError(
                "a process that read rows was ended from outside",
                got=error,
                fix="memory is the usual reason: --resume with fewer curate.processes; or anew, with a lower "
                "curate.max_chars",
            ) from error


_opened: dict[str, Any] = {}


def _open(values: dict[str, Any]) -> None:
    # a parent that is killed tells nobody, and its children would wait for work for ever
    Thread(target=_leave_with, args=(parent_process(),), daemon=True).start()
    _opened.clear()
    _opened["config"] = settings.build(values)


def _leave_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _call(function: Function, which: Which, numbers: np.ndarray, more: tuple[Any, ...]) -> Arrays:
    if which not in _opened:
        _opened[which] = Corpus(_opened["config"], which)
    return function(_opened[which], numbers, *more)


def _counts(corpus: Corpus) -> list[int]:
    return [len(part) for part in corpus.parts]


def _of_these_rows(corpus: Corpus, numbers: np.ndarray, counts: list[int], function: Function, *more: Any) -> Arrays:
    """A shard, by a process that has opened the same rows: it names them by their numbers.

    Raises:
        RunError: a source that has other rows here.
    """
    for source, own, there in zip(corpus.sources, _counts(corpus), counts, strict=True):
        if own != there:
            raise RunError(
                "a source has changed while it was read",
                where=source.path,
                got=f"{own:,} rows",
                wanted=f"{there:,}, as there were at the start",
                fix="--resume, where it is again as it was; else --overwrite",
            )
    return function(corpus, numbers, *more)


@dataclass
class Work:
    """A step's folder, and who works for it.

    Attributes:
        folder: where what is computed is kept.
        workers: who computes.
        progress: is told, after each shard that was not there: how many there are now, of how many.
        scores: of the steps before: name -> float32 [rows of the corpus].
    """

    folder: Path
    workers: Workers
    progress: Callable[[int, int], None] = lambda done, every: None
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)

    def shards(
        self,
        function: Function,
        corpus: Corpus,
        alive: np.ndarray,
        *more: Any,
        name: str = "shard",
        rows: int = SHARD,
        here: bool = False,
    ) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:
        """Compute arrays over the rows that are alive, shard by shard, each kept in a file.

        Args:
            function: `(corpus, numbers, *more) -> {name: array}`: `numbers` are the alive rows of a shard. At the top
                of a module, unless `here`.
            corpus: whose rows.
            alive: [rows of the corpus] bool.
            more: passed on; what `told` or pickle can carry.
            name: of the files; another for each set of shards of a step.
            rows: of the corpus in a shard.
            here: in this process, one after the other (for a model on a device).

        Yields:
            (numbers, arrays) of each shard, in order. An array of a file is read when it is asked for, so that a second
            walk may take one of many.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, len(corpus), rows)
        files = [self.folder / f"{name}-{start // rows:06d}.npz" for start in starts]
        numbers = [start + np.flatnonzero(alive[start : start + rows]) for start in starts]
        missing = {i for i, file in enumerate(files) if not file.exists()}
        todo = [numbers[i] for i in sorted(missing)]
        if here or self.workers.num == 1 or len(missing) < 2:
            results: Iterator[Arrays] = (function(corpus, own, *more) for own in todo)
        else:
            results = self.workers.map(_of_these_rows, corpus.which, todo, (_counts(corpus), function, *more))
        for i, file in enumerate(files):
            if i in missing:
                found = next(results)
                write_arrays(file, found)
                self.progress(i + 1, len(files))
                yield numbers[i], found
            else:
                with np.load(file) as arrays:
                    yield numbers[i], arrays
