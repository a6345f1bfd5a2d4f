"""Gemma 2 (arXiv 2408.00118): soft caps, norms before and after each branch, every second layer with a window."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, windows

MODULES = LLAMA_MODULES | {
    "layers.attention_out_norm": "model.layers.{}.post_attention_layernorm",
    "layers.mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
    "layers.mlp_out_norm": "model.layers.{}.post_feedforward_layernorm",
}

FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        norm_offset=1.0,
        norm_at=("input", "output"),
        embedding_multiplier=hf.hidden_size**0.5,
        attention_scale=hf.query_pre_attn_scalar**-0.5,
        attention_softcap=hf.attn_logit_softcapping,
        logits_softcap=hf.final_logit_softcapping,
        windows=windows(hf),
    ),
    modules=MODULES,
    unsupported={"use_bidirectional_attention": None},
)
