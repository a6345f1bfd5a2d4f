"""Leaves without what does not stay, by index arithmetic written out."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlean.compress.cut import best, cut, heads_that_stay
from jaxlean.errors import ModelError


def shape(**more):
    return SimpleNamespace(**({"num_heads": 4, "num_kv_heads": 2, "head_dim": 2, "fused_qkv": None} | more))


def test_the_best_in_their_order():
    assert best(np.asarray([1.0, 3, 3, 0, 2]), 3).tolist() == [1, 2, 4]
    assert best(np.asarray([1.0, 1, 1]), 2).tolist() == [0, 1]


def test_heads_of_groups():
    energy = np.asarray([5.0, 1, 2, 3])  # groups (0, 1) and (2, 3)
    one = heads_that_stay(energy, shape(), shape(num_heads=2, num_kv_heads=1))
    assert {name: found.tolist() for name, found in one.items()} == {
        "heads": [0, 1], "groups": [0], "queries": [0, 1, 2, 3], "keys": [0, 1],
    }  # fmt: skip
    each = heads_that_stay(energy, shape(fused_qkv="parts"), shape(num_heads=2))
    assert each["heads"].tolist() == [0, 3]
    assert each["queries"].tolist() == [0, 1, 6, 7]
    assert each["qkv"].tolist() == [0, 1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    alike = {"num_kv_heads": 4, "fused_qkv": "heads"}
    two = heads_that_stay(energy, shape(**alike), shape(**alike | {"num_heads": 2, "num_kv_heads": 2}))
    assert two["qkv"].tolist() == [*range(6), *range(18, 24)]


def test_each_leaf_is_cut_along_what_it_counts():
    random = np.random.default_rng(0)
    params = {
        "mlp": {
            "gate_up": {"kernel": jnp.asarray(random.normal(size=(3, 8))), "bias": jnp.arange(8.0)},
            "down": {"kernel": jnp.asarray(random.normal(size=(4, 3))), "bias": jnp.arange(3.0)},
        },
        "mlp_norm": {"scale": jnp.arange(3.0)},
    }
    config = SimpleNamespace(intermediate_size=4, hidden_size=3)
    got = cut(params, {"neurons": np.asarray([1, 3]), "hidden": np.asarray([0, 2])}, config)
    both, old = [1, 3, 5, 7], {name: np.asarray(params["mlp"][name]["kernel"]) for name in ("gate_up", "down")}
    np.testing.assert_array_equal(got["mlp"]["gate_up"]["kernel"], old["gate_up"][[0, 2]][:, both])
    np.testing.assert_array_equal(got["mlp"]["gate_up"]["bias"], both)
    np.testing.assert_array_equal(got["mlp"]["down"]["kernel"], old["down"][[1, 3]][:, [0, 2]])
    np.testing.assert_array_equal(got["mlp"]["down"]["bias"], [0, 2])
    np.testing.assert_array_equal(got["mlp_norm"]["scale"], [0, 2])
    with pytest.raises(ModelError, match=r"not made narrower[\s\S]*mlp.router.kernel"):
        cut({"mlp": {"router": {"kernel": jnp.ones((3, 2))}}}, {}, config)
