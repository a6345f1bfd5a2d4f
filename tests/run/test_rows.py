import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxlean.config import MeshSection
from jaxlean.run.rows import OwnRows
from jaxlean.xla.mesh import batch_sharding, make_mesh

WHOLE = {"tokens": np.arange(16 * 3).reshape(16, 3)}


@pytest.mark.parametrize("microbatches", [None, 1, 2])
def test_a_process_alone_holds_every_row(microbatches):
    mesh = make_mesh(MeshSection(fsdp=4))
    rows = OwnRows(mesh, 16, microbatches)
    assert rows.held is None
    found = rows.on_devices(WHOLE)["tokens"]
    lead = () if microbatches is None else (microbatches,)
    np.testing.assert_array_equal(found, WHOLE["tokens"].reshape(*lead, -1, 3))
    assert found.sharding == batch_sharding(mesh, leading=len(lead))


class Half:
    """The sharding as a process sees it that has these devices of the mesh."""

    def __init__(self, sharding, devices):
        self._sharding, self._devices = sharding, devices
        self.is_fully_addressable = False

    def addressable_devices_indices_map(self, shape):
        found = self._sharding.devices_indices_map(shape)
        return {device: found[device] for device in self._devices}


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 2, "tensor": 4}, {"tensor": 8}])
@pytest.mark.parametrize("microbatches", [None, 1, 2])
def test_two_processes_put_the_batch_that_one_would(axes, microbatches, monkeypatch):
    mesh: Mesh = make_mesh(MeshSection(**axes))
    whole = OwnRows(mesh, 16, microbatches).on_devices(WHOLE)["tokens"]
    put = {}
    for devices in (jax.devices()[:4], jax.devices()[4:]):
        with monkeypatch.context() as patched:
            patched.setattr(
                "jaxlean.run.rows.batch_sharding",
                lambda *a, devices=devices, **k: Half(batch_sharding(*a, **k), devices),
            )
            patched.setattr(
                jax, "make_array_from_callback",
                lambda shape, half, part: {
                    device: part(index) for device, index in half.addressable_devices_indices_map(shape).items()
                },
            )  # fmt: skip
            rows = OwnRows(mesh, 16, microbatches)
            held = {name: value if rows.held is None else value[rows.held] for name, value in WHOLE.items()}
            put |= rows.on_devices(held)["tokens"]
    split = mesh.shape["data"] * mesh.shape["fsdp"] > 1
    assert (rows.held is None) == (not split), "each holds half of the rows, where rows are split"
    for shard in whole.addressable_shards:
        np.testing.assert_array_equal(put[shard.device], shard.data)
