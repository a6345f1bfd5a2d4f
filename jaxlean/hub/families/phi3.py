"""Phi-3, Phi-3.5 and Phi-4 (arXiv 2404.14219): Llama with fused kernels, its long-context models with longrope."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config

_SPLIT = ("query", "key", "value", "gate", "up")

FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    config=lambda hf: decoder_config(
        hf, fused_qkv="parts", fused_gate_up=True, windows=(hf.sliding_window,) * hf.num_hidden_layers
    ),
    modules={ours: theirs for ours, theirs in LLAMA_MODULES.items() if not ours.endswith(_SPLIT)}
    | {
        "layers.attention.qkv": "model.layers.{}.self_attn.qkv_proj",
        "layers.mlp.gate_up": "model.layers.{}.mlp.gate_up_proj",
    },
)
