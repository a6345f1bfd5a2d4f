"""Decoders that turn some screw differently from Llama: norms, biases, caps, windows, multipliers, fused kernels."""

from typing import Any

from cases.case import BASE, Case, rope


def without(base: dict[str, Any], *keys: str, **changes: Any) -> dict[str, Any]:
    """`base` for a family that has no such keys."""
    return {key: value for key, value in base.items() if key not in keys} | changes


PHI3 = {**BASE, "num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 16
PHI_LONG = {"short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5], "long_factor": [1.2, 1.5, 2.0, 3.0, 4.0, 6.0]}


def phi_rope(**parameters: Any) -> dict[str, Any]:
    """A rope that turns three quarters of each head, other beyond 32 tokens; `parameters` replace its own."""
    own = {**PHI_LONG, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32}
    return rope("longrope", **{**own, **parameters})


PHI3_OLD = {
    "rope_parameters": None,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "longrope", **PHI_LONG},
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
}
PHI3_CASES = [
    Case(
        "phi3_window",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 7, "rms_norm_eps": 1e-2, **rope()},
        matters=[{"sliding_window": None}, {"sliding_window": 8}, {"rms_norm_eps": 1e-5}, rope(theta=100.0)],
        base={**PHI3, "tie_word_embeddings": False},
        old_style=True,
        gradients=(
            "model.layers.0.self_attn.qkv_proj.weight",
            "model.layers.1.mlp.gate_up_proj.weight",
            "model.norm.weight",
        ),
        length=32,
    ),
    Case(
        "phi3_long",
        {
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
            **phi_rope(),
        },
        matters=[
            phi_rope(long_factor=PHI_LONG["short_factor"]),
            phi_rope(attention_factor=1.0),
            rope(partial_rotary_factor=0.75),
        ],
        base=PHI3,
        on_file=PHI3_OLD,
        length=40,
    ),
    Case(
        "phi3_long_short",
        {
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "tie_word_embeddings": True,
            **phi_rope(),
        },
        matters=[phi_rope(short_factor=PHI_LONG["long_factor"])],
        base=PHI3,
    ),
    Case(
        "phi3_partial",
        {"num_key_value_heads": 2, "tie_word_embeddings": True, **rope(partial_rotary_factor=0.5)},
        matters=[rope(partial_rotary_factor=0.75), rope(partial_rotary_factor=1.0)],
        base=PHI3,
    ),
]

SMOLLM3_CASES = [
    # Each fourth layer without a rope, and one left over.
    Case(
        "smollm3_interval",
        {"num_hidden_layers": 5, "rms_norm_eps": 1e-2, "tie_word_embeddings": True, **rope(theta=10000.0)},
        matters=[
            {"no_rope_layers": [1] * 5},
            {"no_rope_layers": [0] * 5},
            {"no_rope_layer_interval": 3},
            {"rms_norm_eps": 1e-5},
            rope(theta=100.0),
        ],
        base=BASE,
        gradients=(
            "model.layers.2.self_attn.k_proj.weight",
            "model.layers.3.self_attn.k_proj.weight",
            "model.layers.4.self_attn.q_proj.weight",
            "model.layers.4.input_layernorm.weight",
        ),
    ),
    Case(
        "smollm3_list",
        {
            "num_hidden_layers": 3,
            "no_rope_layers": [0, 1, 1],
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            **rope(theta=2000000.0),
        },
        matters=[{"no_rope_layers": [1, 1, 1]}, {"no_rope_layers": [1, 0, 1]}, rope()],
        base=BASE,
        mute=("layers.0.self_attn.k_proj.bias",),  # without a rope it adds the same to all scores of a query
    ),
    # Windows where there is no rope.
    Case(
        "smollm3_window",
        {
            "num_hidden_layers": 3,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 7,
            "tie_word_embeddings": True,
            **rope("yarn", factor=4.0, original_max_position_embeddings=32),
        },
        matters=[{"sliding_window": 8}, {"use_sliding_window": False}, rope()],
        base={**BASE, "max_position_embeddings": 128},
        old_style=True,
        length=32,
    ),
]

