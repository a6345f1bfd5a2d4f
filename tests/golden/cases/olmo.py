"""OLMo 2 and 3: norms of the branches only; OLMo 3's layers of two kinds."""

from cases.case import BASE, YARN, Case, rope, two_ropes

OLMO2_CASES = [
    Case(
        "olmo2_gqa",
        {"rms_norm_eps": 1e-2, "tie_word_embeddings": False, **rope(theta=500000.0)},
        matters=[rope(), {"rms_norm_eps": 1e-5}],
        base=BASE,
        gradients=(
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.1.self_attn.k_norm.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "model.layers.1.post_feedforward_layernorm.weight",
        ),
    ),
    Case(
        "olmo2_mha",
        {"num_key_value_heads": 4, "tie_word_embeddings": True, **rope()},
        matters=[rope(theta=100.0)],
        base=BASE,
        old_style=True,
    ),
    Case(
        "olmo2_bias",
        {"attention_bias": True, "tie_word_embeddings": False, **rope("linear", factor=4.0)},
        matters=[rope()],
        base=BASE,
        sharded=True,
    ),
]

OLMO3 = {**BASE, "hidden_size": 24, "intermediate_size": 16, "max_position_embeddings": 128}
OLMO3_CASES = [
    # Three that slide and one that does not, then one left over; as allenai/Olmo-3-7B has it, yarn on the one only.
    Case(
        "olmo3_yarn",
        {
            "num_hidden_layers": 5,
            "sliding_window": 7,
            "rms_norm_eps": 1e-2,
            "tie_word_embeddings": False,
            **two_ropes(rope("yarn", **YARN), rope()),
        },
        matters=[
            {"layer_types": ["sliding_attention"] * 5},
            {"layer_types": ["full_attention"] * 5},
            {"sliding_window": 8},
            {"rms_norm_eps": 1e-5},
            two_ropes(rope(), rope()),
            two_ropes(rope("yarn", **YARN), rope("yarn", **YARN)),
            two_ropes(rope("yarn", **YARN), rope(theta=100.0)),
        ],
        base=OLMO3,
        gradients=(
            "model.layers.0.self_attn.q_norm.weight",
            "model.layers.3.self_attn.k_proj.weight",
            "model.layers.2.post_attention_layernorm.weight",
            "model.layers.4.post_feedforward_layernorm.weight",
        ),
        length=40,
    ),
    # As files of transformers 4 have it: one theta and one scaling.
    Case(
        "olmo3_old",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "sliding_window": 5,
            "hidden_act": "gelu",
            "tie_word_embeddings": True,
            **two_ropes(rope("yarn", theta=500000.0, attention_factor=1.3, **YARN), rope(theta=500000.0)),
        },
        matters=[
            two_ropes(rope("yarn", theta=500000.0, **YARN), rope(theta=500000.0)),
            two_ropes(rope(theta=500000.0), rope(theta=500000.0)),
            {"hidden_act": "silu"},
            {"sliding_window": 6},
        ],
        base=OLMO3,
        on_file={
            "rope_parameters": None,
            "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "yarn", "attention_factor": 1.3, **YARN},
            "torch_dtype": "float32",
            "dtype": None,
            "transformers_version": "4.57.0",
        },
    ),
    # A pattern of its own, biases, several files.
    Case(
        "olmo3_bias",
        {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 6,
            "attention_bias": True,
            "tie_word_embeddings": False,
            **two_ropes(rope("linear", theta=1000.0, factor=4.0), rope(theta=100.0)),
        },
        matters=[
            {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            two_ropes(rope(theta=1000.0), rope(theta=100.0)),
            two_ropes(rope("linear", theta=1000.0, factor=4.0), rope(theta=1000.0)),
        ],
        base=OLMO3,
        sharded=True,
    ),
]

CASES = [*OLMO2_CASES, *OLMO3_CASES]
