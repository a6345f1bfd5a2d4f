"""`learnability`: the score of that name, what a short run takes off a row's loss. Drops nothing; `keep` may."""

import math

import numpy as np

from jaxlean.config.selection import LearnabilitySection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, no_rows
from jaxlean.curate.scoring import learned_from, scores_of
from jaxlean.curate.short_run import short_run
from jaxlean.curate.work import Work
from jaxlean.errors import ModelError


def learnability(corpus: Corpus, alive: np.ndarray, settings: LearnabilitySection, work: Work) -> Found:
    """The loss under the base minus the loss after a short run on a share of the rows, in nats a token (label).

    The reducible loss of RHO-LOSS (arXiv 2206.07137, section 3), where the short run stands for the model that was
    trained on held-out data: low for rows that the base knows already, and for those that are as hard afterwards,
    because they are noise. A base without a head for the labels guesses: then its loss is log(labels).
    """
    config = learned_from(corpus, "learnability")
    after = scores_of(
        corpus, alive, config, work, name="after", adapter=short_run(corpus, alive, config, settings.run, work)
    )["loss"]
    try:
        before = scores_of(corpus, alive, config, work, name="before")["loss"]
    except ModelError:
        if config.data.labels is None:
            raise
        before = np.full(len(corpus), math.log(len(config.data.labels)), np.float32)
    return no_rows({"learnability": before - after, "loss": after})
