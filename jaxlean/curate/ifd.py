"""`ifd`: the score of that name, instruction-following difficulty (arXiv 2308.12032). Drops nothing; `keep` may."""

from pathlib import Path

import numpy as np

from jaxlean.config.selection import IfdSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found, no_rows
from jaxlean.curate.scoring import learned_from, scores_of
from jaxlean.curate.work import Work
from jaxlean.errors import ConfigError

SCORES = ("ifd", "loss_given_prompt")


def ifd(corpus: Corpus, alive: np.ndarray, settings: IfdSection, work: Work) -> Found:
    """The mean loss of a completion given its prompt, divided by its mean loss alone (section 2.2).

    Near 1 the prompt hardly helps, so that there is much to learn; above 1 it misleads, and the paper leaves such rows
    out: `keep: {by: ifd, at_most: 1, fraction: 0.1}`. A row of plain text, without a prompt, has 1. Beside it stands
    the first of the two losses, `loss_given_prompt`: not the score `loss`, for where the tokenizer puts nothing before
    a text, neither counts the first token.

    Raises:
        ConfigError: a task without completions.
    """
    if corpus.config.task != "generate":
        raise ConfigError(
            "ifd is of a completion given its prompt", where="curate.steps: ifd", got=f"task: {corpus.config.task}",
            wanted="task: generate", fix="el2n is the difficulty of labels",
        )  # fmt: skip
    config = learned_from(corpus, alive, "ifd")
    adapter = None if settings.adapter is None else Path(settings.adapter)
    found = scores_of(corpus, alive, config, work, name="scores", adapter=adapter, alone=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = found["loss"] / found["loss_alone"]
    ratio = np.where(np.isfinite(ratio), ratio, np.nan).astype(np.float32)
    return no_rows({"ifd": ratio, "loss_given_prompt": found["loss"]})
