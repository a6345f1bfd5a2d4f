"""What `jaxlean curate` leaves out: the steps, in order, each with its settings."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_serializer, model_validator

from jaxlean.config.quality import QualitySection
from jaxlean.config.section import Section
from jaxlean.config.selection import (
    El2nSection,
    IfdSection,
    ImportanceSection,
    KeepSection,
    LearnabilitySection,
    LossSection,
    SemanticDuplicatesSection,
)


class ExactDuplicatesSection(Section):
    """Rows that say the same, word for word: the first of them stays."""

    over: Literal["row", "prompt"] = Field(
        "row", description="What is compared: all of the row's own text, or what it asks (answers may then differ)."
    )
    ignore: list[Literal["unicode", "case", "punctuation", "whitespace"]] = Field(
        default=["unicode", "case", "punctuation", "whitespace"],
        description="What makes no difference: forms of the same letter (NFKC, but 10² is not 102), case, the "
        "punctuation of sentences (not marks in formulas and code: !x, x - y, brackets), spacing.",
    )
    across_labels: bool = Field(
        False, description="task classify, tag: a text that stands there with two labels is one text as well."
    )


class NearDuplicatesSection(Section):
    """Rows that say nearly the same: of each the shingles (runs of characters or words) overlap with one that stays."""

    threshold: float = Field(
        0.7, gt=0, le=1, description="Jaccard overlap of the shingles from which on two rows are taken for one."
    )
    over: Literal["row", "prompt"] = Field(
        "row", description="What is compared: all of the row's own text, or what it asks (answers may then differ)."
    )
    unit: Literal["characters", "words"] = Field(
        "characters",
        description="Of which a shingle is a run. Words do for long texts; in short ones each counts much.",
    )
    ngram: PositiveInt = Field(5, description="Units in a shingle.")
    num_perm: int = Field(128, ge=16, le=1024, description="Hashes of a MinHash signature; more miss fewer pairs.")
    keep: Literal["first", "longest"] = Field("first", description="Which of them stays.")
    same_numbers: bool = Field(
        True,
        description="Rows with other numbers, signs and order included, are two rows: 3 apples and 5 apples have "
        "different answers.",
    )
    across_labels: bool = Field(False, description="task classify, tag: rows with two labels may be one row as well.")


class LeakageSection(Section):
    """Training rows that also stand in the held-out data. Looked for wherever there are any (`data.eval`)."""

    action: Literal["error", "drop", "keep"] = Field(
        "error", description="error: stop and say which; drop: leave them out of the training data; keep: only report."
    )
    over: Literal["row", "prompt"] = Field(
        "prompt", description="What is compared: what a row asks, or all of its own text."
    )
    ngram: PositiveInt = Field(
        13, description="Words in a run (13: GPT-3, arXiv 2005.14165, appendix C). Shorter rows leak as a whole or not."
    )
    threshold: float = Field(
        0.6, gt=0, le=1, description="Share of the runs of a held-out row that stand in one training row."
    )


class StepSection(Section):
    """One step: its name, or its name with its settings. A new step is a field here and a file in `curate/`."""

    exact_duplicates: ExactDuplicatesSection | None = None
    near_duplicates: NearDuplicatesSection | None = None
    quality: QualitySection | None = None
    leakage: LeakageSection | None = None
    semantic_duplicates: SemanticDuplicatesSection | None = None
    loss: LossSection | None = None
    ifd: IfdSection | None = None
    learnability: LearnabilitySection | None = None
    el2n: El2nSection | None = None
    importance: ImportanceSection | None = None
    keep: KeepSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_name_is_a_step(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {values: {}}
        if isinstance(values, dict):
            return {name: {} if settings is None else settings for name, settings in values.items()}
        return values

    @model_validator(mode="after")
    def _is_one_step(self) -> "StepSection":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"an entry is one step, not {' and '.join(given) or 'none'}: a list keeps their order")
        return self

    @model_serializer(mode="wrap")
    def _without_the_others(self, dump: Any) -> dict[str, Any]:
        return {name: settings for name, settings in dump(self).items() if settings is not None}

    @property
    def name(self) -> str:
        """Of the step."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def settings(self) -> Section:
        """Of the step."""
        settings = getattr(self, self.name)
        assert isinstance(settings, Section)
        return settings


class CurateSection(Section):
    """How a dataset is made smaller before it is trained on."""

    steps: list[StepSection] = Field(
        default_factory=list,
        description="In order; each a name (exact_duplicates) or a name with settings (near_duplicates: {threshold: "
        "0.8}).",
    )
    text_column: str | list[str] | None = Field(
        None, description="The column, or columns, that are compared and judged. Default: what the row is trained on."
    )
    max_chars: PositiveInt = Field(
        1_000_000,
        description="Rows with longer text are dropped before a step reads them. What is compared and judged counts, "
        "not the row's other columns.",
    )
    bad_rows: Literal["error", "drop"] = Field(
        "error",
        description="Rows of data.train that cannot be read or trained on: malformed JSON, a CSV row with a value too "
        "many, an empty answer. Held-out rows must be good, and so must a CSV file's quotes and encoding.",
    )
    engine: Literal["processes", "ray"] = Field(
        "processes", description="Who works on rows: processes of this machine, or a Ray cluster (RAY_ADDRESS)."
    )
    processes: PositiveInt | None = Field(None, description="That share the work on rows; default: one a core.")
    examples: PositiveInt = Field(3, description="Rows that the report shows of each reason.")

    @field_validator("steps", mode="before")
    @classmethod
    def _one_step_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value
