"""`el2n`: the score of that name, the length of the error vector (arXiv 2107.07075). Drops nothing; `keep` may."""

import numpy as np

from jaxlean.config.selection import El2nSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, no_rows
from jaxlean.curate.scoring import learned_from, scores_of
from jaxlean.curate.short_run import short_run
from jaxlean.curate.vectors import vectors_of
from jaxlean.curate.work import Work
from jaxlean.data.probe import error_norms, held_out_probabilities
from jaxlean.errors import ConfigError, DataError

SCORES = ("el2n",)


def el2n(corpus: Corpus, alive: np.ndarray, settings: El2nSection, work: Work) -> Found:
    """How far probabilities are from the right answer: 0 where it is certain, the square root of 2 where another is.

    The paper takes it early in training, as the mean of several runs. `probe` is the cheap stand-in: logistic
    regression on vectors, in seconds. Of tokens (task: generate) it is the mean over what is learned of the row.

    Raises:
        ConfigError: a probe where rows have no labels.
        DataError: one label only.
    """
    task = corpus.config.task
    by = settings.by or {"classify": "probe", "tag": "run"}.get(task, "model")
    if by == "probe":
        if task != "classify":
            raise ConfigError(
                "el2n: {by: probe} learns labels of texts", where="curate.steps", got=f"task: {task}", fix="by: run"
            )
        error = np.full(len(corpus), np.nan, np.float32)
        error[alive] = _of_probe(corpus, alive, settings, work)
        return no_rows({"el2n": error})
    config = learned_from(corpus, alive, "el2n")
    adapter = short_run(corpus, alive, config, settings.run, work) if by == "run" else None
    return no_rows({"el2n": scores_of(corpus, alive, config, work, name="scores", adapter=adapter)["error"]})


def _of_probe(corpus: Corpus, alive: np.ndarray, settings: El2nSection, work: Work) -> np.ndarray:
    names = [words.label for words in corpus.words(np.flatnonzero(alive))]
    known, labels = np.unique(names, return_inverse=True)
    if len(known) < 2:
        raise DataError("there is nothing to tell apart: one label only", where="curate.steps: el2n", got=known[0])
    vectors = vectors_of(corpus, alive, settings.vectors, work)
    seed = corpus.config.seed
    return error_norms(held_out_probabilities(vectors, labels, folds=settings.folds, seed=seed), labels)
