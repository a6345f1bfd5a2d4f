"""Which PEFT adapters there are: each variant's `LoraConfig`, and which bases it is written for."""

from typing import Any

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
    # What PEFT writes of a layer's experts, which transformers 5 holds as two parameters of three dimensions:
    #   mlp.experts.base_layer.lora_A [E * r, in],  lora_B [out, r * E]   for gate_up_proj
    #   mlp.experts.lora_A [E * r, in],             lora_B [out, r * E]   for down_proj, which is wrapped around it
    # A's rows are grouped by expert, B's columns by rank: change[e] = scale * B.reshape(out, r, E)[:, :, e]
    # @ A.reshape(E, r, in)[e]. `out` of gate_up_proj is gate then up (gpt_oss: in turn). gpt_oss holds its parameters
    # [E, in, out], its adapters are as here. "plain" reaches the experts of Mixtral, Qwen3 and DeepSeek too, and the
    # router as mlp.gate.lora_A [r, in], lora_B [E, r]; r of gate_up_proj is then doubled, and its alpha. Those of Qwen2
    # and gpt_oss it does not reach.
    "experts": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "o_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
    # Convolutions of 1x1: to PEFT convolutions, whose A is [r, in, 1, 1] and B [out, r, 1, 1].
    "pointwise": {"r": 2, "lora_alpha": 4, "target_modules": r".*(_1x1\.convolution|expand_conv|project_conv)"},
    "every_second": {"r": 2, "lora_alpha": 4, "target_modules": r".*layer\.\d*[13579]\.convolution"},
    # Not `all-linear`: PEFT takes pre_classifier for classifier, which is saved whole, and then adapts it too.
    "named": {"r": 4, "lora_alpha": 8, "target_modules": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]},
    "one_layer": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
}
EVERYWHERE = [name for name in ADAPTERS if name not in ("experts", "pointwise", "every_second", "named")]
ADAPTED = {
    "llama_gqa": EVERYWHERE,
    "qwen3_tied": EVERYWHERE,
    "mistral_window": ["plain"],
    "qwen2_tied": ["dora"],  # DoRA scales x W but not the bias
    "gemma_mqa": ["plain"],
    "gemma2_soft": ["plain"],
    "gemma3_window": ["plain"],
    "phi3_long": ["plain"],
    "olmo2_gqa": ["plain"],
    "olmo3_yarn": ["plain"],
    "smollm3_list": ["plain"],
    "granite_bias": ["plain"],
    "glm4_partial": ["plain"],
    "cohere_heads": ["plain"],
    "starcoder2_window": ["plain"],
    "gpt2_tied": ["plain"],  # its kernels are [in, out]: fan_in_fan_out
    "gptneox_parallel": ["plain"],
    "mixtral_two": ["plain", "experts"],
    "qwen2moe_shared": ["plain", "experts"],
    "qwen3moe_normed": ["plain", "experts"],
    "gptoss_plain": ["plain", "experts"],
    "deepseekv2_groups": ["plain", "experts"],
    "deepseekv3_one": ["plain", "experts"],
    "bert_classify": ["plain"],
    "distilbert_classify": ["named"],
    "roberta_classify": ["plain"],
    "modernbert_mean": ["plain"],
    "vit_classify": ["plain"],
    "clip_classify": ["plain"],
    "clip_both": ["plain"],
    # with tf_padding transformers asks PEFT's layer for a stride
    "mobilenetv1_symmetric": ["every_second"],
    "mobilenetv2_spread": ["pointwise"],
    "efficientnet_classify": ["pointwise"],
}
