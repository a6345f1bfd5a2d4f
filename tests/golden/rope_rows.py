"""Write what transformers computes for rope settings that a whole checkpoint each would be too much for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import LLAMA3, YARN, rope
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


def write_rope(file: Path) -> dict[str, Any]:
    """Write rope.json; returns a row of the table."""
    factors = {key: [1.0 + step * i for i in range(32)] for key, step in (("short_factor", 0.01), ("long_factor", 0.2))}
    phi = {"original_max_position_embeddings": 4096, **factors}
    llama31 = {**LLAMA3, "original_max_position_embeddings": 8192}
    qwen = {"factor": 4.0, "original_max_position_embeddings": 32768}
    settings: list[tuple[int, int, dict[str, Any], Sequence[int]]] = [
        # head_dim, max_position_embeddings, rope_parameters, lengths
        (128, 4096, rope()["rope_parameters"], [4096]),
        (64, 8192, rope(theta=500000.0)["rope_parameters"], [8192]),
        (128, 8192, rope("linear", factor=4.0)["rope_parameters"], [8192]),
        (128, 2048, rope("dynamic", factor=2.0)["rope_parameters"], [1, 2048, 2049, 8192]),
        (64, 131072, rope("llama3", theta=500000.0, **{**llama31, "factor": 32.0})["rope_parameters"], [16]),
        (128, 131072, rope("llama3", theta=500000.0, **llama31)["rope_parameters"], [16]),
        (128, 32768, rope("yarn", theta=1000000.0, **qwen)["rope_parameters"], [16]),
        (128, 131072, rope("yarn", **qwen, truncate=False)["rope_parameters"], [16]),
        (64, 16384, rope("yarn", **YARN, attention_factor=0.8, beta_fast=8, beta_slow=2)["rope_parameters"], [16]),
        (64, 163840, rope("yarn", **YARN, mscale=0.707, mscale_all_dim=1.0)["rope_parameters"], [16]),
        (64, 4096, rope("yarn", **{**YARN, "factor": 1.0})["rope_parameters"], [16]),
        (64, 131072, rope("longrope", **phi)["rope_parameters"], [1, 4096, 4097]),
        (64, 131072, rope("longrope", **phi, factor=8.0)["rope_parameters"], [4097]),
        (64, 131072, rope("longrope", **phi, attention_factor=1.25)["rope_parameters"], [4097]),
        (64, 4096, rope("longrope", **phi)["rope_parameters"], [4096]),
    ]
    rows = []
    for head_dim, max_position_embeddings, parameters, lengths in settings:
        for length in lengths:
            config = LlamaConfig(
                hidden_size=4 * head_dim,
                num_attention_heads=4,
                head_dim=head_dim,
                max_position_embeddings=max_position_embeddings,
                rope_parameters=dict(parameters),
            )
            if parameters["rope_type"] == "default":
                inv_freq, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
            else:
                inv_freq, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
            rows.append(
                {
                    "head_dim": head_dim,
                    "max_position_embeddings": max_position_embeddings,
                    "rope_parameters": parameters,
                    "length": length,
                    "inv_freq": [float(f"{value:.9g}") for value in inv_freq.tolist()],  # 9 digits hold a float32
                    "attention_factor": float(factor),
                }
            )
    file.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    return {"bytes": file.stat().st_size, "logit": None, "noise": None, "effect": None}
