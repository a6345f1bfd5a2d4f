"""Qwen2's mixtures of experts (arXiv 2407.10671): some layers have one, and beside it an MLP that all tokens share."""

from typing import Any

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, windows
from jaxlean.models.config import Experts, Kind

# A layer's experts; other layers have an MLP under Llama's names.
MODULES = LLAMA_MODULES | {
    "layers.mlp.router": "model.layers.{}.mlp.gate",
    "layers.mlp.experts.gate": "model.layers.{}.mlp.experts.{}.gate_proj",
    "layers.mlp.experts.up": "model.layers.{}.mlp.experts.{}.up_proj",
    "layers.mlp.experts.down": "model.layers.{}.mlp.experts.{}.down_proj",
}
_SHARED = {
    "layers.mlp.shared.gate": "model.layers.{}.mlp.shared_expert.gate_proj",
    "layers.mlp.shared.up": "model.layers.{}.mlp.shared_expert.up_proj",
    "layers.mlp.shared.down": "model.layers.{}.mlp.shared_expert.down_proj",
    "layers.mlp.shared_gate": "model.layers.{}.mlp.shared_expert_gate",
}


def is_sparse(hf: Any, layer: int) -> bool:
    """Whether a layer, counted from 0, has experts."""
    return hf.num_experts > 0 and layer not in hf.mlp_only_layers and (layer + 1) % hf.decoder_sparse_step == 0


def experts(hf: Any, **changes: Any) -> Experts:
    """What Qwen's mixtures have in common."""
    return Experts(
        num=hf.num_experts,
        per_token=hf.num_experts_per_tok,
        intermediate_size=hf.moe_intermediate_size,
        norm_weights=hf.norm_topk_prob,
        aux_coef=hf.router_aux_loss_coef,
        **changes,
    )


FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.qkv_bias,
        kinds=tuple(Kind(window=window, sparse=is_sparse(hf, layer)) for layer, window in enumerate(windows(hf))),
        experts=experts(hf, shared_size=hf.shared_expert_intermediate_size, shared_gate=True),
    ),
    modules=MODULES | _SHARED,
    # neither what PEFT leaves out, nor what is one number a token
    apart=(r"\.router$", r"\.experts\.", r"\.shared_gate$"),
)
