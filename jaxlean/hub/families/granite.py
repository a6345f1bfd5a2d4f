"""Granite 3 (github.com/ibm-granite): Llama with multipliers of embeddings, scores, branches and logits."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config

FAMILY = Family(
    model_type="granite",
    architecture="GraniteForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
        embedding_multiplier=hf.embedding_multiplier,
        attention_scale=hf.attention_multiplier,
        residual_multiplier=hf.residual_multiplier,
        logits_multiplier=1.0 / hf.logits_scaling,
    ),
    modules=LLAMA_MODULES,
)
