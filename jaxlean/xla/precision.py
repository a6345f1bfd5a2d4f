"""Which numbers are held in which dtype: one table of rules, in one place.

What is held, `RULES`:

    matrices of the frozen base      the compute dtype, or fewer bits (`jaxlean.codec`)
    norms, mean/var, biases, scales  float32: they are small, and what they multiply or shift is many
    what trains                      float32, cast where it is used, so that small updates are not lost
    optimizer, gradients' sums       float32, unless `train.optim` says 8 bits

What is computed, by the one place that does each: matrix products in the compute dtype with float32 sums, forward and
backward (`models.linear.product`, int8 and float8 in `models.quantized`); norms, rotary angles, softmax and the
activation of the MLP in float32 (`models.norm`, `models.rope`, `models.attention`, `models.decoder.MLP`); logits and
loss in float32 (`train.loss`). The residual stream is in the compute dtype.
"""

import os
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlean.errors import ConfigError
from jaxlean.platform import platform

# The first pattern found in a path decides. What trains is float32 before any rule.
RULES: tuple[tuple[str, Literal["float32", "compute", "codes"]], ...] = (
    (r"\.(scale|bias|mean|var)$", "float32"),
    (r"\.lora_\w+$", "float32"),
    (r"\.kernel_(scale|scales|absmax_scale|absmax_offset)$", "float32"),
    (r"\.kernel_\w+$", "codes"),
    (r".*", "compute"),
)

# Set to 1, float8 products are allowed where they are only emulated: to see what they do to a loss, slowly.
EMULATE_FP8 = "JAXLEAN_EMULATE_FP8"


def compute_dtype(name: str) -> Any:
    """`auto`, `float32` or `bfloat16` -> a dtype; auto is float32 on CPU, many of which only emulate bfloat16."""
    if name == "auto":
        return jnp.dtype(jnp.float32 if platform() == "cpu" else jnp.bfloat16)
    return jnp.dtype(name)


def parameter_dtype(compute: Any, trains: Callable[[str], bool]) -> Callable[[str], Any]:
    """path -> the dtype that the parameter is held in.

    Args:
        compute: dtype of matrix products.
        trains: path -> whether it does.

    Codes of a quantized matrix have the dtype of their format, int8 or uint8.
    """

    def dtype(path: str) -> Any:
        if trains(path):
            return jnp.dtype(jnp.float32)
        match next(kind for pattern, kind in RULES if re.search(pattern, path)):
            case "float32":
                return jnp.dtype(jnp.float32)
            case "codes":
                return jnp.dtype(jnp.int8 if path.endswith(("_int8", "_int8_grouped")) else jnp.uint8)
            case "compute":
                return jnp.dtype(compute)

    return dtype


def check_matmul(matmul: str, device: jax.Device) -> None:
    """Refuse float8 products where the hardware has none; int8 products are everywhere.

    NVIDIA has them from compute capability 8.9 (Ada, Hopper), TPUs from the seventh generation.

    Raises:
        ConfigError: names the hardware.
    """
    if matmul != "fp8" or _has_float8(device) or os.environ.get(EMULATE_FP8) == "1":
        return
    raise ConfigError(
        "model.matmul=fp8: the hardware has no float8 products",
        got=device.device_kind,
        wanted="an NVIDIA GPU of compute capability 8.9 or more (L4, RTX 4090, H100), or a TPU v7",
        fix="model.matmul=int8 or default",
    )


def _has_float8(device: jax.Device) -> bool:
    if device.platform == "gpu":
        # "9.0" on NVIDIA; AMD's "gfx942" has another kind of float8
        version = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
        return version is not None and (int(version[1]), int(version[2])) >= (8, 9)
    generation = re.search(r"TPU ?v?(\d+)", device.device_kind)
    return device.platform == "tpu" and generation is not None and int(generation[1]) >= 7
