"""Axolotl's config (axolotl/utils/schemas/*.py and core/builders/, 0.9 to 0.18)."""

from collections.abc import Iterable
from typing import Any

from jaxlean.convert import adapter, axolotl_data, cadence, optimizer, precision, reasons, schedule, sharding
from jaxlean.convert.formats import Format
from jaxlean.convert.row import UNSET, Outcome, Row, carried, idle, is_off, missing, refused
from jaxlean.convert.source import Source, names, truth

_WARMUP_SHARE, _WARMUP_MOST = 0.03, 100
_END = "the chat template's own, which is always learned; else tokenizer_config.json"


def adapts(value: Any, source: Source) -> Outcome:
    """Of `adapter`."""
    name = str(value).lower()
    if is_off(value):
        return adapter.FULL
    if name == "qlora":
        return Outcome("carried", {"model.quantization": "nf4"}, "the section lora over a base in 4 bits")
    if name == "lora":
        return Outcome("carried", note="the section lora")
    return Outcome("missing", note=f"{value} adapters; nearest: LoRA, which is written")


def linear(value: Any, source: Source) -> Outcome:
    """Of `lora_target_linear`."""
    if not truth(value):
        return Outcome("idle", note="off there")
    named = source.get("lora_target_modules", default=[])
    check = "lora_target_modules names modules beside all linear ones: see which those are" if named else ""
    return Outcome("carried", {"lora.target_modules": "all-linear"}, check=check)


def modules(value: Any, source: Source) -> Outcome:
    """Of `lora_target_modules`, to which `lora_target_linear` adds all."""
    if source.on("lora_target_linear"):
        return Outcome("idle", note="lora_target_linear: all of them")
    return adapter.targets(value, source)


def no_targets(source: Source) -> Any:
    """Axolotl's own default has none, which PEFT refuses or fills in."""
    return UNSET if source.has("lora_target_modules", "lora_target_linear") else adapter.PEFT_TARGETS


def warmup(source: Source) -> Any:
    """Axolotl warms up for 3 % of the steps, at most 100."""
    if source.has("warmup_ratio"):
        return UNSET
    steps = schedule.max_steps(source)
    if steps is None:
        return _WARMUP_SHARE
    warm = min(int(_WARMUP_SHARE * steps), _WARMUP_MOST)
    return 2 if warm == 1 else warm


def floor(value: Any, source: Source) -> Outcome:
    """Of `cosine_min_lr_ratio`."""
    if str(source.get("lr_scheduler", default="cosine")).lower() != "cosine":
        return Outcome("idle", note="of a cosine, which lr_scheduler is not")
    return Outcome("carried", {"train.min_lr_ratio": value})


def rows_at_a_time(source: Source) -> Any:
    """Evaluation takes as many rows as training."""
    return source.get("micro_batch_size", default=1)


