"""What steps ask for, looked at before the first of them begins: a typing error should not cost hours of scores."""

from collections.abc import Sequence
from pathlib import Path

from jaxlean.config import RunConfig, SourceSection, StepSection
from jaxlean.config.curation import LeakageSection
from jaxlean.config.section import Section
from jaxlean.config.selection import (
    El2nSection,
    IfdSection,
    ImportanceSection,
    KeepSection,
    LearnabilitySection,
    LossSection,
    VectorsSection,
    named_places,
)
from jaxlean.curate.corpus import Corpus
from jaxlean.curate.keep import check_by, check_diversity, check_mix
from jaxlean.curate.scoring import check_model
from jaxlean.curate.steps import scores_of
from jaxlean.curate.vectors import check_column, check_named
from jaxlean.data.source import must_be_an_id
from jaxlean.errors import ConfigError


def preflight(config: RunConfig, steps: Sequence[StepSection], corpus: Corpus) -> None:
    """Look at what the settings of steps name: scores, columns, sources, models, adapters, a target.

    Raises:
        ConfigError: a score that no step before gives and no column holds, a mix of other sources, an adapter's or
            model's folder that is not there, a model that is needed and not named.
        DataError: a column that is missing, a source without a good row, a target that cannot be read.
    """
    scores: list[str] = []
    _check_rows(corpus)
    for step in steps:
        settings = step.settings
        _check_places(step.name, settings)
        vectors = _vectors(config, settings)
        if vectors is not None:
            check_named(config, vectors)
            check_column(corpus, vectors)
        if isinstance(settings, KeepSection):
            check_by(corpus, settings.by, scores)
            check_mix(corpus, settings.mix)
            check_diversity(corpus, settings)
        elif isinstance(settings, LossSection | IfdSection | LearnabilitySection) or (
            isinstance(settings, El2nSection) and vectors is None
        ):
            check_model(config, step.name)
        elif isinstance(settings, ImportanceSection):
            target = SourceSection(path=settings.target)
            _check_rows(Corpus(config.model_copy(update={"data": config.data.model_copy(update={"train": [target]})})))
        elif isinstance(settings, LeakageSection):
            _check_rows(Corpus(config, "eval"))
        scores += scores_of(step)


def _check_rows(corpus: Corpus) -> None:
    for number in range(len(corpus.sources)):
        corpus.first(number)


def _vectors(config: RunConfig, settings: Section) -> VectorsSection | None:
    """The vectors that a step will read."""
    vectors: VectorsSection | None = getattr(settings, "vectors", None)
    if isinstance(settings, KeepSection) and settings.diversity not in ("clusters", "k_center"):
        return None
    if isinstance(settings, El2nSection) and (settings.by or "probe") != "probe":
        return None
    if isinstance(settings, El2nSection) and config.task != "classify":
        return None
    return vectors


def _check_places(step: str, settings: Section) -> None:
    for section, name in named_places(settings):
        path = getattr(section, name)
        if name == "adapter" and not Path(path).is_dir():
            raise ConfigError("the adapter's folder is not there", where=f"curate.steps: {step}", got=path)
        if name == "model" and not Path(path).exists():
            must_be_an_id(path)
