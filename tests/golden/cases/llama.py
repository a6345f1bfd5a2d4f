"""Llama and what is built like it: Mistral, Qwen2 and Qwen3."""

from cases.case import LLAMA3, LONG, YARN, Case, rope

ALTERNATE = ["sliding_attention", "full_attention", "sliding_attention"]

CASES = [
    Case("llama_mha", {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False, **rope()}),
    Case(
        "llama_gqa",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": False,
            "rms_norm_eps": 1e-2,
            **rope(theta=500000.0),
        },
        matters=[rope(), {"rms_norm_eps": 1e-5}],
        gradients=(
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
            "model.norm.weight",
        ),
    ),
    Case("llama_tied", rope(theta=500000.0), matters=[rope()], sharded=True),
    Case("llama_bias", {"attention_bias": True, "mlp_bias": True, **rope()}, matters=[rope(theta=100.0)]),
    Case("llama_leftovers", {"num_key_value_heads": 2, **rope()}, old_style=True, leftovers=True),
    Case("llama_linear", rope("linear", factor=2.0), matters=[rope()], old_style=True),
    Case("llama_dynamic", {"max_position_embeddings": 16, **rope("dynamic", factor=2.0)}, matters=[rope()], length=40),
    Case("llama_dynamic_short", {"max_position_embeddings": 32, **rope("dynamic", factor=2.0)}),
    Case(
        "llama_llama3",
        rope("llama3", **LLAMA3),
        matters=[
            rope(),
            rope("linear", factor=8.0),
            rope("llama3", **{**LLAMA3, "low_freq_factor": 2.0}),
            rope("llama3", **{**LLAMA3, "high_freq_factor": 8.0}),
            rope("llama3", **{**LLAMA3, "original_max_position_embeddings": 16}),
        ],
        old_style=True,
        length=40,
    ),
    Case(
        "llama_yarn",
        {"max_position_embeddings": 128, **rope("yarn", **YARN, beta_fast=4.0, beta_slow=0.5, truncate=False)},
        matters=[
            rope(),
            rope("linear", factor=4.0),
            rope("yarn", **YARN, beta_slow=0.5, truncate=False),
            rope("yarn", **YARN, beta_fast=4.0, truncate=False),
            rope("yarn", **YARN, beta_fast=4.0, beta_slow=0.5),
            rope("yarn", **YARN, beta_fast=4.0, beta_slow=0.5, truncate=False, attention_factor=1.0),
        ],
        length=40,
    ),
    Case(
        "llama_longrope",
        {"max_position_embeddings": 128, **rope("longrope", **LONG)},
        matters=[
            rope(),
            rope("longrope", **{**LONG, "long_factor": LONG["short_factor"]}),
            rope("longrope", **LONG, attention_factor=1.0),
        ],
        length=40,
    ),
    Case(
        "llama_longrope_short",
        {"max_position_embeddings": 128, **rope("longrope", **LONG)},
        matters=[rope("longrope", **{**LONG, "short_factor": LONG["long_factor"]})],
    ),
    Case(
        "mistral_window",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 7, **rope()},
        matters=[{"sliding_window": None}, {"sliding_window": 8}, {"sliding_window": 6}],
        gradients=("model.layers.0.self_attn.v_proj.weight", "model.layers.1.mlp.gate_proj.weight"),
        length=32,
    ),
    Case(
        "mistral_narrow",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 4,
            "sliding_window": None,
            **rope("linear", factor=4.0),
        },
        matters=[rope(), {"sliding_window": 7}],
    ),
    Case(
        "mistral_full",
        {"sliding_window": None, "tie_word_embeddings": False, "rms_norm_eps": 1e-2, **rope(theta=1000000.0)},
        matters=[{"sliding_window": 7}, {"rms_norm_eps": 1e-5}, rope()],
        old_style=True,
        sharded=True,
    ),
    Case(
        "qwen2_tied",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-2, **rope(theta=1000000.0)},
        matters=[rope(), {"rms_norm_eps": 1e-5}],
        gradients=("model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.bias", "model.norm.weight"),
    ),
    Case("qwen2_untied", {"tie_word_embeddings": False, **rope()}, sharded=True),
    Case(
        "qwen2_window",
        {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2, **rope()},
        matters=[
            {"use_sliding_window": False},
            {"max_window_layers": 1},
            {"max_window_layers": 0},
            {"sliding_window": 8},
        ],
        old_style=True,
        length=32,
    ),
    Case(
        "qwen2_yarn",
        {"max_position_embeddings": 32, **rope("yarn", theta=1000000.0, **YARN)},
        matters=[rope(theta=1000000.0), rope("yarn", theta=1000000.0, **YARN, attention_factor=1.0)],
        old_style=True,
        length=40,
    ),
    Case(
        "qwen3_tied",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 1e-2,
            **rope(theta=1000000.0),
        },
        matters=[rope(), {"rms_norm_eps": 1e-5}],
        gradients=(
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.k_norm.weight",
            "model.layers.1.self_attn.o_proj.weight",
        ),
    ),
    Case(
        "qwen3_bias",
        {"attention_bias": True, "head_dim": 8, "tie_word_embeddings": False, **rope()},
        matters=[rope(theta=100.0)],
        sharded=True,
    ),
    Case(
        "qwen3_window",
        {
            "num_hidden_layers": 3,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 7,
            "layer_types": ALTERNATE,
            **rope(),
        },
        matters=[
            {"layer_types": ["full_attention"] * 3},
            {"layer_types": ["sliding_attention"] * 3},
            {"sliding_window": 8},
        ],
        length=32,
    ),
    Case(
        "qwen3_yarn",
        {"head_dim": 16, "max_position_embeddings": 128, **rope("yarn", **YARN)},
        matters=[rope()],
        old_style=True,
        length=40,
    ),
]
