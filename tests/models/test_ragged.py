"""What is written for TPUs: experts are multiplied by XLA's own kernel. `test_grouped.py` has the numbers."""

import jax
import jax.numpy as jnp
import pytest

from jaxlean.models.grouped import grouped_linear
from jaxlean.platform import written_for

ROWS, GROUPS, IN, OUT, RANK = 64, 4, 8, 6, 2


def loss(x, trained, frozen, sizes):
    return jnp.sin(grouped_linear(x, {**trained, **frozen}, sizes)).sum()


def lowered(platform, trains):
    shapes = {
        "kernel": (GROUPS, IN, OUT), "bias": (GROUPS, OUT),
        "lora_a": (GROUPS, IN, RANK), "lora_b": (GROUPS, RANK, OUT), "lora_scale": (GROUPS,),
    }  # fmt: skip
    leaves = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    trained = {name: leaves.pop(name) for name in trains}
    with written_for(platform):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(
            jnp.zeros((ROWS, IN)), trained, leaves, jnp.full((GROUPS,), ROWS // GROUPS)
        )
        return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("platform", "trains", "loops"),
    [
        ("cpu", (), True),
        ("tpu", (), False),
        ("tpu", ("lora_a", "lora_b"), False),
        ("tpu", ("kernel",), True),  # whose gradient XLA would compute of every row with every group
    ],
)
def test_whether_it_loops_over_blocks(platform, trains, loops):
    text = lowered(platform, trains)
    assert ("stablehlo.while" in text) == loops
    assert ("ragged_dot" in text) == (platform == "tpu")
