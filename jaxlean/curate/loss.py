"""`loss`: the score of that name, what a row's completion or label costs a model. Drops nothing; `keep` may."""

from pathlib import Path

import numpy as np

from jaxlean.config.selection import LossSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, no_rows
from jaxlean.curate.scoring import learned_from, scores_of
from jaxlean.curate.work import Work

SCORES = ("loss",)


def loss(corpus: Corpus, alive: np.ndarray, settings: LossSection, work: Work) -> Found:
    """The mean cross entropy, in nats, of the tokens (labels) of each row that are learned."""
    config = learned_from(corpus, alive, "loss")
    adapter = None if settings.adapter is None else Path(settings.adapter)
    return no_rows({"loss": scores_of(corpus, alive, config, work, name="scores", adapter=adapter)["loss"]})
