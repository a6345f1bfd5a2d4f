"""Gemma (arXiv 2403.08295): embeddings scaled by the root of the hidden size, norms that store `scale - 1`."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config

FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        norm_offset=1.0,
        embedding_multiplier=hf.hidden_size**0.5,
    ),
    modules=LLAMA_MODULES,
    unsupported={"use_bidirectional_attention": None},
)
