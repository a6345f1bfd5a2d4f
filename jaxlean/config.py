"""Every setting, once.

A run is one `RunConfig`, read from a YAML file with `section.key=value` overrides. Keys carry the names that
Hugging Face, PEFT and TRL users know; the common aliases (`micro_batch_size`, `cutoff_len`, `lora_r` ...) are
accepted, an unknown key is an error with a suggestion.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from jaxlean.errors import ConfigError, did_you_mean

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _named(default: Any, description: str, *aliases: str, **constraints: Any) -> Any:
    """A field that is also accepted under other projects' names for it (its own stays valid: `populate_by_name`)."""
    return Field(default, description=description, validation_alias=AliasChoices(*aliases), **constraints)


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, and a value is checked again when it is assigned."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_assignment=True, protected_namespaces=())


class ModelSection(Section):
    """Which model, and the numbers it is held in."""

    path: str | None = _named(None, "Hugging Face id or folder of the base model.", "model_name_or_path", "base_model")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hugging Face hub.")
    architecture: dict[str, Any] | None = Field(
        None, description="pretrain only: a Hugging Face config (model_type, hidden_size ...) to start from zero."
    )
    tokenizer: str | None = Field(None, description="Folder or id of the tokenizer; default: the one beside the model.")
    chat_template: str | None = Field(None, description="A Jinja file that replaces the tokenizer's chat template.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="What matrices are multiplied in. auto: float32 on CPU, bfloat16 on GPU and TPU."
    )
    save_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="What a whole written model is held in (lora: null). auto: as dtype."
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="With lora: hold the layers' frozen matrices in 8 bits (load_in_8bit: true) or in 4 as QLoRA does "
        "(load_in_4bit: true).",
    )
    matmul: Literal["default", "int8", "fp8"] = Field(
        "default",
        description="What the layers' matrices and their inputs are rounded to for a product. default: dtype. "
        "fp8 needs hardware that has it.",
    )
    attention: Literal["auto", "plain", "block", "cudnn", "splash"] = _named(
        "auto", "Back end of attention. auto: the fastest that runs on the hardware; printed.", "attn_implementation"
    )

    @model_validator(mode="before")
    @classmethod
    def _bits_name_a_format(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not {"load_in_8bit", "load_in_4bit"} & values.keys():
            return values
        values = dict(values)
        flags = {"load_in_8bit": "int8", "load_in_4bit": "nf4"}
        asked = []
        for key, form in flags.items():
            flag = values.pop(key, False)
            if not isinstance(flag, bool):
                raise ValueError(f"{key} is true or false, not {flag!r}")
            asked += [form] if flag else []
        if len({*asked, values.get("quantization", "none")} - {"none"}) > 1:
            raise ValueError("load_in_8bit, load_in_4bit and quantization say different things: keep one")
        return values | ({"quantization": asked[0]} if asked else {})


class SourceSection(Section):
    """One dataset: a file (.jsonl .json .csv .tsv .parquet .txt), a `datasets` folder, a URL, or a hub id."""

    path: str = Field(description="File, folder or hub id.")
    split: str = Field("train", description="Split of a folder or hub dataset.")
    name: str | None = Field(None, description="Configuration name of a hub dataset (`datasets` calls it name).")
    weight: float | None = Field(
        None,
        gt=0,
        description="Share of this source in the mix, if all sources have one; default: every row counts alike.",
    )
    format: Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "text", "template"] = _named(
        "auto", "Shape of a row. auto recognises it from the columns.", "type"
    )
    prompt: str | None = Field(None, description="Template of the prompt over the columns: 'Classify: {text}'.")
    completion: str | None = Field(None, description="Template of what is learned: '{category}'.")
    system: str | None = Field(None, description="System message put before each conversation.")
    limit: PositiveInt | None = Field(None, description="Read only the first rows.")


