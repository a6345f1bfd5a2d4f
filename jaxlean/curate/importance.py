"""`importance`: the score of that name, how like a target set a row reads (DSIR). Drops nothing; `keep` may."""

import numpy as np

from jaxlean.config import SourceSection
from jaxlean.config.selection import ImportanceSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, no_rows
from jaxlean.curate.work import Work
from jaxlean.data.importance import importance as log_weights

SCORES = ("importance",)


def importance(corpus: Corpus, alive: np.ndarray, settings: ImportanceSection, work: Work) -> Found:
    """The logarithm of each row's importance weight (`jaxlean.data.importance`), by all of its words."""
    wanted = SourceSection(path=settings.target)
    config = corpus.config
    target = Corpus(config.model_copy(update={"data": config.data.model_copy(update={"train": [wanted]})}))
    found = np.full(len(corpus), np.nan, np.float32)
    found[alive] = log_weights(
        (words.text for words in corpus.words(np.flatnonzero(alive))),
        (words.text for words in target.words(np.arange(len(target)))),
        settings.buckets,
    )
    return no_rows({"importance": found})
