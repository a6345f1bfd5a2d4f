"""GLM-4-0414 (arXiv 2406.12793): norms around each branch, half of each head turned, in neighbouring pairs."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, rope

FAMILY = Family(
    model_type="glm4",
    architecture="Glm4ForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        fused_gate_up=True,
        norm_at=("input", "output"),
        rope=rope(hf, interleaved=True),
    ),
    modules={ours: theirs for ours, theirs in LLAMA_MODULES.items() if not ours.endswith(("gate", "up"))}
    | {
        "layers.attention_out_norm": "model.layers.{}.post_self_attn_layernorm",
        "layers.mlp_out_norm": "model.layers.{}.post_mlp_layernorm",
        "layers.mlp.gate_up": "model.layers.{}.mlp.gate_up_proj",
    },
)
