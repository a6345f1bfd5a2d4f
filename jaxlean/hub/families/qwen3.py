"""Qwen3 (arXiv 2505.09388): queries and keys normalised per head, no biases unless the config says so."""

from jaxlean.hub.family import LLAMA_MODULES, QK_NORMS, Family, decoder_config, windows

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    config=lambda hf: decoder_config(
        hf, qkv_bias=hf.attention_bias, out_bias=hf.attention_bias, qk_norm="head", windows=windows(hf)
    ),
    modules=LLAMA_MODULES | QK_NORMS,
)
