"""Gemma, Gemma 2 and the text of Gemma 3: norms by 1 + weight, wide heads, caps, layers that slide in turn."""

from cases.case import BASE, Case, rope, two_ropes

# Heads wider than hidden / heads, as in all Gemmas.
GEMMA = {**BASE, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
GEMMA_CASES = [
    Case(
        "gemma_mqa",
        {"rms_norm_eps": 0.1, **rope()},  # the embeddings are scaled up
        matters=[rope(theta=100.0), {"rms_norm_eps": 1e-5}, {"hidden_act": "silu"}],
        base=GEMMA,
        gradients=(
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.1.mlp.gate_proj.weight",
            "model.norm.weight",
        ),
    ),
    Case(
        "gemma_bias",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "attention_bias": True, **rope()},
        matters=[rope(theta=100.0)],
        base={**GEMMA, "tie_word_embeddings": False},
    ),
    # The first Gemma files say `gelu` and mean its tanh form.
    Case(
        "gemma_old",
        {"num_key_value_heads": 2, **rope()},
        base=GEMMA,
        old_style=True,
        on_file={"hidden_act": "gelu", "attention_bias": None},
    ),
]

GEMMA2_CASES = [
    Case(
        "gemma2_soft",
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 7,
            "rms_norm_eps": 1e-2,
            **rope(),
        },
        matters=[
            {"query_pre_attn_scalar": 16},
            {"attn_logit_softcapping": None},
            {"attn_logit_softcapping": 3.0},
            {"final_logit_softcapping": None},
            {"final_logit_softcapping": 4.0},
            {"sliding_window": 8},
            {"sliding_window": 6},
            {"layer_types": ["full_attention"] * 3},
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            {"rms_norm_eps": 1e-5},
        ],
        base=GEMMA,
        gradients=(
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.post_attention_layernorm.weight",
            "model.layers.1.pre_feedforward_layernorm.weight",
            "model.layers.2.post_feedforward_layernorm.weight",
            "model.norm.weight",
        ),
        length=32,
    ),
    Case(
        "gemma2_uncapped",
        {
            "num_hidden_layers": 2,
            "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "sliding_window": 5,
            **rope(theta=500000.0),
        },
        matters=[{"sliding_window": 6}, {"attn_logit_softcapping": 2.0}, rope()],
        base=GEMMA,
    ),
    # As google/gemma-2-2b has it: no layer_types, both names of the activation.
    Case(
        "gemma2_old",
        {"num_hidden_layers": 3, "query_pre_attn_scalar": 16, "sliding_window": 7, **rope()},
        matters=[{"sliding_window": 8}],
        base=GEMMA,
        old_style=True,
        on_file={"hidden_act": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid"},
        length=32,
    ),
]

GEMMA3 = {**GEMMA, "hidden_size": 24, "intermediate_size": 20, "head_dim": 8, "query_pre_attn_scalar": 5}
GEMMA3_CASES = [
    # Five that slide and one that does not, then two left over.
    Case(
        "gemma3_window",
        {
            "num_hidden_layers": 8,
            "sliding_window": 7,
            "rms_norm_eps": 1e-2,
            **two_ropes(rope(theta=1000000.0), rope()),
        },
        matters=[
            {"layer_types": ["sliding_attention"] * 8},
            {"layer_types": ["full_attention"] * 8},
            {"sliding_window": 8},
            {"query_pre_attn_scalar": 8},
            {"rms_norm_eps": 1e-5},
            two_ropes(rope(theta=1000000.0), rope(theta=1000000.0)),
            two_ropes(rope(), rope()),
        ],
        base=GEMMA3,
        model_type="gemma3_text",
        gradients=(
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.5.self_attn.k_norm.weight",
            "model.layers.6.post_feedforward_layernorm.weight",
            "model.layers.7.self_attn.k_proj.weight",
        ),
        length=32,
    ),
    # As google/gemma-3-4b-it's text_config has it: a linear rope on the layers that see everything, and a pattern.
    Case(
        "gemma3_old",
        {
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", *["sliding_attention"] * 2],
            **two_ropes(rope("linear", theta=1000.0, factor=8.0), rope(theta=100.0)),
        },
        matters=[
            two_ropes(rope(theta=1000.0), rope(theta=100.0)),
            two_ropes(rope("linear", theta=1000.0, factor=8.0), rope()),
            two_ropes(rope("linear", theta=1000.0, factor=8.0), rope("linear", theta=100.0, factor=8.0)),
            {"layer_types": None},
        ],
        base=GEMMA3,
        model_type="gemma3_text",
        on_file={
            "layer_types": None,
            "rope_parameters": None,
            "rope_theta": 1000.0,
            "rope_local_base_freq": 100.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 3,
            "torch_dtype": "float32",
            "dtype": None,
        },
        length=32,
    ),
    Case(
        "gemma3_soft",
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 5,
            "final_logit_softcapping": 3.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
            **two_ropes(rope(theta=1000000.0), rope()),
        },
        matters=[{"final_logit_softcapping": None}, {"layer_types": ["sliding_attention"] * 3}],
        base=GEMMA3,
        model_type="gemma3_text",
    ),
]

CASES = [*GEMMA_CASES, *GEMMA2_CASES, *GEMMA3_CASES]
