"""Hugging Face's TrainingArguments: keys that TRL and LLaMA-Factory share (transformers/training_args.py, 4 and 5)."""

from jaxlean.convert import cadence, optimizer, precision, reasons, schedule, sharding
from jaxlean.convert.row import Row, carried, idle, missing

ROWS: tuple[Row, ...] = (
    # ---- what is optimized
    carried("output_dir", "output_dir"),
    carried("learning_rate", "train.learning_rate", default=5e-5),
    carried("lr_scheduler_type", "train.lr_scheduler_type", becomes=schedule.scheduler, default="linear"),
    carried("lr_scheduler_kwargs lr_scheduler_kwargs.*", "train.min_lr_ratio", becomes=schedule.scheduler_setting),
    carried("warmup_steps", "train.warmup_steps", becomes=schedule.warmup_steps, default=schedule.no_warmup),
    carried("warmup_ratio", "train.warmup_ratio", becomes=schedule.warmup_ratio),
    carried("num_train_epochs", "train.num_train_epochs", default=3.0),
    carried("max_steps", "train.max_steps", "-1: null", becomes=schedule.steps_or_epochs),
    carried("per_device_train_batch_size per_gpu_train_batch_size", "train.per_device_train_batch_size", default=8),
    carried("gradient_accumulation_steps", "train.gradient_accumulation_steps", default=1),
    carried("optim", "train.optim", becomes=optimizer.optimizer, default="adamw_torch"),
    carried("optim_args", "train.momentum", becomes=optimizer.settings),
    carried("weight_decay", "train.weight_decay", default=0.0),
    carried("adam_beta1", "train.adam_beta1", default=0.9),
    carried("adam_beta2", "train.adam_beta2", default=0.999),
    carried("adam_epsilon", "train.adam_epsilon", default=1e-8),
    carried("max_grad_norm", "train.max_grad_norm", "0: null", becomes=optimizer.clipping, default=1.0),
    carried("label_smoothing_factor", "train.label_smoothing_factor", default=0.0),
    carried("seed", "seed", default=42),
    missing("neftune_noise_alpha", "noise on the embeddings while training", reasons.NOISE),
    missing("optim_target_modules", "the matrices of a low-rank optimizer", "lora"),
    missing("data_seed", "another seed for the order of the rows", "seed, which is of everything"),
    missing("adafactor", "an older name of optim: adafactor", "train.optim: adafactor"),
    # ---- bits and memory
    carried("bf16", "model.dtype", "true: bfloat16", becomes=precision.bf16),
    carried("fp16", "model.dtype", "true: bfloat16", becomes=precision.fp16),
    carried(
        "gradient_checkpointing activation_checkpointing", "train.remat", "true: full", becomes=precision.checkpointing,
        default=False,
    ),
    idle("gradient_checkpointing_kwargs gradient_checkpointing_kwargs.*", reasons.RECOMPUTES),
    idle("activation_checkpointing_kwargs activation_checkpointing_kwargs.*", reasons.RECOMPUTES),
    idle("tf32 fp16_opt_level half_precision_backend fp16_backend", "model.dtype says what is multiplied in"),
    idle("bf16_full_eval fp16_full_eval", "held-out rows are scored in model.dtype"),
    idle("torch_compile torch_compile_* torchdynamo jit_mode_eval use_ipex", reasons.FUSED),
    idle("use_liger_kernel liger_kernel_config", reasons.FUSED),
    idle("torch_empty_cache_steps enable_jit_checkpoint use_cache past_index", "of torch's memory"),
    idle("auto_find_batch_size", "jaxlean plan says what fits before anything runs; train.remat: auto makes it fit"),
    # ---- evaluation
    carried("eval_strategy evaluation_strategy", "eval.eval_steps", becomes=cadence.evaluates(lambda source: 500)),
    carried(
        "eval_steps", "eval.eval_steps",
        becomes=cadence.every("eval.eval_steps", "eval_strategy", "evaluation_strategy", default="no"),
    ),
    carried("per_device_eval_batch_size per_gpu_eval_batch_size", "eval.per_device_eval_batch_size", default=8),
    carried("load_best_model_at_end", "eval.load_best", becomes=cadence.best),
    carried("metric_for_best_model", "eval.metric", becomes=cadence.metric),
    carried("greater_is_better", "eval.metric", becomes=cadence.greater),
    carried("early_stopping_patience", "eval.stopping.patience", becomes=cadence.patience),
    carried("early_stopping_threshold", "eval.stopping.min_delta"),
    carried("eval_on_start", "eval.before"),
    missing("eval_delay", "no evaluation before this step", "eval.stopping.min_steps"),
    missing("include_for_metrics include_inputs_for_metrics", "what a script's own metrics see", "eval.metric"),
    idle("eval_accumulation_steps eval_do_concat_batches eval_use_gather_object", "no logits are kept"),
    idle("batch_eval_metrics prediction_loss_only label_names", "held-out rows are scored by their loss"),
    # ---- checkpoints and logs
    carried("save_strategy", "train.save_steps", becomes=cadence.saves),
    carried(
        "save_steps", "train.save_steps", becomes=cadence.every("train.save_steps", "save_strategy", default="steps"),
        default=cadence.save_default,
    ),
    carried("save_total_limit", "train.save_total_limit", becomes=cadence.keeps_all, default=lambda source: None),
    carried("logging_steps", "train.logging_steps", becomes=cadence.logs, default=500),
    carried("report_to", "report.wandb", "a list", becomes=cadence.reports),
    carried("run_name", "report.run_name"),
    carried("project", "report.wandb_project"),
    idle("logging_strategy logging_first_step logging_nan_inf_filter log_level log_level_replica", reasons.LOGS),
    idle("logging_dir log_on_each_node", reasons.LOGS),
    idle("disable_tqdm", "report.progress draws a bar where the output is a terminal"),
    idle("save_safetensors save_on_each_node", "weights are safetensors, and written once"),
    idle("include_num_input_tokens_seen include_tokens_per_second skip_memory_metrics", reasons.MEASURED),
    missing("save_only_model", "checkpoints that cannot be resumed", "train.save_total_limit: 1"),
    missing("resume_from_checkpoint", "goes on from a checkpoint of torch", reasons.RESUME),
    idle("overwrite_output_dir", "jaxlean finetune --overwrite, on the command line"),
    idle("ignore_data_skip restore_callback_states_from_checkpoint", "--resume goes on with the next row"),
    missing("push_to_hub hub_model_id", "pushes the result", reasons.PUSH),
    missing("push_to_hub_model_id push_to_hub_organization", "pushes the result", reasons.PUSH),
    missing("hub_token push_to_hub_token", "a secret", reasons.TOKEN, secret=True),
    idle("hub_strategy hub_private_repo hub_always_push hub_revision", reasons.NOT_PUSHED),
    idle("trackio_space_id trackio_bucket_id trackio_static_space_id", "of a tracker that needs report_to"),
    # ---- data
    carried("streaming", "data.streaming", default=False),
    missing("group_by_length", "rows of like length in a batch", "data.packing: true, which leaves no padding"),
    idle("train_sampling_strategy length_column_name", reasons.SHUFFLED),
    idle("dataloader_* remove_unused_columns", reasons.LOADER),
    # ---- many devices
    carried("deepspeed", "mesh.fsdp", "ZeRO-3: -1", becomes=sharding.deepspeed),
    carried("fsdp", "mesh.fsdp", "full_shard: -1", becomes=sharding.fsdp),
    carried("fsdp_config.activation_checkpointing", "train.remat", becomes=sharding.recomputes),
    carried("fsdp_config.offload_params fsdp_config.fsdp_offload_params", "mesh.fsdp", becomes=sharding.offloads),
    idle("fsdp_config fsdp_config.* fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap", reasons.GATHERS),
    idle("ddp_* local_rank average_tokens_across_devices parallelism_config", reasons.GRADIENTS),
    idle("accelerator_config accelerator_config.* sharded_ddp xpu_backend mp_parameters", reasons.GRADIENTS),
    idle("split_batches dispatch_batches ray_scope", reasons.GRADIENTS),
    idle("no_cuda use_cpu use_mps_device tpu_num_cores tpu_metrics_debug debug", reasons.DEVICES),
    idle("full_determinism", "the same seed on the same devices gives the same run"),
    idle("do_train", "jaxlean finetune trains"),
    idle("do_eval do_predict", "jaxlean evaluate scores"),
    idle("transformers_version _n_gpu framework", "of the file itself"),
)  # fmt: skip
# Keys whose values are mappings of keys.
SECTIONS = (
    "lr_scheduler_kwargs", "fsdp_config", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs",
    "accelerator_config",
)  # fmt: skip


def without(*keys: str) -> tuple[Row, ...]:
    """The rows but for those of these keys, which a project has in a way of its own."""
    return tuple(row for row in ROWS if not set(keys) & set(row.keys))
