"""Qwen3 (arXiv 2505.09388): queries and keys normalised per head, no biases unless the config says so."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, windows

FAMILY = Family(
    model_type="qwen3",
    config=lambda hf: decoder_config(
        hf, qkv_bias=hf.attention_bias, out_bias=hf.attention_bias, qk_norm=True, windows=windows(hf)
    ),
    modules=LLAMA_MODULES
    | {
        "layers.attention.query_norm": "model.layers.{}.self_attn.q_norm",
        "layers.attention.key_norm": "model.layers.{}.self_attn.k_norm",
    },
)
