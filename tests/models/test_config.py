"""What a config says of its layers."""

import jax.numpy as jnp
import pytest

from jaxlean.models.config import Kind, LayersConfig
from jaxlean.models.rope import Rope

SHAPE = {
    "hidden_size": 8, "intermediate_size": 12, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4
}  # fmt: skip


def test_without_kinds_all_layers_are_alike():
    assert LayersConfig(**SHAPE).all_kinds == (Kind(),) * 3
    assert LayersConfig(**SHAPE, rope=None).all_kinds == (Kind(rope=None),) * 3
    kinds = (Kind(window=2), Kind(), Kind(rope=None))
    config = LayersConfig(**SHAPE, kinds=kinds)
    assert config.all_kinds == kinds
    assert config.towers() == {"layers": kinds}
    hash(config)  # it is part of what jit compiles for


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        ((), {"rope"}),
        ((Kind(rope="local_rope"), Kind(), Kind()), {"rope", "local_rope"}),
        ((Kind(rope=None),) * 3, set()),
    ],
)
def test_angles_of_the_ropes_that_a_layer_uses(kinds, names):
    config = LayersConfig(**SHAPE, kinds=kinds, local_rope=Rope(rope_theta=10.0))
    angles = config.angles(jnp.arange(6).reshape(2, 3))
    assert angles.keys() == names
    for cos, sin in angles.values():
        assert cos.shape == sin.shape == (2, 3, 2)
    if len(names) == 2:
        assert not jnp.allclose(angles["rope"][1], angles["local_rope"][1])
