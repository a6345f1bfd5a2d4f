"""LLaMA-Factory's config (llamafactory/hparams/*.py, 0.9): supervised fine-tuning, and texts (stage pt)."""

import re
from collections.abc import Iterable
from typing import Any

from jaxlean.convert import adapter, cadence, llama_factory_data, precision, reasons, trainer, trl
from jaxlean.convert.formats import Format
from jaxlean.convert.row import UNSET, Outcome, Row, carried, idle, missing, refused
from jaxlean.convert.source import Source, names, truth

_MEDIA = re.compile(
    r"vl($|_)|llava|video|vision|pixtral|paligemma|minicpm_[vo]|intern_vl|audio|omni|mllama|idefics|kimi_vl"
)
_OTHER_STAGES = {
    "rm": "a reward model", "ppo": "rewards (PPO)", "dpo": "preferences (DPO)", "kto": "preferences (KTO)",
}  # fmt: skip
_METHODS = {"oft": "rotations of the weights (OFT)", "freeze": "some layers alone"}


def stage(value: Any, source: Source) -> Outcome:
    """Of `stage`."""
    name = str(value).lower()
    if name in _OTHER_STAGES:
        return Outcome("refused", note=_OTHER_STAGES[name])
    if name == "pt":
        return Outcome("carried", {"data.train_on": "all"}, "texts, of which every token is learned")
    return Outcome("idle", note="jaxlean finetune")


def trains(value: Any, source: Source) -> Outcome:
    """Of `do_train`."""
    if truth(value):
        return Outcome("idle", note="jaxlean finetune")
    return Outcome("refused", note="a file that does not train; jaxlean evaluate and jaxlean generate read a model")


def method(value: Any, source: Source) -> Outcome:
    """Of `finetuning_type`."""
    name = str(value).lower()
    if name == "full":
        return adapter.FULL
    if name == "lora":
        return Outcome("carried", note="the section lora")
    return Outcome("missing", note=f"trains {_METHODS.get(name, name)}; nearest: LoRA of rank 8, which is written")


def rank(source: Source) -> Any:
    """LLaMA-Factory's default."""
    return UNSET if source.get("finetuning_type") == "full" else 8


def alpha(source: Source) -> Any:
    """Twice the rank, where nothing is said."""
    return UNSET if source.get("finetuning_type") == "full" else 2 * (source.number("lora_rank") or 8)


def recomputes(value: Any, source: Source) -> Outcome:
    """Of `disable_gradient_checkpointing`: on unless it is disabled."""
    return Outcome("carried", {"train.remat": "none" if truth(value) else "full"})


def template(value: Any, source: Source) -> Outcome:
    """Of `template`."""
    if _MEDIA.search(str(value).lower()):
        return Outcome("refused", note=reasons.IMAGES)
    if value == "alpaca":
        return Outcome("carried", {"data.chat": False}, "the Alpaca prompt, without a chat template")
    note = f"LLaMA-Factory's own template {value}; {reasons.TEMPLATE}"
    if source.get("stage") == "pt":
        return Outcome("idle", note="texts have no template")
    return Outcome("missing", note=note)


def learns_all(value: Any, source: Source) -> Outcome:
    """Of `train_on_prompt`."""
    return Outcome("carried", {"data.train_on": "all" if truth(value) else "completion"})


def packs(value: Any, source: Source) -> Outcome:
    """Of `packing` and `neat_packing`, of which the second keeps rows apart."""
    on = truth(value) or source.on("packing") or source.on("neat_packing")
    apart = "rows in a sequence never see each other here" if on and not source.on("neat_packing") else ""
    return Outcome("carried", {"data.packing": on}, apart)


def packs_by_default(source: Source) -> Any:
    """Texts are packed."""
    return UNSET if source.has("neat_packing") else source.get("stage") == "pt"


def in_order(value: Any, source: Source) -> Outcome:
    """Of `disable_shuffling`."""
    return Outcome("carried", {"data.shuffle": not truth(value)})


def tokens(value: Any, source: Source) -> Outcome:
    """Of `add_tokens` and `add_special_tokens`."""
    added = [name for key in ("add_tokens", "add_special_tokens") for name in names(source.get(key, default=[]))]
    note = (
        "each becomes a token whose row trains, and starts at the mean of its pieces; what is one already is left out"
    )
    return Outcome("carried", {"model.new_tokens": list(dict.fromkeys(added))}, note)


def muon(value: Any, source: Source) -> Outcome:
    """Of `use_muon`."""
    return Outcome("carried", {"train.optim": "muon"}) if truth(value) else Outcome("idle", note="off there")


