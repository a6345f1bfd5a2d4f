"""A run and how it is trained, measured and placed: name, type, default and meaning of every setting, once.

Keys carry the names that Hugging Face, PEFT and TRL users know; the common aliases (`micro_batch_size`, `cutoff_len`,
`lora_r` ...) are accepted.
"""

import re
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from jaxlean.config.compression import CalibrationSection, QuantizeSection
from jaxlean.config.cost import CostSection
from jaxlean.config.curation import CurateSection
from jaxlean.config.curriculum import CurriculumSection
from jaxlean.config.data import DataSection
from jaxlean.config.distill import DistillSection
from jaxlean.config.evaluation import METRICS, EvalSection
from jaxlean.config.model import LoraSection, ModelSection
from jaxlean.config.pruning import GradualSection, PruneSection
from jaxlean.config.search import SearchSection
from jaxlean.config.section import Fraction, Section, named


class DilocoSection(Section):
    """Replicas that exchange once in many steps (DiLoCo, arXiv 2311.08105), with `train.sync: diloco`."""

    every: PositiveInt = Field(50, description="Steps that each replica takes by itself, then they exchange (H).")
    outer_learning_rate: float = Field(0.7, gt=0, description="Of the step that all replicas then take together.")
    outer_momentum: Fraction = Field(0.9, description="Of that step, by Nesterov's rule.")
    compression: Literal["int8", "none"] = Field(
        "int8", description="What is exchanged: 8 bits a parameter, with a scale for 256 of them; or float32."
    )


class ContrastSection(Section):
    """How pairs are learned from, with `task: embed`: each anchor is to find its positive among all of the batch."""

    scale: float = Field(
        20.0, gt=0, description="Cosine similarities are multiplied by it: 1 / temperature (sentence-transformers: 20)."
    )
    symmetric: bool = Field(False, description="Each positive is to find its anchor as well, as in CLIP.")


# What Hugging Face's Trainer calls them.
OPTIMIZER_NAMES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    "adamw_bnb_8bit": "adamw_8bit",
    "lion_32bit": "lion",
}


