"""Optimizers: Hugging Face's names for them (and Axolotl's own) -> ours (`train.optim`)."""

from typing import Any

from jaxlean.convert.row import Outcome
from jaxlean.convert.source import Source

_KEY = "train.optim"
_ADAMW = (
    "adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw_anyprecision",
    "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_bnb_32bit", "optimi_adamw",
)  # fmt: skip
_ADAMW_8BIT = ("adamw_8bit", "adamw_bnb_8bit", "adamw_torch_8bit", "ao_adamw_8bit")
_PAGED = {
    "paged_adamw": "adamw", "paged_adamw_32bit": "adamw", "paged_adamw_8bit": "adamw_8bit", "paged_lion": "lion",
    "paged_lion_32bit": "lion", "paged_lion_8bit": "lion",
}  # fmt: skip
_NEAREST = {
    **dict.fromkeys(("adamw_torch_4bit", "ao_adamw_4bit", "ao_adamw_fp8"), "adamw_8bit"),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit", "galore_adamw_8bit", "q_apollo"), "adamw_8bit"),
    **dict.fromkeys(("rmsprop", "rmsprop_bnb", "adagrad", "lamb"), "adamw"),
    **dict.fromkeys(("galore_adafactor", "came_pytorch", "flash_adamw"), "adafactor"),
    "dion": "muon",
}


def optimizer(value: Any, source: Source) -> Outcome:
    """Of `optim`."""
    name = str(value).lower().removeprefix("optimizernames.")
    if name in _ADAMW:
        return Outcome("carried", {_KEY: "adamw"})
    if name in _ADAMW_8BIT:
        return Outcome("carried", {_KEY: "adamw_8bit"})
    if name in _PAGED:
        return Outcome("carried", {_KEY: _PAGED[name]}, "its state stays on the device: nothing is paged out")
    if name in ("lion_32bit", "lion_8bit", "lion"):
        return Outcome(
            "carried", {_KEY: "lion"}, "with one moment in float32; train.momentum_dtype: bfloat16 halves it"
        )
    if name == "sgd":
        # torch's has none unless it is told so
        return Outcome("carried", {_KEY: "sgd", "train.momentum": _momentum(source)}, "torch's sgd has no momentum")
    if name in ("adafactor", "muon"):
        return Outcome("carried", {_KEY: name})
    nearest = _NEAREST.get(name, "adamw_8bit" if "8bit" in name else "adamw")
    return Outcome("missing", {_KEY: nearest}, f"the optimizer {name}; nearest: {nearest}, which is written")


def settings(value: Any, source: Source) -> Outcome:
    """Of `optim_args`, of which an optimizer's momentum is read."""
    if "momentum" in str(value) and str(source.get("optim", "optimizer")).lower() == "sgd":
        return Outcome("carried", note="with train.optim")
    return Outcome("missing", note="settings of that optimizer; nearest: train.adam_beta1, adam_beta2, momentum")


def _momentum(source: Source) -> float:
    given = source.get("optim_args", default={})
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in given.replace(" ", "").split(",") if "=" in part)
    try:
        return float(given.get("momentum", 0.0)) if isinstance(given, dict) else 0.0
    except (TypeError, ValueError):
        return 0.0


def clipping(value: Any, source: Source) -> Outcome:
    """Of `max_grad_norm`, where 0 means none."""
    return Outcome("carried", {"train.max_grad_norm": None if value == 0 else value})
