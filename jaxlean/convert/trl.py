"""TRL's SFT configs (`trl sft --config`, or a saved SFTConfig), and Trainer's alone (a saved TrainingArguments).

What is read: trl/trainer/sft_config.py, model_config.py and scripts/utils.py, TRL 1; peft's LoraConfig.
"""

from collections.abc import Iterable
from typing import Any

from jaxlean.convert import adapter, cadence, peek, precision, reasons, trainer
from jaxlean.convert.formats import Format
from jaxlean.convert.row import UNSET, Outcome, Row, carried, idle, missing, refused
from jaxlean.convert.source import Source, truth

# PEFT's own names, which a config beside TrainingArguments has; TRL's begin with lora_.
_PEFT = ("r", "peft_type", "target_modules")
_LORA = ("lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules")


def is_sft(source: Source) -> bool:
    """Whether it is TRL's, whose defaults differ from Trainer's."""
    return source.has("use_peft") or any(row.knows(key) for key in source.values for row in _DATA)


def _adapts(source: Source) -> bool:
    return truth(source.get("use_peft", default=source.has(*_PEFT, *_LORA)))


def _is_peft(source: Source) -> bool:
    """Whether an adapter is given by PEFT's own names, whose defaults then hold."""
    return source.has(*_PEFT) and not source.has("use_peft", "lora_r")


def use_peft(value: Any, source: Source) -> Outcome:
    """Of `use_peft`."""
    return Outcome("carried", note="the section lora") if truth(value) else adapter.FULL


def _full_by_default(source: Source) -> Any:
    return UNSET if _adapts(source) else False


def _of_peft(trl: Any, peft: Any) -> Any:
    """A default of an adapter: TRL's command has others than PEFT itself."""
    return lambda source: UNSET if not _adapts(source) else peft if _is_peft(source) else trl


def dataset(value: Any, source: Source) -> Outcome:
    """Of `dataset_name`, with its configuration and splits."""
    if source.has("datasets"):
        return Outcome("idle", note="datasets wins over it")
    train: dict[str, Any] = {"path": str(value)}
    train |= {"name": source.get("dataset_config")} if source.has("dataset_config") else {}
    held = dict(train)
    if source.get("dataset_train_split", default="train") != "train":
        train["split"] = source.get("dataset_train_split")
    settings: dict[str, Any] = {"data.train": [train]}
    if cadence.strategy(source, "eval_strategy", "evaluation_strategy", default="no") != "no":
        settings["data.eval"] = [held | {"split": source.get("dataset_test_split", default="test")}]
    return Outcome("carried", settings)


def split(value: Any, source: Source) -> Outcome:
    """Of the keys that belong to `dataset_name`."""
    return Outcome("carried" if source.has("dataset_name") else "idle", note="with data.train and data.eval")


def mixture(value: Any, source: Source) -> Outcome:
    """Of `datasets`: as `datasets.load_dataset` takes them."""
    sources, check = [], []
    for each in value if isinstance(value, list) else [value]:
        entry = {"path": each} if isinstance(each, str) else dict(each) if isinstance(each, dict) else {}
        files = entry.pop("data_files", None)
        kept = {key: entry[key] for key in ("path", "name", "split") if entry.get(key) is not None}
        if kept.get("split") == "train":
            del kept["split"]
        others = sorted(key for key in entry if key not in ("path", "name", "split") and entry[key] is not None)
        if others:
            check.append(f"not read of {kept.get('path')}: {', '.join(others)}")
        if isinstance(files, str | list) and kept.get("path") in ("json", "csv", "parquet", "text"):
            sources += [{"path": file} for file in ([files] if isinstance(files, str) else files)]
        else:
            check += [f"not read of {kept.get('path')}: data_files"] if files else []
            sources.append(kept)
    return Outcome("carried", {"data.train": sources}, "", "; ".join(check))


def _sources(source: Source) -> list[dict[str, Any]]:
    """All training data as entries of `data.train`."""
    if source.has("datasets"):
        found: list[dict[str, Any]] = mixture(source.get("datasets"), source).settings["data.train"]
        return found
    return [{"path": source.get("dataset_name")}] if source.has("dataset_name") else []


