"""In how many bits: mixed precision, quantized bases and recomputed activations of other projects -> ours."""

from typing import Any

from jaxlean.convert import reasons
from jaxlean.convert.row import Outcome
from jaxlean.convert.source import Source, truth

_DTYPE, _BASE, _REMAT = "model.dtype", "model.quantization", "train.remat"
# Keys that ask for bfloat16 or float16 somewhere.
_HALF = ("bf16", "fp16", "bfloat16", "float16", "pure_bf16")


def bf16(value: Any, source: Source) -> Outcome:
    """Of `bf16`: true, false, "auto" or "full"."""
    if value == "auto":
        return Outcome("idle", note="model.dtype: auto is bfloat16 where there is an accelerator")
    if value == "full" or truth(value):
        return Outcome("carried", {_DTYPE: "bfloat16"})
    if any(source.on(key) for key in _HALF):
        return Outcome("idle", note="off there; another key says the precision")
    return Outcome("carried", {_DTYPE: "float32"}, "neither bf16 nor fp16: float32")


def fp16(value: Any, source: Source) -> Outcome:
    """Of `fp16`."""
    if not truth(value):
        return Outcome("idle", note="off there")
    if source.get("bf16") == "auto" or source.on("bf16"):
        return Outcome("idle", note="bf16 wins over it")
    return Outcome("carried", {_DTYPE: "bfloat16"}, "as many bits, with float32's range, so that no loss is scaled")


def pure_bf16(value: Any, source: Source) -> Outcome:
    """Of `bfloat16` and `pure_bf16`: weights too."""
    if not truth(value):
        return Outcome("idle", note="off there")
    return Outcome("carried", {_DTYPE: "bfloat16"}, "what trains stays in float32 here")


def float32(value: Any, source: Source) -> Outcome:
    """Of `float32`."""
    return Outcome("carried", {_DTYPE: "float32"}) if truth(value) else Outcome("idle", note="off there")


def fp8(value: Any, source: Source) -> Outcome:
    """Of `fp8`: products of matrices."""
    if not truth(value):
        return Outcome("idle", note="off there")
    return Outcome("carried", {"model.matmul": "fp8"}, "needs hardware that has it")


def in_8bit(value: Any, source: Source) -> Outcome:
    """Of `load_in_8bit`."""
    if not truth(value):
        return Outcome("idle", note="off there")
    return Outcome("carried", {_BASE: "int8"})


def in_4bit(value: Any, source: Source) -> Outcome:
    """Of `load_in_4bit`."""
    if not truth(value):
        return Outcome("idle", note="off there")
    return Outcome("carried", {_BASE: "nf4"})


def quantization_bit(value: Any, source: Source) -> Outcome:
    """Of LLaMA-Factory's `quantization_bit`."""
    if value in (4, 8):
        return Outcome("carried", {_BASE: {4: "nf4", 8: "int8"}[value]})
    nearest = "nf4" if isinstance(value, int) and value < 8 else "int8"
    return Outcome("missing", {_BASE: nearest}, f"a base in {value} bits; nearest: {nearest}, which is written")


def four_bits(value: Any, source: Source) -> Outcome:
    """Of `bnb_4bit_quant_type` and `quantization_type`."""
    if str(value).lower() == "nf4":
        return Outcome("idle", note="the 4 bits that there are here")
    return Outcome("missing", note=f"{value} numbers; nearest: NF4, which model.quantization: nf4 holds")


def checkpointing(value: Any, source: Source) -> Outcome:
    """Of `gradient_checkpointing`: a switch, or where what is kept goes."""
    if str(value).lower() in ("unsloth", "offload", "offload_disk"):
        note = f"{value} also moves what is kept to the host; nearest: full, which is written, or names to offload"
        return Outcome("missing", {_REMAT: "full"}, note)
    return Outcome("carried", {_REMAT: "full" if truth(value) else "none"})


def attention(value: Any, source: Source) -> Outcome:
    """Of `attn_implementation` and `flash_attn`."""
    return Outcome("idle", note=reasons.ATTENTION)
