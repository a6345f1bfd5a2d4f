"""The steps: one is a file in this package with a function of the same name, and a field of `StepSection`.

    def near_duplicates(corpus: Corpus, alive: np.ndarray, settings: NearDuplicatesSection, work: Work) -> Found

It gets the rows of all sources (`Corpus`), which of them are alive ([rows] bool, not to be changed), its settings, and
a folder for what took long to compute (`Work.shards`: kept shard by shard, so that what is killed goes on there). It
gives back the rows to leave out, each with a reason, and scores for all rows that it has one for (`Found`). It is a
function of these arguments and `corpus.config` alone: the same rows, killed and resumed or not, on however many
processes. Where nothing is alive it finds nothing. Libraries that jaxlean does without stand in the module's NEEDS, the
names of its scores in SCORES; its `check(settings)`, if any, raises what can be told before anything is read.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from jaxlean.config import StepSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.work import Work
from jaxlean.errors import ConfigError

Step = Callable[[Corpus, np.ndarray, Any, Work], Found]


def find(name: str) -> Step:
    """The function of a step; what it imports is imported now, and not before.

    Raises:
        ConfigError: a library that the module names in `NEEDS` is not installed.
    """
    module = import_module(f"jaxlean.curate.{name}")
    for library in getattr(module, "NEEDS", ()):
        if find_spec(library) is None:
            raise ConfigError(f"curate.steps: {name} needs {library}", fix="pip install 'jaxlean[curate]'")
    step: Step = getattr(module, name)
    return step


def find_all(steps: Sequence[StepSection]) -> list[Step]:
    """The functions of steps, in their order.

    Raises:
        ConfigError: as of `find` and `check`; two steps give scores of one name, where a column holds one.
    """
    functions, by = [find(step.name) for step in steps], dict[str, str]()
    for step in steps:
        module = import_module(f"jaxlean.curate.{step.name}")
        if hasattr(module, "check"):
            module.check(step.settings)
        for score in getattr(module, "SCORES", ()):
            if score in by:
                raise ConfigError(
                    f"two steps give the score {score!r}, and the second would take the place of the first",
                    where="curate.steps", got=f"{by[score]} and {step.name}",
                    fix="leave one out",
                )  # fmt: skip
            by[score] = step.name
    return functions
