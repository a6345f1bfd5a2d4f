"""LoRA: PEFT's settings under other projects' names -> ours (`lora`)."""

from typing import Any

from jaxlean.convert import reasons
from jaxlean.convert.row import Outcome
from jaxlean.convert.source import Source, names, truth

_TARGETS = "lora.target_modules"
# What PEFT adapts in Llama and its like where nothing is said (its TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING).
PEFT_TARGETS = ["q_proj", "v_proj"]
BY_FAMILY = (
    "PEFT chooses the modules by family where none are named: q_proj and v_proj of Llama's like, which is written; of "
    "another family lora.target_modules"
)
_TABLES = ("embed_tokens", "wte", "word_embeddings", "embed_in")
_TASKS = {
    "SEQ_CLS": "classify", "TOKEN_CLS": "tag", "FEATURE_EXTRACTION": "embed", "CAUSAL_LM": "generate",
}  # fmt: skip
FULL = Outcome("carried", {"lora": None}, "all weights train")


def targets(value: Any, source: Source) -> Outcome:
    """Of `target_modules`: a list, a text with commas, `all`, or one regex."""
    if isinstance(value, str) and value.strip().lower() in ("all", "all-linear", "all_linear"):
        return Outcome("carried", {_TARGETS: "all-linear"})
    if isinstance(value, str) and any(sign in value for sign in "*^$()[]|\\+"):
        check = "PEFT's regex is to match a whole name (model.layers.0.self_attn.q_proj), here it is searched in it"
        return Outcome("carried", {_TARGETS: value}, "a regex", check)
    given = names(value)
    if not given:
        return Outcome("idle", note="no module named")
    kept = [name.rpartition(".")[2] for name in given if name.rpartition(".")[2] not in _TABLES]
    left = [name for name in given if name.rpartition(".")[2] in _TABLES]
    if not kept:
        return Outcome("missing", note=f"adapters of {', '.join(left)} alone; nearest: lora.target_modules: all-linear")
    check = (
        f"not adapted: {', '.join(left)}, a table and no matrix product; model.new_tokens trains new rows"
        if left
        else ""
    )
    return Outcome("carried", {_TARGETS: list(dict.fromkeys(kept))}, "", check)


def start(value: Any, source: Source) -> Outcome:
    """Of `init_lora_weights`."""
    name = str(value).lower()
    if name in ("true", "default", "kaiming", "lora_default"):
        return Outcome("idle", note="the default: A random, B zero")
    if name.startswith("pissa"):
        note = "the singular vectors are exact here, without iterations" if "niter" in name else ""
        return Outcome("carried", {"lora.init_lora_weights": "pissa"}, note)
    return Outcome("missing", note=f"the adapter's start {name}; nearest: lora.init_lora_weights: default or pissa")


def start_from(value: Any, source: Source) -> Outcome:
    """Of an adapter that training goes on with: Axolotl's `lora_model_dir`, LLaMA-Factory's `adapter_name_or_path`."""
    given = names(value)
    if source.on("create_new_adapter"):
        return Outcome("missing", note=f"merges it, and trains a new one; nearest: {reasons.ADAPTER}")
    if len(given) != 1:
        return Outcome("missing", note=f"merges all but the last of several; nearest: {reasons.ADAPTER}")
    return Outcome("carried", {"lora.init_from": given[0]}, "rank, alpha and modules are its own")


def pissa(value: Any, source: Source) -> Outcome:
    """Of LLaMA-Factory's `pissa_init`."""
    return (
        Outcome("carried", {"lora.init_lora_weights": "pissa"}) if truth(value) else Outcome("idle", note="off there")
    )


def task(value: Any, source: Source) -> Outcome:
    """Of PEFT's `task_type`."""
    name = _TASKS.get(str(value).upper())
    if name is None:
        return Outcome("missing", note=f"the task {value}; nearest: task: generate, classify, tag or embed")
    if name == "generate":
        return Outcome("idle", note="task: generate is the default")
    check = f"task: {name} learns from columns: data.text_column, data.label_column"
    return Outcome("carried", {"task": name}, "", check)


def kind(value: Any, source: Source) -> Outcome:
    """Of PEFT's `peft_type`."""
    if str(value).upper() == "LORA":
        return Outcome("carried", note="the section lora")
    return Outcome("missing", note=f"{value} adapters; nearest: LoRA, which is written")


def bias(value: Any, source: Source) -> Outcome:
    """Of PEFT's `bias`."""
    if str(value).lower() == "none":
        return Outcome("idle", note="no bias trains beside an adapter")
    return Outcome("missing", note="biases that train beside the adapter; nearest: lora: null and train.trainable")