class TrainSection(Section):
    """How it is trained."""

    learning_rate: float = named(2e-4, "Peak learning rate.", "lr", gt=0)
    num_train_epochs: float = named(1.0, "Passes over the data; max_steps wins over it.", "num_epochs", "epochs", gt=0)
    max_steps: PositiveInt | None = Field(None, description="Optimizer updates; default: from num_train_epochs.")
    per_device_train_batch_size: PositiveInt = named(
        8, "Sequences in one forward and backward pass on one device.", "micro_batch_size", "batch_size"
    )
    gradient_accumulation_steps: PositiveInt = Field(1, description="Microbatches in one optimizer update.")
    optim: Literal["adamw", "adamw_8bit", "adafactor", "lion", "sgd", "muon"] = named(
        "adamw", "Optimizer; adamw_8bit holds its two moments in 8 bits each.", "optimizer"
    )
    momentum_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="What adamw, lion, sgd and muon hold the first moment in."
    )
    adam_beta1: Fraction = Field(
        0.9, description="adamw, lion, muon (vectors): share of the first moment that stays in a step's direction."
    )
    adam_beta2: Fraction = Field(
        0.999, description="adamw, muon (vectors): of the second; lion: of the first that is kept."
    )
    adam_epsilon: float = Field(1e-8, gt=0, description="adamw, muon (vectors): added to the second moment's root.")
    momentum: Fraction = Field(0.9, description="sgd and muon.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled; never on norms, biases or 1-d parameters.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Clip the global gradient norm; null turns it off.")
    lr_scheduler_type: Literal["constant", "linear", "cosine", "warmup_stable_decay", "cosine_with_restarts"] = named(
        "cosine", "Shape of the learning rate after warm-up.", "lr_scheduler"
    )
    warmup_ratio: Fraction = Field(0.03, description="Share of the steps in linear warm-up.")
    warmup_steps: NonNegativeInt | None = Field(None, description="Steps of warm-up; wins over warmup_ratio.")
    min_lr_ratio: Fraction = Field(0.0, description="The learning rate ends at this share of its peak.")
    decay_ratio: Fraction = Field(0.2, description="warmup_stable_decay: share of the steps in the decay.")
    num_cycles: PositiveInt = Field(3, description="cosine_with_restarts: number of cosine cycles.")
    sync: Literal["step", "diloco"] = Field(
        "step",
        description="When replicas (mesh.data) exchange: their gradients in every step, or, for slow links, what they "
        "have learned in many (train.diloco).",
    )
    diloco: DilocoSection = Field(default_factory=DilocoSection)
    contrast: ContrastSection = Field(default_factory=ContrastSection)
    trainable: list[str] | None = Field(
        None, description="lora: null only. Regexes of the parameter paths that train; default: all."
    )
    keep_zeros: bool = Field(
        False,
        description="Zeros in the layers' matrices stay zero: a pruned model stays pruned. With adapters (plain LoRA) "
        "these add nothing where the base has zeros, and merging them keeps these.",
    )
    pruning: GradualSection | None = Field(
        None, description="lora: null only. Make zeros while training, more and more of them; they stay zero."
    )
    remat: str | list[str] | dict[str, list[str]] = named(
        "none",
        "Activations to recompute: none, full, dots, dots_no_batch, attention, mlp, nested, auto; or names to keep; or "
        "{save: names, offload: names}. true is full, false is none.",
        "gradient_checkpointing",
    )
    memory_budget: int | None = Field(
        None, gt=0, description="remat: auto only. Memory of one device: bytes, or 12GB, 11GiB; default: what it has."
    )
    label_smoothing_factor: Fraction = Field(
        0.0, description="Share of each target spread over the whole vocabulary. In `loss`; not in the held-out loss."
    )
    z_loss: float = Field(
        0.0, ge=0, description="Weight of logsumexp(logits)^2, 1e-4 in PaLM. In `loss`; not in the held-out loss."
    )
    router_aux_loss_coef: float | None = Field(
        None, ge=0, description="Weight of the loss that balances a mixture's experts; default: as config.json says."
    )
    loss_chunk_bytes: PositiveInt | Literal["auto"] | None = Field(
        "auto",
        description="Float32 logits that one device holds at a time, in bytes; null: those of the whole batch. "
        "auto: 256 MiB on GPU and TPU; on CPU 32 MiB, and those of at most 256 positions.",
    )
    logging_steps: PositiveInt = Field(10, description="Steps between lines of metrics.jsonl and of the trackers.")
    save_steps: PositiveInt | None = Field(None, description="Steps between checkpoints; default: a tenth of the run.")
    save_total_limit: PositiveInt = Field(2, description="Checkpoints kept.")

    @field_validator("remat", mode="before")
    @classmethod
    def _gradient_checkpointing_is_a_switch(cls, value: Any) -> Any:
        # on the command line it is text, as a policy would be
        return {"true": "full", "false": "none"}.get(str(value).lower(), value)

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _bytes_have_units(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([kmgt]?)(i?)b?", value.strip().lower())
        if found is None:
            raise ValueError("a number of bytes, or one with a unit: 12GB, 11GiB")
        number, unit, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))

    @field_validator("optim", mode="before")
    @classmethod
    def _other_names_of_optimizers(cls, value: Any) -> Any:
        return OPTIMIZER_NAMES.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _optimizer_has_a_first_moment(self) -> "TrainSection":
        if self.momentum_dtype != "float32" and self.optim in ("adamw_8bit", "adafactor"):
            raise ValueError(f"train.momentum_dtype is for adamw, lion, sgd and muon, not for {self.optim}")
        return self