def _limit(source: Source) -> Any:
    return 1024 if is_sft(source) and "max_length" not in source.empty else UNSET


def packed(value: Any, source: Source) -> Outcome:
    """Of `packing`."""
    note = "rows in a sequence never see each other here" if truth(value) else ""
    return Outcome("carried", {"data.packing": truth(value)}, note)


def strategy(value: Any, source: Source) -> Outcome:
    """Of `packing_strategy`."""
    name = str(value)
    if not source.on("packing") or name in ("bfd", "ffd", "bfd_truncate"):
        return Outcome("idle", note="rows are packed whole, the longest first")
    note = f"{name} cuts rows to fill sequences; nearest: data.packing: true keeps rows whole, data.on_long: truncate"
    return Outcome("missing", note=note)


def completion_only(value: Any, source: Source) -> Outcome:
    """Of `completion_only_loss`."""
    return Outcome("carried", {"data.train_on": "completion" if truth(value) else "all"})


def assistant_only(value: Any, source: Source) -> Outcome:
    """Of `assistant_only_loss`."""
    if not truth(value):
        return Outcome("idle", note="off there: see data.train_on")
    return Outcome("carried", {"data.train_on": "completion"}, "the end of each turn is learned as well")


def text_field(value: Any, source: Source) -> Outcome:
    """Of `dataset_text_field`."""
    if value == "text":
        return Outcome("idle", note="the column text is read")
    note = f"texts in the column {value}; nearest: call the column text, which data.train format: text reads"
    return Outcome("missing", note=note)


def template(value: Any, source: Source) -> Outcome:
    """Of `chat_template_path`: a Jinja file, or a tokenizer to take it from."""
    if str(value).endswith((".jinja", ".jinja2", ".j2")):
        return Outcome("carried", {"model.chat_template": str(value)})
    return Outcome(
        "missing", note="another tokenizer's template; nearest: its chat_template.jinja as model.chat_template"
    )


def loss(value: Any, source: Source) -> Outcome:
    """Of `loss_type`."""
    if str(value) in ("nll", "chunked_nll"):
        return Outcome("idle", note="the loss is computed in chunks (train.loss_chunk_bytes)")
    if str(value) == "dft":
        return Outcome("missing", note="dynamic fine-tuning weighs tokens by their probability; nearest: none")
    return Outcome("refused", note=reasons.PREFERENCES)


def truncation(value: Any, source: Source) -> Outcome:
    """Of `truncation_mode`."""
    if str(value) == "keep_start":
        return Outcome("idle", note="data.on_long: truncate keeps the start")
    return Outcome("missing", note="keeps the end of long rows; nearest: data.on_long: truncate keeps the start")


def revision(value: Any, source: Source) -> Outcome:
    """Of `model_revision`."""
    return Outcome("idle", note="the default") if value == "main" else Outcome("carried", {"model.revision": value})


def _targets(source: Source) -> Any:
    """PEFT's own choice, which TRL leaves it to."""
    return adapter.PEFT_TARGETS if _adapts(source) and not source.has("lora_target_modules") else UNSET


def others(source: Source) -> Iterable[Outcome]:
    """What TRL does whatever its config says, and what follows from several keys."""
    if _targets(source) is not UNSET and not source.has("target_modules"):
        yield Outcome("carried", check=adapter.BY_FAMILY)
    if not is_sft(source):
        if not source.has("learning_rate"):
            yield Outcome(
                "carried", check="no key of TRL's is in the file: Trainer's own defaults hold, not SFTConfig's"
            )
        return
    yield Outcome("carried", {"data.on_long": "truncate"}, "TRL cuts longer rows")
    note = "TRL joins prompt and completion as they are, without the chat template"
    yield Outcome("carried", {"data.chat": False}, note)
    if not source.has("completion_only_loss") and not source.on("assistant_only_loss"):
        yield _loss_on(source)
    if "max_length" in source.empty and not source.has("max_length", "max_seq_length"):
        yield Outcome("carried", {"data.max_length": 131072}, "max_length: null cuts nothing")
    if not source.has("use_peft") and source.has(*_LORA) and not _is_peft(source):
        check = "TRL's own command makes an adapter with use_peft: true alone; lora=null trains all weights"
        yield Outcome("carried", note="keys of LoRA without use_peft: an adapter", check=check)


