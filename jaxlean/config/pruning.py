"""What `jaxlean prune` takes out of a model, and what training takes out of it step by step."""

import re
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from jaxlean.config.section import Fraction, Section

_MASKS = ("sparsity", "pattern", "ignore", "rules")
_SIZES = {
    "neurons": ("intermediate_size",),
    "heads": ("num_attention_heads", "num_key_value_heads"),
    "layers": ("num_hidden_layers", "keep_layers"),
    "structured": (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"),
        "keep_layers",
    ),
}
_ALL_SIZES = _SIZES["structured"]


class PruneSection(Section):
    """`jaxlean prune`: zeros in matrices, or a smaller dense model; `calibration` says on which rows."""

    method: Literal["magnitude", "wanda", "sparsegpt", "neurons", "heads", "layers", "structured"] = Field(
        "wanda",
        description="Zeros: magnitude, wanda, sparsegpt. A smaller dense model: neurons, heads, layers, or structured: "
        "any of them together.",
    )
    sparsity: Fraction = Field(0.5, description="Zeros: share of each matrix of the layers.")
    pattern: str | None = Field(None, description="Zeros: n:m, of every m inputs of an output n stay (2:4).")
    ignore: list[str] = Field(
        default=[], description="Zeros: regexes of what stays as it is, over paths like layers.0.mlp.down.kernel."
    )
    rules: dict[str, Fraction] = Field(
        default={}, description="Zeros: regex over such paths -> sparsity; the first that matches, after ignore."
    )
    params: float | None = Field(
        None, gt=0, lt=1, description="Smaller: share of all parameters that stays at most, instead of sizes."
    )
    hidden_size: PositiveInt | None = Field(None, description="structured: width of the residual stream.")
    intermediate_size: PositiveInt | None = Field(None, description="neurons, structured: of an MLP.")
    num_attention_heads: PositiveInt | None = Field(None, description="heads, structured: as many for each key.")
    num_key_value_heads: PositiveInt | None = Field(None, description="heads, structured: keys, with all their heads.")
    num_hidden_layers: PositiveInt | None = Field(None, description="layers, structured: those that do most stay.")
    keep_layers: list[NonNegativeInt] | None = Field(None, description="layers, structured: their numbers, from 0.")
    multiple: PositiveInt = Field(8, description="params: the number of neurons is a multiple of it.")
    compensate: bool = Field(
        True,
        description="neurons, heads: what stays makes up for what goes, by least squares over the calibration rows.",
    )
    damping: float = Field(0.01, gt=0, description="sparsegpt, compensate: of the mean of the inputs' squares.")

    @property
    def of(self) -> tuple[int, int] | None:
        """The pattern as numbers."""
        if self.pattern is None:
            return None
        n, m = self.pattern.split(":")
        return int(n), int(m)

    @property
    def leaves_zeros(self) -> bool:
        """Whether the model keeps its shape."""
        return self.method in ("magnitude", "wanda", "sparsegpt")

    @field_validator("pattern", mode="before")
    @classmethod
    def _n_of_m(cls, value: object) -> object:
        if isinstance(value, int):  # YAML 1.1 reads 2:4 as 2 * 60 + 4
            value = f"{value // 60}:{value % 60}"
        if value is None:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", str(value))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError("n:m, as 2:4: of every m inputs n stay, at least 1 and at most m")
        return value

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> "PruneSection":
        other = (*_ALL_SIZES, "params") if self.leaves_zeros else _MASKS
        if not self.leaves_zeros:
            other += tuple(name for name in _ALL_SIZES if name not in _SIZES[self.method])
        # at its default it may have been written out with all others (`config.dump`)
        fields = type(self).model_fields
        given = [name for name in other if getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"prune.{given[0]} is not for prune.method: {self.method}")
        self._check_nothing_is_unheard()
        for rule in (*self.ignore, *self.rules):
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"not a regular expression: {rule!r} ({error})") from error
        if not self.leaves_zeros:
            sizes = [name for name in _ALL_SIZES if getattr(self, name) is not None]
            if self.params is not None and sizes:
                raise ValueError(f"prune.params and prune.{sizes[0]} say the same thing twice: leave one out")
            if self.num_hidden_layers is not None and self.keep_layers is not None:
                raise ValueError("prune.num_hidden_layers and prune.keep_layers say the same thing twice")
        return self

    def _check_nothing_is_unheard(self) -> None:
        """Refuse what would change nothing."""
        fits = not self.leaves_zeros and self.method != "layers"
        if self.pattern is not None and self.sparsity != type(self).model_fields["sparsity"].default:
            raise ValueError("prune.pattern and prune.sparsity say the same thing twice: leave one out")
        shares = {0.0, 1 - self.of[0] / self.of[1]} if self.of is not None else set(self.rules.values())
        if not shares.issuperset(self.rules.values()):
            raise ValueError(
                f"prune.rules: with prune.pattern a share is {max(shares)} (n of m), or 0 (stays as it is)"
            )
        if not self.compensate and not fits:
            raise ValueError(f"prune.compensate is not for prune.method: {self.method}")
        damps = self.method == "sparsegpt" or (fits and self.compensate)
        if not damps and self.damping != type(self).model_fields["damping"].default:
            raise ValueError("prune.damping is for prune.method: sparsegpt, and for prune.compensate")


class GradualSection(Section):
    """Zeros that grow in training: more of the smallest weights of each matrix every few steps (arXiv 1710.01878)."""

    final_sparsity: Fraction = Field(0.5, description="Share of zeros at the end.")
    initial_sparsity: Fraction = Field(0.0, description="Share at the first of them.")
    begin_step: PositiveInt = Field(1, description="The step after which there are the first zeros.")
    end_step: PositiveInt | None = Field(None, description="The step of the last; default: three quarters of the run.")
    frequency: PositiveInt | None = Field(
        None, description="Steps from one time to the next; default: a twentieth of the way from first to last."
    )

    @model_validator(mode="after")
    def _it_grows(self) -> "GradualSection":
        if self.initial_sparsity > self.final_sparsity:
            raise ValueError("initial_sparsity is above final_sparsity: zeros only become more")
        if self.end_step is not None and self.end_step <= self.begin_step:
            raise ValueError("end_step comes after begin_step")
        return self
