"""`importance`: the score of that name, how like a target set a row reads (DSIR). Drops nothing; `keep` may."""

import numpy as np

from jaxlean.config import SourceSection
from jaxlean.config.selection import ImportanceSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, no_rows, write_arrays
from jaxlean.curate.work import Arrays, Work
from jaxlean.data.importance import counts, log_ratio, log_weights

SCORES = ("importance",)


def importance(corpus: Corpus, alive: np.ndarray, settings: ImportanceSection, work: Work) -> Found:
    """The logarithm of each row's importance weight (`jaxlean.data.importance`), by all of its words.

    The rows are read twice, shard by shard: to count what they say, and to weigh each. Nothing of them is held.
    """
    file = work.folder / "ratio.npz"
    if not file.exists():
        there = np.zeros(settings.buckets, np.int64)
        for _, found in work.shards(_count, corpus, alive, settings.buckets, name="counted"):
            there += found["counts"]
        wanted = SourceSection(path=settings.target)
        config = corpus.config
        target = Corpus(config.model_copy(update={"data": config.data.model_copy(update={"train": [wanted]})}))
        said = (words.text for words in target.words(np.arange(len(target))))
        write_arrays(file, {"ratio": log_ratio(counts(said, settings.buckets), there)})
    with np.load(file) as arrays:
        ratio = arrays["ratio"]
    score = np.full(len(corpus), np.nan, np.float32)
    for numbers, found in work.shards(_weigh, corpus, alive, ratio, name="weighed"):
        score[numbers] = found["weight"]
    return no_rows({"importance": score})


def _count(corpus: Corpus, numbers: np.ndarray, buckets: int) -> Arrays:
    """`counts` [buckets] int64: n-grams of these rows."""
    return {"counts": counts((words.text for words in corpus.words(numbers)), buckets)}


def _weigh(corpus: Corpus, numbers: np.ndarray, ratio: np.ndarray) -> Arrays:
    """`weight` [n] float64: the logarithm of each row's."""
    return {"weight": log_weights((words.text for words in corpus.words(numbers)), ratio)}
