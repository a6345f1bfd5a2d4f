"""DeepSeek-V2 (arXiv 2405.04434): latent attention; after the first layers experts, and an MLP for all tokens."""

import math
from typing import Any

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, rope
from jaxlean.models.config import Experts, Kind, Latent
from jaxlean.models.decoder import DecoderConfig

_ATTENTION = {
    "layers.attention.query": "q_proj",
    "layers.attention.query_a": "q_a_proj",
    "layers.attention.query_norm": "q_a_layernorm",
    "layers.attention.query_b": "q_b_proj",
    "layers.attention.key_value_a": "kv_a_proj_with_mqa",
    "layers.attention.key_value_norm": "kv_a_layernorm",
    "layers.attention.key_value_b": "kv_b_proj",
    "layers.attention.out": "o_proj",
}
_MLP = {
    "layers.mlp.router": "gate",
    "layers.mlp.experts.gate": "experts.{}.gate_proj",
    "layers.mlp.experts.up": "experts.{}.up_proj",
    "layers.mlp.experts.down": "experts.{}.down_proj",
    "layers.mlp.shared.gate": "shared_experts.gate_proj",
    "layers.mlp.shared.up": "shared_experts.up_proj",
    "layers.mlp.shared.down": "shared_experts.down_proj",
}
MODULES = (
    {ours: theirs for ours, theirs in LLAMA_MODULES.items() if ".attention." not in ours}
    | {ours: f"model.layers.{{}}.self_attn.{theirs}" for ours, theirs in _ATTENTION.items()}
    | {ours: f"model.layers.{{}}.mlp.{theirs}" for ours, theirs in _MLP.items()}
)


def config(hf: Any, experts: dict[str, Any], **changes: Any) -> DecoderConfig:
    """What V2 and V3 have in common.

    Args:
        hf: the config.
        experts, changes: fields of `Experts` and `DecoderConfig` that each has in its own way.
    """
    head_dim = hf.qk_nope_head_dim + hf.qk_rope_head_dim
    return decoder_config(
        hf,
        num_kv_heads=hf.num_attention_heads,
        head_dim=head_dim,
        attention_scale=head_dim**-0.5 * _sharper(hf.rope_parameters) ** 2,
        out_bias=hf.attention_bias,
        latent=Latent(
            rank=hf.kv_lora_rank,
            query_rank=hf.q_lora_rank,
            rope_dim=hf.qk_rope_head_dim,
            value_dim=hf.v_head_dim,
            bias=hf.attention_bias,
        ),
        kinds=tuple(Kind(sparse=layer >= hf.first_k_dense_replace) for layer in range(hf.num_hidden_layers)),
        experts=Experts(
            num=hf.n_routed_experts,
            per_token=hf.num_experts_per_tok,
            intermediate_size=hf.moe_intermediate_size,
            shared_size=hf.moe_intermediate_size * hf.n_shared_experts,
            scale=hf.routed_scaling_factor,
            **experts,
        ),
        **changes,
    )


def _sharper(given: dict[str, Any]) -> float:
    """How much queries and keys are each multiplied for a longer context (yarn's `mscale_all_dim`)."""
    if given.get("rope_type", "default") == "default" or not given.get("mscale_all_dim") or given["factor"] <= 1:
        return 1.0
    return 0.1 * given["mscale_all_dim"] * math.log(given["factor"]) + 1.0


def _groups(hf: Any) -> dict[str, int]:
    if hf.topk_method != "group_limited_greedy":
        return {}
    return {"groups": hf.n_group, "groups_per_token": hf.topk_group}


FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    config=lambda hf: config(
        hf,
        {"norm_weights": False, **_groups(hf)},
        mlp_bias=hf.mlp_bias,
        rope=rope(hf, dim=hf.qk_rope_head_dim, interleaved=True),
    ),
    modules=MODULES,
    unsupported={"moe_layer_freq": 1, "scoring_func": "softmax"},
)