def accumulates(source: Source) -> Any:
    """`batch_size` is of all microbatches together, on one device."""
    total, micro = source.number("batch_size"), source.number("micro_batch_size") or 1
    return max(1, int(total // micro)) if total else 1


def excess(value: Any, source: Source) -> Outcome:
    """Of `excess_length_strategy`; texts that are completed are cut into rows there instead."""
    name = {"raise": "error"}.get(str(value).lower(), str(value).lower())
    sets = source.get("datasets", default=[])
    texts = isinstance(sets, list) and any(isinstance(e, dict) and e.get("type") == "completion" for e in sets)
    if texts and name == "drop":
        check = "long texts (type: completion) become several rows there; here they are cut: data.on_long"
        return Outcome("carried", {"data.on_long": "truncate"}, "", check)
    return Outcome("carried", {"data.on_long": name})


def inputs(value: Any, source: Source) -> Outcome:
    """Of `train_on_inputs`."""
    return Outcome("carried", {"data.train_on": "all" if truth(value) else "completion"})


def in_order(value: Any, source: Source) -> Outcome:
    """Of `curriculum_sampling`, by which rows come as they lie."""
    if not truth(value):
        return Outcome("idle", note="off there")
    note = "rows in their own order; data.curriculum orders them by difficulty"
    return Outcome("carried", {"data.shuffle": False}, note)


def template(value: Any, source: Source) -> Outcome:
    """Of `chat_template`."""
    name = str(value)
    if name.startswith("tokenizer_default"):
        return Outcome("idle", note=reasons.TEMPLATE)
    if name == "jinja":
        return Outcome("carried", note="with chat_template_jinja")
    return Outcome("missing", note=f"Axolotl's own template {name}; {reasons.TEMPLATE}")


def jinja(value: Any, source: Source) -> Outcome:
    """Of `chat_template_jinja`: a file, or the template itself."""
    if "{%" in str(value) or "{{" in str(value):
        return Outcome(
            "missing", note="a template in the config; nearest: the same text in a file, model.chat_template: FILE"
        )
    return Outcome("carried", {"model.chat_template": str(value)})


def tokens(value: Any, source: Source) -> Outcome:
    """Of `tokens` and `special_tokens.additional_special_tokens`."""
    added = [str(token) for key in _TOKENS for token in names(source.get(key, default=[]))]
    note = (
        "each becomes a token whose row trains, and starts at the mean of its pieces; what is one already is left out"
    )
    return Outcome("carried", {"model.new_tokens": list(dict.fromkeys(added))}, note)


def wandb(value: Any, source: Source) -> Outcome:
    """Of `use_wandb` and `wandb_project`, either of which switches it on."""
    off = (source.has("use_wandb") and not source.on("use_wandb")) or source.get("wandb_mode") == "disabled"
    if off:
        return Outcome("idle", note="off there")
    project = source.get("wandb_project")
    return Outcome("carried", {"report.wandb": True} | ({"report.wandb_project": project} if project else {}))


def plugins(value: Any, source: Source) -> Outcome:
    """Of `plugins`, of which those with faster kernels need nothing."""
    kernels = ("liger", "cut_cross_entropy", "lm_eval")
    others = [
        str(name)
        for name in (value if isinstance(value, list) else [value])
        if not any(k in str(name) for k in kernels)
    ]
    if others:
        return Outcome("missing", note=f"code of others: {', '.join(others)}")
    return Outcome("idle", note=reasons.FUSED)


def weights(value: Any, source: Source) -> Outcome:
    """Of `peft.weight_dtype`."""
    form = {"nf4": "nf4", "int4": "nf4", "int8": "int8"}.get(str(value))
    if form is None:
        return Outcome("missing", note=f"a base in {value}; nearest: model.quantization: nf4 or int8")
    return Outcome("carried", {"model.quantization": form}, "NF4 for int4" if value == "int4" else "")


def total(value: Any, source: Source) -> Outcome:
    """Of `batch_size`."""
    return Outcome("carried", {"train.gradient_accumulation_steps": accumulates(source)}, "microbatches of an update")


def fsdp2(value: Any, source: Source) -> Outcome:
    """Of FSDP 2's `reshard_after_forward`, whose config has no `fsdp` that names a strategy."""
    if not truth(value) or source.has("fsdp", "dp_shard_size"):
        return Outcome("idle", note=reasons.GATHERS)
    return sharding.fsdp("full_shard", source)


def others(source: Source) -> Iterable[Outcome]:
    """What follows from several keys."""
    if not source.has("learning_rate"):
        yield Outcome(
            "carried", check="learning_rate is not set, which Axolotl refuses: here it is train.learning_rate"
        )
    if (source.number("early_stopping_patience") or 0) > 0 and not source.has("load_best_model_at_end"):
        yield Outcome("carried", {"eval.load_best": True}, "early stopping takes the best step")
    if not is_off(source.get("adapter")) and not source.has("lora_target_modules", "lora_target_linear"):
        yield Outcome("carried", check=adapter.BY_FAMILY)
    if not source.has("warmup_steps", "warmup_ratio") and schedule.max_steps(source) is None:
        check = "Axolotl warms up for 3 % of the steps, but for no more than 100: of longer runs train.warmup_steps=100"
        yield Outcome("carried", check=check)


_EVALS = cadence.every("eval.eval_steps", "eval_strategy", "evaluation_strategy", default="steps")
_SAVES = cadence.every("train.save_steps", "save_strategy", default="steps")
_TOKENS = ("tokens", "special_tokens.additional_special_tokens")
_MODEL: tuple[Row, ...] = (
    carried("base_model", "model.path"),
    carried("revision_of_model model_revision", "model.revision"),
    carried("tokenizer_config", "model.tokenizer"),
    carried("chat_template", "model.chat_template", becomes=template),
    carried("chat_template_jinja", "model.chat_template", becomes=jinja),
    carried("tokens special_tokens.additional_special_tokens", "model.new_tokens", becomes=tokens),
    idle("special_tokens.pad_token", reasons.PADDING),
    missing("special_tokens.eos_token eot_tokens", "another end of a turn", _END),
    missing("special_tokens.*", "another special token", "tokenizer_config.json beside model.tokenizer"),
    missing("added_tokens_overrides", "other words for reserved tokens", "model.new_tokens"),
    missing("resize_token_embeddings_to_32x shrink_embeddings fix_untrained_tokens", "another size of the table"),
    idle("mean_resizing_embeddings embeddings_skip_upcast", "model.new_tokens_init: mean is the default"),
    carried("default_system_message", "data.system"),
    missing("chat_template_kwargs", "arguments of the template", "model.chat_template: FILE.jinja"),
    missing("overrides_of_model_config model_config rope_scaling", "another config.json", "a copy of the model"),
    missing("overrides_of_model_kwargs model_kwargs", "arguments of from_pretrained", "model.revision, model.dtype"),
    missing("model_quantization_config*", "a base quantized as it is read", "model.quantization"),
    idle("model_type type_of_model base_model_config cls_model_config tokenizer_type", reasons.CONFIG_JSON),
    idle("is_*_derived_model tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common", reasons.CONFIG_JSON),
    idle("trust_remote_code", reasons.NOTHING_RUNS),
    idle("hf_use_auth_token", reasons.TOKEN),
    idle("strict", "a key that is unknown is an error"),
    idle("tokenizer_save_jinja_files low_cpu_mem_usage lora_on_cpu", "weights go from the file to their device"),
    idle("experimental_skip_move_to_device qlora_sharded_model_loading", "weights go from the file to their device"),
    idle("device device_map world_size max_memory gpu_memory_limit", reasons.DEVICES),
    idle("use_kernels", reasons.FUSED),
    missing("gptq", "a base in GPTQ's 4 bits", "jaxlean quantize, or model.quantization: nf4"),
    # ---- adapter
    carried("adapter", "lora", "not set: null", becomes=adapts, default=lambda source: False),
    carried("load_in_8bit", "model.quantization", "true: int8", becomes=precision.in_8bit),
    carried("load_in_4bit", "model.quantization", "true: nf4", becomes=precision.in_4bit),
    carried("peft.weight_dtype", "model.quantization", becomes=weights),
    carried("lora_r", "lora.r", default=8),
    carried("lora_alpha", "lora.lora_alpha", default=8),
    carried("lora_dropout", "lora.lora_dropout", default=0.0),
    carried("lora_target_linear", "lora.target_modules", "true: all-linear", becomes=linear),
    carried("lora_target_modules", "lora.target_modules", becomes=modules, default=no_targets),
    carried("peft_use_dora", "lora.use_dora"),
    carried("peft_use_rslora", "lora.use_rslora"),
    carried("peft_init_lora_weights", "lora.init_lora_weights", becomes=adapter.start),
    carried("loraplus_lr_ratio", "lora.loraplus_lr_ratio"),
    idle("loraplus_lr_embedding", "no embedding has an adapter"),
    missing("lora_modules_to_save", "modules that train whole beside the adapter", reasons.WHOLE_MODULES),
    carried("lora_model_dir", "lora.init_from", becomes=adapter.start_from),
    missing("lora_target_parameters lora_exclude_modules", "parameters by name", "lora.target_modules"),
    missing("peft_layers_to_transform peft_layers_pattern", "some layers only", "lora.target_modules, in every layer"),
    missing("peft_layer_replication", "layers twice", "none"),
    missing("peft_trainable_token_indices", "rows of old tokens that train", "model.new_tokens"),
    missing("peft.loftq_config", "LoftQ's start", "lora.init_lora_weights: pissa over model.quantization"),
    missing("lora_rank_pattern lora_alpha_pattern", "another rank for some modules", "lora.r"),
    idle("peft.backend peft.group_size", "model.quantization: nf4 has blocks of 64"),
    idle("peft_autocast_adapter_dtype", "adapters are float32"),
    idle("peft_ensure_weight_tying lora_fan_in_fan_out", "PEFT's own"),
    idle("bnb_config_kwargs bnb_config_kwargs.*", "model.quantization: nf4 has blocks of 64, as bitsandbytes"),
    idle("merge_lora merge_method", "jaxlean merge, once the run is done"),
    missing("relora relora_* jagged_restart_*", "adapters merged and begun anew while training", "lora.r, larger"),
    missing("lisa_*", "some layers at a time", "lora"),
    missing("unfrozen_parameters", "these parameters train alone", "lora: null, train.trainable: REGEXES"),
)  # fmt: skip
_DATA: tuple[Row, ...] = (
    carried("datasets", "data.train", "type: format", becomes=axolotl_data.datasets),
    carried("test_datasets", "data.eval", becomes=axolotl_data.held_out_sets),
    carried("pretraining_dataset", "data.train", becomes=axolotl_data.pretraining),
    carried("val_set_size", "data.eval_fraction", becomes=cadence.held_out(axolotl_data.sources)),
    carried("sequence_len", "data.max_length", default=512),
    carried("excess_length_strategy", "data.on_long", "raise: error", becomes=excess, default="drop"),
    carried("sample_packing", "data.packing", default=False),
    carried("train_on_inputs", "data.train_on", "true: all", becomes=inputs),
    carried("curriculum_sampling", "data.shuffle", "true: false", becomes=in_order),
    carried("streaming", "data.streaming"),
    idle("shuffle_merged_datasets shuffle_before_merging_datasets", reasons.SHUFFLED),
    idle("dataset_prepared_path dataset_processes dataset_num_proc dataset_keep_in_memory", reasons.WHERE_THEY_LIE),
    idle("skip_prepare_dataset num_dataset_shards_to_save push_dataset_to_hub", reasons.WHERE_THEY_LIE),
    idle("pad_to_sequence_len sample_packing_* eval_sample_packing batch_flattening", reasons.PACKED),
    idle("multipack_real_batches pretrain_multipack_* pretraining_sample_concatenation", reasons.PACKED),
    idle("streaming_multipack_buffer_size", reasons.PACKED),
    idle("dataloader_* remove_unused_columns", reasons.LOADER),
    missing("dataset_exact_deduplication", "leaves equal rows out", "jaxlean curate, curate.steps: [exact_duplicates]"),
    missing("dataset_shard_num dataset_shard_idx", "a part of all rows", "limit of a source"),
    missing("min_sample_len", "leaves short rows out", "jaxlean curate"),
    missing("eval_sequence_len", "another limit for held-out rows", "data.max_length"),
    missing("group_by_length", "rows of like length in a batch", "data.packing: true, which leaves no padding"),
    missing("use_pose pose_*", "positions with gaps, for longer contexts"),
)  # fmt: skip
_TRAIN: tuple[Row, ...] = (
    carried("output_dir", "output_dir"),
    carried("learning_rate", "train.learning_rate"),
    carried("num_epochs", "train.num_train_epochs", default=1.0),
    carried("max_steps", "train.max_steps", "-1: null", becomes=schedule.steps_or_epochs),
    carried("micro_batch_size", "train.per_device_train_batch_size", default=1),
    carried("gradient_accumulation_steps", "train.gradient_accumulation_steps", default=accumulates),
    carried("batch_size", "train.gradient_accumulation_steps", "/ micro_batch_size", becomes=total),
    carried("optimizer", "train.optim", becomes=optimizer.optimizer, default="adamw_torch_fused"),
    carried("optim_args", "train.momentum", becomes=optimizer.settings),
    carried("weight_decay", "train.weight_decay", default=0.0),
    carried("adam_beta1", "train.adam_beta1"),
    carried("adam_beta2", "train.adam_beta2"),
    carried("adam_epsilon", "train.adam_epsilon"),
    carried("max_grad_norm", "train.max_grad_norm", "0: null", becomes=optimizer.clipping),
    carried("lr_scheduler", "train.lr_scheduler_type", becomes=schedule.scheduler, default="cosine"),
    carried("lr_scheduler_kwargs lr_scheduler_kwargs.*", "train.min_lr_ratio", becomes=schedule.scheduler_setting),
    carried("cosine_min_lr_ratio", "train.min_lr_ratio", becomes=floor),
    carried("warmup_steps", "train.warmup_steps", becomes=schedule.warmup_steps, default=warmup),
    carried("warmup_ratio", "train.warmup_ratio", becomes=schedule.warmup_ratio),
    carried("seed", "seed", default=42),
    carried("gradient_checkpointing", "train.remat", "true: full", becomes=precision.checkpointing),
    carried("bf16", "model.dtype", "true: bfloat16", becomes=precision.bf16),
    carried("fp16 float16", "model.dtype", "true: bfloat16", becomes=precision.fp16),
    carried("bfloat16", "model.dtype", becomes=precision.pure_bf16),
    carried("float32", "model.dtype", becomes=precision.float32),
    carried("fp8", "model.matmul", "true: fp8", becomes=precision.fp8),
    missing("neftune_noise_alpha noisy_embedding_alpha", "noise on the embeddings while training", reasons.NOISE),
    missing("cosine_constant_lr_ratio", "a cosine that ends early", "train.lr_scheduler_type: warmup_stable_decay"),
    missing("lr_quadratic_warmup lr_div_factor", "another warm-up", "train.warmup_steps: a line"),
    missing("lr_groups embedding_lr embedding_lr_scale", "another rate for some parameters", "lora.loraplus_lr_ratio"),
    missing("adam_epsilon2 adam_beta3 dion_* torchdistx_path optim_target_modules", "settings of other optimizers"),
    missing("activation_offloading layer_offloading", "activations wait on the host", "train.remat: {offload: names}"),
    missing("selective_checkpointing", "some activations are kept", "train.remat: [names to keep]"),
    missing("qat quantization", "fewer bits, in training or afterwards", "jaxlean quantize"),
    idle("gradient_checkpointing_kwargs gradient_checkpointing_kwargs.*", reasons.RECOMPUTES),
    idle("auto_find_batch_size", "jaxlean plan says what fits before anything runs; train.remat: auto makes it fit"),
    idle("gc_steps", "of torch's memory"),
    idle("tf32", "model.dtype says what is multiplied in"),
    idle("flash_attention sdp_attention xformers_attention flex_attention flex_attn_compile_kwargs", reasons.ATTENTION),
    idle("eager_attention s2_attention attention attn_implementation heads_k_stride ring_attn_func", reasons.ATTENTION),
    idle("torch_compile* flash_attn_* flash_optimum llama4_linearized_experts", reasons.FUSED),
    idle("lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel", reasons.FUSED),
    idle("unsloth_* liger_* cut_cross_entropy", reasons.FUSED),
    idle("chunked_cross_entropy chunked_cross_entropy_num_chunks tiled_mlp*", "train.loss_chunk_bytes: auto"),
    idle("fp8_enable_fsdp_float8_all_gather", reasons.GATHERS),
    carried("plugins", "", becomes=plugins),
    # ---- evaluation, checkpoints, logs
    carried("eval_steps", "eval.eval_steps", becomes=_EVALS),
    carried("evals_per_epoch", "eval.eval_steps", becomes=cadence.per_epoch("eval.eval_steps")),
    carried("eval_strategy evaluation_strategy", "eval.eval_steps", becomes=cadence.evaluates(lambda source: 500)),
    carried("eval_batch_size", "eval.per_device_eval_batch_size", "as micro_batch_size", default=rows_at_a_time),
    carried("early_stopping_patience", "eval.stopping.patience", becomes=cadence.patience),
    carried("load_best_model_at_end", "eval.load_best", becomes=cadence.best),
    carried("metric_for_best_model", "eval.metric", becomes=cadence.metric),
    carried("greater_is_better", "eval.metric", becomes=cadence.greater),
    carried("save_steps", "train.save_steps", becomes=_SAVES),
    carried("saves_per_epoch", "train.save_steps", becomes=cadence.per_epoch("train.save_steps")),
    carried("save_strategy", "train.save_steps", becomes=cadence.saves),
    carried("save_total_limit", "train.save_total_limit", default=4),
    carried("logging_steps", "train.logging_steps", becomes=cadence.logs),
    missing("loss_watchdog_threshold", "ends a run whose loss stays above", "eval.stopping.divergence: FACTOR"),
    missing("loss_watchdog_patience", "steps that the watchdog waits", "eval.stopping.divergence: FACTOR"),
    missing("do_bench_eval bench_* do_causal_lm_eval eval_causal_lm_metrics", "benchmarks", "jaxlean evaluate --tasks"),
    missing("eval_table_size eval_max_new_tokens", "shows generations while training", "eval.exact_match: true"),
    missing("generate_samples num_generation_samples generation_*", "shows generations", "eval.exact_match: true"),
    missing("save_only_model", "checkpoints that cannot be resumed", "train.save_total_limit: 1"),
    missing("resume_from_checkpoint", "goes on from a checkpoint of torch", reasons.RESUME),
    idle("auto_resume_from_checkpoints", "jaxlean finetune --resume, on the command line"),
    idle("save_safetensors save_first_step", "weights are safetensors, and written once"),
    idle("include_tokens_per_second include_tkps profiler_steps*", reasons.MEASURED),
    idle("debug local_rank is_preprocess preprocess_iterable total_* axolotl_config_path", "of Axolotl itself"),
    carried("use_wandb", "report.wandb", becomes=wandb),
    carried("wandb_project", "report.wandb_project", becomes=wandb),
    carried("wandb_name wandb_run_id", "report.run_name"),
    missing("wandb_entity wandb_mode", "W&B's own", "WANDB_ENTITY, WANDB_MODE in the environment"),
    missing("wandb_watch wandb_log_model", "W&B's own", reasons.TRACKERS),
    idle("use_tensorboard", "report.tensorboard: true is the default"),
    missing("comet_api_key", "a secret", "the environment", secret=True),
    missing("use_mlflow mlflow_* hf_mlflow_log_artifacts use_comet comet_*", "another tracker", reasons.TRACKERS),
    missing("use_otel_metrics otel_* trackio_* use_trackio", "another tracker", reasons.TRACKERS),
    missing("hub_model_id hub_revision", "pushes the result", reasons.PUSH),
    idle("hub_strategy", reasons.NOT_PUSHED),
    idle("gradio_*", "of its chat in the browser; jaxlean generate"),
    idle("trl vllm", "of reinforcement learning"),
    # ---- many devices
    carried("deepspeed", "mesh.fsdp", "ZeRO-3: -1", becomes=sharding.deepspeed),
    carried("fsdp", "mesh.fsdp", "full_shard: -1", becomes=sharding.fsdp),
    carried("fsdp_config.activation_checkpointing", "train.remat", becomes=sharding.recomputes),
    carried("fsdp_config.offload_params fsdp_config.fsdp_offload_params", "mesh.fsdp", becomes=sharding.offloads),
    carried("fsdp_config.reshard_after_forward", "mesh.fsdp", becomes=fsdp2),
    idle("fsdp_config fsdp_config.* fsdp_version fsdp_final_state_dict_type deepcompile", reasons.GATHERS),
    carried("dp_shard_size", "mesh.fsdp", becomes=sharding.axis("fsdp", "one shard")),
    carried("dp_replicate_size", "mesh.data", becomes=sharding.axis("data", "one copy")),
    carried(
        "context_parallel_size sequence_parallel_degree", "mesh.context", becomes=sharding.axis("context", "not split")
    ),
    carried("tensor_parallel_size", "mesh.tensor", becomes=sharding.axis("tensor", "not split")),
    carried("expert_parallel_size", "mesh.expert", becomes=sharding.axis("expert", "not split")),
    idle("ddp ddp_* accelerator_config accelerator_config.*", reasons.GRADIENTS),
    missing("use_ray ray_* resources_per_worker", "starts processes with Ray", reasons.LAUNCH),
    refused("rl", reasons.PREFERENCES),
    refused("reward_model process_reward_model", reasons.PREFERENCES),
    refused("processor_type is_multimodal image_size image_resize_algorithm image_base_dir", reasons.IMAGES),
    refused("num_labels", "labels of texts by Axolotl; jaxlean has task: classify, in a config of its own"),
    idle("dpo_* rl_beta orpo_alpha rpo_alpha simpo_gamma cpo_alpha kto_* max_prompt_len", "of preferences"),
)  # fmt: skip

FORMAT = Format(
    "axolotl", "Axolotl", (*_MODEL, *_DATA, *_TRAIN),
    sections=(
        "special_tokens", "lr_scheduler_kwargs", "fsdp_config", "gradient_checkpointing_kwargs", "accelerator_config",
        "peft", "bnb_config_kwargs", "qat", "quantization", "trl", "vllm", "selective_checkpointing",
    ),
    others=others,
)  # fmt: skip
