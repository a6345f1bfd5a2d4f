"""How quality is measured (`eval`)."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from jaxlean.config.section import Section, named


class EvalSection(Section):
    """How quality is measured."""

    eval_steps: PositiveInt | None = Field(
        None, description="Steps between evaluations of the loss; default: only the ends."
    )
    before: bool = Field(
        True,
        description="Measure the base before training, so that the gain is known. With "
        "model.new_tokens it has them already, as they start: with the base itself compare bits per byte.",
    )
    per_device_eval_batch_size: PositiveInt = named(16, "Sequences at a time.", "eval_batch_size")
    exact_match: bool = Field(False, description="Generate each held-out completion and compare it, word for word.")
    max_new_tokens: PositiveInt = Field(128, description="Longest generation.")
    max_examples: PositiveInt | None = Field(None, description="Use only the first held-out rows.")
    shots: NonNegativeInt | None = Field(
        None, description="finetune also measures the base, untrained, with so many training rows as examples: what "
        "training has to beat. generate: in the prompt of each held-out row; classify: of each label, the mean of "
        "whose vectors is its prototype (0: the vector of its name). With data.train_on: all its loss is still that "
        "of the completions alone, and not to be compared with the loss before and after."
    )  # fmt: skip
    shots_by: Literal["random", "nearest"] = Field(
        "random", description="Which rows: drawn by the seed; or (task: generate) those most like the held-out row."
    )
