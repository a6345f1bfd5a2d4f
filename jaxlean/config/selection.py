"""The steps of `jaxlean curate` that ask a model about rows, and the one that chooses among what is left."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from jaxlean.config.section import Fraction, Section

# Settings that name a file or a folder, in whichever section.
_PLACES = ("adapter", "model", "target")


def named_places(settings: Section) -> Iterator[tuple[Section, str]]:
    """(section, name) of each setting of a step that names a file or a folder, however deep."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Section):
            yield from named_places(value)
        elif name in _PLACES and isinstance(value, str):
            yield settings, name


class VectorsSection(Section):
    """The vectors that rows are compared by."""

    model: str | None = Field(
        None,
        description="An encoder, whose vectors of texts they are, or a decoder, whose hidden states' mean. Default: "
        "model.path.",
    )
    column: str | None = Field(None, description="A column that holds them: a list of numbers a row. Wins over model.")
    max_length: PositiveInt | None = Field(
        None, description="Tokens of a text, what is beyond is not read; default: what the model was made for, 512 at "
        "most."
    )  # fmt: skip


class SemanticDuplicatesSection(Section):
    """Rows that say the same in other words: SemDeDup's rule (arXiv 2303.09540)."""

    epsilon: float = Field(
        0.05, ge=0, le=1, description="Of two rows of a cluster whose cosine is above 1 - epsilon one is left out."
    )
    num_clusters: PositiveInt | None = Field(
        None, description="Only rows of one cluster are compared. Default: the square root of the rows."
    )
    across_labels: bool = Field(
        False, description="task classify, tag: rows with different labels can be duplicates as well."
    )
    vectors: VectorsSection = Field(default_factory=VectorsSection)


class ShortRunSection(Section):
    """A short run of the config's own training, so that the model knows the task a little."""

    adapter: str | None = Field(None, description="PEFT folder of a run that there is already: then none is made.")
    fraction: Fraction = Field(0.25, gt=0, description="Of the rows, drawn at random, that it learns from.")
    num_train_epochs: float = Field(1.0, gt=0, description="Passes over them.")


class LossSection(Section):
    """Score `loss`: what a row's completion (or label) costs the model, in nats a token."""

    adapter: str | None = Field(None, description="PEFT folder; default: the base alone.")


class IfdSection(Section):
    """Score `ifd`, instruction-following difficulty (arXiv 2308.12032): the completion's loss given the prompt, divided
    by its loss alone. Above 1 the prompt is of no help. task: generate."""

    adapter: str | None = Field(None, description="PEFT folder; default: the base alone.")


class LearnabilitySection(Section):
    """Score `learnability`: the loss under the base minus that after a short run on other rows (two runs, each on half
    of the rows at most). As RHO-LOSS (arXiv 2206.07137) it is low for what is known, and for what cannot be learned."""

    run: ShortRunSection = Field(default_factory=ShortRunSection)


class El2nSection(Section):
    """Score `el2n` (arXiv 2107.07075): the length of the error vector, probabilities minus the right answer."""

    by: Literal["probe", "run", "model"] | None = Field(
        None,
        description="Whose probabilities. probe (task classify): logistic regression on vectors, of each row by one "
        "that has not seen it; run: the model after a short run; model: as it is. Default: probe where there are "
        "labels of texts, run for words, model for task generate.",
    )
    folds: int = Field(5, ge=2, description="probe: parts of the rows, each judged by what is learned from the others.")
    vectors: VectorsSection = Field(default_factory=VectorsSection, description="probe: learns from them.")
    run: ShortRunSection = Field(default_factory=ShortRunSection)


class ImportanceSection(Section):
    """Score `importance`: how much likelier a row's words are in a target set, DSIR (arXiv 2302.03169). A logarithm,
    for `keep: {by: importance, order: draw_log}`."""

    target: str = Field(description="File (or hub id) whose rows are to be resembled, of the same columns.")
    buckets: PositiveInt = Field(10_000, description="That words and pairs of words are hashed into.")


class KeepSection(Section):
    """Which of the rows that are left are kept: so many, by a score, spread over the data, in a mix of sources."""

    fraction: Fraction | None = Field(None, gt=0, description="Of the rows that are left.")
    count: PositiveInt | None = Field(None, description="Rows.")
    by: str | None = Field(
        None, description="A score of a step before (loss, ifd, learnability, el2n, importance), or a column of "
        "numbers. Default: none, at random.",
    )  # fmt: skip
    order: Literal["highest", "lowest", "draw", "draw_log"] = Field(
        "highest",
        description="draw: at random, with a probability in proportion to the score; draw_log: to its exponential.",
    )
    drop_highest: Fraction = Field(
        0.0, description="This share of the highest scores is never kept: of difficulty, what is probably mislabelled."
    )
    drop_lowest: Fraction = Field(0.0, description="This share of the lowest scores is never kept.")
    at_least: float | None = Field(None, description="Rows with a lower score are never kept.")
    at_most: float | None = Field(None, description="Rows with a higher score are never kept (ifd: 1).")
    diversity: Literal["none", "labels", "clusters", "k_center"] = Field(
        "none",
        description="labels, clusters: as many of each; k_center: each next row far from those before, by distance "
        "times rank of the score (arXiv 1708.00489).",
    )
    num_clusters: PositiveInt = Field(100, description="diversity: clusters.")
    vectors: VectorsSection = Field(default_factory=VectorsSection, description="diversity: clusters, k_center.")
    mix: dict[str, float] | None = Field(
        None,
        description="Shares of the sources: path of each as in data.train -> weight. Without fraction and count as "
        "many rows as there can be in these shares.",
    )

    @model_validator(mode="after")
    def _says_how_many(self) -> "KeepSection":
        band = (self.drop_highest, self.drop_lowest, self.at_least, self.at_most) != (0.0, 0.0, None, None)
        if self.fraction is not None and self.count is not None:
            raise ValueError("keep: fraction and count exclude each other")
        if self.fraction is None and self.count is None and self.mix is None and not band:
            raise ValueError("keep: how many? fraction: 0.5, count: 1000, or limits of a score")
        if self.by is None and (band or self.order != "highest"):
            raise ValueError("keep: limits and orders are of a score; name one: by: loss")
        if self.mix is not None and any(weight <= 0 for weight in self.mix.values()):
            raise ValueError("keep.mix: weights are above 0; leave out a source in data.train")
        return self
