"""DeepSeek-V3 (arXiv 2412.19437): V2's attention; experts by sigmoids, chosen with a correction without gradient."""

from jaxlean.hub.families import deepseek_v2
from jaxlean.hub.family import Family, rope

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    config=lambda hf: deepseek_v2.config(
        hf,
        {
            "scores": "sigmoid",
            "correction": True,
            "groups": hf.n_group,
            "groups_per_token": hf.topk_group,
            "norm_weights": hf.norm_topk_prob,
        },
        rope=rope(hf, dim=hf.qk_rope_head_dim, interleaved=bool(hf.rope_interleave)),
    ),
    modules=deepseek_v2.MODULES | {"layers.mlp.correction": "model.layers.{}.mlp.gate.e_score_correction_bias"},
    # the published models have one more, which predicts the token after the next
    more_layers=True,
    unsupported={"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
)
