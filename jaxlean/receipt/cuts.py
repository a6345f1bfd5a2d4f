"""Which cuts are in force in a run, and the same run without each.

A cut that changes what is learned, and not what a step costs (open weights, warm starts, curricula, distillation), is
named and nothing is claimed for it: it saves steps to an equal quality, which no calibration of seconds can show.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxlean.config import RunConfig, with_values
from jaxlean.xla.mesh import AXES

# How a cut is told apart from its absence: another program for a step, another number of steps, another price for the
# same seconds, seconds that were measured while the run went; or not at all.
Kind = Literal["program", "steps", "price", "seconds", "unmeasured"]
ALL = "all of these programs' cuts"


@dataclass(frozen=True)
class Cut:
    """One cut in force.

    Args:
        number: of the twelve; None: one beside them.
        name: as a table says it.
        kind: how it is measured.
        settings: that put it in force, as they are typed.
        without: settings of the same run without it, by `section.key`.
        note: what the table cannot say.
    """

    number: int | None
    name: str
    kind: Kind
    settings: tuple[str, ...] = ()
    without: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def typed_without(self) -> list[str]:
        """The overrides as they are typed."""
        words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.without.items()}
        return [f"{key}={word}" for key, word in words.items()]


def in_force(config: RunConfig, summary: Mapping[str, Any]) -> list[Cut]:
    """The cuts of a run, in the order of the twelve.

    Args:
        config: of the run, as its folder has it.
        summary: of the run: what it chose where its config left that open.
    """
    found = [*_learned(config), *_programs(config, summary), *_steps(config, summary), *_paid(config, summary)]
    return sorted(found, key=lambda cut: (cut.number is None, cut.number or 0))


def program_without(config: RunConfig, cuts: Sequence[Cut]) -> RunConfig:
    """The run without some cuts."""
    changed: dict[str, Any] = {}
    for cut in cuts:
        changed |= cut.without
    return with_values(config, changed)


def _learned(config: RunConfig) -> list[Cut]:
    nothing = "saves steps to an equal quality: not to be seen in a step's cost, so nothing is claimed"
    found = []
    if config.model.path is not None:
        settings = (f"model.path={config.model.path}",)
        note = "training from zero is another job: nothing is claimed"
        found.append(Cut(1, "open weights", "unmeasured", settings, note=note))
    if config.model.new_tokens:
        found.append(Cut(3, "warm-start embeddings", "unmeasured", ("model.new_tokens=...",), note=nothing))
    if config.data.curriculum is not None:
        found.append(Cut(7, "curriculum", "unmeasured", ("data.curriculum=...",), note=nothing))
    if config.distill is not None:
        found.append(Cut(8, "distillation", "unmeasured", ("distill.teacher=...",), note=nothing))
    return found


def _programs(config: RunConfig, summary: Mapping[str, Any]) -> list[Cut]:
    model, train = config.model, config.train
    found: list[Cut] = []

    def add(number: int | None, name: str, setting: str, without: dict[str, Any], note: str = "") -> None:
        found.append(Cut(number, name, "program", (setting,), without, note))

    if config.lora is not None and model.architecture is None:
        # what trains whole cannot be held in fewer bits
        whole = {"model.quantization": "none"} if model.quantization != "none" else {}
        note = "without it the base trains, which cannot be quantized then" if whole else ""
        add(2, "LoRA", f"lora.r={config.lora.r}", {"lora": None} | whole, note)
    remat = summary.get("remat") or train.remat
    if remat not in ("none", "auto"):
        words = remat if isinstance(remat, str) else "..."
        add(4, "gradient checkpointing", f"train.remat={words}", {"train.remat": "none"})
    if summary.get("dtype") == "bfloat16":
        add(5, "mixed precision", "model.dtype=bfloat16", {"model.dtype": "float32"})
    if train.loss_chunk_bytes is not None and config.task == "generate":
        setting = f"train.loss_chunk_bytes={train.loss_chunk_bytes}"
        add(5, "loss in chunks", setting, {"train.loss_chunk_bytes": None})
    if summary.get("attention") not in (None, "plain"):
        add(5, "fused attention", f"model.attention={summary['attention']}", {"model.attention": "plain"})
    if model.quantization != "none":
        setting = f"model.quantization={model.quantization}"
        add(6, f"base in {model.quantization}", setting, {"model.quantization": "none"})
    if model.matmul != "default":
        add(6, f"products in {model.matmul}", f"model.matmul={model.matmul}", {"model.matmul": "default"})
    split = {f"mesh.{axis}": getattr(config.mesh, axis) for axis in AXES[1:] if getattr(config.mesh, axis) > 1}
    if split:
        settings = tuple(f"{key}={size}" for key, size in split.items())
        without = dict.fromkeys(split, 1) | {"mesh.data": -1}
        found.append(Cut(10, "model split over devices", "program", settings, without))
    if train.optim == "adamw_8bit":
        add(None, "8-bit Adam", f"train.optim={train.optim}", {"train.optim": "adamw"})
    if train.momentum_dtype == "bfloat16":
        add(None, "momentum in bfloat16", "train.momentum_dtype=bfloat16", {"train.momentum_dtype": "float32"})
    parts = train.gradient_accumulation_steps
    if parts > 1 and config.task != "embed":  # the pairs of a microbatch are each other's negatives
        rows = train.per_device_train_batch_size * parts
        whole_step = {"train.gradient_accumulation_steps": 1, "train.per_device_train_batch_size": rows}
        add(None, "gradient accumulation", f"train.gradient_accumulation_steps={parts}", whole_step)
    return found


def _steps(config: RunConfig, summary: Mapping[str, Any]) -> list[Cut]:
    found = []
    if (
        config.data.packing
        and config.task == "generate"
        and not config.data.streaming
        and config.train.max_steps is None
    ):
        found.append(Cut(None, "packing", "steps", ("data.packing=true",), {"data.packing": False}))
    if summary.get("stopped_early"):
        rule = summary["stopped_early"].get("rule", "")
        found.append(Cut(None, "early stopping", "steps", (f"eval.stopping ({rule})",)))
    return found


def _paid(config: RunConfig, summary: Mapping[str, Any]) -> list[Cut]:
    found = []
    if config.eval.mode == "async" and config.eval.eval_steps:
        note = "its processors are shared or paid elsewhere: only the steps that did not wait are counted"
        found.append(Cut(11, "asynchronous evaluation", "seconds", ("eval.mode=async",), note=note))
    if summary.get("compiled_from_cache"):
        note = "what compiling takes where the cache is empty, measured here"
        found.append(Cut(None, "compilation cache", "seconds", ("compilation_cache=true",), note=note))
    if config.cost.pricing == "spot":
        found.append(Cut(None, "spot price", "price", ("cost.pricing=spot",), {"cost.pricing": "on_demand"}))
    return found