class MeshSection(Section):
    """Devices by axis; -1 takes what is left. `mesh: auto` lets the planner choose for the devices that are there."""

    auto: bool = Field(False, description="Choose the axes: compile the foremost meshes for these devices, take one.")
    data: int = Field(-1, ge=-1, description="Copies of the model, each with its part of the batch.")
    fsdp: int = Field(1, ge=-1, description="Parameters and batch split over this axis.")
    expert: int = Field(1, ge=-1, description="The experts of a mixture split over this axis, and the batch.")
    context: int = Field(1, ge=-1, description="Sequences split over this axis, for those too long for one device.")
    tensor: int = Field(1, ge=-1, description="Matrices split over this axis.")
    host_devices: PositiveInt = Field(
        1,
        description="CPU only: devices that the host's cores are split into. With one a core and a batch for each, no "
        "core waits for another inside a step.",
    )

    @field_validator("data", "fsdp", "expert", "context", "tensor")
    @classmethod
    def _axes_have_devices(cls, value: int) -> int:
        if value == 0:
            raise ValueError("an axis has 1 device or more, or -1: what is left")
        return value

    @model_validator(mode="before")
    @classmethod
    def _auto_is_a_word(cls, values: Any) -> Any:
        return {"auto": True} if values == "auto" else values


class DistributedSection(Section):
    """Several processes as one run: the same command in each, on one machine or many (`jax.distributed`)."""

    enabled: bool = Field(True, description="false: this process runs alone, whatever started it.")
    coordinator_address: str | None = Field(
        None, description="host:port of process 0, reachable from all. With the next two, or none of the three: SLURM, "
        "Open MPI, TPU pods and Kubernetes jobs tell jax themselves."
    )  # fmt: skip
    num_processes: PositiveInt | None = Field(None, description="Processes of the run.")
    process_id: NonNegativeInt | None = Field(None, description="Which of them this one is, from 0; 0 writes.")
    local_device_ids: list[NonNegativeInt] | None = Field(
        None,
        description="GPUs of this process; default: all it sees, or one each where SLURM or Open MPI starts several "
        "processes on a machine.",
    )  # fmt: skip
    start_timeout_seconds: PositiveInt = Field(300, description="How long processes wait for each other at the start.")

    @model_validator(mode="after")
    def _all_three_or_none(self) -> "DistributedSection":
        names = ("coordinator_address", "num_processes", "process_id")
        missing = [name for name in names if getattr(self, name) is None]
        if len(missing) in (1, 2):
            given = ", ".join(name for name in names if name not in missing)
            raise ValueError(
                f"{given} without {' and '.join(missing)}: set all three, or none (then they are detected)"
            )
        if self.num_processes is not None and self.process_id is not None and self.process_id >= self.num_processes:
            raise ValueError(f"process_id {self.process_id} of {self.num_processes} processes: they count from 0")
        host, _, port = (self.coordinator_address or "host:1").rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"coordinator_address is host:port, not {self.coordinator_address!r}")
        return self


class ReportSection(Section):
    """Where the numbers go, beside metrics.jsonl."""

    tensorboard: bool = Field(True, description="Write output_dir/tensorboard.")
    wandb: bool = Field(False, description="Send them to Weights & Biases; needs pip install wandb.")
    wandb_project: str = Field("jaxlean", description="wandb only. The project that runs appear in.")
    run_name: str | None = Field(None, description="wandb only. What the run is called; default: as W&B makes up.")
    progress: bool = Field(True, description="Draw a progress bar when the output is a terminal.")


# Transformers' names of pipelines, and PEFT's of task types, in lower case with "-" for "_".
TASK_NAMES = {
    **dict.fromkeys(("text-generation", "causal-lm"), "generate"),
    **dict.fromkeys(("text-classification", "sequence-classification", "seq-cls"), "classify"),
    **dict.fromkeys(("token-classification", "token-cls", "ner"), "tag"),
    **dict.fromkeys(("feature-extraction", "sentence-similarity"), "embed"),
}


