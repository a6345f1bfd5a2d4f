"""What a model family is: two small tables between Hugging Face's words and ours.

A family says how its `config.json` becomes a `DecoderConfig` or an `EncoderConfig`, and which Hugging Face module
stands for which of our paths. The rest (reading, writing, adapters, sharding) is the same for all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxlean.errors import ModelError
from jaxlean.models.config import Kind
from jaxlean.models.decoder import DecoderConfig
from jaxlean.models.rope import Rope

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Our module path -> Hugging Face's, `{}` being the layer. Llama's names, which most families share.
LLAMA_MODULES = {
    "embed": "model.embed_tokens",
    "layers.attention_norm": "model.layers.{}.input_layernorm",
    "layers.attention.query": "model.layers.{}.self_attn.q_proj",
    "layers.attention.key": "model.layers.{}.self_attn.k_proj",
    "layers.attention.value": "model.layers.{}.self_attn.v_proj",
    "layers.attention.out": "model.layers.{}.self_attn.o_proj",
    "layers.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "layers.mlp.gate": "model.layers.{}.mlp.gate_proj",
    "layers.mlp.up": "model.layers.{}.mlp.up_proj",
    "layers.mlp.down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
# Queries and keys normalised, where a family does that.
QK_NORMS = {
    "layers.attention.query_norm": "model.layers.{}.self_attn.q_norm",
    "layers.attention.key_norm": "model.layers.{}.self_attn.k_norm",
}

# Our leaf -> Hugging Face's. A kernel is [in, out] here and [out, in] there.
LEAVES = {
    "kernel": "weight",
    "filters": "weight",
    "bias": "bias",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}

Modules = Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        model_type: as in `config.json`.
        architecture: the class of transformers that has all of it, for `config.json`.
        config: a transformers config -> the config of our model.
        modules: our module path -> Hugging Face's module name with `{}` for the layer (and a second one for the
            expert); also a parameter's path -> a tensor's name, where that is no module's weight or bias. Or a function
            of our config that gives it.
        heads: of an encoder: for each head that it can have, the modules of that. Empty: it is no encoder.
        classifier: of a family of images: the class of transformers that has a classifier.
        prefix: what stands before all names but the heads', and is missing in models that are saved without one.
        ignored: regexes of tensors that files carry and nobody needs.
        carried: regexes of tensors, without prefix, that a model without a head has and does not compute with: they are
            copied when it is written.
        untransposed: regexes of our paths whose kernels are [in, out] in files too.
        ones: regexes of our paths of parameters whose tensors have further dims, of 1 -> where, in the file's shape.
        adapters: our module paths -> what newer versions of transformers call them, where files keep older names:
            PEFT's adapters have the newer ones.
        renamed: (regex, replacement): names of tensors in old files -> those of today.
        more_layers: whether files may hold layers beyond those of the config, which nobody needs.
        apart: regexes of our modules that `all-linear` does not adapt, beside the head: what PEFT leaves out too.
        unsupported: Hugging Face's settings that change what is computed and are not there -> the value that is.
    """

    model_type: str
    architecture: str
    config: Callable[["PreTrainedConfig"], Any]
    modules: Modules | Callable[[Any], Modules]
    heads: Mapping[str, Modules] = field(default_factory=dict, hash=False)
    classifier: str | None = None
    prefix: str = "model."
    ignored: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)
    carried: tuple[str, ...] = ()
    untransposed: tuple[str, ...] = ()
    ones: Mapping[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    adapters: Modules = field(default_factory=dict, hash=False)
    renamed: tuple[tuple[str, str], ...] = ()
    more_layers: bool = False
    apart: tuple[str, ...] = ()
    unsupported: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its models can be trained for (`task` in a config)."""
        if self.heads:
            return (*self.heads, "embed")
        return ("generate",) if self.classifier is None else ("classify",)

    @property
    def takes(self) -> str:
        """What its models read: text or images."""
        return "text" if self.classifier is None else "images"


def decoder_config(hf: "PreTrainedConfig", **changes: Any) -> DecoderConfig:
    """What all Llama-like configs have in common; `changes` holds what a family does in its own way.

    `windows`, one a layer, makes the kinds of the layers where `kinds` are not among the changes.
    """
    fields: dict[str, Any] = {
        "vocab_size": hf.vocab_size,
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": hf.num_attention_heads,
        "num_kv_heads": getattr(hf, "num_key_value_heads", None) or hf.num_attention_heads,
        "head_dim": head_dim(hf),
        "norm_eps": getattr(hf, "rms_norm_eps", None) or getattr(hf, "layer_norm_eps", None),
        "activation": activation(hf),
        "tie_embeddings": bool(getattr(hf, "tie_word_embeddings", False)),
        "max_position_embeddings": hf.max_position_embeddings,
        "initializer_range": hf.initializer_range,
    } | changes
    if "rope" not in fields:
        fields["rope"] = rope(hf)
    reach = fields.pop("windows", None)
    if reach is not None:
        fields["kinds"] = tuple(Kind(window=window) for window in reach)
    return DecoderConfig(**fields)


def head_dim(hf: "PreTrainedConfig") -> int:
    """Features of one head: stated, or hidden / heads."""
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


# Hugging Face's name of an activation -> ours (`models.activation`).
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu6": "relu6",
}


def activation(hf: "PreTrainedConfig") -> str:
    """The MLP's activation, by whichever key the family states it."""
    keys = ("hidden_activation", "hidden_act", "activation_function", "activation")
    name = next((getattr(hf, key) for key in keys if getattr(hf, key, None) is not None), None)
    if name not in ACTIVATIONS:
        raise ModelError("an activation that is not supported", got=name, wanted=", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def layer_kinds(hf: "PreTrainedConfig") -> tuple[bool, ...]:
    """Whether each layer slides, from `layer_types`."""
    kinds = getattr(hf, "layer_types", None) or ["full_attention"] * hf.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError("a kind of layer that is not supported", got=", ".join(sorted(unknown)))
    return tuple(kind == "sliding_attention" for kind in kinds)


def windows(hf: "PreTrainedConfig") -> tuple[int | None, ...]:
    """How far each layer sees, from `layer_types` and `sliding_window`."""
    return tuple(hf.sliding_window if slides else None for slides in layer_kinds(hf))


def rope(hf: "PreTrainedConfig", kind_of_layer: str | None = None, **changes: Any) -> Rope:
    """`rope_parameters` (transformers 5) -> `Rope`. transformers has already translated the older `rope_scaling`.

    Args:
        hf: the config.
        kind_of_layer: `full_attention` or `sliding_attention`, where each has parameters of its own.
        changes: fields of `Rope` that the family sets.
    """
    given: dict[str, Any] = dict(getattr(hf, "rope_parameters", None) or {})
    if kind_of_layer is not None:
        given = dict(given[kind_of_layer])
    kind = given.get("rope_type") or given.get("type") or "default"
    known = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    if kind not in known:
        raise ModelError("a rope type that is not supported", got=kind, wanted=", ".join(known))
    fields: dict[str, Any] = {name: given[name] for name in Rope.__dataclass_fields__ if given.get(name) is not None}
    fields["rope_type"] = kind
    fields["rope_theta"] = float(fields.get("rope_theta", getattr(hf, "default_theta", 10_000.0)))
    for name in ("short_factor", "long_factor"):
        if name in fields:
            fields[name] = tuple(fields[name])
    share = given.get("partial_rotary_factor")
    if share not in (None, 1, 1.0):
        fields["dim"] = int(head_dim(hf) * share)
    if kind == "dynamic":
        fields["original_max_position_embeddings"] = hf.max_position_embeddings
    context = fields.setdefault("original_max_position_embeddings", hf.max_position_embeddings)
    if kind in ("yarn", "longrope"):
        factor = fields.setdefault("factor", hf.max_position_embeddings / context)
        fields.setdefault("attention_factor", _attention_factor(kind, factor, given, context))
    return Rope(**(fields | changes))


def _attention_factor(kind: str, factor: float, given: Mapping[str, Any], context: int) -> float:
    """What cos and sin are multiplied with where the config does not say it."""
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(context))

    def scale(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return scale(given["mscale"]) / scale(given["mscale_all_dim"])
    return scale(1.0)