class DataSection(Section):
    """What is learned from, and how rows become tokens."""

    train: list[SourceSection] | None = _named(
        None, "Training data: a path, or a list of sources.", "dataset", "datasets"
    )
    eval: list[SourceSection] | None = Field(None, description="Held-out data: a path, or a list of sources.")
    eval_fraction: Fraction = Field(0.0, description="Without `eval`: this share of the training rows is held out.")
    prompt: str | None = Field(None, description="Default `prompt` template of every source.")
    completion: str | None = Field(None, description="Default `completion` template of every source.")
    system: str | None = Field(None, description="Default `system` message of every source.")
    chat: bool = Field(
        True, description="Render prompt/completion rows through the chat template where the tokenizer has one."
    )
    max_length: PositiveInt = _named(1024, "Tokens a row may have.", "max_seq_length", "cutoff_len", "sequence_len")
    on_long: Literal["error", "truncate", "drop"] = _named(
        "error", "What happens to a longer row; the counts are printed.", "excess_length_strategy"
    )
    packing: bool = _named(True, "Put several rows into one sequence, each seeing only itself.", "sample_packing")
    train_on: Literal["completion", "all"] = Field(
        "completion", description="Loss on assistant/completion tokens only, or on every token."
    )
    shuffle: bool = Field(True, description="A new order each epoch, from the seed.")
    streaming: bool = Field(
        False, description="Read while training, for data larger than the disk; needs train.max_steps."
    )

    @model_validator(mode="before")
    @classmethod
    def _path_is_a_source(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in ("train", "eval", "dataset", "datasets"):
                value = values.get(key)
                if isinstance(value, str):
                    values = {**values, key: [{"path": value}]}
                elif isinstance(value, dict):
                    values = {**values, key: [value]}
                elif isinstance(value, list):
                    values = {**values, key: [{"path": v} if isinstance(v, str) else v for v in value]}
        return values


class LoraSection(Section):
    """Low-rank adaptation (arXiv 2106.09685), with PEFT's names."""

    r: PositiveInt = _named(16, "Rank.", "lora_r", "lora_rank")
    lora_alpha: float = Field(32.0, gt=0, description="The adapter is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input.")
    target_modules: str | list[str] = Field(
        "all-linear", description="'all-linear' (all but the head), a list of names (q_proj, query ...), or a regex."
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (arXiv 2312.03732).")
    use_dora: bool = Field(False, description="Learn magnitude and direction apart (arXiv 2402.09353).")
    init_lora_weights: Literal["default", "pissa"] = Field(
        "default", description="default: A random, B zero. pissa: the principal singular vectors (arXiv 2404.02948)."
    )
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, description="LoRA+ (arXiv 2402.12354): B learns this much faster."
    )


# What Hugging Face's Trainer calls them.
_OPTIMIZER_NAMES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
    "adamw_bnb_8bit": "adamw_8bit",
    "lion_32bit": "lion",
}


