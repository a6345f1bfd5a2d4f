"""How quality is measured, and what follows from it while a run goes (`eval`)."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from jaxlean.config.section import Section, named

# The scores that a task's evaluation has in the loop, beside its loss; more is better.
METRICS = {
    "generate": (),
    "classify": ("accuracy", "macro_f1", "weighted_f1"),
    "tag": ("accuracy", "f1"),
    "embed": ("accuracy", "mrr"),
}


class StoppingSection(Section):
    """When a run ends before its last step (`jaxlean/run/stopping.py`); each rule that is set may say so."""

    patience: PositiveInt | None = named(
        None,
        "Evaluations in a row of which none is better than the best before them, by more than min_delta; what is not a "
        "number is not better.",
        "early_stopping_patience",
    )
    min_delta: float = named(
        0.0, "What counts as better with patience, in the metric's own unit.", "early_stopping_threshold", ge=0
    )
    plateau: float | None = Field(
        None, ge=0, description="The line through the last plateau_window evaluations falls by less than this."
    )
    plateau_window: int = Field(6, ge=3, description="Evaluations that plateau looks at.")
    divergence: float | None = Field(
        None, gt=1, description="The loss is not a number, or above the best so far by this factor."
    )
    target: float | None = Field(
        None,
        gt=0,
        description="Another run's loss, say: stop as soon as this one will not beat it. A power law with an offset is "
        "fitted to the losses so far; its lower bound at the last step decides.",
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="How sure target has to be: the bound that is above it, one-sided."
    )
    min_steps: NonNegativeInt = Field(0, description="Before this step only divergence ends a run.")

    @model_validator(mode="after")
    def _a_rule_is_set(self) -> "StoppingSection":
        if all(rule is None for rule in (self.patience, self.plateau, self.divergence, self.target)):
            raise ValueError("eval.stopping names no rule: patience, plateau, divergence or target")
        return self


class EvalSection(Section):
    """How quality is measured."""

    mode: Literal["sync", "async", "none"] = Field(
        "sync",
        description="sync: training waits for each evaluation. async: it hands over a snapshot and goes on; other "
        "processes score it, on CPU or wherever `jaxlean evaluate --watch RUN_DIR` is started. none: never, nor before "
        "and after.",
    )
    eval_steps: PositiveInt | None = Field(
        None, description="Steps between evaluations of the loss; default: only the ends."
    )
    evaluators: NonNegativeInt = Field(
        1, description="mode: async only. Processes that training starts on this machine's CPU; 0: others watch."
    )
    snapshots: PositiveInt = Field(
        2, description="mode: async only. Snapshots that wait; of more, the oldest that nobody has begun is left out."
    )
    wait_seconds: float = Field(
        600.0,
        ge=0,
        description="mode: async only. How long the end of a run waits for scores that are due, while somebody works "
        "on them.",
    )
    nice: int = Field(
        10, ge=0, le=19, description="mode: async only. How much the processes that training starts yield to it."
    )
    load_best: bool = named(
        False, "What is written at the end is of the step with the best score.", "load_best_model_at_end"
    )
    metric: Literal["loss", "accuracy", "macro_f1", "weighted_f1", "f1", "mrr"] = named(
        "loss", "What best means, and better; of a loss less, else more.", "metric_for_best_model"
    )
    stopping: StoppingSection | None = Field(None, description="End the run early; default: never.")
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

    @model_validator(mode="before")
    @classmethod
    def _trainers_names(cls, values: Any) -> Any:
        """Hugging Face's EarlyStoppingCallback has its settings beside the others."""
        names = ("early_stopping_patience", "early_stopping_threshold")
        if not isinstance(values, dict) or not any(name in values for name in names):
            return values
        values = dict(values)
        given = {name: values.pop(name) for name in names if name in values}
        stopping = values.get("stopping") or {}
        return values | {"stopping": {**stopping, **given} if isinstance(stopping, dict) else stopping}

    @field_validator("metric", mode="before")
    @classmethod
    def _without_prefix(cls, value: Any) -> Any:
        return value.removeprefix("eval_") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_measured(self) -> "EvalSection":
        needs = [
            name
            for name, asked in (
                ("eval.mode: async", self.mode == "async"),
                ("eval.stopping", self.stopping is not None),
                ("eval.load_best", self.load_best),
            )
            if asked
        ]
        if needs and self.mode == "none":
            raise ValueError(f"{needs[0]} needs evaluations, and eval.mode: none makes none")
        if needs and self.eval_steps is None:
            raise ValueError(f"{needs[0]} needs eval.eval_steps: steps between evaluations")
        if self.metric != "loss" and self.stopping is not None and self.stopping.target is not None:
            raise ValueError(f"eval.stopping.target is a loss, and eval.metric is {self.metric}")
        return self

    @property
    def remembers(self) -> bool:
        """Whether scores are kept while a run goes, since something is decided by them."""
        return self.mode == "async" or self.load_best or self.stopping is not None
