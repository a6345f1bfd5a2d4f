"""Which model, and how it is adapted."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from jaxlean.config.section import Section, named
from jaxlean.config.vocabulary import VocabularySettings


class ModelSection(VocabularySettings):
    """Which model, and the numbers it is held in."""

    path: str | None = named(None, "Hugging Face id or folder of the base model.", "model_name_or_path", "base_model")
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
        "auto",
        description="What a whole written model is held in (lora: null). auto: as dtype; export, quantize and prune: "
        "as the files that they start from.",
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
    kv_cache_dtype: Literal["auto", "int8"] = Field(
        "auto", description="What generation holds the keys and values of earlier tokens in. auto: dtype."
    )
    attention: Literal["auto", "plain", "block", "cudnn", "splash"] = named(
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


class LoraSection(Section):
    """Low-rank adaptation (arXiv 2106.09685), with PEFT's names."""

    r: PositiveInt = named(16, "Rank.", "lora_r", "lora_rank")
    lora_alpha: float = Field(32.0, gt=0, description="The adapter is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the adapter's input.")
    target_modules: str | list[str] = Field(
        "all-linear",
        description="'all-linear' (not heads, routers), a list of names (q_proj, query ...), or a regex.",
    )
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(r) (arXiv 2312.03732).")
    use_dora: bool = Field(False, description="Learn magnitude and direction apart (arXiv 2402.09353).")
    init_lora_weights: Literal["default", "pissa"] = Field(
        "default", description="default: A random, B zero. pissa: the principal singular vectors (arXiv 2404.02948)."
    )
    init_from: str | None = Field(
        None,
        description="PEFT adapter folder, or output_dir of a finished run, that training starts from instead of fresh "
        "matrices. r, lora_alpha and the variant are its own; so are its modules, where target_modules is all-linear.",
    )
    quantization_aware: bool = Field(
        False,
        description="Over a base in whole numbers (jaxlean quantize, or model.quantization: int8): base and adapter "
        "are rounded together to the base's numbers in every forward pass, so that merging them changes nothing.",
    )
    loraplus_lr_ratio: float | None = Field(
        None, gt=0, description="LoRA+ (arXiv 2402.12354): B learns this much faster."
    )

    @model_validator(mode="after")
    def _one_start(self) -> "LoraSection":
        if self.init_from is not None and self.init_lora_weights != "default":
            raise ValueError(f"lora.init_from is the start: without lora.init_lora_weights={self.init_lora_weights}")
        return self

    @model_validator(mode="after")
    def _aware_adapters_are_plain(self) -> "LoraSection":
        if self.quantization_aware:
            self.check_plain("lora.quantization_aware")
        return self

    def check_plain(self, why: str) -> None:
        """Refuse what cannot be where each forward pass adds the adapter to the base. Raises: ValueError."""
        for key, there in (("lora_dropout", self.lora_dropout > 0), ("use_dora", self.use_dora)):
            if there:
                raise ValueError(f"{why} adds the adapter to the base: without lora.{key}")
        if self.init_lora_weights == "pissa":
            raise ValueError(f"{why} keeps the base's numbers: without lora.init_lora_weights=pissa")
