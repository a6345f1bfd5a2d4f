"""In which order rows are learned from, by how hard they are (`data.curriculum`)."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from jaxlean.config.section import Fraction, Section


class CurriculumSection(Section):
    """Easy rows first, then all (`jaxlean/data/curriculum.py`). `curriculum: length` is short for its difficulty."""

    difficulty: Literal["length", "rarity", "loss", "column"] = Field(
        "length",
        description="How hard a row is. length: its tokens; rarity: how rare these are, on average; loss: the base's "
        "mean loss on it, measured before training in one forward pass; column: a number in the data.",
    )
    column: str | None = Field(None, description="difficulty: column only. Its name; larger is harder.")
    order: Literal["easy_first", "hard_first", "random"] = Field(
        "easy_first",
        description="hard_first is the anti-curriculum; random draws the difficulties by lot, with all else the same: "
        "the control that a curriculum has to beat.",
    )
    pacing: Literal["linear", "root", "step", "competence"] = Field(
        "competence", description="How the share of the data that is available grows from `start` to all."
    )
    start: Fraction = Field(0.2, description="Share of the data that is available at first, the easiest.")
    until: Fraction = Field(0.5, description="Share of the run after which everything is available.")
    floor: Fraction = Field(
        0.1, description="Share of the run that is drawn from all rows, from the first step on: hard ones too."
    )
    phases: PositiveInt = Field(20, description="Parts of the run; with each, more becomes available.")

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_the_difficulty(cls, values: Any) -> Any:
        return {"difficulty": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _column_is_named(self) -> "CurriculumSection":
        if (self.difficulty == "column") != (self.column is not None):
            raise ValueError("data.curriculum: difficulty: column and column: NAME go together")
        if not self.start and not self.floor:
            raise ValueError("data.curriculum.start is 0, and so is floor: nothing would be available at first")
        return self
