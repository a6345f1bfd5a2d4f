"""gpt-oss (arXiv 2508.10925): experts with biases and clamped gates, attention with sinks, windows in turn."""

from jaxlean.hub.family import LLAMA_MODULES, Family, decoder_config, windows
from jaxlean.models.config import Experts, Kind

FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    config=lambda hf: decoder_config(
        hf,
        qkv_bias=hf.attention_bias,
        out_bias=hf.attention_bias,
        attention_sinks=True,
        kinds=tuple(Kind(window=window, sparse=True) for window in windows(hf)),
        experts=Experts(
            num=hf.num_local_experts,
            per_token=hf.num_experts_per_tok,
            intermediate_size=hf.intermediate_size,
            scores="chosen",
            fused=True,
            bias=True,
            clamp=hf.swiglu_limit,
            clamp_slope=hf.swiglu_alpha,
            aux_coef=hf.router_aux_loss_coef,
        ),
    ),
    modules={ours: theirs for ours, theirs in LLAMA_MODULES.items() if ".mlp." not in ours}
    | {
        "layers.attention.sinks": "model.layers.{}.self_attn.sinks",
        "layers.mlp.router": "model.layers.{}.mlp.router",
        # one tensor for all experts of a layer, [experts, in, out]
        "layers.mlp.experts.gate_up.kernel": "model.layers.{}.mlp.experts.gate_up_proj",
        "layers.mlp.experts.gate_up.bias": "model.layers.{}.mlp.experts.gate_up_proj_bias",
        "layers.mlp.experts.down.kernel": "model.layers.{}.mlp.experts.down_proj",
        "layers.mlp.experts.down.bias": "model.layers.{}.mlp.experts.down_proj_bias",
    },
    apart=(r"\.router$", r"\.experts\."),
)
