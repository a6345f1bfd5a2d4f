"""The keys that people know from other projects, and ours for them: configs/MIGRATING.md, made of the tables."""

from pathlib import Path
from typing import Any

from jaxlean.config import RunConfig
from jaxlean.config.keys import every
from jaxlean.convert.detect import FORMATS
from jaxlean.convert.formats import Format
from jaxlean.convert.row import UNSET, Row
from jaxlean.convert.source import Source

# Our keys that the page shows, in its order.
_SHOWN = (
    "model.path", "model.dtype", "model.quantization", "model.chat_template", "model.new_tokens",
    "data.train", "data.eval", "data.eval_fraction", "data.max_length", "data.on_long", "data.packing", "data.train_on",
    "data.shuffle", "lora", "lora.r", "lora.lora_alpha", "lora.lora_dropout", "lora.target_modules", "lora.use_rslora",
    "lora.use_dora", "lora.init_lora_weights", "lora.init_from", "lora.loraplus_lr_ratio", "train.learning_rate",
    "train.lr_scheduler_type", "train.warmup_steps", "train.min_lr_ratio", "train.num_train_epochs", "train.max_steps",
    "train.per_device_train_batch_size", "train.gradient_accumulation_steps", "train.optim", "train.weight_decay",
    "train.max_grad_norm", "train.remat", "train.save_steps", "train.save_total_limit", "train.logging_steps",
    "eval.eval_steps", "eval.load_best", "eval.stopping.patience", "mesh.fsdp", "mesh.context", "report.wandb", "seed",
)  # fmt: skip
# Keys of a project in one cell.
_MOST = 3
# Keys that have no counterpart, and that people look for.
_MISSED = (
    ("axolotl", "neftune_noise_alpha"), ("axolotl", "lora_modules_to_save"), ("llama-factory", "additional_target"),
    ("llama-factory", "use_galore"), ("trl", "eos_token"), ("trl", "group_by_length"),
    ("axolotl", "dataset_exact_deduplication"), ("trl", "resume_from_checkpoint"), ("trl", "push_to_hub"),
)  # fmt: skip
# Configs that say nothing but what they are: by them the defaults are told.
_BARE: dict[str, dict[str, Any]] = {
    "axolotl": {"adapter": "lora"}, "llama-factory": {"finetuning_type": "lora"},
    "trl": {"use_peft": True, "dataset_name": ""}, "unsloth": {},
}  # fmt: skip
_HEAD = """# From Axolotl, LLaMA-Factory, TRL or Unsloth

    jaxlean convert THEIRS.yaml --output MINE.yaml      # says of every key what became of it
    jaxlean finetune MINE.yaml

Keys by what they are called here, each with its default; `jaxlean convert` writes their defaults out where ours are
others. `jaxlean config KEY` explains a key of ours. This page is what `jaxlean convert --table` prints.
"""


def markdown() -> str:
    """The page."""
    titles = ["jaxlean", *(each.title for each in FORMATS)]
    lines = [_HEAD, f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    known = {key.path: key for key in every(RunConfig)}
    for path in _SHOWN:
        cells = [_key(path, known[path].default), *(_cell(each, path) for each in FORMATS)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "No counterpart:", "", "| theirs | what it does, and what comes nearest |", "|---|---|"]
    for name, key in _MISSED:
        row = next(each for each in FORMATS if each.name == name).row(key)
        assert row is not None, key
        lines.append(f"| `{key}` | {row.note} |")
    return "\n".join(lines) + "\n"


def _cell(each: Format, path: str) -> str:
    """The keys of a project that become this one, or what it does always."""
    rows = [row for row in each.rows if row.kind == "carried" and row.to == path and "_config." not in row.keys[0]]
    if rows:
        return ", ".join(_key(row.keys[0], _default(each, row), row.note) for row in rows[:_MOST])
    always = [outcome.settings[path] for outcome in each.others(_bare(each)) if path in outcome.settings]
    return f"always {_word(always[0])}" if always else ""


def _key(name: str, default: str = "", note: str = "") -> str:
    return f"`{name}`" + (f" = {default}" if default not in ("", "null") else "") + (f" ({note})" if note else "")


def _default(each: Format, row: Row) -> str:
    value = row.default(_bare(each)) if callable(row.default) else row.default
    return "" if value is UNSET or value is None or isinstance(value, list) else _word(value).replace(",", ", ")


def _bare(each: Format) -> Source:
    return Source(Path(), _BARE[each.name])


def _word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else f"{value}"
