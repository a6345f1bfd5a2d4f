"""Which golden files there are: the shapes, the settings, and the changes that must show in the logits.

make_golden.py writes them. A new family is a few more `Case`s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Case:
    """One checkpoint.

    Attributes:
        name: its folder; the part before the first `_` is the `model_type`.
        config: what differs from `SMALL`.
        matters: config changes, each of which must move the logits; shapes have to stay as they are.
        old_style: write config.json as transformers 4 did: `rope_theta` and `rope_scaling` in place of
            `rope_parameters`, `torch_dtype`, no `layer_types`.
        sharded: write several files and an index.
        leftovers: add what old hub files carry without need: rotary buffers, and `lm_head` although it is tied.
        gradients: parameters whose gradient is written.
        length: T, tokens in a row.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    matters: Sequence[dict[str, Any]] = ()
    old_style: bool = False
    sharded: bool = False
    leftovers: bool = False
    gradients: Sequence[str] = ()
    length: int = 24

    @property
    def family(self) -> str:
        return self.name.split("_")[0]


def rope(rope_type: str = "default", theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    """The `rope_parameters` entry of a config."""
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": theta, **parameters}}


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    "long_factor": [1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0],
}
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

# Each variant on each base; r and lora_alpha apply where a pattern does not.
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 4, "target_modules": ["o_proj", "down_proj"], "use_rslora": True},
    "dora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        # A name (both layers), and one layer of a module: ranks and scales differ inside one stacked kernel.
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"v_proj": 12, "model.layers.0.mlp.down_proj": 2},
    },
    "subset": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "one_layer": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
}
ADAPTED = {
    "llama_gqa": list(ADAPTERS),
    "qwen3_tied": list(ADAPTERS),
    "qwen2_tied": ["dora"],  # DoRA scales x W but not the bias
}
