"""What a model family is: two small tables between Hugging Face's words and ours.

A family says how its `config.json` becomes a `DecoderConfig`, and which Hugging Face module stands for which of
our paths. The rest (reading, writing, adapters, sharding) is the same for all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxlean.errors import ModelError
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

# Our leaf -> Hugging Face's. A kernel is [in, out] here and [out, in] there.
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight"}


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        model_type: as in `config.json`.
        config: a transformers config -> our `DecoderConfig`.
        modules: our module path -> Hugging Face's module name with `{}` for the layer.
        ignored: regexes of tensors that old files carry and nobody needs.
    """

    model_type: str
    config: Callable[["PreTrainedConfig"], DecoderConfig]
    modules: Mapping[str, str]
    ignored: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)

    def tensor(self, path: str) -> str:
        """Our parameter path -> Hugging Face's tensor name.

        >>> from jaxlean.hub.families import llama
        >>> llama.FAMILY.tensor("layers.attention.query.kernel")
        'model.layers.{}.self_attn.q_proj.weight'
        """
        module, leaf = path.rsplit(".", 1)
        return f"{self.modules[module]}.{LEAVES[leaf]}"


def decoder_config(hf: "PreTrainedConfig", **changes: Any) -> DecoderConfig:
    """What all Llama-like configs have in common; `changes` holds what a family does in its own way."""
    fields: dict[str, Any] = {
        "vocab_size": hf.vocab_size,
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "num_layers": hf.num_hidden_layers,
        "num_heads": hf.num_attention_heads,
        "num_kv_heads": hf.num_key_value_heads or hf.num_attention_heads,
        "head_dim": head_dim(hf),
        "rope": rope(hf),
        "norm_eps": hf.rms_norm_eps,
        "activation": activation(hf),
        "tie_embeddings": bool(hf.tie_word_embeddings),
        "max_position_embeddings": hf.max_position_embeddings,
        "initializer_range": hf.initializer_range,
    }
    return DecoderConfig(**(fields | changes))


def head_dim(hf: "PreTrainedConfig") -> int:
    """Features of one head: stated, or hidden / heads."""
    return getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads


def activation(hf: "PreTrainedConfig") -> str:
    """Hugging Face's name of the MLP's activation -> jax.nn's."""
    names = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "relu": "relu"}
    if hf.hidden_act not in names:
        raise ModelError("an activation that is not supported", got=hf.hidden_act, wanted=", ".join(names))
    return names[hf.hidden_act]


def windows(hf: "PreTrainedConfig") -> tuple[int | None, ...]:
    """How far back each layer sees, from `layer_types` and `sliding_window`."""
    kinds = getattr(hf, "layer_types", None) or ["full_attention"] * hf.num_hidden_layers
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError("a kind of layer that is not supported", got=", ".join(sorted(unknown)))
    return tuple(hf.sliding_window if kind == "sliding_attention" else None for kind in kinds)


def rope(hf: "PreTrainedConfig") -> Rope:
    """`rope_parameters` (transformers 5) -> `Rope`. transformers has already translated the older `rope_scaling`."""
    given: dict[str, Any] = dict(getattr(hf, "rope_parameters", None) or {})
    kind = given.get("rope_type") or given.get("type") or "default"
    known = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
    if kind not in known:
        raise ModelError("a rope type that is not supported", got=kind, wanted=", ".join(known))
    if given.get("partial_rotary_factor") not in (None, 1.0, 1):
        raise ModelError(
            "rotary embeddings of a part of each head are not supported", got=given["partial_rotary_factor"]
        )
    fields: dict[str, Any] = {name: given[name] for name in Rope.__dataclass_fields__ if given.get(name) is not None}
    fields["rope_type"] = kind
    fields["rope_theta"] = float(fields.get("rope_theta", getattr(hf, "default_theta", 10_000.0)))
    for name in ("short_factor", "long_factor"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if kind == "dynamic":
        fields["original_max_position_embeddings"] = hf.max_position_embeddings
    context = fields.setdefault("original_max_position_embeddings", hf.max_position_embeddings)
    if kind in ("yarn", "longrope"):
        factor = fields.setdefault("factor", hf.max_position_embeddings / context)
        fields.setdefault("attention_factor", _attention_factor(kind, factor, given, context))
    return Rope(**fields)


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