def others(source: Source) -> Iterable[Outcome]:
    """What LLaMA-Factory does whatever its config says."""
    yield Outcome(
        "carried", {"data.on_long": "truncate"}, "longer rows are cut (prompt and response in proportion there)"
    )
    if not source.has("do_train"):
        yield Outcome("carried", check="do_train is not set: LLaMA-Factory would not train")
    if not source.has("bf16", "fp16", "pure_bf16"):
        yield Outcome("carried", note="no bf16 or fp16: computes in what the model's files hold; model.dtype: auto")


_OPTIMIZERS = "gradients of low rank, or by blocks"
_ROWS: tuple[Row, ...] = (
    # ---- method
    carried("stage", "data.train_on", "pt: all", becomes=stage),
    carried("do_train", "", becomes=trains),
    carried("finetuning_type", "lora", "full: null", becomes=method),
    carried("lora_rank", "lora.r", default=rank),
    carried("lora_alpha", "lora.lora_alpha", default=alpha),
    carried("lora_dropout", "lora.lora_dropout", default=0.0),
    carried("lora_target", "lora.target_modules", "all: all-linear", becomes=adapter.targets, default="all"),
    carried("use_rslora", "lora.use_rslora"),
    carried("use_dora", "lora.use_dora"),
    carried("pissa_init", "lora.init_lora_weights", "true: pissa", becomes=adapter.pissa),
    idle("pissa_iter pissa_convert", "singular vectors are exact, and what is written is a plain adapter of the base"),
    carried("loraplus_lr_ratio", "lora.loraplus_lr_ratio"),
    idle("loraplus_lr_embedding", "no embedding has an adapter"),
    missing("additional_target", "modules that train whole beside the adapter", reasons.WHOLE_MODULES),
    carried("adapter_name_or_path", "lora.init_from", becomes=adapter.start_from),
    idle("create_new_adapter", "adapter_name_or_path says what becomes of that adapter"),
    missing("adapter_folder", "where the adapter lies in a repository", "lora.init_from: FOLDER"),
    missing("freeze_trainable_layers freeze_trainable_modules", "trains some layers alone", "lora"),
    missing("freeze_extra_modules use_llama_pro", "trains some layers alone", "lora"),
    missing("oft_* module_dropout", "rotations of the weights (OFT)", "lora"),
    missing("use_galore galore_*", _OPTIMIZERS, "train.optim: adamw_8bit, adafactor; or lora"),
    missing("use_apollo apollo_*", _OPTIMIZERS, "train.optim: adamw_8bit, adafactor; or lora"),
    missing("use_badam badam_*", _OPTIMIZERS, "train.optim: adamw_8bit; or lora"),
    missing("use_adam_mini", "fewer second moments", "train.optim: adamw_8bit"),
    carried("use_muon", "train.optim", "true: muon", becomes=muon),
    missing("use_dft_loss use_asft_loss use_eaft_loss", "tokens weighed by their probability"),
    missing("mixture_of_depths", "layers that skip tokens", "jaxlean prune"),
    missing("use_mca use_kt kt_* cpu_infer chunk_size", "another engine"),
    # ---- model
    carried("model_name_or_path", "model.path"),
    carried("model_revision", "model.revision", becomes=trl.revision),
    carried("quantization_bit", "model.quantization", "4: nf4, 8: int8", becomes=precision.quantization_bit),
    carried("quantization_type", "model.quantization", becomes=precision.four_bits),
    idle("quantization_method double_quantization quantization_device_map", "memory of the scales alone"),
    carried("pure_bf16", "model.dtype", becomes=precision.pure_bf16),
    carried("fp8", "model.matmul", "true: fp8", becomes=precision.fp8),
    idle("gradient_checkpointing activation_checkpointing", "disable_gradient_checkpointing says it there"),
    carried("disable_gradient_checkpointing", "train.remat", "false: full", becomes=recomputes, default=False),
    carried("moe_aux_loss_coef", "train.router_aux_loss_coef"),
    carried("add_tokens add_special_tokens", "model.new_tokens", becomes=tokens),
    missing("new_special_tokens_config init_special_tokens", "where new rows start", "model.new_tokens_init: mean"),
    missing("rope_scaling", "longer contexts by another rope", "config.json of a copy of the model"),
    missing("shift_attn", "attention to a part", "model.attention: auto"),
    missing("train_from_scratch", "starts from zero", "jaxlean pretrain, model.architecture"),
    missing("split_special_tokens", "cuts special tokens", "tokenizer_config.json"),
    missing("hf_hub_token ms_hub_token om_hub_token", "a secret", reasons.TOKEN, secret=True),
    idle("flash_attn attn_implementation", reasons.ATTENTION),
    idle("resize_vocab upcast_layernorm upcast_lmhead_output", "norms and losses are computed in float32"),
    idle("use_unsloth enable_liger_kernel use_v1_kernels use_cce", reasons.FUSED),
    idle("use_unsloth_gc use_reentrant_gc", reasons.RECOMPUTES),
    idle("trust_remote_code use_fast_tokenizer low_cpu_mem_usage", reasons.NOTHING_RUNS),
    idle("cache_dir offload_folder", "HF_HOME in the environment says where models are kept"),
    idle("print_param_status infer_* use_kv_cache vllm_* sglang_* fp8_*", "of inference, or of torch"),
    # ---- data
    carried("dataset", "data.train", "by dataset_info.json", becomes=llama_factory_data.dataset),
    carried("eval_dataset", "data.eval", becomes=llama_factory_data.held_out),
    carried("dataset_dir", "data.train", becomes=llama_factory_data.with_sources),
    carried("max_samples", "data.train", "limit", becomes=llama_factory_data.with_sources),
    carried("template", "model.chat_template", becomes=template),
    carried("cutoff_len", "data.max_length", default=2048),
    carried("val_size", "data.eval_fraction", becomes=cadence.held_out(llama_factory_data.sources)),
    carried("train_on_prompt", "data.train_on", "true: all", becomes=learns_all),
    carried("packing", "data.packing", becomes=packs, default=packs_by_default),
    carried("neat_packing", "data.packing", becomes=packs),
    carried("disable_shuffling", "data.shuffle", "true: false", becomes=in_order),
    carried("default_system", "data.system"),
    carried("mix_strategy", "data.train", becomes=llama_factory_data.mixes),
    carried("interleave_probs", "data.train", "weight", becomes=llama_factory_data.with_sources),
    missing("mask_history", "learns the last turn alone", "data.train_on: completion learns every answer"),
    missing("eval_on_each_dataset", "a score for each dataset", "jaxlean evaluate, one after the other"),
    missing("tool_format enable_thinking preserve_thinking", "how its template writes tools", reasons.TEMPLATE),
    idle("overwrite_cache preprocessing_* tokenized_path data_shared_file_system", reasons.WHERE_THEY_LIE),
    idle("buffer_size", "a stream is read in its own order"),
    idle("ignore_pad_token_for_loss", reasons.PADDING),
    refused("image_max_pixels image_min_pixels video_* image_do_pan_and_scan crop_to_patches", reasons.IMAGES),
    refused("audio_* use_audio_in_video media_dir freeze_vision_tower", reasons.IMAGES),
    idle("freeze_multi_modal_projector freeze_language_model", "of models of images"),
    # ---- the rest
    carried("early_stopping_steps", "eval.stopping.patience", becomes=cadence.patience),
    idle("plot_loss", "metrics.jsonl and TensorBoard have the losses"),
    idle("include_effective_tokens_per_second", reasons.MEASURED),
    missing("compute_accuracy predict_with_generate", "scores of tokens or texts", "eval.exact_match: true"),
    carried("max_new_tokens", "eval.max_new_tokens"),
    idle("do_sample temperature top_p top_k num_beams eval_num_beams", "of generation: jaxlean generate"),
    idle("repetition_penalty length_penalty generation_* skip_special_tokens", "of generation: jaxlean generate"),
    idle("sortish_sampler", "data.packing leaves no padding to save"),
    missing("swanlab_api_key swanlab_lark_secret swanlab_lark_webhook_url", "a secret", "the environment", secret=True),
    missing("use_swanlab swanlab_*", "another tracker", reasons.TRACKERS),
    missing("ray_* resources_per_worker placement_strategy", "starts processes with Ray", reasons.LAUNCH),
    refused("export_dir export_size export_hub_model_id", "a merge: jaxlean merge"),
    refused("export_quantization_bit", "a model in fewer bits: jaxlean quantize"),
    refused("ref_model reward_model", reasons.PREFERENCES),
    idle("export_* pref_* ppo_* kto_* dpo_* simpo_gamma ld_alpha ref_model_* reward_model_*", "of other stages"),
)  # fmt: skip

FORMAT = Format(
    "llama-factory", "LLaMA-Factory",
    (*_ROWS, *trainer.without("gradient_checkpointing", "do_train")), sections=trainer.SECTIONS,
    others=others,
)  # fmt: skip
