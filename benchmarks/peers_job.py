"""The job that `peers.py` gives to every system: random Llama, random adapter and batches, in files that all read."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

# hidden, intermediate, layers, heads, kv heads, head dim, vocabulary
SHAPES: dict[str, tuple[int, ...]] = {
    "tiny": (128, 384, 4, 4, 2, 32, 2_048),
    "135m": (576, 1_536, 30, 9, 3, 64, 49_152),  # SmolLM2-135M
    "1b": (2_048, 8_192, 16, 32, 8, 64, 128_256),  # Llama-3.2-1B
    "8b": (4_096, 14_336, 32, 32, 8, 128, 128_256),  # Llama-3.1-8B
}
_TIED = {"tiny", "135m", "1b"}


def architecture(shape: str) -> dict[str, Any]:
    """The Hugging Face config of a shape."""
    hidden, inner, layers, heads, kv_heads, head_dim, vocab = SHAPES[shape]
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "max_position_embeddings": 8_192, "tie_word_embeddings": shape in _TIED, "bos_token_id": 0, "eos_token_id": 1,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def step_flops(shape: str, rows: int, length: int, r: int = 16) -> float:
    """Operations of the matrix products of one LoRA step, none of them twice, with causal attention."""
    from jaxlean.cost import flops

    hidden, inner, layers, heads, kv_heads, head_dim, vocab = SHAPES[shape]
    names = ("query", "key", "value", "out", "gate", "up", "down")
    numbers = flops.Shape(
        num_layers=layers, hidden_size=hidden, intermediate_size=inner, num_heads=heads, num_kv_heads=kv_heads,
        head_dim=head_dim, vocab_size=vocab, lora_ranks=dict.fromkeys(names, r),
    )  # fmt: skip
    return flops.training_step_flops(numbers, rows, length)


def write_base(folder: Path, shape: str, seed: int = 0) -> None:
    """A random base in bfloat16, in one file a layer."""
    hidden, inner, layers, heads, kv_heads, head_dim, vocab = SHAPES[shape]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(architecture(shape), indent=1))
    random = np.random.default_rng(seed)

    def matrix(*size: int) -> np.ndarray:
        return (random.standard_normal(size, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    wide, narrow = heads * head_dim, kv_heads * head_dim
    sizes = {
        "self_attn.q_proj": (wide, hidden), "self_attn.k_proj": (narrow, hidden), "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, wide), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    ones = np.ones(hidden, ml_dtypes.bfloat16)
    files: list[dict[str, np.ndarray]] = [
        {"model.embed_tokens.weight": matrix(vocab, hidden), "model.norm.weight": ones}
    ]
    if shape not in _TIED:
        files.append({"lm_head.weight": matrix(vocab, hidden)})
    weight_map: dict[str, str] = {}
    for number in range(len(files) + layers):
        layer = number - len(files)
        if layer < 0:
            tensors = files[number]
        else:
            tensors = {f"model.layers.{layer}.{name}.weight": matrix(*size) for name, size in sizes.items()}
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{norm}.weight"] = ones
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_adapter(folder: Path, shape: str, r: int, alpha: int, seed: int = 1) -> None:
    """A PEFT adapter on every linear layer; B is not zero, so that the first step's gradients reach A as well."""
    hidden, inner, layers, heads, kv_heads, head_dim, _ = SHAPES[shape]
    folder.mkdir(parents=True)
    wide, narrow = heads * head_dim, kv_heads * head_dim
    sizes = {
        "self_attn.q_proj": (hidden, wide), "self_attn.k_proj": (hidden, narrow), "self_attn.v_proj": (hidden, narrow),
        "self_attn.o_proj": (wide, hidden), "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }  # fmt: skip
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for name, (dim_in, dim_out) in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            bound = dim_in**-0.5
            tensors[f"{prefix}.lora_A.weight"] = random.uniform(-bound, bound, (r, dim_in)).astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = (random.standard_normal((dim_out, r)) * 0.01).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in sizes}), "base_model_name_or_path": "base",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1))


def prepare(folder: Path, shape: str, *, rows: int, length: int, steps: int, r: int, learning_rate: float) -> None:
    """Write base, adapter, batches and settings.

    The tokens follow a fixed random successor most of the time, so that there is something to learn in few steps.
    """
    write_base(folder / "base", shape)
    write_adapter(folder / "adapter", shape, r, 2 * r)
    vocab = SHAPES[shape][-1]
    random = np.random.default_rng(2)
    frequent = random.integers(2, vocab, 512)
    tokens = frequent[random.integers(0, 512, (steps, rows, length))].astype(np.int32)
    repeat = random.random(tokens.shape) < 0.5
    repeat[..., 0] = False
    for at in range(1, length):
        tokens[..., at] = np.where(repeat[..., at], (tokens[..., at - 1] * 7 + 3) % vocab, tokens[..., at])
    np.savez(folder / "batches.npz", tokens=tokens)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    settings = {"steps": steps, "learning_rate": learning_rate, "threads": cores}
    (folder / "job.json").write_text(json.dumps(settings))
