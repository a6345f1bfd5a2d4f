"""Which numbers are held in which dtype: one rule, in one place.

Matrices of the frozen base are held and multiplied in the compute dtype. What trains is float32 and cast where it is
used, so that small updates are not lost; norms, softmax, loss and the optimizer are float32 always.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def compute_dtype(name: str) -> Any:
    """`auto`, `float32` or `bfloat16` -> a dtype; auto is float32 on CPU, many of which only emulate bfloat16."""
    if name == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(name)


def parameter_dtype(compute: Any, trains: Callable[[str], bool]) -> Callable[[str], Any]:
    """path -> the dtype that the parameter is held in."""

    def dtype(path: str) -> Any:
        small = path.endswith((".scale", ".bias", ".lora_scale"))
        return jnp.dtype(jnp.float32) if small or trains(path) else compute

    return dtype
