"""Mixtures of experts. Each must get tokens, and no token may be near a tie between two (drawing.py sees to it)."""

from typing import Any

from cases.case import BASE, Case, rope

EXPERTS: dict[str, Any] = {**BASE, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}

MIXTRAL = {**EXPERTS, "intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2}
MIXTRAL_CASES = [
    Case(
        "mixtral_two",
        {"rms_norm_eps": 1e-2, **rope()},
        matters=[{"num_experts_per_tok": 1}, {"num_experts_per_tok": 3}, {"rms_norm_eps": 1e-5}, rope(theta=100.0)],
        base=MIXTRAL,
        gradients=(
            "model.layers.0.block_sparse_moe.gate.weight",
            "model.layers.0.block_sparse_moe.experts.1.w1.weight",
            "model.layers.1.block_sparse_moe.experts.3.w2.weight",
            "model.layers.1.block_sparse_moe.experts.0.w3.weight",
            "model.layers.1.post_attention_layernorm.weight",
        ),
        aux_loss=True,
    ),
    Case(
        "mixtral_window",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 12,
            "sliding_window": 7,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": True,
            **rope(theta=1000000.0),
        },
        matters=[{"sliding_window": 8}, {"num_experts_per_tok": 2}, rope()],
        base=MIXTRAL,
        length=32,
    ),
    Case(
        "mixtral_old",
        {"num_local_experts": 3, **rope(theta=100000.0)},
        base=MIXTRAL,
        old_style=True,
        on_file={"head_dim": None, "sliding_window": None},
        sharded=True,
    ),
]

QWEN_MOE = {**EXPERTS, "moe_intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2}
QWEN2_MOE = {**QWEN_MOE, "shared_expert_intermediate_size": 16}
QWEN2_MOE_CASES = [
    Case(
        "qwen2moe_shared",
        {"norm_topk_prob": False, "rms_norm_eps": 1e-2, **rope()},
        matters=[
            {"norm_topk_prob": True},
            {"num_experts_per_tok": 1},
            {"num_experts_per_tok": 3},
            {"rms_norm_eps": 1e-5},
            rope(theta=100.0),
        ],
        base=QWEN2_MOE,
        model_type="qwen2_moe",
        gradients=(
            "model.layers.0.mlp.gate.weight",
            "model.layers.0.mlp.experts.2.gate_proj.weight",
            "model.layers.1.mlp.experts.0.down_proj.weight",
            "model.layers.0.mlp.shared_expert.up_proj.weight",
            "model.layers.1.mlp.shared_expert_gate.weight",
            "model.layers.1.self_attn.k_proj.bias",
        ),
        aux_loss=True,
    ),
    # The second of three layers dense; the shares of the experts chosen made to add up to 1.
    Case(
        "qwen2moe_normed",
        {"num_hidden_layers": 3, "norm_topk_prob": True, "mlp_only_layers": [1], "qkv_bias": False, **rope()},
        matters=[{"norm_topk_prob": False}],
        base={**QWEN2_MOE, "tie_word_embeddings": True},
        model_type="qwen2_moe",
        aux_loss=True,
    ),
    # Every second layer has experts, the first of two slides.
    Case(
        "qwen2moe_step",
        {
            "num_hidden_layers": 3,
            "decoder_sparse_step": 2,
            "num_experts": 3,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 2,
            **rope(theta=1000000.0),
        },
        matters=[
            {"sliding_window": 8},
            {"max_window_layers": 0},
            {"max_window_layers": 3},
            {"use_sliding_window": False},
        ],
        base=QWEN2_MOE,
        model_type="qwen2_moe",
        old_style=True,
        length=32,
    ),
]

QWEN3_MOE = {**QWEN_MOE, "head_dim": 12}
QWEN3_MOE_CASES = [
    Case(
        "qwen3moe_normed",
        {"norm_topk_prob": True, "rms_norm_eps": 1e-2, **rope(theta=1000000.0)},
        matters=[{"norm_topk_prob": False}, {"num_experts_per_tok": 3}, {"rms_norm_eps": 1e-5}, rope()],
        base=QWEN3_MOE,
        model_type="qwen3_moe",
        on_file={"num_experts": 4, "num_local_experts": None},  # as on the hub; transformers 5 writes the other name
        gradients=(
            "model.layers.0.mlp.gate.weight",
            "model.layers.1.mlp.experts.3.up_proj.weight",
            "model.layers.0.mlp.experts.1.down_proj.weight",
            "model.layers.1.self_attn.q_norm.weight",
        ),
        aux_loss=True,
    ),
    Case(
        "qwen3moe_dense",
        {
            "num_hidden_layers": 4,
            "num_experts": 3,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [1],
            "norm_topk_prob": False,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "tie_word_embeddings": True,
            **rope(),
        },
        matters=[{"norm_topk_prob": True}],
        base=QWEN3_MOE,
        model_type="qwen3_moe",
        aux_loss=True,
    ),
    # A window, where it is switched on, is every layer's.
    Case(
        "qwen3moe_window",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            **rope(),
        },
        matters=[{"sliding_window": 8}, {"use_sliding_window": False}],
        base=QWEN3_MOE,
        model_type="qwen3_moe",
        old_style=True,
        sharded=True,
        length=32,
    ),
]

