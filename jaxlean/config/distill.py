"""Who teaches a student, and how it learns from that teacher (`jaxlean distill`)."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from jaxlean.config.section import Fraction, Section, named


class TeacherSection(Section):
    """The teacher. `teacher: PATH` is short for its path."""

    path: str = named(..., "Hugging Face id or folder of the teacher.", "model_name_or_path")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hugging Face hub.")
    adapter: str | None = Field(None, description="PEFT adapter folder that belongs to it.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="As model.dtype.")
    quantization: Literal["none", "int8", "nf4"] = Field("none", description="As model.quantization.")

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_the_path(cls, values: Any) -> Any:
        return {"path": values} if isinstance(values, str) else values


class StudentSection(Section):
    """A student that is made of its teacher: some of its layers, or all of them with fewer neurons or heads."""

    num_layers: PositiveInt | None = Field(
        None, description="So many of the teacher's layers, spread evenly; the first and the last are among them."
    )
    layers: list[NonNegativeInt] | None = Field(None, description="These layers of the teacher, counted from 0.")

    params: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="All layers, narrower: this share of the teacher's parameters at most, what does most on the "
        "calibration rows (`calibration`).",
    )
    method: Literal["neurons", "heads", "structured"] = Field(
        "neurons", description="params only. What goes: neurons of the MLPs, heads, or both."
    )

    @model_validator(mode="after")
    def _one_of_three(self) -> "StudentSection":
        if sum(each is not None for each in (self.num_layers, self.layers, self.params)) != 1:
            raise ValueError("num_layers, layers or params, one of them, says what the student gets of its teacher")
        if self.params is None and self.method != "neurons":
            raise ValueError("method is of params: layers go as a whole")
        if self.layers is not None and self.layers != sorted(set(self.layers)):
            raise ValueError("layers are numbers in ascending order, none twice")
        return self


class MatchSection(Section):
    """What stands inside of the teacher, learned as well; it is asked at every step then, and cannot be cached."""

    hidden: float = Field(1.0, ge=0, description="Weight of the hidden states' loss; 0: none.")
    hidden_loss: Literal["cosine", "mse", "cka"] = Field(
        "cosine",
        description="1 - cosine; the squared difference relative to the teacher's size; or 1 - CKA, of how a batch' "
        "tokens lie to each other, which compares any widths.",
    )
    attention: float = Field(
        0.0, ge=0, description="Weight of the loss of how queries, keys and values relate tokens; 0: none."
    )
    layers: dict[NonNegativeInt, NonNegativeInt] | None = Field(
        None,
        description="Student's layer: the teacher's that it is to be like. Default: those that it was made of, or else "
        "spread evenly.",
    )

    @model_validator(mode="after")
    def _something_is_matched(self) -> "MatchSection":
        if not self.hidden and not self.attention:
            raise ValueError("hidden and attention are both 0: nothing would be matched; leave out the section")
        return self


class DistillSection(Section):
    """What a student learns from. The student is `model`, or else is made of its teacher (`student`)."""

    teacher: TeacherSection = Field(description="Who teaches.")
    student: StudentSection | None = Field(
        None, description="Without model.path: the student starts as a part of its teacher."
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field(
        "forward_kl",
        description="How far the student is from its teacher: KL(teacher || student), KL(student || teacher), or the "
        "generalised Jensen-Shannon divergence between the two.",
    )
    beta: float = Field(0.5, gt=0, lt=1, description="jsd only: towards 0 it is like forward_kl, towards 1 reverse_kl.")
    temperature: float = Field(
        1.0, gt=0, description="Both distributions are flattened by it; the divergence is weighed by its square."
    )
    alpha: float = Field(
        0.5, gt=0, le=1, description="Share of the divergence in the loss; the rest is the task's own loss."
    )
    top_k: PositiveInt = Field(
        64,
        description="The teacher's likeliest tokens that are told apart; all others are one class. (task: classify and "
        "tag tell all labels apart.)",
    )
    precision: Literal["float16", "float32"] = Field(
        "float16", description="What the teacher's log-probabilities are held in."
    )
    match: MatchSection | None = Field(None, description="Learn hidden states and attention as well.")
    cache: str | None = Field(
        None,
        description="Folder that keeps what the teacher says of each training row: written once, read by every later "
        "epoch, run and student.",
    )
    cache_shard: PositiveInt = Field(4096, description="Rows of one file of the cache; what a killed pass may lose.")
    on_policy: Fraction = Field(
        0.0,
        description="Share of the steps in which the student completes the prompts of the rows itself, and learns what "
        "the teacher expects of that instead (alpha: 1).",
    )
    on_policy_temperature: float = Field(1.0, gt=0, description="Of the student's sampling.")
    on_policy_max_new_tokens: PositiveInt = Field(128, description="Of each completion that it samples.")
    devices: PositiveInt | None = Field(
        None, description="The last so many devices hold the teacher, and the student has the others; default: both "
        "have all."
    )  # fmt: skip
    fsdp: PositiveInt = Field(1, description="The teacher's parameters split over so many of its devices.")
    tensor: PositiveInt = Field(1, description="Its matrices split over so many of its devices.")

    @model_validator(mode="after")
    def _nothing_is_unheard(self) -> "DistillSection":
        fields = type(self).model_fields
        if self.divergence != "jsd" and self.beta != fields["beta"].default:
            raise ValueError(f"distill.beta is not for distill.divergence: {self.divergence}; jsd has it")
        for name in ("on_policy_temperature", "on_policy_max_new_tokens"):
            if not self.on_policy and getattr(self, name) != fields[name].default:
                raise ValueError(f"distill.{name} is of what the student writes: distill.on_policy is 0")
        if self.cache is None and self.cache_shard != fields["cache_shard"].default:
            raise ValueError("distill.cache_shard is of a cache: distill.cache names none")
        return self
