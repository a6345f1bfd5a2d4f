"""OLMo 2 (arXiv 2501.00656): norms after each branch and none before, queries and keys normalised over all heads."""

from jaxlean.hub.family import LLAMA_MODULES, QK_NORMS, Family, decoder_config

_INPUT_NORMS = ("layers.attention_norm", "layers.mlp_norm")

MODULES = (
    {ours: theirs for ours, theirs in LLAMA_MODULES.items() if ours not in _INPUT_NORMS}
    | QK_NORMS
    | {
        "layers.attention_out_norm": "model.layers.{}.post_attention_layernorm",
        "layers.mlp_out_norm": "model.layers.{}.post_feedforward_layernorm",
    }
)

FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    config=lambda hf: decoder_config(
        hf, qkv_bias=hf.attention_bias, out_bias=hf.attention_bias, qk_norm="all", norm_at=("output",)
    ),
    modules=MODULES,
)
