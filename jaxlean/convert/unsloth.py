"""Unsloth's config (`unsloth train --config`; unsloth_cli/config.py, 2026): model, data, training, lora, logging."""

from collections.abc import Iterable
from typing import Any

from jaxlean.convert import adapter, precision, reasons, schedule
from jaxlean.convert.formats import Format
from jaxlean.convert.row import UNSET, Outcome, Row, carried, idle, missing, refused
from jaxlean.convert.source import Source, truth

_FORMATS = {
    "auto": "auto", "alpaca": "alpaca", "sharegpt": "sharegpt", "chatml": "messages", "conversational": "messages",
    "raw": "text",
}  # fmt: skip
_QLORA = True  # Unsloth's own default


def _source(path: Any, source: Source) -> dict[str, Any]:
    form = _FORMATS.get(str(source.get("data.format_type", default="auto")).lower(), "auto")
    return {"path": str(path)} | ({} if form == "auto" else {"format": form})


def dataset(value: Any, source: Source) -> Outcome:
    """Of `data.dataset`."""
    return Outcome("carried", {"data.train": [_source(value, source)]})


def files(value: Any, source: Source) -> Outcome:
    """Of `data.local_dataset`."""
    if source.has("data.dataset"):
        return Outcome("idle", note="data.dataset is there")
    return Outcome(
        "carried", {"data.train": [_source(path, source) for path in (value if isinstance(value, list) else [value])]}
    )


def form(value: Any, source: Source) -> Outcome:
    """Of `data.format_type`."""
    return Outcome("carried", note=f"format of each source: {_FORMATS.get(str(value).lower(), 'auto')}")


def kind(value: Any, source: Source) -> Outcome:
    """Of `training.training_type`."""
    return adapter.FULL if str(value).lower() == "full" else Outcome("carried", note="the section lora")


def in_4bit(value: Any, source: Source) -> Outcome:
    """Of `training.load_in_4bit`."""
    if _full(source):
        return Outcome("idle", note="all weights train, in full")
    return precision.in_4bit(value, source)


def four_bits_by_default(source: Source) -> Any:
    """A base in 4 bits, where nothing is said."""
    return UNSET if _full(source) else _QLORA


def completions(value: Any, source: Source) -> Outcome:
    """Of `training.train_on_completions`."""
    return Outcome("carried", {"data.train_on": "completion" if truth(value) else "all"})


def saves(value: Any, source: Source) -> Outcome:
    """Of `training.save_steps`, where 0 is none."""
    if value == 0:
        return Outcome("missing", note="keeps no checkpoint; nearest: train.save_steps: STEPS; now: ten in a run")
    return Outcome("carried", {"train.save_steps": value})


def warmup(value: Any, source: Source) -> Outcome:
    """Of `training.warmup_steps`."""
    return Outcome("carried", {"train.warmup_steps": value})


def _full(source: Source) -> bool:
    return str(source.get("training.training_type", default="lora")).lower() == "full"


def others(source: Source) -> Iterable[Outcome]:
    """What Unsloth's trainer does whatever its config says (studio/backend/core/training/trainer.py)."""
    yield Outcome("carried", {"train.optim": "adamw_8bit"}, "Unsloth's optimizer")
    yield Outcome("carried", {"train.lr_scheduler_type": "linear"}, "Unsloth's schedule")
    yield Outcome("carried", {"data.on_long": "truncate"}, "longer rows are cut")
    yield Outcome("carried", {"train.logging_steps": 1}, "every step is logged")


_SEVEN = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
_ROWS: tuple[Row, ...] = (
    carried("model", "model.path"),
    carried("data.dataset", "data.train", becomes=dataset),
    carried("data.local_dataset", "data.train", becomes=files),
    carried("data.format_type", "data.train", "format", becomes=form),
    carried("training.training_type", "lora", "full: null", becomes=kind),
    carried("training.max_seq_length", "data.max_length", default=2048),
    carried("training.load_in_4bit", "model.quantization", "true: nf4", becomes=in_4bit, default=four_bits_by_default),
    carried("training.output_dir", "output_dir"),
    carried("training.num_epochs", "train.num_train_epochs", default=3),
    carried("training.learning_rate", "train.learning_rate", default=2e-4),
    carried("training.batch_size", "train.per_device_train_batch_size", default=2),
    carried("training.gradient_accumulation_steps", "train.gradient_accumulation_steps", default=4),
    carried("training.warmup_steps", "train.warmup_steps", becomes=warmup, default=5),
    carried("training.max_steps", "train.max_steps", becomes=schedule.steps_or_epochs),
    carried("training.save_steps", "train.save_steps", becomes=saves),
    carried("training.weight_decay", "train.weight_decay", default=0.01),
    carried("training.random_seed", "seed", default=3407),
    carried("training.packing", "data.packing", default=False),
    carried("training.train_on_completions", "data.train_on", "false: all", becomes=completions, default=False),
    carried(
        "training.gradient_checkpointing",
        "train.remat",
        "true: full",
        becomes=precision.checkpointing,
        default="unsloth",
    ),
    carried("lora.lora_r", "lora.r", default=64),
    carried("lora.lora_alpha", "lora.lora_alpha", default=16),
    carried("lora.lora_dropout", "lora.lora_dropout", default=0.0),
    carried("lora.target_modules", "lora.target_modules", "with commas", becomes=adapter.targets, default=_SEVEN),
    carried("lora.use_rslora", "lora.use_rslora"),
    carried("lora.use_dora", "lora.use_dora"),
    missing("lora.use_loftq", "LoftQ's start", "lora.init_lora_weights: pissa over model.quantization"),
    refused("lora.vision_all_linear", reasons.IMAGES),
    idle("lora.finetune_*", "of models of images; lora.target_modules says it of those of text"),
    carried("logging.enable_wandb", "report.wandb"),
    carried("logging.wandb_project", "report.wandb_project"),
    carried("logging.enable_tensorboard", "report.tensorboard"),
    idle("logging.tensorboard_dir", "output_dir/tensorboard"),
    missing(
        "logging.wandb_token logging.hf_token", "a secret", "WANDB_API_KEY, HF_TOKEN in the environment", secret=True
    ),
)

FORMAT = Format("unsloth", "Unsloth", _ROWS, sections=("data", "training", "lora", "logging"), others=others)
