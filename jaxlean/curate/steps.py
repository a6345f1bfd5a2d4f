"""The steps: one is a file in this package with a function of the same name, and a field of `StepSection`.

    def near_duplicates(corpus: Corpus, alive: np.ndarray, settings: NearDuplicatesSection, work: Work) -> Found

It gets the rows of all sources (`Corpus`), which of them are alive ([rows] bool, not to be changed), its settings, and a
folder for what took long to compute (`Work.shards`: kept shard by shard, so that what is killed goes on there).
It gives back the rows to leave out, each with a reason, and scores for all rows that it has one for (`Found`). It is a
function of these arguments and `corpus.config` alone: the same rows, killed and resumed or not, on however many
processes.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.work import Work

Step = Callable[[Corpus, np.ndarray, Any, Work], Found]


def find(name: str) -> Step:
    """The function of a step; its libraries are imported now, and not before."""
    step: Step = getattr(import_module(f"jaxlean.curate.{name}"), name)
    return step
