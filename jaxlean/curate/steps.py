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

from jaxlean.config import RunConfig, StepSection
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.found import Found
from jaxlean.curate.work import Work
from jaxlean.errors import ConfigError

Step = Callable[[Corpus, np.ndarray, Any, Work], Found]


def planned(config: RunConfig) -> list[StepSection]:
    """The steps of the config; where there are held-out rows, leakage is looked for first unless it is among them.

    Raises:
        ConfigError: there is none.
    """
    steps = config.curate.steps
    if not steps:
        raise ConfigError(
            "curate.steps is empty: there is nothing to do",
            wanted="steps in their order: curate.steps=[exact_duplicates, near_duplicates, quality]",
            fix="configs/curate.yaml shows all of them",
        )
    if config.data.eval and all(step.name != "leakage" for step in steps):
        return [StepSection.model_validate("leakage"), *steps]
    return steps


def folder_of(number: int, step: StepSection) -> str:
    """The name of a step's folder in `work/`, by its number from 1."""
    return f"{number:02d}-{step.name}"


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


def scores_of(step: StepSection) -> tuple[str, ...]:
    """The names of the scores that a step gives."""
    names: tuple[str, ...] = getattr(import_module(f"jaxlean.curate.{step.name}"), "SCORES", ())
    return names


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
        for score in scores_of(step):
            if score in by:
                raise ConfigError(
                    f"two steps give the score {score!r}, and the second would take the place of the first",
                    where="curate.steps", got=f"{by[score]} and {step.name}",
                    fix="leave one out",
                )  # fmt: skip
            by[score] = step.name
    return functions
