"""How much of the training data says what other rows say, found as `jaxlean curate` finds it."""

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from jaxlean.config import RunConfig, StepSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.steps import find
from jaxlean.curate.work import Processes, Work

# Rows that are compared, at most: a minute on one core.
_MOST = 100_000


@dataclass(frozen=True)
class Duplicates:
    """What `jaxlean curate` would leave out.

    Args:
        rows: that were looked at.
        out: of them that would go.
        share: of what the rows say, in characters, 0..1.
        steps: of curate that found them.
        of_all: whether these are all rows.
    """

    rows: int
    out: int
    share: float
    steps: tuple[str, ...]
    of_all: bool = True


def duplicates(config: RunConfig, *, most: int = _MOST) -> Duplicates:
    """Equal and nearly equal rows of `data.train`, by the steps' default settings.

    Args:
        config: resolved; of a task of texts.
        most: rows of each source that are looked at.

    Raises:
        UserError: rows that cannot be read.
    """
    steps = ("exact_duplicates", "near_duplicates") if find_spec("rensa") else ("exact_duplicates",)
    assert config.data.train
    named = config.model_copy(deep=True)
    for source in named.data.train or []:
        source.limit = most if source.limit is None else min(source.limit, most)
    named.curate.processes = 1  # of rows so few, another process would take longer to start
    corpus = Corpus(named)
    alive = np.ones(len(corpus), bool)
    sizes = np.array([len(words.text) for words in corpus.words(np.arange(len(corpus)))], np.int64)
    with tempfile.TemporaryDirectory(prefix="jaxlean-audit-") as folder, Processes(named) as workers:
        for name in steps:
            work = Work(Path(folder) / name, workers)
            found = find(name)(corpus, alive.copy(), StepSection.model_validate(name).settings, work)
            alive[found.rows] = False
    out = ~alive
    share = float(sizes[out].sum() / max(sizes.sum(), 1))
    return Duplicates(len(corpus), int(out.sum()), share, steps, all(len(part) < most for part in corpus.parts))
