"""`learnability`: the score of that name, what a short run takes off a row's loss. Drops nothing; `keep` may."""

import math
from typing import Any

import numpy as np

from jaxlean.config import RunConfig
from jaxlean.config.selection import LearnabilitySection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, no_rows
from jaxlean.curate.scoring import learned_from, scores_of
from jaxlean.curate.short_run import given, shuffled, trained
from jaxlean.curate.work import Work
from jaxlean.errors import DataError, ModelError

SCORES = ("learnability", "loss_after_run")


def learnability(corpus: Corpus, alive: np.ndarray, settings: LearnabilitySection, work: Work) -> Found:
    """The loss under the base minus the loss after a short run on other rows, in nats a token (label).

    The reducible loss of RHO-LOSS (arXiv 2206.07137, section 3), whose second loss is that of a model trained on
    held-out data: low for rows that the base knows already, and for those that are as hard afterwards, because they are
    noise. A run that had seen a row would have it by heart, noise or not. So there are two, each on `run.fraction` of
    the rows, out of one half of them, and each judges the other half. A base without a head for the labels guesses:
    then its loss is log(labels).

    One of two short runs comes further than the other. Halves that are drawn at random have the same learnability but
    for that, so each is moved to the mean of both. Beside it stands the second loss as it is, `loss_after_run`.

    Raises:
        DataError: one row, so that there is none for it to be judged by.
        ConfigError, UserError: as of `short_run`.
    """
    config = learned_from(corpus, alive, "learnability")
    after, halves, notes = _after(corpus, alive, config, settings, work)
    try:
        before = scores_of(corpus, alive, config, work, name="before")["loss"]
    except ModelError:
        if config.data.labels is None:
            raise
        before = np.full(len(corpus), math.log(len(config.data.labels)), np.float32)
    return no_rows({"learnability": _comparable(before - after, halves), "loss_after_run": after}, notes=notes)


def _after(
    corpus: Corpus, alive: np.ndarray, config: RunConfig, settings: LearnabilitySection, work: Work
) -> tuple[np.ndarray, list[np.ndarray], dict[str, Any]]:
    """(each row's loss by a run that has not seen it, [rows of the corpus]; the rows of either run; for the report)."""
    if settings.run.adapter is not None:
        adapter = given(settings.run.adapter)
        losses = scores_of(corpus, alive, config, work, name="after", adapter=adapter)["loss"]
        return losses, [np.flatnonzero(alive)], {"judged by": f"{adapter}, whatever rows that has seen"}
    order = shuffled(np.flatnonzero(alive), config.seed)
    if len(order) < 2:
        raise DataError("a row's learnability is judged by a run on other rows, and there is one row",
                        where="curate.steps: learnability")  # fmt: skip
    halves = np.array_split(order, 2)
    most = max(1, round(settings.run.fraction * len(order)))
    after = np.full(len(corpus), np.nan, np.float32)
    for number, (own, other) in enumerate((halves, halves[::-1])):
        folder = work.folder / f"run-{number}"
        adapter = trained(corpus, own[:most], config, settings.run.num_train_epochs, folder)
        judged = np.zeros(len(corpus), bool)
        judged[other] = True
        losses = scores_of(corpus, judged, config, work, name=f"after-{number}", adapter=adapter)["loss"]
        after[other] = losses[other]
    return after, halves, {"rows that each of two runs learned from": min(most, len(halves[1]))}


def _comparable(score: np.ndarray, halves: list[np.ndarray]) -> np.ndarray:
    """Each half's scores moved so that its mean is that of all."""
    out, every = score.copy(), np.concatenate(halves)
    for half in halves:
        if np.isfinite(score[half]).any():
            out[half] += np.nanmean(score[every]) - np.nanmean(score[half])
    return out