def _loss_on(source: Source) -> Outcome:
    """TRL learns all of a conversation or text, and of prompt and completion the completion."""
    found = [peek.columns(str(each.get("path")), source) for each in _sources(source)]
    shapes = {"completion" if "completion" in each else "all" for each in found if each is not None}
    if len(shapes) == 1 and None not in found:
        (shape,) = shapes
        return Outcome("carried", {"data.train_on": shape}, "as TRL does with rows of these columns")
    check = (
        "which columns the rows have is not seen here: TRL learns all of a conversation or text, but of prompt and "
        "completion the completion alone; then data.train_on=completion"
    )
    return Outcome("carried", {"data.train_on": "all"}, "TRL learns all of a conversation", check)


_MODEL: tuple[Row, ...] = (
    carried("model_name_or_path", "model.path"),
    carried("model_revision", "model.revision", becomes=revision),
    carried("tokenizer_name_or_path", "model.tokenizer"),
    carried("chat_template_path", "model.chat_template", becomes=template),
    carried("use_peft", "lora", "false: null", becomes=use_peft, default=_full_by_default),
    carried("lora_r lora_rank", "lora.r", default=_of_peft(16, UNSET)),
    carried("lora_target_modules", "lora.target_modules", becomes=adapter.targets),
    carried("load_in_8bit", "model.quantization", "true: int8", becomes=precision.in_8bit),
    carried("load_in_4bit", "model.quantization", "true: nf4", becomes=precision.in_4bit),
    carried("lora_task_type", "task", becomes=adapter.task),
    carried("bnb_4bit_quant_type", "model.quantization", becomes=precision.four_bits),
    carried("attn_implementation", "model.attention", becomes=precision.attention),
    idle("use_bnb_nested_quant bnb_4bit_use_double_quant bnb_4bit_quant_storage", "memory of the scales alone"),
    idle("bnb_4bit_compute_dtype torch_dtype dtype", "model.dtype says what is multiplied in"),
    idle("trust_remote_code model_code_revision", reasons.NOTHING_RUNS),
    idle("use_flash_attention_2", reasons.ATTENTION),
    idle("use_liger", reasons.FUSED),
    missing("lora_modules_to_save", "modules that train whole beside the adapter", reasons.WHOLE_MODULES),
    missing("lora_target_parameters", "parameters of experts, by name", "lora.target_modules: all-linear"),
    missing("model_init_kwargs model_init_kwargs.*", "arguments of from_pretrained", "model.revision, model.dtype"),
)
_DATA: tuple[Row, ...] = (
    carried("dataset_name", "data.train", becomes=dataset),
    carried("datasets dataset_mixer", "data.train", becomes=mixture),
    carried("dataset_config dataset_config_name", "data.train", "name", becomes=split),
    carried("dataset_train_split dataset_test_split", "data.train", "split", becomes=split),
    carried("dataset_streaming", "data.streaming"),
    carried("test_split_size", "data.eval_fraction", becomes=cadence.held_out(_sources)),
    carried("dataset_text_field", "data.train", becomes=text_field),
    carried("max_length max_seq_length", "data.max_length", default=_limit),
    carried("packing", "data.packing", becomes=packed, default=False),
    carried("packing_strategy", "data.packing", becomes=strategy),
    carried("truncation_mode", "data.on_long", becomes=truncation),
    carried("completion_only_loss", "data.train_on", "true: completion", becomes=completion_only),
    carried("assistant_only_loss", "data.train_on", "true: completion", becomes=assistant_only),
    carried("loss_type", "train.loss_chunk_bytes", becomes=loss),
    missing("eos_token", "another end of turn", "a chat template's own, always learned; else tokenizer_config.json"),
    idle("pad_token", reasons.PADDING),
    idle("dataset_kwargs dataset_kwargs.* dataset_num_proc dataset_batch_size", reasons.WHERE_THEY_LIE),
    idle("padding_free pad_to_multiple_of eval_packing num_of_sequences", reasons.PACKED),
    idle("shuffle_dataset", reasons.SHUFFLED),
    idle("gradient_checkpointing_use_reentrant ignore_bias_buffers", reasons.RECOMPUTES),
    missing("activation_offloading", "activations wait on the host", "train.remat: {offload: names}, or full"),
)
_OTHERS: tuple[Row, ...] = (
    missing("env", "variables of the environment", "the environment", secret=True),
    refused(
        "beta max_prompt_length max_completion_length num_generations reward_funcs reward_model_path reward_weights "
        "desirable_weight undesirable_weight ref_model_init_kwargs precompute_ref_log_probs center_rewards_coefficient "
        "kl_coef cliprange num_ppo_epochs rpo_alpha simpo_gamma missing_eos_penalty",
        reasons.PREFERENCES, lambda value: value is not None,
    ),
)  # fmt: skip
_ROWS_OF_PEFT: tuple[Row, ...] = (
    carried("r", "lora.r", default=_of_peft(UNSET, 8)),
    carried("lora_alpha", "lora.lora_alpha", default=_of_peft(32, 8)),
    carried("lora_dropout", "lora.lora_dropout", default=_of_peft(0.05, 0.0)),
    carried("target_modules", "lora.target_modules", becomes=adapter.targets, default=_targets),
    carried("use_rslora", "lora.use_rslora"),
    carried("use_dora", "lora.use_dora"),
    carried("init_lora_weights", "lora.init_lora_weights", becomes=adapter.start),
    carried("peft_type", "lora", becomes=adapter.kind),
    carried("task_type", "task", becomes=adapter.task),
    carried("bias", "lora", becomes=adapter.bias),
    carried("base_model_name_or_path", "model.path"),
    missing("modules_to_save", "modules that train whole beside the adapter", reasons.WHOLE_MODULES),
    missing("trainable_token_indices", "rows of old tokens that train", "model.new_tokens"),
    missing("rank_pattern alpha_pattern", "another rank for some modules", "lora.r, lora.lora_alpha"),
    missing("layers_to_transform layers_pattern exclude_modules", "some layers only", "lora.target_modules"),
    missing("loftq_config corda_config eva_config", "another start", "lora.init_lora_weights: pissa"),
    missing("layer_replication megatron_config", "another model", "none"),
    idle("fan_in_fan_out inference_mode peft_version auto_mapping revision", "PEFT's own"),
    idle("qalora_group_size use_qalora", "PEFT's own"),
)
_TRAINERS = trainer.without(*"learning_rate logging_steps eval_strategy gradient_checkpointing bf16".split())


def _either(sft: Any, alone: Any) -> Any:
    """A default that SFTConfig has of its own."""
    return lambda source: sft if is_sft(source) else alone


FORMAT = Format(
    "trl", "TRL / Hugging Face Trainer",
    (
        carried("learning_rate", "train.learning_rate", default=_either(2e-5, 5e-5)),
        carried("logging_steps", "train.logging_steps", becomes=cadence.logs, default=_either(10, 500)),
        carried("eval_strategy evaluation_strategy", "eval.eval_steps", becomes=cadence.evaluates(_either(10, 500))),
        carried(
            "gradient_checkpointing activation_checkpointing", "train.remat", "true: full",
            becomes=precision.checkpointing, default=_either(True, False),
        ),
        carried("bf16", "model.dtype", "true: bfloat16", becomes=precision.bf16, default=_either(True, False)),
        *_MODEL, *_DATA, *_OTHERS, *_ROWS_OF_PEFT, *_TRAINERS,
    ),
    sections=(*trainer.SECTIONS, "model_init_kwargs", "dataset_kwargs"),
    others=others,
)  # fmt: skip