class TrainSection(Section):
    """How it is trained."""

    learning_rate: float = _named(2e-4, "Peak learning rate.", "lr", gt=0)
    num_train_epochs: float = _named(1.0, "Passes over the data; max_steps wins over it.", "num_epochs", "epochs", gt=0)
    max_steps: PositiveInt | None = Field(None, description="Optimizer updates; default: from num_train_epochs.")
    per_device_train_batch_size: PositiveInt = _named(
        8, "Sequences in one forward and backward pass on one device.", "micro_batch_size", "batch_size"
    )
    gradient_accumulation_steps: PositiveInt = Field(1, description="Microbatches in one optimizer update.")
    optim: Literal["adamw", "adamw_8bit", "adafactor", "lion", "sgd", "muon"] = _named(
        "adamw", "Optimizer; adamw_8bit holds its two moments in 8 bits each.", "optimizer"
    )
    momentum_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="What adamw, lion, sgd and muon hold the first moment in."
    )
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: float = Field(1e-8, gt=0)
    momentum: Fraction = Field(0.9, description="sgd and muon.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled; never on norms, biases or 1-d parameters.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Clip the global gradient norm; null turns it off.")
    lr_scheduler_type: Literal["constant", "linear", "cosine", "warmup_stable_decay", "cosine_with_restarts"] = _named(
        "cosine", "Shape of the learning rate after warm-up.", "lr_scheduler"
    )
    warmup_ratio: Fraction = Field(0.03, description="Share of the steps in linear warm-up.")
    warmup_steps: NonNegativeInt | None = Field(None, description="Steps of warm-up; wins over warmup_ratio.")
    min_lr_ratio: Fraction = Field(0.0, description="The learning rate ends at this share of its peak.")
    decay_ratio: Fraction = Field(0.2, description="warmup_stable_decay: share of the steps in the decay.")
    num_cycles: PositiveInt = Field(3, description="cosine_with_restarts: number of cosine cycles.")
    trainable: list[str] | None = Field(
        None, description="lora: null only. Regexes of the parameter paths that train; default: all."
    )
    remat: str | list[str] | dict[str, list[str]] = _named(
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
    loss_chunk_bytes: PositiveInt | Literal["auto"] | None = Field(
        "auto",
        description="Float32 logits that one device holds at a time, in bytes; null: those of the whole batch. "
        "auto: 64 MiB on CPU, 256 MiB on GPU and TPU.",
    )
    logging_steps: PositiveInt = 10
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
        return _OPTIMIZER_NAMES.get(value, value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _optimizer_has_a_first_moment(self) -> "TrainSection":
        if self.momentum_dtype != "float32" and self.optim in ("adamw_8bit", "adafactor"):
            raise ValueError(f"train.momentum_dtype is for adamw, lion, sgd and muon, not for {self.optim}")
        return self


class EvalSection(Section):
    """How quality is measured."""

    eval_steps: PositiveInt | None = Field(
        None, description="Steps between evaluations of the loss; default: only the ends."
    )
    before: bool = Field(True, description="Measure the base before training, so that the gain is known.")
    per_device_eval_batch_size: PositiveInt = _named(16, "Sequences at a time.", "eval_batch_size")
    exact_match: bool = Field(False, description="Generate each held-out completion and compare it, word for word.")
    max_new_tokens: PositiveInt = Field(128, description="Longest generation.")
    max_examples: PositiveInt | None = Field(None, description="Use only the first held-out rows.")


class MeshSection(Section):
    """Devices by axis; -1 takes what is left."""

    data: int = Field(-1, ge=-1, description="Copies of the model, each with its part of the batch.")
    fsdp: int = Field(1, ge=-1, description="Parameters and batch split over this axis.")
    tensor: int = Field(1, ge=-1, description="Matrices split over this axis.")


class CostSection(Section):
    """What the hardware costs."""

    usd_per_hour: float | None = Field(
        None, ge=0, description="Price of all devices of the run together; wins over the table."
    )
    prices: str | None = Field(None, description="A YAML price table that goes before the built-in one.")


class ReportSection(Section):
    """Where the numbers go, beside metrics.jsonl."""

    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = "jaxlean"
    run_name: str | None = None
    progress: bool = Field(True, description="Draw a progress bar when the output is a terminal.")


class RunConfig(Section):
    """One run. `jaxlean finetune FILE section.key=value ...` fills it."""

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
    train: TrainSection = Field(default_factory=TrainSection)
    eval: EvalSection = Field(default_factory=EvalSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    cost: CostSection = Field(default_factory=CostSection)
    report: ReportSection = Field(default_factory=ReportSection)

    @field_validator("compilation_cache", mode="before")
    @classmethod
    def _words_for_yes_and_no(cls, value: Any) -> Any:
        # on the command line it is text, as a folder would be
        return {"true": True, "on": True, "false": False, "off": False}.get(str(value).lower(), value)

    @field_validator("train")
    @classmethod
    def _rules_compile(cls, train: TrainSection) -> TrainSection:
        for rule in train.trainable or []:
            try:
                re.compile(rule)
            except re.error as error:
                raise ValueError(f"train.trainable: not a regular expression: {rule!r} ({error})") from error
        return train

    @model_validator(mode="after")
    def _sections_agree(self) -> "RunConfig":
        if self.lora is not None and self.train.trainable is not None:
            raise ValueError("train.trainable needs lora: null (with LoRA, the adapter is what trains)")
        if self.lora is not None and self.lora.use_dora and self.lora.init_lora_weights == "pissa":
            raise ValueError("lora.use_dora and lora.init_lora_weights=pissa exclude each other")
        if self.data.streaming and self.train.max_steps is None:
            raise ValueError("data.streaming needs train.max_steps: the length of a stream is not known")
        return self


def load(file: str | Path | None, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file and apply `section.key=value` overrides, whose values are YAML too.

    Relative paths in the file are meant from the current folder; where nothing lies there, from the file's folder.
    `data.train=...` without `data.eval=...` drops the file's `data.eval`, which belongs to other data, and holds out
    a twentieth of what was given.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a value of the wrong type.
    """
    values: Any = {}
    if file is not None:
        file = Path(file)
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError("no such config file", where=file, fix="configs/ holds examples") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("the config file cannot be read", where=file, got=error) from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{file}:{mark.line + 1}" if mark else file
            raise ConfigError("not valid YAML", where=where, got=getattr(error, "problem", error)) from None
        if not isinstance(values, dict):
            raise ConfigError("a config is a mapping of sections", where=file, got=type(values).__name__)
    values = _canonical(values, RunConfig, where=file)
    for override in overrides or []:
        _apply(values, override)
    _own_held_out_rows(values, overrides or [])
    config = build(values, where=file)
    if file is not None:
        _find_paths(config, Path(file).resolve().parent)
    return config


def build(values: dict[str, Any], *, where: object = None) -> RunConfig:
    """Check a nested dict and make it a `RunConfig`.

    Raises:
        ConfigError: names the first key that is unknown or holds a wrong value.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, where) from None


def dump(config: RunConfig) -> str:
    """The resolved config as YAML, every default written out; `load` reads it back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _canonical(values: Any, section: type[Section], where: object) -> Any:
    """The same settings under our names for them, so that a file and an override may use different ones."""
    if isinstance(values, list):
        return [_canonical(value, section, where) for value in values]
    if not isinstance(values, dict):
        return values
    out: dict[Any, Any] = {}
    for key, value in values.items():
        name = _field_name(section, str(key))
        if name in out:
            raise ConfigError(f"{name} is given twice", where=where, got=key, fix="keep one of its names")
        field = section.model_fields.get(name)
        inner = _section_of(field.annotation) if field is not None else None
        out[name] = _canonical(value, inner, where) if inner is not None else value
    return out


def _field_name(section: type[Section], key: str) -> str:
    """Our name of a key that may be an alias; an unknown key stays as it is."""
    for name, field in section.model_fields.items():
        if isinstance(field.validation_alias, AliasChoices) and key in field.validation_alias.choices:
            return name
    return key


def _apply(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError("an override is section.key=value", got=repr(override), wanted="train.learning_rate=1e-4")
    keys: list[str] = []
    section: type[Section] | None = RunConfig
    annotation: Any = None
    for key in path.split("."):
        if section is not None and not key.isdigit():
            key = _field_name(section, key)
            field = section.model_fields.get(key)
            annotation = field.annotation if field is not None else None
            section = _section_of(annotation)
        keys.append(key)
    value = _parse(text, annotation)
    if section is not None:
        value = _canonical(value, section, override)
    node: Any = values
    *parents, last = keys
    for depth, key in enumerate(parents):
        if isinstance(node, list):
            step = node[int(key)] if key.isdigit() and int(key) < len(node) else None
        else:
            if node.get(key) is None:  # not there, or `lora: null` in the file and lora.r=8 on the command line
                node[key] = {}
            step = node[key]
        if not isinstance(step, (dict, list)):
            raise ConfigError(
                "an override goes through a value that has no keys", got=override, where=".".join(keys[: depth + 1])
            )
        node = step
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise ConfigError("no such list entry", got=override, wanted=f"an index below {len(node)}")
        node[int(last)] = value
    else:
        node[last] = value


def _parse(text: str, annotation: Any) -> Any:
    """The value of an override: YAML, but a setting that is text stays text (`data.prompt={text}`)."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    kinds = getattr(annotation, "__args__", (annotation,))
    texts = (str, list, dict) if any(get_origin(kind) is dict for kind in kinds) else (str, list)
    if str in kinds and value is not None and not isinstance(value, texts):
        return text
    if isinstance(value, str) and str not in kinds:
        # YAML 1.1 reads 1e-4 as text; people write it for a number.
        try:
            return float(value)
        except ValueError:
            pass
    return value


def _own_held_out_rows(values: dict[str, Any], overrides: list[str]) -> None:
    """Training data given on the command line does not keep the file's held-out rows, which belong to other data.

    Where the command names none of its own, a twentieth of the given data is held out instead.
    """
    given = {override.partition("=")[0] for override in overrides}
    data = values.get("data")
    if "data.train" not in given or any(key.startswith("data.eval") for key in given):
        return
    if isinstance(data, dict) and data.get("eval") is not None:
        del data["eval"]
        data.setdefault("eval_fraction", 0.05)


def _explain(error: ValidationError, where: object) -> ConfigError:
    """The first of pydantic's findings, in our form."""
    first = error.errors()[0]
    location = _location(first["loc"], unknown=first["type"] == "extra_forbidden")
    key = ".".join(str(part) for part in location) or "the config"
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        return ConfigError(f"unknown key: {key}", where=where, fix=did_you_mean(str(location[-1]), known))
    message = first["msg"].removeprefix("Value error, ")
    got = None if first["type"] == "value_error" else repr(first.get("input"))
    return ConfigError(f"{key}: {message}", where=where, got=got)


def _location(parts: tuple[int | str, ...], *, unknown: bool) -> list[Any]:
    """Where an error is, as a user would write it: pydantic also names the member of a union it tried."""
    location: list[Any] = []
    for number, part in enumerate(parts):
        last_and_unknown = unknown and number == len(parts) - 1
        if not isinstance(part, int) and not last_and_unknown and part not in _keys_at(location):
            break
        location.append(part)
    return location


def _keys_at(location: list[Any]) -> list[str]:
    """The keys of the section at a location in the config."""
    section: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        if field is None:
            return []
        section = _section_of(field.annotation)
        if section is None:
            return []
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_of(inner)
        if found is not None:
            return found
    return None


def _find_paths(config: RunConfig, folder: Path) -> None:
    """Point relative paths that exist only beside the config file there."""

    def found(path: str | None) -> str | None:
        if path is None or Path(path).exists() or Path(path).is_absolute():
            return path
        beside = folder / path
        return str(beside) if beside.exists() else path

    model = config.model
    model.path, model.tokenizer, model.chat_template = (
        found(model.path),
        found(model.tokenizer),
        found(model.chat_template),
    )
    for source in [*(config.data.train or []), *(config.data.eval or [])]:
        source.path = found(source.path) or source.path
    config.cost.prices = found(config.cost.prices)