class RunConfig(Section):
    """One run. `jaxlean finetune FILE section.key=value ...` fills it."""

    task: Literal["generate", "classify", "tag", "embed"] = Field(
        "generate",
        description="What is learned. generate: the next token; classify: a label for a text; tag: one for each word; "
        "embed: vectors that are close for texts that belong together.",
    )
    output_dir: str = Field("runs/run", description="Folder that the run writes; it must not hold another run.")
    seed: int = Field(0, description="Of everything random: data order, adapter, dropout.")
    compilation_cache: bool | str = Field(
        True,
        description="Keep compiled programs on disk for the next start: in the user's cache folder, nowhere (false), "
        "or in this folder.",
    )
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    lora: LoraSection | None = Field(default_factory=LoraSection)
    distill: DistillSection | None = Field(None, description="Learn from a teacher; lora is then null if not set.")
    train: TrainSection = Field(default_factory=TrainSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    distributed: DistributedSection = Field(default_factory=DistributedSection)
    cost: CostSection = Field(default_factory=CostSection)
    curate: CurateSection = Field(default_factory=CurateSection)
    calibration: CalibrationSection = Field(default_factory=CalibrationSection)
    quantize: QuantizeSection = Field(default_factory=QuantizeSection)
    prune: PruneSection = Field(default_factory=PruneSection)
    search: SearchSection = Field(default_factory=SearchSection)
    report: ReportSection = Field(default_factory=ReportSection)

    @field_validator("task", mode="before")
    @classmethod
    def _other_names_of_tasks(cls, value: Any) -> Any:
        return TASK_NAMES.get(value.lower().replace("_", "-"), value) if isinstance(value, str) else value

    @field_validator("train")
    @classmethod
    def _rules_compile(cls, train: TrainSection) -> TrainSection:
        for rule in train.trainable or []:
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"train.trainable: not a regular expression: {rule!r} ({error})") from error
        return train

    @model_validator(mode="before")
    @classmethod
    def _a_student_trains_whole(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("distill") is not None and "lora" not in values:
            return values | {"lora": None}
        return values

    @model_validator(mode="after")
    def _sections_agree(self) -> "RunConfig":
        if self.lora is not None and self.train.trainable is not None:
            raise ValueError("train.trainable needs lora: null (with LoRA, the adapter is what trains)")
        if self.lora is not None and self.train.pruning is not None:
            raise ValueError("train.pruning needs lora: null: it takes weights away, and an adapter only adds to them")
        if self.lora is not None and self.train.keep_zeros:
            self.lora.check_plain("train.keep_zeros")
            if self.lora.quantization_aware:
                raise ValueError("train.keep_zeros and lora.quantization_aware exclude each other")
        if self.train.pruning is not None and self.train.sync == "diloco":
            raise ValueError("train.pruning is not for train.sync: diloco: each replica would make other zeros")
        if self.lora is not None and self.lora.use_dora and self.lora.init_lora_weights == "pissa":
            raise ValueError("lora.use_dora and lora.init_lora_weights=pissa exclude each other")
        if self.data.streaming and self.eval.shots:
            raise ValueError("eval.shots chooses among all training rows; data.streaming does not have them all")
        if self.data.streaming and self.train.max_steps is None:
            raise ValueError("data.streaming needs train.max_steps: the length of a stream is not known")
        if self.eval.remembers and not self.data.eval and not self.data.eval_fraction:
            what = "mode: async" if self.eval.mode == "async" else "load_best" if self.eval.load_best else "stopping"
            raise ValueError(f"eval.{what} needs held-out rows: data.eval, or data.eval_fraction")
        if self.eval.metric not in ("loss", *METRICS[self.task]):
            known = ", ".join(("loss", *METRICS[self.task]))
            raise ValueError(f"eval.metric: {self.eval.metric} is not measured with task: {self.task}, but {known}")
        if self.task != "generate":
            self._check_task()
        if self.data.curriculum is not None:
            self._check_curriculum(self.data.curriculum)
        if self.distill is not None:
            self._check_distill(self.distill)
        if self.train.sync == "diloco" and (self.mesh.auto or self.mesh.data in (0, 1)):
            got = "mesh: auto" if self.mesh.auto else f"mesh.data={self.mesh.data}"
            raise ValueError(f"train.sync: diloco needs replicas, not {got}; mesh.data says how many, 2 or more")
        return self

    def _check_curriculum(self, curriculum: CurriculumSection) -> None:
        if self.data.streaming:
            raise ValueError("data.curriculum sorts all rows before the first step; data.streaming has not read them")
        if not self.data.shuffle:
            raise ValueError("data.curriculum and data.shuffle: false are two orders: leave one out")
        if curriculum.difficulty != "loss":
            return
        if self.task != "generate":
            raise ValueError(
                "data.curriculum.difficulty: loss is that of a model which does its task already, and the head of "
                f"task: {self.task} is new; take length, rarity, or a column of scores"
            )
        if self.model.architecture is not None:
            raise ValueError(
                "data.curriculum.difficulty: loss is that of a base which has learned something, and "
                "model.architecture starts from zero; take length, rarity, or a column (another model's losses)"
            )

    def _check_distill(self, distill: DistillSection) -> None:
        model = self.model
        if self.task == "embed":
            raise ValueError("distill is for task: generate, classify and tag; vectors have no distribution to learn")
        if model.new_tokens is not None:
            raise ValueError("distill and model.new_tokens: the teacher would not know the new tokens")
        if distill.student is not None and model.quantization != "none":
            raise ValueError("distill.student and model.quantization: quantize the student when it is written")
        if distill.student is not None and self.lora is not None:
            raise ValueError(
                "distill.student trains whole (lora: null): an adapter needs a base in a folder, model.path"
            )
        if self.train.sync != "step":
            raise ValueError("distill and train.sync: diloco do not go together; train.sync: step")
        if self.data.streaming and distill.cache is not None:
            raise ValueError("distill.cache keeps what is said of each row by its number, which a stream does not tell")
        if distill.match is not None and distill.cache is not None:
            raise ValueError("distill.match needs the running teacher: a cache of hidden states would be too large")
        if distill.on_policy and (distill.alpha < 1 or self.task != "generate" or self.data.streaming):
            raise ValueError(
                "distill.on_policy needs task: generate, alpha: 1 (what the student wrote is no task to learn) and "
                "rows that are not streamed"
            )
        if distill.alpha == 1 and (self.train.label_smoothing_factor or self.train.z_loss):
            raise ValueError(
                "train.label_smoothing_factor and train.z_loss are of the task's own loss; distill.alpha: 1 has none"
            )
        if self.mesh.auto and distill.devices is not None:
            raise ValueError("distill.devices and mesh: auto: name the axes of the student's mesh")

    def _check_task(self) -> None:
        data, train, task = self.data, self.train, self.task
        if data.streaming:
            raise ValueError(f"data.streaming is for task: generate; {task} reads all rows before the first step")
        if self.eval.exact_match:
            raise ValueError(f"eval.exact_match compares what is generated; task: {task} has metrics of its own")
        if self.eval.shots is not None and task in ("tag", "embed"):
            raise ValueError(f"eval.shots is for task: generate and classify, not for {task}")
        if self.eval.shots is not None and self.eval.shots_by == "nearest":
            raise ValueError("eval.shots_by: nearest is for task: generate; labels have the same examples for all rows")
        if isinstance(data.text_column, list) and (task == "tag" or len(data.text_column) != 2):
            raise ValueError(f"data.text_column names {'one column' if task == 'tag' else 'two columns at most'}")
        if task == "embed":
            if train.per_device_train_batch_size % 2 or self.eval.per_device_eval_batch_size % 2:
                raise ValueError("task: embed takes two sequences for a pair: per_device_..._batch_size must be even")
            if train.label_smoothing_factor or train.z_loss:
                raise ValueError("train.label_smoothing_factor and train.z_loss are not for task: embed")
        elif data.labels is not None and len(set(data.labels)) != len(data.labels):
            raise ValueError("data.labels names a label twice")
        elif data.labels is not None and len(data.labels) < 2:
            raise ValueError("data.labels needs two labels or more")
