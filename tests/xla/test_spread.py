"""For one process here; over two they are tested by real runs (tests/run/test_finetune_processes.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlean.config import MeshSection
from jaxlean.xla import spread
from jaxlean.xla.mesh import make_mesh
from jaxlean.xla.spread import fetch, gather, put

VALUES = np.arange(96, dtype=np.float32).reshape(4, 8, 3)


def placed(*spec):
    mesh = make_mesh(MeshSection(fsdp=4, data=2))
    return put(VALUES, NamedSharding(mesh, PartitionSpec(*spec)))


@pytest.mark.parametrize("spec", [(), (None, "fsdp"), ("fsdp",), ("fsdp", "data")])
def test_there_and_back(spec):
    array = placed(*spec)
    assert array.sharding.spec == PartitionSpec(*spec)
    np.testing.assert_array_equal(gather(array), VALUES)
    np.testing.assert_array_equal(fetch(array), VALUES)
    assert gather(array, keep=False) is None


def test_a_copy_that_nothing_else_writes_to():
    array = jnp.asarray(VALUES)
    found = gather(array)
    assert found is not None
    found[:] = 0
    np.testing.assert_array_equal(array, VALUES)
    assert gather(3) == 3


@pytest.mark.parametrize("at_once", [1, 100, 200, 10**6])
@pytest.mark.parametrize("spec", [(None, "fsdp"), ("fsdp",), ("fsdp", "data", None)])
def test_by_slices_of_a_dim_that_is_not_split(spec, at_once, monkeypatch):
    # as if other processes held parts of it
    monkeypatch.setattr(jax.Array, "is_fully_addressable", property(lambda self: False), raising=False)
    array, sizes = placed(*spec), []
    monkeypatch.setattr(type(array), "is_fully_addressable", property(lambda self: False))
    original = spread._slice

    def sliced(x, *rest):
        piece = original(x, *rest)
        sizes.append(piece.nbytes)
        return piece

    monkeypatch.setattr(spread, "_slice", sliced)
    np.testing.assert_array_equal(gather(array, at_once=at_once), VALUES)
    row = {(None, "fsdp"): 96, ("fsdp",): 48, ("fsdp", "data", None): 128}[spec]
    assert max(sizes) <= max(at_once, row)
    assert sum(sizes) == VALUES.nbytes
