"""The card of an exported model, in Markdown: what it was made of and how, what it is worth, what it cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxlean.config import RunConfig, SourceSection, StudentSection
from jaxlean.hub.files import read_json
from jaxlean.run.units import show_bytes, show_count, show_number, show_percent, show_seconds, show_usd

_LIBRARIES = {"peft": "peft", "stablehlo": "jax"}
# What transformers loads a whole model as.
_CLASSES = {
    "generate": "AutoModelForCausalLM", "classify": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification", "embed": "AutoModel",
}  # fmt: skip
_AS_SHARES = ("exact_match", "accuracy", "macro_f1", "weighted_f1", "precision", "recall", "f1", "mrr")


def card(
    config: RunConfig,
    summary: Mapping[str, Any],
    *,
    name: str,
    form: str,
    num_bytes: int,
    bytes_before: int | None,
    quantized: Mapping[str, Any] | None = None,
    length: int | None = None,
) -> str:
    """The text of README.md.

    Args:
        config: of the run.
        summary: keys of `run.summary.Summary`; may be empty.
        name: of the model.
        form: that it was exported to.
        num_bytes: of its tensors.
        bytes_before: of the base's; None where they are not known.
        quantized: what `quantization.json` holds.
        length: tokens of a StableHLO program's rows.
    """
    base = config.model.path
    head: dict[str, Any] = {"library_name": _LIBRARIES.get(form, "transformers"), "tags": ["jaxlean", form]}
    if base is None and config.distill is not None and config.distill.student is not None:
        head["base_model"] = config.distill.teacher.path  # the student is a part of it
    elif base is not None:
        head["base_model"] = base
    qualities = {"base": summary.get("eval_before"), "trained": summary.get("eval_after")}
    if quantized is not None and quantized.get("eval_after"):
        qualities |= {"before export": quantized["eval_before"], "exported": quantized["eval_after"]}
    size = show_bytes(num_bytes) + (f", of {show_bytes(bytes_before)} before" if bytes_before else "")
    usd = summary.get("usd")
    rows = {
        "base": _base(config),
        "data": ", ".join(map(_source, config.data.train or [])) or "none",
        "cuts": "; ".join(cuts(config, summary, quantized)),
        "size": size,
        "trained": f"{show_count(summary.get('steps'))} steps, {show_count(summary.get('total_tokens'))} tokens, "
        f"{show_seconds(summary.get('seconds'))} on {show_count(summary.get('num_devices'))} x "
        f"{summary.get('device_kind') or 'unknown'}",
        "cost": show_usd(usd) if usd is not None else "unknown: the device has no price",
        "made with": ", ".join(f"{k} {v}" for k, v in (summary.get("versions") or {}).items()) or "jaxlean",
    }
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {name}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    settings = "The settings of the run, and of this export, are in `run_config.yaml`."
    return "\n".join([*lines, "", *_quality(qualities), _use(config, form, length), "", settings, ""])


def cuts(config: RunConfig, summary: Mapping[str, Any], quantized: Mapping[str, Any] | None) -> list[str]:
    """What made it cheap, in words."""
    found = []
    if config.model.path is not None:
        found += ["fine-tuned from open weights", *_beneath(Path(config.model.path))]
    if config.distill is not None:
        found.append(_taught(config))
    if config.lora is not None:
        share = ""
        if summary.get("num_params"):
            share = f", {show_percent(summary['num_trainable'] / summary['num_params'])} of the parameters train"
        found.append(f"LoRA of rank {config.lora.r}{share}")
    if config.model.new_tokens:
        found.append("new tokens with warm-started rows")
    if config.model.quantization != "none":
        found.append(f"base held in {config.model.quantization}")
    if config.train.remat != "none":
        found.append(f"gradient checkpointing ({config.train.remat})")
    if config.data.packing:
        found.append("sequences packed")
    if config.train.gradient_accumulation_steps > 1:
        found.append(f"gradients of {config.train.gradient_accumulation_steps} microbatches added up")
    if config.data.curriculum is not None:
        found.append(f"curriculum by {config.data.curriculum.difficulty}")
    if quantized is not None:
        group = f" in groups of {quantized['group_size']}" if quantized.get("group_size") else ""
        data = f" on {show_count(quantized['calibration_tokens'])} tokens" if quantized.get("calibration_rows") else ""
        found.append(f"quantized to {quantized['scheme']}{group} by {quantized['method']}{data}")
    return found or ["none"]


def _use(config: RunConfig, form: str, length: int | None) -> str:
    """How the folder is used."""
    if form == "stablehlo":
        script = ""
        if config.task == "generate":
            script = "`python run.py 12 45 7` completes the tokenizer's ids with jax and numpy alone. "
        return (
            f"Use: {script}`model.stablehlo` takes the float32 numbers in `params.npz` and any number of rows of "
            f"{length} tokens, padded behind (of an encoder also of segments, 0 at padding)."
        )
    if form == "peft":
        return "Use: PEFT's `PeftModel.from_pretrained(base, FOLDER)`; or `--adapter FOLDER` with jaxlean's commands."
    own = "`jaxlean generate FOLDER -p TEXT`" if config.task == "generate" else "`model.path=FOLDER` with jaxlean"
    return f"Use: {own}; or transformers' `{_CLASSES[config.task]}.from_pretrained(FOLDER)`."


def _base(config: RunConfig) -> str:
    if config.model.path is not None:
        return f"`{config.model.path}`"
    if config.distill is None or config.distill.student is None:
        return "none: trained from zero"
    return f"{_part(config.distill.student)} of its teacher `{config.distill.teacher.path}`"


def _part(student: StudentSection) -> str:
    if student.params is not None:
        gone = {"neurons": "neurons", "heads": "heads", "structured": "neurons and heads"}[student.method]
        return f"{show_percent(student.params)} of the parameters (all layers, fewer {gone})"
    return f"{len(student.layers) if student.layers is not None else student.num_layers} layers"


def _taught(config: RunConfig) -> str:
    wanted = config.distill
    assert wanted is not None
    teacher = f"`{wanted.teacher.path}`"
    if wanted.teacher.adapter is not None:
        teacher += f" with the adapter `{wanted.teacher.adapter}`"
    matched = ""
    if wanted.match is not None:
        weights = {"hidden states": wanted.match.hidden, "attention": wanted.match.attention}
        matched = "".join(f" and {name}" for name, weight in weights.items() if weight)
    return f"distilled from {teacher}: {wanted.divergence.replace('_', ' ')}{matched}"


def _beneath(base: Path) -> list[str]:
    """What was done to the base before, where it is a folder that says so."""
    found = []
    if (base / "pruning.json").is_file():
        said = read_json(base / "pruning.json")
        left = said["num_params"] / said["num_params_before"]
        what = f"{show_percent(said['zeros'])} zeros" if left == 1 else f"{show_percent(left)} of the parameters left"
        found.append(f"base pruned by {said['method']}: {what}")
    if (base / "quantization.json").is_file():
        said = read_json(base / "quantization.json")
        found.append(f"base quantized to {said['scheme']} by {said['method']}")
    return found


def _source(source: SourceSection) -> str:
    return f"`{Path(source.path).name if '://' not in source.path else source.path}`"


def _quality(qualities: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    there = {name: found for name, found in qualities.items() if found}
    if not there:
        return ["Its quality was not measured: the run had no held-out data.", ""]
    keys = [
        key for key in ("loss", "perplexity", "bits_per_byte", *_AS_SHARES) if any(key in v for v in there.values())
    ]
    lines = ["| held-out | " + " | ".join(there) + " |", "|---" * (len(there) + 1) + "|"]
    for key in keys:
        show = show_percent if key in _AS_SHARES else show_number
        cells = [show(found.get(key)) if found.get(key) is not None else "-" for found in there.values()]
        lines.append(f"| {key.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
