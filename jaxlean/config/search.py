"""What `jaxlean search` tries, and how it chooses."""

import difflib
import math
import re
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from jaxlean.config.section import Section, named

# What is to be small; every other objective is to be large.
SMALL = ("loss", "seconds", "usd", "bytes", "memory_bytes")
Objective = Literal[
    "loss", "exact_match", "accuracy", "macro_f1", "weighted_f1", "precision", "recall", "f1", "mrr",
    "usd", "seconds", "bytes", "memory_bytes",
]  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class DistributionSection(Section):
    """What a setting is drawn from: one of the first five; a list is short for `choices`."""

    choices: list[Any] | None = Field(None, description="One of these.")
    uniform: tuple[float, float] | None = Field(None, description="Any number from the first to the second.")
    log: tuple[float, float] | None = Field(None, description="The same, its logarithm uniform.")
    int_: tuple[int, int] | None = named(None, "A whole number from the first to the second, both included.", "int")
    log_int: tuple[int, int] | None = Field(None, description="The same, its logarithm uniform.")
    step: float | None = Field(None, gt=0, description="uniform and int only: multiples of it above the first.")

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_of_choices(cls, values: Any) -> Any:
        return {"choices": values} if isinstance(values, list) else values

    @field_validator("uniform", "log", "int_", "log_int", mode="before")
    @classmethod
    def _two_ends(cls, ends: Any) -> Any:
        if ends is not None and (not isinstance(ends, list | tuple) or len(ends) != 2):
            raise ValueError(f"two numbers, [low, high], are wanted, not {ends}")
        return ends

    @field_validator("choices")
    @classmethod
    def _numbers_are_numbers(cls, choices: list[Any] | None) -> list[Any] | None:
        # YAML 1.1 reads 1e-4 as text; people write it for a number
        return choices and [float(c) if isinstance(c, str) and _NUMBER.fullmatch(c) else c for c in choices]

    @model_validator(mode="after")
    def _one_kind(self) -> "DistributionSection":
        kinds = ("choices", "uniform", "log", "int_", "log_int")
        given = [kind.rstrip("_") for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            wanted = (
                "[a, b, c], {uniform: [low, high]}, {log: [low, high]}, {int: [low, high]} or {log_int: [low, high]}"
            )
            raise ValueError(f"a setting is drawn from one of {wanted}; got {' and '.join(given) or 'none of them'}")
        if self.choices is not None:
            if len(self.choices) < 2 or any(self.choices.count(choice) > 1 for choice in self.choices):
                raise ValueError(f"there is to be a choice between different values, not {self.choices}")
        else:
            low, high = next(bounds for bounds in (self.uniform, self.log, self.int_, self.log_int) if bounds)
            if not low < high or not math.isfinite(low) or not math.isfinite(high):
                raise ValueError(f"[low, high] with low below high, not [{low:g}, {high:g}]")
            if (self.log or self.log_int) and low <= 0:
                raise ValueError(f"a logarithm needs a low above 0, not {low:g}")
        if self.step is not None and self.uniform is None and self.int_ is None:
            raise ValueError("step is for uniform and int")
        if self.step is not None and self.int_ is not None and self.step != int(self.step):
            raise ValueError(f"the step of a whole number is one, not {self.step:g}")
        return self


class SearchSection(Section):
    """What is tried, how it is chosen, and what it may cost (`jaxlean search`)."""

    space: dict[str, DistributionSection] = Field(
        default_factory=dict,
        description="section.key -> what it is drawn from: {train.learning_rate: {log: [1e-5, 0.01]}, lora.r: [8, 9]}.",
    )
    num_trials: PositiveInt = named(32, "Trials, of all workers together.", "n_trials", "trials")
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="tpe: by what earlier trials found (multivariate, grouped); random: by lot."
    )
    pruner: Literal["hyperband", "asha", "median", "none"] = Field(
        "hyperband", description="What ends a trial before its time: worse than its like at the same step."
    )
    reduction_factor: int = Field(3, ge=2, description="hyperband, asha: one in so many goes on at each rung.")
    min_steps: PositiveInt | None = Field(
        None,
        description="Steps before a trial is first compared; each next rung is reduction_factor times as far. "
        "Default: of all steps 1 / reduction_factor^2.",
    )
    objectives: list[Objective] = Field(
        ["loss"],
        description="What is to be good: held-out loss, a metric of the task, usd, seconds, bytes (of what training "
        "leaves), memory_bytes (of a step). Several: the trials that none other beats in all; nothing is then pruned.",
    )
    members: PositiveInt | Literal["auto"] = named(
        "auto", "Trials that one program trains side by side over one base; auto: as the planner says.", "population"
    )
    isolation: Literal["auto", "program", "process"] = Field(
        "auto",
        description="program: trials share base, data and compiled step in one process; process: each trial is a "
        "`jaxlean finetune` of its own. auto: program where the run can.",
    )
    pad_ranks: bool = Field(
        True,
        description="Adapters of all ranks are trained as the largest, with zeros: one compile. false: a compile for "
        "each rank, whose trials then cost what they cost by themselves; worth it where the base is small.",
    )
    storage: str | None = Field(
        None,
        description="Optuna database URL, for workers on many machines (the same command on each); default: a journal "
        "file in output_dir. ${NAME} is read from the environment: a password does not belong into a config.",
    )
    study_name: str = Field("search", description="Of the study in the database.")
    startup_trials: PositiveInt = Field(8, description="tpe: trials drawn by lot before it has something to go by.")
    max_usd: float | None = Field(None, gt=0, description="End when all trials together have cost so much.")

    @field_validator("space", mode="before")
    @classmethod
    def _sections_may_be_nested(cls, space: Any) -> Any:
        # {lora: {r: [8, 16]}} is {lora.r: [8, 16]}, as `search.space.lora.r=[8,16]` on the command line says it
        kinds = {"choices", "uniform", "log", "int", "int_", "log_int", "step"}

        def flat(prefix: str, value: Any) -> dict[str, Any]:
            if not isinstance(value, dict) or not value or kinds & value.keys():
                return {prefix: value}
            for key in value:
                meant = difflib.get_close_matches(str(key), sorted(kinds), n=1, cutoff=0.75)
                if meant:
                    raise ValueError(
                        f"{prefix}: there is no {key}; did you mean {meant[0]}, as {{{meant[0]}: [low, high]}}?"
                    )
            return {path: v for key, inner in value.items() for path, v in flat(f"{prefix}.{key}", inner).items()}

        if not isinstance(space, dict):
            return space
        return {path: v for key, value in space.items() for path, v in flat(str(key), value).items()}

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, objectives: list[str]) -> list[str]:
        if not objectives or len(set(objectives)) != len(objectives):
            raise ValueError("search.objectives names one or more, each once")
        return objectives

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """Of the objectives."""
        return ["minimize" if name in SMALL else "maximize" for name in self.objectives]
