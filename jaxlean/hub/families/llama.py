"""Llama 1 to 3.2 (arXiv 2302.13971, 2407.21783), and what copies its architecture (SmolLM, TinyLlama, Yi ...)."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    config=lambda hf: decoder_config(hf, qkv_bias=hf.attention_bias, out_bias=hf.attention_bias, mlp_bias=hf.mlp_bias),
    modules=LLAMA_MODULES,
)
