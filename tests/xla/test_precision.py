"""Which parameter is held in which dtype."""

import jax.numpy as jnp
import pytest

from jaxlean.xla.precision import compute_dtype, parameter_dtype


def test_auto_is_float32_on_cpu():
    assert compute_dtype("auto") == jnp.float32
    assert compute_dtype("float32") == jnp.float32
    assert compute_dtype("bfloat16") == jnp.bfloat16


@pytest.mark.parametrize(
    ("path", "trains", "wanted"),
    [
        ("layers.attention.query.kernel", False, "bfloat16"),
        ("layers.attention.query.kernel", True, "float32"),
        ("layers.attention.query.bias", False, "float32"),
        ("layers.attention.query.lora_a", True, "float32"),
        ("layers.attention.query.lora_scale", False, "float32"),
        ("layers.attention.query_norm.scale", False, "float32"),
        ("norm.scale", False, "float32"),
        ("embed.embedding", False, "bfloat16"),
        ("head.kernel", False, "bfloat16"),
    ],
)
def test_matrices_that_are_frozen_are_held_in_the_compute_dtype_all_else_in_float32(path, trains, wanted):
    assert parameter_dtype(jnp.dtype("bfloat16"), lambda asked: asked == path and trains)(path) == wanted
    assert parameter_dtype(jnp.dtype("float32"), lambda _: trains)(path) == "float32"