GRANITE_CASES = [
    Case(
        "granite_multipliers",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.15,
            "logits_scaling": 2.0,
            "rms_norm_eps": 0.1,
            "tie_word_embeddings": True,
            **rope(),
        },
        matters=[
            {"embedding_multiplier": 1.0},
            {"residual_multiplier": 1.0},
            {"attention_multiplier": 8**-0.5},
            {"logits_scaling": 1.0},
            {"rms_norm_eps": 1e-5},
            rope(theta=100.0),
        ],
        base=BASE,
        gradients=(
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.mlp.down_proj.weight",
            "model.norm.weight",
        ),
    ),
    Case(
        "granite_bias",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "attention_multiplier": 0.5,
            "tie_word_embeddings": False,
            **rope(theta=500000.0),
        },
        matters=[{"attention_multiplier": 8**-0.5}, rope()],
        base=BASE,
        sharded=True,
    ),
    # The defaults of the multipliers: attention's is 1, not 1 / sqrt(head_dim).
    Case(
        "granite_old",
        {"num_key_value_heads": 4, "tie_word_embeddings": True, **rope()},
        matters=[{"attention_multiplier": 8**-0.5}],
        base=BASE,
        old_style=True,
        on_file=dict.fromkeys(
            ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling", "mlp_bias"]
        ),
    ),
]

GLM4 = {**BASE, "head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
GLM4_CASES = [
    Case(
        "glm4_partial",
        {"rms_norm_eps": 1e-2, **rope(partial_rotary_factor=0.5)},
        matters=[
            rope(partial_rotary_factor=0.25),
            rope(partial_rotary_factor=1.0),
            rope(theta=100.0, partial_rotary_factor=0.5),
            {"rms_norm_eps": 1e-5},
        ],
        base=GLM4,
        gradients=(
            "model.layers.0.self_attn.k_proj.bias",
            "model.layers.0.mlp.gate_up_proj.weight",
            "model.layers.1.post_self_attn_layernorm.weight",
            "model.layers.1.post_mlp_layernorm.weight",
            "model.layers.1.post_attention_layernorm.weight",
        ),
    ),
    Case(
        "glm4_whole",
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_bias": False,
            "tie_word_embeddings": True,
            **rope(partial_rotary_factor=1.0),
        },
        matters=[rope(partial_rotary_factor=0.5)],
        base=GLM4,
    ),
    # A file that does not say how much of a head is turned means half.
    Case(
        "glm4_old",
        {"num_key_value_heads": 2, **rope(partial_rotary_factor=0.5)},
        base=GLM4,
        on_file={"rope_parameters": None, "rope_theta": 10000.0},
    ),
]

COHERE = without(BASE, "rms_norm_eps", tie_word_embeddings=True, layer_norm_eps=1e-5)
COHERE_CASES = [
    Case(
        "cohere_tied",
        {"logit_scale": 0.5, "layer_norm_eps": 1e-2, **rope()},
        matters=[{"logit_scale": 1.0}, {"layer_norm_eps": 1e-5}, rope(theta=100.0)],
        base=COHERE,
        gradients=(
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.1.self_attn.k_proj.weight",
            "model.norm.weight",
        ),
    ),
    # Command R+: a norm of its own for each head
    Case(
        "cohere_heads",
        {"logit_scale": 0.8333333333333334, "use_qk_norm": True, "layer_norm_eps": 1e-2, **rope(theta=500000.0)},
        matters=[{"layer_norm_eps": 1e-5}, rope(), {"logit_scale": 0.0625}],
        base=COHERE,
        gradients=("model.layers.0.self_attn.q_norm.weight", "model.layers.1.self_attn.k_norm.weight"),
        sharded=True,
    ),
    Case(
        "cohere_bias",
        {"attention_bias": True, "num_key_value_heads": 4, "logit_scale": 1.0, **rope()},
        base=COHERE,
        on_file={"rope_parameters": None, "rope_theta": 10000.0, "tie_word_embeddings": None},
    ),
]

