"""Qwen2 and Qwen2.5 (arXiv 2407.10671): biases on query, key and value; later layers may slide."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, windows

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    config=lambda hf: decoder_config(hf, qkv_bias=True, windows=windows(hf)),
    modules=LLAMA_MODULES,
)
