"""SmolLM3 (huggingface.co/blog/smollm3): Llama whose every fourth layer has no rotary embedding (arXiv 2501.18795)."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, windows
from jaxlean.models.config import Kind

FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        mlp_bias=hf.mlp_bias,
        kinds=tuple(
            Kind(window=window if hf.use_sliding_window else None, rope="rope" if turns else None)
            for window, turns in zip(windows(hf), hf.no_rope_layers, strict=True)
        ),
    ),
    modules=LLAMA_MODULES,
)
