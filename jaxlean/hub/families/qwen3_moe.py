"""Qwen3's mixtures of experts (arXiv 2505.09388): Qwen3's attention, and no MLP beside the experts."""

from jaxlean.hub.families import qwen2_moe
from jaxlean.hub.family import QK_NORMS, Family, decoder_config
from jaxlean.models.config import Kind

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        qk_norm="head",
        kinds=tuple(
            Kind(window=hf.sliding_window, sparse=qwen2_moe.is_sparse(hf, layer))
            for layer in range(hf.num_hidden_layers)
        ),
        experts=qwen2_moe.experts(hf),
    ),
    modules=qwen2_moe.MODULES | QK_NORMS,
)
