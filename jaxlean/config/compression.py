"""How a trained model is made smaller: the rows it is measured on, and the numbers it is held in."""

import re
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from jaxlean.config.section import Fraction, Section, named


class CalibrationSection(Section):
    """Rows of `data.train` that pruning and quantization learn from: what goes into each linear layer."""

    num_rows: PositiveInt = named(
        128, "Sequences; refused where the data have fewer.", "num_calibration_samples", "num_samples"
    )
    max_length: PositiveInt = named(512, "Tokens of one, packed full.", "max_seq_length")
    batch_size: PositiveInt = Field(8, description="Sequences at a time.")


class QuantizeSection(Section):
    """jaxlean quantize: the linear layers' weights, and perhaps what goes into them, in fewer bits."""

    scheme: Literal["w8a8", "w8a16", "w4a16"] = Field(
        "w8a8",
        description="w8a8: weights in 8 bits with a scale a column, activations in 8 with a scale a token; w8a16: "
        "weights alone; w4a16: weights in 4 bits, in groups.",
    )
    method: Literal["rtn", "gptq", "awq"] = Field(
        "gptq", description="How weights are rounded. rtn: to the nearest, without data."
    )
    group_size: PositiveInt | None = Field(
        None, description="Inputs with one scale; it divides those of every linear layer. Default: w4a16 128, else all."
    )
    smoothquant_alpha: Fraction | Literal["auto"] = named(
        "auto",
        "w8a8 with gptq or awq: how much of the activations' outliers goes into the weights, 0: nothing; auto: of each "
        "place what spoils its outputs least.",
        "smoothing_strength",
    )
    ignore: list[str] = Field(
        default_factory=list,
        description="Regexes of linear layers that stay wide, such as layers.0.mlp.down. The embedding and the "
        "head always do. vLLM wants query, key and value alike, and gate and up.",
    )
    max_error: NonNegativeFloat | None = Field(
        None,
        description="A linear layer whose outputs would be off by more than this share stays as it is, and what vLLM "
        "fuses with it: query, key and value; gate and up.",
    )

    @field_validator("ignore")
    @classmethod
    def _rules_compile(cls, rules: list[str]) -> list[str]:
        for rule in rules:
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"not a regular expression: {rule!r} ({error})") from error
        return rules