STARCODER2 = without(BASE, "rms_norm_eps", "pad_token_id", norm_epsilon=1e-5, tie_word_embeddings=True)
STARCODER2_CASES = [
    Case(
        "starcoder2_window",
        {"sliding_window": 7, "norm_epsilon": 1e-2, **rope()},
        matters=[{"sliding_window": None}, {"sliding_window": 8}, {"norm_epsilon": 1e-5}, rope(theta=100.0)],
        base=STARCODER2,
        gradients=(
            "model.layers.0.self_attn.k_proj.bias",
            "model.layers.0.mlp.c_fc.weight",
            "model.layers.1.mlp.c_proj.bias",
            "model.layers.1.input_layernorm.bias",
            "model.norm.bias",
            "model.norm.weight",
        ),
        length=32,
    ),
    Case(
        "starcoder2_nobias",
        {"use_bias": False, "tie_word_embeddings": False, **rope(theta=1000000.0)},
        matters=[rope()],
        base=STARCODER2,
        sharded=True,
    ),
    Case(
        "starcoder2_old",
        {"num_key_value_heads": 4, "sliding_window": 5, **rope()},
        matters=[{"sliding_window": 6}, {"hidden_act": "silu"}],
        base=STARCODER2,
        old_style=True,
        on_file={"norm_type": "layer_norm", "mlp_type": "default"},
    ),
]

GPT2 = {
    "vocab_size": 48,
    "n_positions": 32,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_CASES = [
    Case(
        "gpt2_tied",
        {"layer_norm_epsilon": 1e-2},
        matters=[{"layer_norm_epsilon": 1e-5}, {"activation_function": "relu"}],
        base=GPT2,
        gradients=(
            "transformer.wpe.weight",
            "transformer.h.0.attn.c_attn.weight",
            "transformer.h.0.attn.c_attn.bias",
            "transformer.h.1.mlp.c_proj.bias",
            "transformer.h.1.ln_2.weight",
            "transformer.ln_f.bias",
        ),
    ),
    Case(
        "gpt2_inner",
        {
            "n_inner": None,
            "n_embd": 16,
            "n_layer": 3,
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
        matters=[{"scale_attn_by_inverse_layer_idx": False}],
        base=GPT2,
    ),
    Case(
        "gpt2_unscaled",
        {"scale_attn_weights": False, "activation_function": "gelu_pytorch_tanh"},
        matters=[{"scale_attn_weights": True}],
        base=GPT2,
        sharded=True,
    ),
    # openai-community/gpt2: no `transformer.`, and the causal mask of each layer.
    Case(
        "gpt2_old",
        base=GPT2,
        leftovers=True,
        old_names=[("^transformer\\.", "")],
        on_file={"n_ctx": 32, "tie_word_embeddings": None, "dtype": None},
    ),
]

NEOX = without(
    BASE, "rms_norm_eps", "num_key_value_heads", num_attention_heads=2, layer_norm_eps=1e-5, tie_word_embeddings=False
)
QUARTER = {"partial_rotary_factor": 0.25}
NEOX_CASES = [
    Case(
        "gptneox_parallel",
        {"layer_norm_eps": 1e-2, **rope(**QUARTER)},
        matters=[
            {"use_parallel_residual": False},
            {"layer_norm_eps": 1e-5},
            {"hidden_act": "relu"},
            rope(partial_rotary_factor=0.5),
            rope(theta=10.0, **QUARTER),
        ],
        base=NEOX,
        model_type="gpt_neox",
        gradients=(
            "gpt_neox.layers.0.attention.query_key_value.weight",
            "gpt_neox.layers.0.attention.query_key_value.bias",
            "gpt_neox.layers.1.attention.dense.bias",
            "gpt_neox.layers.1.mlp.dense_h_to_4h.weight",
            "gpt_neox.layers.1.post_attention_layernorm.bias",
            "gpt_neox.final_layer_norm.weight",
            "embed_out.weight",
        ),
    ),
    Case(
        "gptneox_sequential",
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            **rope(partial_rotary_factor=1.0),
        },
        matters=[{"use_parallel_residual": True}, rope(partial_rotary_factor=0.5)],
        base={**NEOX, "tie_word_embeddings": True},
        model_type="gpt_neox",
    ),
    # EleutherAI/pythia: the rope under its own names, and masks and frequencies among the tensors.
    Case(
        "gptneox_old",
        {"max_position_embeddings": 32, **rope(**QUARTER)},
        base=NEOX,
        model_type="gpt_neox",
        leftovers=True,
        on_file={
            "rope_parameters": None,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "attention_bias": None,
            "torch_dtype": "float32",
            "dtype": None,
        },
    ),
]

CASES = [
    *PHI3_CASES,
    *SMOLLM3_CASES,
    *GRANITE_CASES,
    *GLM4_CASES,
    *COHERE_CASES,
    *STARCODER2_CASES,
    *GPT2_CASES,
    *NEOX_CASES,
]