GPT_OSS = {
    **EXPERTS,
    "intermediate_size": 12,
    "head_dim": 12,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}
OSS_YARN = {"factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 32}
GPT_OSS_CASES = [
    Case(
        "gptoss_sinks",
        {
            "num_hidden_layers": 3,
            "num_local_experts": 3,
            "sliding_window": 7,
            "swiglu_limit": 0.9,
            "rms_norm_eps": 1e-2,
            **rope("yarn", theta=150.0, **OSS_YARN, truncate=False),
        },
        matters=[
            {"sliding_window": 8},
            {"layer_types": ["full_attention"] * 3},
            {"layer_types": ["sliding_attention"] * 3},
            {"num_experts_per_tok": 1},
            {"swiglu_limit": 7.0},
            {"swiglu_alpha": 1.0},
            {"rms_norm_eps": 1e-5},
            rope(theta=150.0),
            rope("yarn", theta=150.0, **OSS_YARN, truncate=True),
        ],
        base=GPT_OSS,
        model_type="gpt_oss",
        gradients=(
            "model.layers.0.self_attn.sinks",
            "model.layers.1.self_attn.sinks",
            "model.layers.0.self_attn.o_proj.bias",
            "model.layers.0.mlp.router.weight",
            "model.layers.1.mlp.router.bias",
            "model.layers.0.mlp.experts.gate_up_proj",
            "model.layers.2.mlp.experts.gate_up_proj_bias",
            "model.layers.1.mlp.experts.down_proj",
            "model.layers.2.mlp.experts.down_proj_bias",
        ),
        aux_loss=True,
        length=32,
    ),
    Case(
        "gptoss_plain",
        {
            "attention_bias": False,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
            **rope(),
        },
        matters=[{"layer_types": None}, {"sliding_window": 6}, {"num_experts_per_tok": 2}],
        base=GPT_OSS,
        model_type="gpt_oss",
    ),
    # openai/gpt-oss-20b's config; its experts there are in MXFP4, here in float32.
    Case(
        "gptoss_old",
        {"num_local_experts": 3, "sliding_window": 7, **rope("yarn", theta=150000.0, **OSS_YARN, truncate=False)},
        matters=[rope(theta=150000.0)],
        base=GPT_OSS,
        model_type="gpt_oss",
        on_file={
            "rope_parameters": None,
            "rope_theta": 150000,
            "rope_scaling": {**OSS_YARN, "rope_type": "yarn", "truncate": False},
            "experts_per_token": 2,
            "initial_context_length": 32,
            "swiglu_alpha": None,
        },
        sharded=True,
    ),
]

DEEPSEEK: dict[str, Any] = {
    **BASE,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 12,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
MSCALE = {"factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1}
V2_CASES = [
    # As DeepSeek-V2-Lite.
    Case(
        "deepseekv2_lite",
        {
            "num_hidden_layers": 3,
            "n_shared_experts": 2,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "rms_norm_eps": 1e-2,
            **rope("yarn", **MSCALE, mscale=0.707, mscale_all_dim=0.707),
        },
        matters=[
            {"num_experts_per_tok": 1},
            {"routed_scaling_factor": 2.0},
            {"rms_norm_eps": 1e-5},
            rope(),
            rope("yarn", **MSCALE, mscale=0.707, mscale_all_dim=1.414),
        ],
        base=DEEPSEEK,
        model_type="deepseek_v2",
        gradients=(
            "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
            "model.layers.0.self_attn.kv_a_layernorm.weight",
            "model.layers.1.self_attn.kv_b_proj.weight",
            "model.layers.1.self_attn.q_proj.weight",
            "model.layers.1.mlp.gate.weight",
            "model.layers.2.mlp.experts.2.gate_proj.weight",
            "model.layers.2.mlp.shared_experts.down_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
        ),
        on_file={
            "rope_parameters": None,
            "rope_theta": 10000,
            "rope_scaling": {**MSCALE, "type": "yarn", "mscale": 0.707, "mscale_all_dim": 0.707},
            "head_dim": None,
            "torch_dtype": "float32",
            "dtype": None,
            "moe_layer_freq": 1,
            "scoring_func": "softmax",
            "aux_loss_alpha": 0.001,
            "seq_aux": True,
            "ep_size": 1,
        },
        length=40,
    ),
    Case(
        "deepseekv2_groups",
        {
            "q_lora_rank": 10,
            "n_routed_experts": 6,
            "num_experts_per_tok": 3,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 4.0,
            "attention_bias": True,
            **rope(),
        },
        matters=[
            {"topk_group": 1},
            {"topk_method": "greedy"},
            {"routed_scaling_factor": 1.0},
            rope(theta=100.0),
        ],
        base=DEEPSEEK,
        model_type="deepseek_v2",
        gradients=(
            "model.layers.0.self_attn.q_a_proj.weight",
            "model.layers.0.self_attn.q_a_layernorm.weight",
            "model.layers.0.self_attn.q_b_proj.weight",
            "model.layers.1.self_attn.o_proj.weight",
            "model.layers.1.mlp.gate.weight",
        ),
    ),
    Case(
        "deepseekv2_sparse",
        {"first_k_dense_replace": 0, "num_attention_heads": 4, "num_key_value_heads": 4, "mlp_bias": True, **rope()},
        matters=[{"num_experts_per_tok": 3}],
        base={**DEEPSEEK, "tie_word_embeddings": True},
        model_type="deepseek_v2",
        sharded=True,
    ),
]
V3_CASES = [
    Case(
        "deepseekv3_groups",
        {
            "num_hidden_layers": 3,
            "q_lora_rank": 10,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-2,
            "moe_intermediate_size": 8,
            **rope("yarn", **MSCALE, mscale=1.0, mscale_all_dim=1.0),
        },
        matters=[
            {"topk_group": 3},
            {"n_group": 2},
            {"num_experts_per_tok": 2},
            {"norm_topk_prob": False},
            {"routed_scaling_factor": 1.0},
            {"rope_interleave": False},
            {"rms_norm_eps": 1e-5},
            rope(),
            rope("yarn", **MSCALE, mscale=2.0, mscale_all_dim=2.0),
        ],
        base=DEEPSEEK,
        model_type="deepseek_v3",
        gradients=(
            "model.layers.0.self_attn.q_a_layernorm.weight",
            "model.layers.1.self_attn.q_b_proj.weight",
            "model.layers.2.self_attn.kv_a_proj_with_mqa.weight",
            "model.layers.1.mlp.gate.weight",
            "model.layers.1.mlp.experts.7.up_proj.weight",
            "model.layers.2.mlp.shared_experts.gate_proj.weight",
        ),
        length=40,
    ),
    Case(
        "deepseekv3_one",
        {
            "n_shared_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "attention_bias": True,
            "rope_interleave": False,
            "routed_scaling_factor": 1.5,
            "tie_word_embeddings": True,
            **rope(),
        },
        matters=[{"norm_topk_prob": True}, {"rope_interleave": True}, {"routed_scaling_factor": 1.0}],
        base=DEEPSEEK,
        model_type="deepseek_v3",
    ),
    # deepseek-ai/DeepSeek-V3: after its layers a further one, which predicts the token after the next.
    Case(
        "deepseekv3_old",
        {
            "q_lora_rank": 10,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            **rope("yarn", **MSCALE, mscale=1.0, mscale_all_dim=1.0),
        },
        matters=[{"n_group": 1}],
        base=DEEPSEEK,
        model_type="deepseek_v3",
        leftovers=True,
        on_file={
            "rope_parameters": None,
            "rope_theta": 10000,
            "rope_scaling": {**MSCALE, "type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0},
            "rope_interleave": None,
            "head_dim": None,
            "qk_head_dim": None,
            "moe_layer_freq": 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "num_nextn_predict_layers": 1,
            "num_mtp_layers": None,
            "aux_loss_alpha": 0.001,
            "seq_aux": True,
            "ep_size": 1,
        },
    ),
]

CASES = [*MIXTRAL_CASES, *QWEN2_MOE_CASES, *QWEN3_MOE_CASES, *GPT_OSS_CASES, *V2_CASES, *V3_CASES]
